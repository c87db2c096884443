/*
 * What the files of endpoint.h share.
 */
#ifndef PROTOCOL_ENDPOINT_PRIVATE_H
#define PROTOCOL_ENDPOINT_PRIVATE_H

#include "protocol/endpoint.h"
#include "protocol/keys.h"

#define ENDPOINT_ADDRESS_MAX 320

struct endpoint_context {
	void *zmq;
	bool guarded; /* it has a ZAP handler */
};

struct endpoint {
	void *socket;
	enum endpoint_kind kind;
	struct endpoint_context *context;
	int fd;                   /* readable when there is news of the socket, until ZeroMQ takes it in */
	bool settled;             /* all was taken in and nothing can be received, unless there is news */
	bool keyed;               /* peers over TCP must show a key; secret_key is ours, in Z85 */
	char secret_key[KEY_TEXT];
	unsigned int ipc_mode;
	struct tally *missed;     /* of ENDPOINT_PUBLISH */
	struct connections *connections; /* if it is keyed */
	struct subscribers *subscribers; /* of ENDPOINT_PUBLISH that is keyed */
	char address[ENDPOINT_ADDRESS_MAX];
};

/* ERR_SYSTEM with ZeroMQ's text for errno. */
int endpoint_failed(struct error *err, const char *what);

#endif
