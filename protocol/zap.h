/*
 * Who is let in: ZeroMQ asks the one ZAP handler of a context (RFC 27) about every connection to an endpoint with keys.
 * The handler is an endpoint like the others, served by the same loop.
 */
#ifndef PROTOCOL_ZAP_H
#define PROTOCOL_ZAP_H

#include "protocol/endpoint.h"
#include "protocol/keys.h"

/* What endpoints with keys say they are; told to the handler. */
#define ZAP_DOMAIN_KEYS "keys"   /* peers show a key */
#define ZAP_DOMAIN_LOCAL "local" /* peers came through a socket file: its mode let them in */
#define ZAP_ADDRESS "inproc://zeromq.zap.01"

/* Open the handler.  Until there is one, endpoint_attach refuses to open a socket with keys. */
int zap_open(struct endpoint_context *context, struct endpoint **ret_zap, struct error *err);

struct zap_rules {
	/*
	 * The user number of a key (not ENDPOINT_ANYBODY), or ENDPOINT_NOBODY for one that is not let in; address
	 * [size] is the IP address that it comes from, as text.
	 */
	unsigned int (*find)(void *arg, const unsigned char key[KEY_BYTES], const char *address, size_t size);
	/* What time it is, by any clock: goes with the user to every message of the connection. */
	uint64_t (*time)(void *arg);
	void *arg;
};

/* Answer what was asked meanwhile. */
int zap_serve(struct endpoint *zap, struct endpoint_message *message, const struct zap_rules *rules, struct error *err);

/* Read the property "User-Id" of a message as the handler gave it to the connection; false if it did not. */
bool zap_read_user(const char *text, unsigned int *ret_user, uint64_t *ret_time);

#endif
