/* See fake_endpoint.h. */
#include "tests/fake_endpoint.h"

#include <assert.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/subscribers.h"

#define KINDS (ENDPOINT_ZAP + 1)
#define IDLE_NS 100000 /* how long the daemon's threads are given before more happens */

struct queued {
	struct queued *next;
	size_t n;
	size_t size[ENDPOINT_FRAMES_MAX];
	unsigned char data[]; /* the frames, one after another */
};

struct endpoint {
	enum endpoint_kind kind;
};

struct endpoint_context {
	int none;
};

struct fake_world fake_world;
static struct { struct queued *first, **last; } queues[KINDS];

void fake_send(enum endpoint_kind kind, const struct fake_frame *frames, size_t n)
{
	size_t bytes = 0, at = 0;
	struct queued *queued;

	for (size_t i = 0; i < n; i++)
		bytes += frames[i].size;
	queued = malloc(sizeof *queued + bytes);
	if (!queued)
		abort();
	queued->next = NULL;
	queued->n = n;
	for (size_t i = 0; i < n; at += frames[i++].size) {
		queued->size[i] = frames[i].size;
		if (frames[i].size)
			memcpy(queued->data + at, frames[i].data, frames[i].size);
	}
	if (!queues[kind].first)
		queues[kind].last = &queues[kind].first;
	*queues[kind].last = queued;
	queues[kind].last = &queued->next;
}

static struct queued *pop(enum endpoint_kind kind)
{
	struct queued *queued = queues[kind].first;

	if (queued) {
		queues[kind].first = queued->next;
		if (!queued->next)
			queues[kind].last = &queues[kind].first;
	}
	return queued;
}

void fake_forget(enum endpoint_kind kind)
{
	struct queued *queued;

	while ((queued = pop(kind)))
		free(queued);
}

/* --- protocol/endpoint.h --- */

int endpoint_context_new(int io_threads, struct endpoint_context **ret_context, struct error *err)
{
	(void)io_threads;
	*ret_context = calloc(1, sizeof **ret_context);
	return *ret_context ? 0 : error_memory(err, "context");
}

void endpoint_context_free(struct endpoint_context *context)
{
	free(context);
}

int endpoint_new(struct endpoint_context *context, enum endpoint_kind kind, const struct endpoint_options *options,
		 struct endpoint **ret_endpoint, struct error *err)
{
	(void)context;
	(void)options;
	*ret_endpoint = calloc(1, sizeof **ret_endpoint);
	if (!*ret_endpoint)
		return error_memory(err, "endpoint");
	(*ret_endpoint)->kind = kind;
	return 0;
}

void endpoint_free(struct endpoint *endpoint, int linger_ms)
{
	(void)linger_ms;
	free(endpoint);
}

struct connections *endpoint_connections(struct endpoint *endpoint)
{
	(void)endpoint;
	return NULL;
}

struct subscribers *endpoint_subscribers(struct endpoint *endpoint)
{
	(void)endpoint;
	return NULL;
}

int endpoint_attach(struct endpoint *endpoint, const char *address, struct error *err)
{
	(void)endpoint;
	(void)address;
	(void)err;
	return 0;
}

const char *endpoint_address(const struct endpoint *endpoint)
{
	(void)endpoint;
	return "nowhere";
}

int endpoint_message_init(struct endpoint_message *message, struct error *err)
{
	(void)err;
	*message = (struct endpoint_message){ .user = ENDPOINT_ANYBODY };
	return 0;
}

void endpoint_message_clear(struct endpoint_message *message)
{
	free(message->storage);
	message->storage = NULL;
}

int endpoint_receive(struct endpoint *endpoint, struct endpoint_message *message, struct error *err)
{
	struct queued *queued = pop(endpoint->kind);
	size_t at = 0;

	(void)err;
	endpoint_message_clear(message);
	if (!queued)
		return 0;
	message->storage = (struct endpoint_storage *)(void *)queued;
	message->n_frames = queued->n;
	for (size_t i = 0; i < queued->n; at += queued->size[i++]) {
		message->frame[i].data = queued->data + at;
		message->frame[i].size = queued->size[i];
	}
	return 1;
}

void endpoint_cut(struct endpoint *endpoint, const struct endpoint_message *message)
{
	(void)endpoint;
	(void)message;
}

int endpoint_send(struct endpoint *endpoint, const struct endpoint_frame *frames, size_t n_frames,
		  enum endpoint_sent *ret_sent, struct error *err)
{
	if (!fake_world.broken)
		*ret_sent = fake_world.take(endpoint->kind, frames, n_frames);
	for (size_t i = 0; i < n_frames; i++)
		if (frames[i].release)
			frames[i].release((void *)(uintptr_t)frames[i].data, frames[i].arg);
	return fake_world.broken ? error_set(err, ERR_SYSTEM, "the socket is broken") : 0;
}

static bool look(struct endpoint *const *endpoints, const bool *wanted, bool *ready, size_t n)
{
	bool any = false;

	for (size_t i = 0; i < n; i++) {
		ready[i] = wanted[i] && queues[endpoints[i]->kind].first;
		any |= ready[i];
	}
	return any;
}

int endpoint_poll(struct endpoint *const *endpoints, const bool *wanted, bool *ready, size_t n_endpoints,
		  const int *fds, bool *fd_ready, size_t n_fds, int timeout_ms, struct error *err)
{
	struct pollfd items[8];
	bool any;

	(void)err;
	assert(n_fds <= sizeof items / sizeof *items);
	for (size_t i = 0; i < n_fds; i++)
		items[i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
	any = look(endpoints, wanted, ready, n_endpoints) || poll(items, n_fds, 0) > 0;
	if (!any) {
		fake_world.idle(timeout_ms);
		any = look(endpoints, wanted, ready, n_endpoints);
	}
	ppoll(items, n_fds, &(struct timespec){ .tv_nsec = any || timeout_ms == 0 ? 0 : IDLE_NS }, NULL);
	for (size_t i = 0; i < n_fds; i++)
		fd_ready[i] = items[i].revents != 0;
	return 0;
}
