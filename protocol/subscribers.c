/*
 * Subscribers under watch: see subscribers.h.  A monitor tells which file descriptors are connections, and since when.
 * Events are sent before what follows from them, so whoever is told the time at its handshake was connected by then,
 * and a message of a file descriptor that was connected later is a dead connection's.
 */
#include "protocol/subscribers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <zmq.h>

#include "protocol/endpoint.h"
#include "protocol/zap.h"

#define DESCRIPTORS_MAX (1 << 20)

struct connection {
	uint64_t since; /* by the clock */
	bool there;
	unsigned int user; /* that has subscribed */
};

struct subscribers {
	void *socket, *events;
	uint64_t clock; /* connections so far */
	struct connection *connection; /* [n], by file descriptor */
	size_t n;
	bool in_doubt;  /* which sender the socket means: until all that waits is received */
	zmq_msg_t message;
};

static int failed(struct error *err)
{
	return error_set(err, ERR_SYSTEM, "subscribers: %s", zmq_strerror(errno));
}

int subscribers_new(void *context, void *socket, struct subscribers **ret_subscribers, struct error *err)
{
	static const int manual = 1, unlimited = 0;
	struct subscribers *subscribers = calloc(1, sizeof *subscribers);
	char address[64];
	int status;

	if (!subscribers)
		return error_memory(err, "subscribers");
	snprintf(address, sizeof address, "inproc://subscribers-%p", socket);
	subscribers->socket = socket;
	zmq_msg_init(&subscribers->message);
	if (zmq_setsockopt(socket, ZMQ_XPUB_MANUAL, &manual, sizeof manual) == 0
	    && zmq_socket_monitor(socket, address,
				  ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_CONNECTED | ZMQ_EVENT_DISCONNECTED) == 0
	    && (subscribers->events = zmq_socket(context, ZMQ_PAIR)) != NULL
	    && zmq_setsockopt(subscribers->events, ZMQ_RCVHWM, &unlimited, sizeof unlimited) == 0
	    && zmq_connect(subscribers->events, address) == 0) {
		*ret_subscribers = subscribers;
		return 0;
	}
	status = failed(err);
	subscribers_free(subscribers);
	return status;
}

void subscribers_free(struct subscribers *subscribers)
{
	if (!subscribers)
		return;
	zmq_socket_monitor(subscribers->socket, NULL, 0);
	if (subscribers->events)
		zmq_close(subscribers->events);
	zmq_msg_close(&subscribers->message);
	free(subscribers->connection);
	free(subscribers);
}

/* --- connections --- */

/* Make room for a file descriptor.  Without memory its connection is not known, and gets nothing. */
static bool make_room(struct subscribers *subscribers, size_t fd)
{
	size_t n = subscribers->n ? subscribers->n : 64;
	struct connection *grown;

	if (fd < subscribers->n)
		return true;
	if (fd >= DESCRIPTORS_MAX)
		return false;
	while (n <= fd)
		n *= 2;
	grown = realloc(subscribers->connection, n * sizeof *grown);
	if (!grown)
		return false;
	memset(grown + subscribers->n, 0, (n - subscribers->n) * sizeof *grown);
	subscribers->connection = grown;
	subscribers->n = n;
	return true;
}

/* An event: 16 bits of what, 32 of which file descriptor; the frame behind it, an address, does not matter. */
static void note_event(struct subscribers *subscribers, const unsigned char bytes[6])
{
	uint16_t event;
	uint32_t fd;

	memcpy(&event, bytes, sizeof event);
	memcpy(&fd, bytes + sizeof event, sizeof fd);
	if (!make_room(subscribers, fd))
		return;
	if (event == ZMQ_EVENT_DISCONNECTED)
		subscribers->connection[fd].there = false;
	else
		subscribers->connection[fd] = (struct connection){ .since = ++subscribers->clock, .there = true };
}

static void catch_up(struct subscribers *subscribers)
{
	unsigned char bytes[6];
	int size;

	while ((size = zmq_recv(subscribers->events, bytes, sizeof bytes, ZMQ_DONTWAIT)) >= 0 || errno == EINTR) {
		int more = 0;
		size_t more_size = sizeof more;

		zmq_getsockopt(subscribers->events, ZMQ_RCVMORE, &more, &more_size);
		if (size == sizeof bytes && more)
			note_event(subscribers, bytes);
	}
}

uint64_t subscribers_time(struct subscribers *subscribers)
{
	catch_up(subscribers);
	return subscribers->clock;
}

static void cut(const struct subscribers *subscribers, size_t fd)
{
	if (fd < subscribers->n && subscribers->connection[fd].there)
		shutdown((int)fd, SHUT_RDWR);
}

void subscribers_cut(struct subscribers *subscribers, unsigned int user)
{
	catch_up(subscribers);
	for (size_t fd = 0; fd < subscribers->n; fd++)
		if (subscribers->connection[fd].user == user)
			cut(subscribers, fd);
}

/* --- subscriptions --- */

/* Is the message a subscription of somebody who is certainly there, and the one whom the socket means? */
static bool judge(struct subscribers *subscribers, struct subscription *subscription)
{
	const unsigned char *bytes = zmq_msg_data(&subscribers->message);
	const size_t size = zmq_msg_size(&subscribers->message);
	const char *id = zmq_msg_gets(&subscribers->message, "User-Id");
	const int fd = zmq_msg_get(&subscribers->message, ZMQ_SRCFD);
	const bool asks = size > 0 && bytes[0] <= 1 && !zmq_msg_more(&subscribers->message);
	uint64_t time;

	subscribers->in_doubt |= !asks;
	if (!id || !zap_read_user(id, &subscription->user, &time))
		return false; /* ZeroMQ's own message that a connection is gone, which takes back what it had */
	catch_up(subscribers);
	if (subscribers->in_doubt || fd < 0 || (size_t)fd >= subscribers->n || !subscribers->connection[fd].there
	    || subscribers->connection[fd].since > time) {
		cut(subscribers, (size_t)fd);
		return false;
	}
	subscribers->connection[fd].user = subscription->user;
	subscription->add = bytes[0] == 1;
	subscription->prefix = bytes + 1;
	subscription->size = size - 1;
	return true;
}

int subscribers_next(struct subscribers *subscribers, struct subscription *ret_subscription, struct error *err)
{
	struct subscription subscription;

	for (;;) {
		if (zmq_msg_recv(&subscribers->message, subscribers->socket, ZMQ_DONTWAIT) < 0) {
			if (errno == EINTR)
				continue;
			if (errno != EAGAIN)
				return failed(err);
			subscribers->in_doubt = false;
			catch_up(subscribers);
			return 0;
		}
		if (judge(subscribers, &subscription)) {
			*ret_subscription = subscription;
			return 1;
		}
	}
}

static int set(struct subscribers *subscribers, int option, const void *prefix, size_t size, struct error *err)
{
	return zmq_setsockopt(subscribers->socket, option, prefix, size) == 0 ? 0 : failed(err);
}

int subscribers_grant(struct subscribers *subscribers, const void *prefix, size_t size, struct error *err)
{
	return set(subscribers, ZMQ_SUBSCRIBE, prefix, size, err);
}

int subscribers_withdraw(struct subscribers *subscribers, const void *prefix, size_t size, struct error *err)
{
	return set(subscribers, ZMQ_UNSUBSCRIBE, prefix, size, err);
}
