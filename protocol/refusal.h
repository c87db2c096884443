/*
 * Why a message was refused: the error codes of PROTOCOL.md, as error codes of ours.
 */
#ifndef PROTOCOL_REFUSAL_H
#define PROTOCOL_REFUSAL_H

#include <stddef.h>

#include "model/error.h"

enum refusal {
	REFUSED_BAD_VERSION = ERR_REFUSED,
	REFUSED_BAD_HEADER = ERR_REFUSED - 1,
	REFUSED_BAD_SHAPE = ERR_REFUSED - 2,
	REFUSED_BAD_DTYPE = ERR_REFUSED - 3,
	REFUSED_BAD_SIZE = ERR_REFUSED - 4,
	REFUSED_BAD_TOKEN = ERR_REFUSED - 5,
	REFUSED_NON_FINITE = ERR_REFUSED - 6,
	REFUSED_GAP = ERR_REFUSED - 7,
	REFUSED_NO_CREDIT = ERR_REFUSED - 8,
	REFUSED_STALE_EPOCH = ERR_REFUSED - 9,
	REFUSED_CLOSED = ERR_REFUSED - 10,
	REFUSED_TOO_MANY_STREAMS = ERR_REFUSED - 11,
	REFUSED_SHUTTING_DOWN = ERR_REFUSED - 12,
	REFUSED_STATE_DAMAGED = ERR_REFUSED - 13,
	REFUSED_DENIED = ERR_REFUSED - 14,
	REFUSED_INTERNAL = ERR_REFUSED - 15
};
#define REFUSAL_COUNT 16

/* The code's name on the wire ("bad_version"); "internal" for every code that is no refusal. */
const char *refusal_name(int code);

/* 0 to REFUSAL_COUNT - 1, to index counters by; that of "internal" for every code that is no refusal. */
int refusal_index(int code);

/* The refusal with this name (length bytes); REFUSED_INTERNAL if there is none. */
int refusal_find(const char *name, size_t length);

#endif
