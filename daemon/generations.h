/*
 * Which states of a stream are kept on disk, and what they promise: the rule of PROTOCOL.md, "Resuming", by itself.
 *
 * A generation is one state on disk.  Rows before its reach are in its cache or among its pending rows; hidden states
 * before its emitted position count as emitted when it is resumed.  It is confirmed if the peer has all of those.
 */
#ifndef DAEMON_GENERATIONS_H
#define DAEMON_GENERATIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef GENERATIONS_MAX /* fewer in a test */
#define GENERATIONS_MAX 12
#endif
#define GENERATIONS_KEEP_MAX 6 /* state.keep; there are others beside them, see generations_doom */

struct generation {
	uint64_t number;  /* in the file's name; later ones are higher */
	uint64_t epoch, reach, emitted;
	bool known;       /* false: found at start and not read yet; epoch, reach and emitted say nothing */
	bool doomed;      /* goes as soon as a newer one is on disk: it promises nothing any more */
};

/* Oldest first. */
struct generations {
	struct generation item[GENERATIONS_MAX];
	size_t n;
};

/* Put a newly written generation behind the others; there must be room, which generations_doom sees to. */
void generations_add(struct generations *generations, const struct generation *newest);

/* Found at start: the number of the one that has to go before there is room for another; 0: there is room. */
uint64_t generations_surplus(const struct generations *generations);

void generations_learn(struct generations *generations, const struct generation *known); /* one that was read */
void generations_remove(struct generations *generations, uint64_t number);

/*
 * Rows of this epoch before the returned position never have to be sent again.  For a stream with reply: the reach of
 * the newest generation that is confirmed (emitted <= got); else that of the newest.
 */
uint64_t generations_durable(const struct generations *generations, uint64_t epoch, bool reply, uint64_t got);

/*
 * Doom what may be deleted once newest, which is not among generations yet, is on disk.  Kept are the newest `keep`,
 * newest included, and of a stream with reply:
 * - the newest confirmed one of its epoch, on which `durable` rests;
 * - of the others the one that will be confirmed first, so that `durable` moves on however far the peer lags;
 * - those that are not known: an earlier run of the daemon may have promised any of them.
 * Only several runs in a row in which the peer was not heard of can leave no room with all that.  Then of those before
 * the newest `keep` the newest go, until there is some: what the peer was promised is in the oldest.
 */
void generations_doom(struct generations *generations, const struct generation *newest, size_t keep, bool reply,
		      uint64_t got);

/* The write of the newest failed: nothing goes after all. */
void generations_spare(struct generations *generations);

/*
 * Is a generation one that a stream in epoch can be rewound to, if its peer lacks hidden states from `from` on?
 */
bool generation_suits(const struct generation *generation, uint64_t epoch, uint64_t from);

/* Is any known to be of this epoch? */
bool generations_has(const struct generations *generations, uint64_t epoch);

#endif
