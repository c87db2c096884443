/*
 * A control request that waits, as requests.c and durable.c go on with it.
 */
#ifndef DAEMON_REQUEST_H
#define DAEMON_REQUEST_H

#include "daemon/requests.h"

#define REQUEST_HEAD_BYTES 512 /* of an answer, beside a state's bytes */

enum request_kind { REQUEST_RESET, REQUEST_SNAPSHOT, REQUEST_EXPORT, REQUEST_FORK, REQUEST_IMPORT };

struct request {
	struct request *next;
	enum request_kind kind;
	struct held_list frames; /* one message: whom to answer; it counts among what is held until then */
	size_t id_size, to_size;
	unsigned char id[MESSAGE_STREAM_MAX]; /* id_size 0: SNAPSHOT of all streams */
	unsigned char to[MESSAGE_STREAM_MAX]; /* FORK, IMPORT: the stream that is made */
	char key[HASH_TEXT];   /* of id */
	int64_t since_ms;      /* SNAPSHOT: what had changed by then is to be saved */
	uint64_t marks_begun;  /* SNAPSHOT: until then */
	enum {
		RESET_ASKED,    /* nothing is done yet */
		RESET_BEGUN,    /* the stream is in `epoch` */
		RESET_REMOVING  /* it is forgotten */
	} stage;               /* RESET */
	uint64_t epoch;        /* RESET */
	bool slotted;          /* a slot is at work for it */
};

/*
 * Keep the request that is being handled; what it asks for is done from the next turn of the loop on.  REQUEST_WAITS,
 * or REFUSED_NO_CREDIT: too many wait.
 */
int request_begin(struct server *server, enum request_kind kind, const struct stream_id *stream,
		  const struct stream_id *to, struct error *err);

/* Send the answer and forget the request. */
void request_answer(struct server *server, struct request *request, const void *bytes, size_t size);
void request_refuse(struct server *server, struct request *request, const struct error *error);

#endif
