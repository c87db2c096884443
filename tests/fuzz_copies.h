/*
 * What fuzz_streams asks of the control socket while its peers feed their streams: states of these, and copies of them.
 * The copy of stream `a` is `A`: it is forked from `a` or imported from a state of `a`'s or its own, and nobody feeds it.
 *
 * Every request is answered, and once; whatever a state or a hidden state holds follows from `a`'s rows.
 */
#ifndef TESTS_FUZZ_COPIES_H
#define TESTS_FUZZ_COPIES_H

#include "model/model.h"
#include "protocol/endpoint.h"
#include "protocol/message.h"

#define STREAMS 4
#define COLUMNS 64
#define MOST_ROWS 400 /* of a stream in an epoch */

/* Of stream `a` + stream; exact in every dtype. */
static inline float row_of(size_t stream, uint64_t epoch, uint64_t pos)
{
	return (float)((stream * 7 + epoch * 13 + pos * 31) & 0xff);
}

/* Is this what the daemon must answer to these rows? */
bool fuzz_hidden_right(size_t stream, uint64_t epoch, const struct message *message, const void *payload, size_t size);

uint64_t fuzz_epoch(size_t stream); /* in which its peer feeds it: there is no later one */

/* Rows of that epoch that the daemon said it has; and how often, by an open or a new life, they may have become fewer. */
uint64_t fuzz_accepted(size_t stream, unsigned *ret_turned_back);

void copies_begin(void);  /* a test */
void copies_forget(void); /* the requests that the daemon took with it */

/* Ask something about the stream or its copy; how: what. */
void copies_ask(size_t stream, uint8_t how);
void copies_snapshot(void); /* of all streams */

/* The daemon's answer, and a copy's hidden states.  failing: `internal` is one of its reasons. */
void copies_take_answer(const struct model *model, const struct endpoint_frame *frames, size_t n, bool failing);
void copies_take_hidden(size_t stream, const struct message *message, const void *payload, size_t size);

size_t copies_unanswered(void);

/* Close what copies there may be; true once that is done. */
bool copies_close(void);

#endif
