/*
 * A message that came in, on its way along the straight line: arrival.c decodes and checks it, ingest.c finds its
 * stream, place.c places its rows.
 */
#ifndef DAEMON_ARRIVAL_H
#define DAEMON_ARRIVAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/message.h"

struct endpoint_message;
struct error;
struct peer;
struct server;
struct stream;

/* A message on its way in. */
struct arrival {
	const struct endpoint_message *frames;
	bool held; /* it waited already */
	bool router;
	const unsigned char *identity; /* of the peer; router only */
	size_t identity_size;
	const unsigned char *id; /* of the stream */
	size_t id_size;
	const unsigned char *payload;
	size_t payload_size;
	struct message message;
	struct peer *peer;
	bool has_expected;
	uint64_t expected; /* for the refusal, in the producer's own numbering */
};

/*
 * Split a received message into its parts, which stay those of message, and check what can be said of it without
 * knowing its stream.  Returns 0 or a refusal's code.
 */
int arrival_parse(const struct server *server, bool router, const struct endpoint_message *message,
		  struct arrival *arrival, struct error *err);

/*
 * Place the message's rows into stream (a detached life or one in place), or into the new life that a gap begins.
 * origin: what the message's positions are ahead of the stream's by.  On success the rows are counted and *ret_stream,
 * in place, is where they went; on failure, a refusal's code, nothing has changed.
 */
int arrival_place(struct server *server, struct arrival *arrival, struct stream *stream, uint64_t origin,
		  struct stream **ret_stream, struct error *err);

#endif
