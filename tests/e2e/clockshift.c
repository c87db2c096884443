/*
 * A library to preload into the daemon (LD_PRELOAD): its wall clock jumps as a test wants, CLOCK_MONOTONIC goes on.
 *
 * MAMBA2D_CLOCK names a file with a struct plan that the test has mapped as well: how far the clock is off.  What waits
 * until a time of the wall clock is not moved: the kernel does that, and nothing here does it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct plan {
	_Atomic int64_t seconds;   /* added to the wall clock; written by the test */
	_Atomic uint64_t readings; /* so far */
};

static struct plan *plan;
static int (*true_time)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("MAMBA2D_CLOCK");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;

	true_time = (__typeof__(true_time))dlsym(RTLD_NEXT, "clock_gettime");
	if (fd < 0 || (plan = mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
		perror("clockshift");
		_exit(2);
	}
	close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int rc;

	if (!plan) /* another library's constructor came first */
		true_time = (__typeof__(true_time))dlsym(RTLD_NEXT, "clock_gettime");
	rc = true_time(clock, now);
	if (rc || !plan || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE && clock != CLOCK_TAI))
		return rc;
	atomic_fetch_add(&plan->readings, 1);
	now->tv_sec += atomic_load(&plan->seconds);
	return 0;
}

time_t time(time_t *ret)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (ret)
		*ret = now.tv_sec;
	return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec exact;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &exact);
	*now = (struct timeval){ .tv_sec = exact.tv_sec, .tv_usec = exact.tv_nsec / 1000 };
	return 0;
}

int timespec_get(struct timespec *now, int base)
{
	return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}
