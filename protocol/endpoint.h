/*
 * The daemon's sockets.  The only file of the daemon's side that knows ZeroMQ.
 *
 * An endpoint is one ZeroMQ socket bound or connected to one or several addresses.  Messages are received frame by
 * frame without copying and sent without copying where the memory can be lent.
 */
#ifndef PROTOCOL_ENDPOINT_H
#define PROTOCOL_ENDPOINT_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/error.h"

enum endpoint_kind {
	ENDPOINT_INGEST,    /* ROUTER, mandatory: frames carry the peer's identity in front */
	ENDPOINT_SUBSCRIBE, /* SUB to everything */
	ENDPOINT_PUBLISH,   /* PUB, with keys XPUB; no silent drops */
	ENDPOINT_CONTROL,   /* ROUTER */
	ENDPOINT_ZAP        /* REP: see zap.h */
};

struct endpoint_options {
	size_t message_bytes;  /* largest frame accepted */
	int send_high_water;   /* messages queued for one peer */
	int receive_high_water;
	const char *secret_key; /* Z85: peers over TCP must show a key; NULL: they need none */
	unsigned int ipc_mode;  /* of socket files; 0: as the umask says */
};

struct connections;
struct subscribers;
struct endpoint_context; /* ZeroMQ's context: its I/O threads */
struct endpoint;

int endpoint_context_new(int io_threads, struct endpoint_context **ret_context, struct error *err);
void endpoint_context_free(struct endpoint_context *context); /* after all its endpoints; NULL is fine */

/* Open a socket with no address.  Free with endpoint_free, which gives unsent messages up to linger_ms to leave. */
int endpoint_new(struct endpoint_context *context, enum endpoint_kind kind, const struct endpoint_options *options,
		 struct endpoint **ret_endpoint, struct error *err);
void endpoint_free(struct endpoint *endpoint, int linger_ms);

/* With a secret_key: the connections, and of ENDPOINT_PUBLISH the subscribers, which get what they are granted. */
struct connections *endpoint_connections(struct endpoint *endpoint);
struct subscribers *endpoint_subscribers(struct endpoint *endpoint);

/*
 * Bind to address, or connect to it where it is written ">ADDRESS" (or "@ADDRESS" to bind, which is the default of all
 * kinds).  The error names the address.  endpoint_address returns what was bound (tcp://...:* made definite).
 *
 * With secret_key the endpoint is the CURVE server at every TCP address, also where it connects, and who is let in is
 * the ZAP handler's to say.  Without one in the context ZeroMQ would let in everybody: that is an error.
 */
int endpoint_attach(struct endpoint *endpoint, const char *address, struct error *err);
const char *endpoint_address(const struct endpoint *endpoint);

#define ENDPOINT_FRAMES_MAX 7

/* Users: the numbers that the ZAP handler gave to keys, and */
#define ENDPOINT_ANYBODY 0u      /* no key was asked for */
#define ENDPOINT_NOBODY UINT_MAX /* a peer that cannot be told, or that chose its routing id where keys are asked for */

/* A received message.  The bytes stay until the next endpoint_receive on this struct or endpoint_message_clear. */
struct endpoint_message {
	unsigned int user; /* who sent it */
	size_t n_frames; /* as many as were sent; only the first ENDPOINT_FRAMES_MAX are kept */
	struct { const void *data; size_t size; } frame[ENDPOINT_FRAMES_MAX];
	struct endpoint_storage *storage;
};

int endpoint_message_init(struct endpoint_message *message, struct error *err);
void endpoint_message_clear(struct endpoint_message *message);

/* Receive one message without waiting: 1 if there was one, 0 if not, negative on error. */
int endpoint_receive(struct endpoint *endpoint, struct endpoint_message *message, struct error *err);

/* Cut the connection that a message just received came over.  The peer may connect again, if it is let in. */
void endpoint_cut(struct endpoint *endpoint, const struct endpoint_message *message);

/* A frame to send.  With release, data is lent and release(data, arg) is called, from any thread, once it has left. */
struct endpoint_frame {
	const void *data;
	size_t size;
	void (*release)(void *data, void *arg);
	void *arg;
};

enum endpoint_sent {
	ENDPOINT_SENT,
	ENDPOINT_FULL,  /* the peer's queue is full (ROUTER), or memory is short: try again later */
	ENDPOINT_GONE,  /* no such peer any more (ROUTER) */
	ENDPOINT_DROPPED /* left for all subscribers that had room; at least one had none, or may have had (XPUB) */
};

/*
 * Send the frames as one message without waiting; the first, an identity or a topic, is copied in any case.  Lent
 * frames are released, whatever happens.
 */
int endpoint_send(struct endpoint *endpoint, const struct endpoint_frame *frames, size_t n_frames,
		  enum endpoint_sent *ret_sent, struct error *err);

/*
 * Wait until one of the endpoints with wanted[i] can be received from, one of the file descriptors can be read, or
 * timeout_ms have passed (-1: for ever).  ready[i] and fd_ready[i] say which; a descriptor of -1 never can.  A signal
 * ends the wait early.
 */
int endpoint_poll(struct endpoint *const *endpoints, const bool *wanted, bool *ready, size_t n_endpoints,
		  const int *fds, bool *fd_ready, size_t n_fds, int timeout_ms, struct error *err);

#endif
