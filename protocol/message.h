/*
 * The header of a message (frame 1), as a struct and as bytes: one msgpack map.  PROTOCOL.md is the contract.
 */
#ifndef PROTOCOL_MESSAGE_H
#define PROTOCOL_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/dtype.h"
#include "model/error.h"

#define PROTOCOL_VERSION 1
#define POSITION_MAX (UINT64_MAX / 2) /* so that sums of positions and rows do not overflow */
#define MESSAGE_STREAM_MAX 255  /* bytes of a stream id */
#define MESSAGE_HEADER_MAX 4096 /* bytes of a header */

enum message_type {
	/* producer to daemon */
	MESSAGE_DATA,
	MESSAGE_OPEN,
	MESSAGE_FLUSH,
	MESSAGE_CLOSE,
	/* daemon to producer */
	MESSAGE_ACK,
	MESSAGE_ERROR,
	/* daemon to consumers */
	MESSAGE_HIDDEN,
	MESSAGE_EVENT
};

enum message_event { EVENT_GAP, EVENT_RESET, EVENT_CLOSED, EVENT_EVICTED };

/*
 * Optional keys have a has_ flag; boolean keys are false when absent, epoch 0.  An encoder writes just what the type
 * has in PROTOCOL.md; a decoder checks just that, and ignores keys it does not know.
 */
struct message {
	enum message_type type;
	uint64_t epoch; /* of an error only with REFUSED_STALE_EPOCH: the stream's */
	bool has_pos, has_from, has_got, has_t, has_layer, has_expected, has_shape;
	uint64_t pos;
	uint64_t from;
	uint64_t got;
	uint64_t t;
	bool flush, end, reply;
	uint64_t rows;      /* of shape; rows * columns * itemsize does not overflow */
	uint64_t columns;   /* 0: the shape is [rows], token ids */
	enum dtype dtype;
	uint64_t next, done, durable, credit; /* ack */
	int code;             /* error: enum refusal */
	uint64_t expected;    /* error */
	uint64_t layer;       /* hidden */
	enum message_event event;
	char text[256];       /* error, event: for people; cut there */
};

/*
 * Decode and check a header.  Errors are refusals: REFUSED_BAD_VERSION, REFUSED_BAD_HEADER (not one well-formed map of
 * unique string keys within MESSAGE_HEADER_MAX, a missing key, a wrong type), REFUSED_BAD_SHAPE, REFUSED_BAD_DTYPE.
 * A data message with has_shape has a dtype.  *ret_message is written only on success; nothing points into header.
 */
int message_decode(const void *header, size_t length, struct message *ret_message, struct error *err);

/* Encode into buffer [MESSAGE_HEADER_MAX]; returns the length.  Every message fits. */
size_t message_encode(const struct message *message, void *buffer);

/* Bytes of payload that the message's shape and dtype ask for; 0 without a shape. */
size_t message_payload_bytes(const struct message *message);

#endif
