/*
 * epoll_wait() and epoll_ctl() for the whole program, in the place of the C library's: libzmq is not told of
 * connections that hang up.  Other libraries notice no difference.
 *
 * Told, libzmq 4.3 reads at once, even where it has just stopped reading because a queue is full: it gives up the
 * descriptor, and ends the process when it later answers a PING among what it had read before.  Not told, it comes
 * to know in good time: where it asks to read or to write Linux says that it can, and where for neither it will later.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <zmq.h>

#define HANG_UP ((uint32_t)(EPOLLERR | EPOLLHUP))

static bool zmq_calls(const void *from)
{
	Dl_info code, zmq;

	return dladdr(from, &code) && dladdr((void *)(uintptr_t)zmq_ctx_new, &zmq) && code.dli_fbase == zmq.dli_fbase;
}

int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)
{
	int n = epoll_pwait(epfd, events, maxevents, timeout, NULL);

	for (int i = 0; i < n; i++)
		if (events[i].events & HANG_UP && zmq_calls(__builtin_return_address(0)))
			events[i].events &= ~HANG_UP;
	return n;
}

/* A hang-up that nobody waits for is told once (EPOLLET), or epoll_wait() would return again and again. */
int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	struct epoll_event once;

	if (op != EPOLL_CTL_DEL && !(event->events & (EPOLLIN | EPOLLOUT)) && zmq_calls(__builtin_return_address(0))) {
		once = *event;
		once.events |= EPOLLET;
		event = &once;
	}
	return (int)syscall(SYS_epoll_ctl, epfd, op, fd, event);
}
