/*
 * A library to preload into the programs (LD_PRELOAD): each place from which they call what can fail, such as malloc,
 * is a site, known by where in the program it is; at one of them one call fails, such as the first.
 *
 * MAMBA2D_FAULT_SITES names a file with a struct plan that the test has mapped as well.  Calls that libraries make by
 * themselves are let through: how ZeroMQ lives without memory is not ours to test; nor is what a library that is linked
 * into the program, such as CUDA's, does before main.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SITES_MAX 4096

extern void *__libc_malloc(size_t size), *__libc_calloc(size_t n, size_t size), *__libc_realloc(void *old, size_t size);

struct plan {
	uint32_t site, nth;   /* that call, from 1 on, of that site fails; site 0: none; written by the test */
	uint32_t n;           /* sites so far, of all processes */
	char call[32];        /* that failed */
	uint32_t sites[SITES_MAX]; /* [n] bytes into the program's code */
};

static struct plan *plan;
static uintptr_t begin, end;         /* of the program's own code */
static uint32_t calls[SITES_MAX];    /* of each site so far */
static atomic_flag locked = ATOMIC_FLAG_INIT;
static atomic_bool within;           /* main: what a coverage build still does behind it is no site either */

/* The program itself comes first. */
static int find_program(struct dl_phdr_info *info, size_t size, void *arg)
{
	(void)size;
	(void)arg;
	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
			begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
			end = begin + info->dlpi_phdr[i].p_memsz;
		}
	return 1;
}

__attribute__((constructor)) static void prepare(void)
{
	const char *path = getenv("MAMBA2D_FAULT_SITES");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	struct plan *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (mapped == MAP_FAILED) {
		perror("faultcalls");
		_exit(2);
	}
	close(fd);
	dl_iterate_phdr(find_program, NULL);
	plan = mapped;
}

static void finish(void)
{
	within = false;
}

typedef int main_function(int argc, char **argv, char **environment);
typedef void hook(void);

static main_function *program;

static int begin_program(int argc, char **argv, char **environment)
{
	atexit(finish);
	within = true;
	return program(argc, argv, environment);
}

/* What the C library starts a program with. */
int __libc_start_main(main_function *main, int argc, char **argv, hook *init, hook *fini, hook *rtld_fini, void *stack_end)
{
	int (*next)(main_function *, int, char **, hook *, hook *, hook *, void *);

	*(void **)&next = dlsym(RTLD_NEXT, "__libc_start_main");
	program = main;
	return next(begin_program, argc, argv, init, fini, rtld_fini, stack_end);
}

/* Is this the call that fails? */
static bool fails(const void *from, const char *call)
{
	const uintptr_t at = (uintptr_t)from;
	uint32_t site, i = 0;
	bool failed;

	if (!plan || !within || at < begin || at >= end)
		return false;
	site = (uint32_t)(at - begin);
	while (atomic_flag_test_and_set(&locked))
		;
	while (i < plan->n && plan->sites[i] != site)
		i++;
	if (i == SITES_MAX)
		abort();
	if (i == plan->n)
		plan->sites[plan->n++] = site;
	failed = ++calls[i] == plan->nth && site == plan->site;
	atomic_flag_clear(&locked);
	if (failed)
		strncpy(plan->call, call, sizeof plan->call - 1);
	return failed;
}

/* A function that fails by returning `failure` and setting errno. */
#define FAILING(type, name, parameters, arguments, failure, error) \
	type name parameters \
	{ \
		static type (*next) parameters; \
		if (fails(__builtin_return_address(0), #name)) { \
			errno = (error); \
			return failure; \
		} \
		if (!next) \
			*(void **)&next = dlsym(RTLD_NEXT, #name); \
		return next arguments; \
	}

/* --- memory --- */

void *malloc(size_t size)
{
	return fails(__builtin_return_address(0), "malloc") ? (errno = ENOMEM, NULL) : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
	return fails(__builtin_return_address(0), "calloc") ? (errno = ENOMEM, NULL) : __libc_calloc(n, size);
}

void *realloc(void *old, size_t size)
{
	return fails(__builtin_return_address(0), "realloc") ? (errno = ENOMEM, NULL) : __libc_realloc(old, size);
}

FAILING(char *, strdup, (const char *text), (text), NULL, ENOMEM)
FAILING(void *, aligned_alloc, (size_t alignment, size_t size), (alignment, size), NULL, ENOMEM)
FAILING(FILE *, open_memstream, (char **text, size_t *size), (text, size), NULL, ENOMEM)
FAILING(void *, mmap, (void *at, size_t size, int protection, int flags, int fd, off_t offset),
	(at, size, protection, flags, fd, offset), MAP_FAILED, ENOMEM)

/* --- files and descriptors --- */

int open(const char *name, int flags, ...)
{
	static int (*next)(const char *, int, ...);
	va_list arguments;
	mode_t mode;

	if (fails(__builtin_return_address(0), "open"))
		return errno = EMFILE, -1;
	va_start(arguments, flags);
	mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "open");
	return next(name, flags, mode);
}

int openat(int folder, const char *name, int flags, ...)
{
	static int (*next)(int, const char *, int, ...);
	va_list arguments;
	mode_t mode;

	if (fails(__builtin_return_address(0), "openat"))
		return errno = EMFILE, -1;
	va_start(arguments, flags);
	mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "openat");
	return next(folder, name, flags, mode);
}

FAILING(FILE *, fopen, (const char *name, const char *mode), (name, mode), NULL, EMFILE)
FAILING(FILE *, fdopen, (int fd, const char *mode), (fd, mode), NULL, ENOMEM)
FAILING(int, fclose, (FILE *file), (file), EOF, ENOSPC)
FAILING(int, fflush, (FILE *file), (file), EOF, ENOSPC)
FAILING(size_t, fwrite, (const void *data, size_t size, size_t n, FILE *file), (data, size, n, file), 0, ENOSPC)
FAILING(int, ferror, (FILE *file), (file), 1, EIO)
FAILING(int, poll, (void *items, unsigned long n, int timeout), (items, n, timeout), -1, ENOMEM)
FAILING(int, fstat, (int fd, struct stat *status), (fd, status), -1, EIO)
FAILING(int, fsync, (int fd), (fd), -1, EIO)
FAILING(int, fchmod, (int fd, mode_t mode), (fd, mode), -1, EPERM)
FAILING(int, mkdir, (const char *name, mode_t mode), (name, mode), -1, EACCES)
FAILING(int, rename, (const char *old, const char *new), (old, new), -1, EIO)
FAILING(int, flock, (int fd, int operation), (fd, operation), -1, ENOLCK)
FAILING(int, dup, (int fd), (fd), -1, EMFILE)
FAILING(void *, fdopendir, (int fd), (fd), NULL, ENOMEM)
FAILING(int, eventfd, (unsigned value, int flags), (value, flags), -1, EMFILE)
FAILING(int, signalfd, (int fd, const void *set, int flags), (fd, set, flags), -1, EMFILE)
FAILING(int, socket, (int domain, int type, int protocol), (domain, type, protocol), -1, EMFILE)
FAILING(int, listen, (int fd, int backlog), (fd, backlog), -1, EADDRINUSE)
FAILING(ssize_t, getrandom, (void *data, size_t size, unsigned flags), (data, size, flags), -1, ENOSYS)
FAILING(int, setrlimit, (int resource, const void *limit), (resource, limit), -1, EPERM)
FAILING(int, sigprocmask, (int how, const void *set, void *old), (how, set, old), -1, EINVAL)
FAILING(int, pthread_create, (void *thread, const void *attributes, void *(*run)(void *), void *arg),
	(thread, attributes, run, arg), EAGAIN, 0)
FAILING(int, getaddrinfo, (const char *host, const char *port, const void *hints, void *list),
	(host, port, hints, list), -10 /* EAI_MEMORY */, 0)

/* --- libraries --- */

FAILING(void *, XXH3_createState, (void), (), NULL, ENOMEM)
FAILING(int, yaml_parser_initialize, (void *parser), (parser), 0, ENOMEM)
FAILING(void *, MHD_create_response_from_buffer, (size_t size, void *buffer, int mode), (size, buffer, mode), NULL,
	ENOMEM)
FAILING(void *, zmq_ctx_new, (void), (), NULL, EMFILE)
FAILING(int, zmq_ctx_set, (void *context, int option, int value), (context, option, value), -1, EINVAL)
FAILING(void *, zmq_socket, (void *context, int type), (context, type), NULL, EMFILE)
FAILING(int, zmq_setsockopt, (void *socket, int option, const void *value, size_t size), (socket, option, value, size),
	-1, EINVAL)
FAILING(int, zmq_getsockopt, (void *socket, int option, void *value, size_t *size), (socket, option, value, size), -1,
	EINVAL)
FAILING(int, zmq_connect, (void *socket, const char *address), (socket, address), -1, EMFILE)
FAILING(int, zmq_bind, (void *socket, const char *address), (socket, address), -1, EADDRINUSE)
FAILING(int, zmq_socket_monitor, (void *socket, const char *address, int events), (socket, address, events), -1,
	EMFILE)
FAILING(int, zmq_poll, (void *items, int n, long timeout), (items, n, timeout), -1, EFAULT)
FAILING(int, zmq_msg_init_size, (void *msg, size_t size), (msg, size), -1, ENOMEM)
FAILING(int, zmq_msg_init_data, (void *msg, void *data, size_t size, void *release, void *hint),
	(msg, data, size, release, hint), -1, ENOMEM)
FAILING(int, zmq_msg_send, (void *msg, void *socket, int flags), (msg, socket, flags), -1, ENOTSOCK)
FAILING(int, zmq_msg_recv, (void *msg, void *socket, int flags), (msg, socket, flags), -1, ENOTSOCK)
FAILING(int, zmq_send, (void *socket, const void *data, size_t size, int flags), (socket, data, size, flags), -1,
	ENOTSOCK)
FAILING(int, zmq_curve_keypair, (char *public_key, char *secret_key), (public_key, secret_key), -1, ENOTSUP)
FAILING(int, zmq_curve_public, (char *public_key, const char *secret_key), (public_key, secret_key), -1, ENOTSUP)
