/*
 * Subscribers whose subscriptions are granted: see subscribers.h.
 */
#include "protocol/subscribers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <zmq.h>

#include "protocol/zap.h"

struct subscribers {
	void *socket;
	struct connections *connections;
	bool in_doubt; /* which sender the socket means: until all that waits is received */
	zmq_msg_t message;
};

static int failed(struct error *err)
{
	return error_set(err, ERR_SYSTEM, "subscribers: %s", zmq_strerror(errno));
}

int subscribers_new(void *socket, struct connections *connections, struct subscribers **ret_subscribers,
		    struct error *err)
{
	static const int manual = 1;
	struct subscribers *subscribers = calloc(1, sizeof *subscribers);

	if (!subscribers)
		return error_memory(err, "subscribers");
	subscribers->socket = socket;
	subscribers->connections = connections;
	zmq_msg_init(&subscribers->message);
	if (zmq_setsockopt(socket, ZMQ_XPUB_MANUAL, &manual, sizeof manual) != 0) {
		subscribers_free(subscribers);
		return failed(err);
	}
	*ret_subscribers = subscribers;
	return 0;
}

void subscribers_free(struct subscribers *subscribers)
{
	if (!subscribers)
		return;
	zmq_msg_close(&subscribers->message);
	free(subscribers);
}

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
	if (!connections_there(subscribers->connections, fd, time) || subscribers->in_doubt) {
		connections_cut_next(subscribers->connections, fd);
		return false;
	}
	connections_note(subscribers->connections, fd, subscription->user);
	subscription->add = bytes[0] == 1;
	subscription->prefix = bytes + 1;
	subscription->size = size - 1;
	return true;
}

int subscribers_next(struct subscribers *subscribers, struct subscription *ret_subscription, struct error *err)
{
	struct subscription subscription;
	int size;

	do {
		do
			size = zmq_msg_recv(&subscribers->message, subscribers->socket, ZMQ_DONTWAIT);
		while (size < 0 && errno == EINTR);
		if (size < 0 && errno != EAGAIN)
			return failed(err);
		if (size < 0) {
			subscribers->in_doubt = false;
			return 0;
		}
	} while (!judge(subscribers, &subscription));
	*ret_subscription = subscription;
	return 1;
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
