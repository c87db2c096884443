/*
 * A library to preload into the daemon (LD_PRELOAD): what it does in one folder fails as a test wants.
 *
 * MAMBA2D_FAULT_DIR names the folder, MAMBA2D_FAULT_PLAN a file with a struct plan that the test has mapped as well: it
 * says which calls are counted and which of these fail, and it learns how many there were and what.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NEXT(call) ((__typeof__(&call))dlsym(RTLD_NEXT, #call))

struct plan {
	char counted[16];     /* letters of the calls that count, as they stand below; written by the test */
	uint32_t first, n;    /* of these, n from the first on fail */
	_Atomic int32_t error; /* with this errno; 0: writes are short, all else is well; -1: they wait while it is so */
	atomic_uint calls;    /* so far */
	char letters[4096];   /* of the calls, in order */
};

static struct plan *plan;
static char folder[4096];

__attribute__((constructor)) static void begin(void)
{
	const char *dir = getenv("MAMBA2D_FAULT_DIR"), *path = getenv("MAMBA2D_FAULT_PLAN");
	int fd = dir && path ? NEXT(open)(path, O_RDWR | O_CLOEXEC) : -1;

	if (fd < 0 || !realpath(dir, folder) ||
	    (plan = mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
		perror("faultfs");
		_exit(2);
	}
	NEXT(close)(fd);
}

/* Is fd the folder, or a file in it? */
static int is_ours(int fd)
{
	char link[64], path[4096];
	size_t length = strlen(folder);
	ssize_t n;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof path);
	return n >= (ssize_t)length && !memcmp(path, folder, length) && (n == (ssize_t)length || path[length] == '/');
}

/* Count a call on fd.  Is it one that is to fail? */
static int fails(int fd, char letter)
{
	unsigned number;
	int error = errno;

	if (!is_ours(fd) || !memchr(plan->counted, letter, sizeof plan->counted)) {
		errno = error;
		return 0;
	}
	number = atomic_fetch_add(&plan->calls, 1);
	if (number < sizeof plan->letters)
		plan->letters[number] = letter;
	if (number < plan->first || number - plan->first >= plan->n)
		return 0;
	if (plan->error < 0) {
		while (plan->error < 0)
			usleep(1000);
		return 0;
	}
	errno = plan->error ? plan->error : error;
	return 1;
}

int openat(int dir, const char *name, int flags, ...)
{
	va_list arguments;
	mode_t mode;

	va_start(arguments, flags);
	mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	return fails(dir, 'o') && plan->error ? -1 : NEXT(openat)(dir, name, flags, mode);
}

ssize_t write(int fd, const void *bytes, size_t size)
{
	if (!fails(fd, 'w'))
		return NEXT(write)(fd, bytes, size);
	return plan->error ? -1 : NEXT(write)(fd, bytes, (size + 1) / 2);
}

ssize_t read(int fd, void *bytes, size_t size)
{
	return fails(fd, 'r') && plan->error ? -1 : NEXT(read)(fd, bytes, size);
}

/* What read becomes where the compiler adds checks. */
ssize_t __read_chk(int fd, void *bytes, size_t size, size_t room)
{
	return size > room ? (abort(), -1) : read(fd, bytes, size);
}

int fdatasync(int fd)
{
	return fails(fd, 'd') && plan->error ? -1 : NEXT(fdatasync)(fd);
}

int fsync(int fd)
{
	return fails(fd, 's') && plan->error ? -1 : NEXT(fsync)(fd);
}

int close(int fd)
{
	int failed = fails(fd, 'c') && plan->error; /* it is closed all the same */
	int rc = NEXT(close)(fd);

	errno = failed ? plan->error : errno;
	return failed ? -1 : rc;
}

int renameat(int from, const char *old, int to, const char *new)
{
	return fails(from, 'n') && plan->error ? -1 : NEXT(renameat)(from, old, to, new);
}

int unlinkat(int dir, const char *name, int flags)
{
	return fails(dir, 'u') && plan->error ? -1 : NEXT(unlinkat)(dir, name, flags);
}

struct dirent *readdir(DIR *dir)
{
	return fails(dirfd(dir), 'l') && plan->error ? NULL : NEXT(readdir)(dir);
}
