/*
 * The subscribers of an XPUB socket with keys: what they ask for waits here until it is granted.
 *
 * ZeroMQ has a manual mode for that, in which a subscription is granted to the sender of the message received last.
 * Up to 4.3.4 it remembers that sender by a pointer, also when the connection is gone; and a message that is no
 * subscription puts the senders of those behind it out of step.  So only a subscription whose sender is certainly there
 * (connections.h) and certainly the one comes out; in doubt the connection is cut, which makes the subscriber connect
 * and ask again.
 */
#ifndef PROTOCOL_SUBSCRIBERS_H
#define PROTOCOL_SUBSCRIBERS_H

#include <stdbool.h>
#include <stddef.h>

#include "model/error.h"
#include "protocol/connections.h"

struct subscribers;

struct subscription {
	unsigned int user; /* endpoint.h; as the ZAP handler said */
	bool add;          /* or take back */
	const void *prefix; /* [size] */
	size_t size;
};

/* For a ZeroMQ socket without an address yet, and its connections.  Free before both; NULL is fine. */
int subscribers_new(void *socket, struct connections *connections, struct subscribers **ret_subscribers,
		    struct error *err);
void subscribers_free(struct subscribers *subscribers);

/*
 * The next subscription that waits: 1, 0 if none does, negative on error.  Until the next call it can be granted, or
 * others in its place, to its sender.
 */
int subscribers_next(struct subscribers *subscribers, struct subscription *ret_subscription, struct error *err);
int subscribers_grant(struct subscribers *subscribers, const void *prefix, size_t size, struct error *err);
int subscribers_withdraw(struct subscribers *subscribers, const void *prefix, size_t size, struct error *err);

#endif
