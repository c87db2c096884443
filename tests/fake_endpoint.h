/*
 * The daemon's sockets as a test wants them, linked in the place of protocol/endpoint.c: the test is all of its peers.
 */
#ifndef TESTS_FAKE_ENDPOINT_H
#define TESTS_FAKE_ENDPOINT_H

#include "protocol/endpoint.h"

struct fake_frame {
	const void *data;
	size_t size;
};

/* Queue a message for the daemon's socket of that kind; the frames are copied. */
void fake_send(enum endpoint_kind kind, const struct fake_frame *frames, size_t n);

/* Give this peer's messages up that the daemon has not taken. */
void fake_forget(enum endpoint_kind kind);

/* What the test is: */
struct fake_world {
	/* The daemon sends a message: what comes of it. */
	enum endpoint_sent (*take)(enum endpoint_kind kind, const struct endpoint_frame *frames, size_t n);
	/* The daemon would wait, if not for ever up to so many ms, and nothing is queued: do something, or nothing. */
	void (*idle)(int timeout_ms);
	bool broken; /* nothing can be sent any more */
};
extern struct fake_world fake_world;

#endif
