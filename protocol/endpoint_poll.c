/*
 * Waiting for sockets and file descriptors.  Not by zmq_poll, which asks all sockets before and after it waits, at two
 * system calls each, whether there is news of them or not.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <time.h>

#include <zmq.h>

#include "protocol/endpoint_private.h"

#define POLL_MAX 16 /* endpoints and descriptors */

/* Can something be received?  ZeroMQ is asked where it may have said so already. */
static int look(struct endpoint *endpoint, bool *ret_ready, struct error *err)
{
	size_t size = sizeof(int);
	int events = 0;

	if (!endpoint->settled && zmq_getsockopt(endpoint->socket, ZMQ_EVENTS, &events, &size) != 0)
		return endpoint_failed(err, endpoint->address);
	*ret_ready = events & ZMQ_POLLIN;
	endpoint->settled = !*ret_ready && !endpoint->subscribers; /* whose socket is read elsewhere */
	return 0;
}

static int look_at_all(struct endpoint *const *endpoints, const bool *wanted, bool *ready, size_t n, bool *ret_any,
		       struct error *err)
{
	*ret_any = false;
	for (size_t i = 0; i < n; i++) {
		ready[i] = false;
		if (wanted[i] && look(endpoints[i], &ready[i], err) != 0)
			return err->code;
		*ret_any |= ready[i];
	}
	return 0;
}

static int64_t clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Wait for a descriptor, until end_ms; returns how many there are, or negative with errno. */
static int wait_until(struct pollfd *items, size_t n, int64_t end_ms)
{
	const int64_t left = end_ms == INT64_MAX ? -1 : end_ms == 0 ? 0 : end_ms - clock_ms();

	return poll(items, n, left < 0 && end_ms != INT64_MAX ? 0 : (int)left);
}

/* Note of which endpoints there is news; true if there is of some, and nothing else is ready. */
static bool only_news(struct endpoint *const *endpoints, const struct pollfd *items, size_t n, int n_ready)
{
	int n_news = 0;

	for (size_t i = 0; i < n && n_ready > 0; i++) {
		endpoints[i]->settled &= items[i].revents == 0;
		n_news += items[i].revents != 0;
	}
	return n_news > 0 && n_news == n_ready;
}

int endpoint_poll(struct endpoint *const *endpoints, const bool *wanted, bool *ready, size_t n_endpoints,
		  const int *fds, bool *fd_ready, size_t n_fds, int timeout_ms, struct error *err)
{
	const int64_t end_ms = timeout_ms < 0 ? INT64_MAX : timeout_ms == 0 ? 0 : clock_ms() + timeout_ms;
	struct pollfd items[POLL_MAX]; /* a descriptor below 0 never can be read */
	bool any, news = false;
	int n_ready = 0;

	assert(n_endpoints + n_fds <= POLL_MAX);
	for (size_t i = 0; i < n_endpoints; i++)
		items[i] = (struct pollfd){ .fd = wanted[i] ? endpoints[i]->fd : -1, .events = POLLIN };
	for (size_t i = 0; i < n_fds; i++)
		items[n_endpoints + i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
	do { /* news may be of something else than a message */
		if (look_at_all(endpoints, wanted, ready, n_endpoints, &any, err) != 0)
			return err->code;
		if (any && news)
			break;
		n_ready = wait_until(items, n_endpoints + n_fds, any ? 0 : end_ms);
		if (n_ready < 0 && errno != EINTR)
			return error_system(err, "waiting for messages");
		news = only_news(endpoints, items, n_endpoints, n_ready);
	} while (!any && news);
	for (size_t i = 0; i < n_fds; i++)
		fd_ready[i] = n_ready > 0 && items[n_endpoints + i].revents != 0;
	return 0;
}
