/*
 * A small client: what mamba2ctl and the benchmarks speak to a daemon with.  The only file of the client's side that
 * knows ZeroMQ.  A client is one connection, used by one thread.
 */
#ifndef PROTOCOL_CLIENT_H
#define PROTOCOL_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/error.h"
#include "protocol/control.h"
#include "protocol/keys.h"
#include "protocol/message.h"

enum client_kind {
	CLIENT_INGEST,    /* feeds streams, receives acks, errors and hidden states */
	CLIENT_SUBSCRIBE, /* receives hidden states and events */
	CLIENT_CONTROL    /* asks and is answered */
};

struct client;

/* For a daemon that asks for keys: our own, and the public one that the daemon must have. */
struct client_keys {
	struct key_pair own;
	char server[KEY_TEXT];
};

/*
 * Connect to the daemon's address of that kind (the connection itself is made, and made anew, in the background),
 * with keys, or NULL.  Free with client_free, which gives unsent messages up to linger_ms to leave; NULL is fine.
 */
int client_new(enum client_kind kind, const char *address, const struct client_keys *keys, struct client **ret_client,
	       struct error *err);
void client_free(struct client *client, int linger_ms);

/* CLIENT_SUBSCRIBE: receive the streams whose id starts with prefix [size]; size 0: all of them. */
int client_subscribe(struct client *client, const void *prefix, size_t size, struct error *err);

/*
 * CLIENT_INGEST: send one message about stream [stream_size], with message_payload_bytes(message) bytes of payload,
 * copied.  Waits up to timeout_ms for room; then ERR_SYSTEM, and nothing was sent.
 */
int client_send(struct client *client, const void *stream, size_t stream_size, const struct message *message,
		const void *payload, int timeout_ms, struct error *err);

/* What was received.  The bytes stay until the next client_receive. */
struct client_message {
	const void *stream; /* [stream_size] */
	size_t stream_size;
	struct message header;
	const void *payload; /* [payload_size], as many bytes as the header asks for */
	size_t payload_size;
};

/*
 * CLIENT_INGEST, CLIENT_SUBSCRIBE: receive the next message: 1, or 0 if none came within timeout_ms (-1: wait for
 * ever; a signal ends the wait), or negative: a message that breaks the protocol was dropped.
 */
int client_receive(struct client *client, int timeout_ms, struct client_message *ret_message, struct error *err);

/*
 * CLIENT_CONTROL: send a finished request [size] and wait up to timeout_ms for its answer, which stays in the client
 * until the next request.  A refusal (ok: false) is an answer.  ERR_SYSTEM when none came: free the client then, as
 * the answer might still come and be taken for the next one's.
 */
int client_request(struct client *client, const void *request, size_t size, int timeout_ms,
		   struct control *ret_answer, struct error *err);

/*
 * Where a client stands with a stream that it feeds, from the daemon's acks and errors.  Credit is the peer's, over
 * all its streams: client_stream_room is right for a client that feeds one stream.
 */
struct client_stream {
	uint64_t epoch;
	uint64_t position; /* of the row to send next */
	uint64_t done;     /* rows before it have been published */
	uint64_t durable;  /* rows before it never have to be sent again */
	uint64_t credit;   /* rows accepted but not done, at most */
	bool open;         /* the first ack has come */
};

/* How many rows may be sent now. */
uint64_t client_stream_room(const struct client_stream *stream);

/*
 * Take an ack or error about the stream into account (other messages change nothing).  The first ack, and refusals
 * that name an expected position, set position: rows from there on have to be sent, again if need be.  Any other
 * refusal is returned as an error with the daemon's code and text.
 */
int client_stream_update(struct client_stream *stream, const struct message *message, struct error *err);

#endif
