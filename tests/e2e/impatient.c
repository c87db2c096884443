/* A library to preload into a program (LD_PRELOAD): what it waits for with zmq_poll has a hundredth of the time. */
#define _GNU_SOURCE
#include <dlfcn.h>

int zmq_poll(void *items, int n, long timeout_ms)
{
	static int (*next)(void *, int, long);

	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "zmq_poll");
	return next(items, n, timeout_ms > 0 ? (timeout_ms + 99) / 100 : timeout_ms);
}
