/*
 * Which states of a stream are kept on disk, and what they promise: the rule of PROTOCOL.md, "Resuming", by itself.
 *
 * A generation is one state on disk.  Rows before its reach are in its cache or among its pending rows; hidden states
 * before its emitted position count as emitted when it is resumed.
 */
#ifndef DAEMON_GENERATIONS_H
#define DAEMON_GENERATIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GENERATIONS_MAX 8

struct generation {
	uint64_t number;  /* in the file's name; later ones are higher */
	uint64_t epoch, reach, emitted;
	bool known;       /* false: found at start and not read yet; epoch, reach and emitted say nothing */
};

/* Oldest first. */
struct generations {
	struct generation item[GENERATIONS_MAX];
	size_t n;
};

/* Put a newly written generation behind the others; with GENERATIONS_MAX of them the oldest falls out. */
void generations_add(struct generations *generations, const struct generation *newest);
void generations_remove(struct generations *generations, uint64_t number);

/*
 * Rows of this epoch before the returned position never have to be sent again.  For a stream with reply: the farthest
 * reach of a generation whose emitted hidden states are all confirmed (emitted <= got); else that of the newest.
 */
uint64_t generations_durable(const struct generations *generations, uint64_t epoch, bool reply, uint64_t got);

/*
 * May generation i be deleted?  Kept are the newest `keep` and, of a stream with reply, the newest of the epoch that is
 * confirmed.  One that was not read yet may be that one.
 */
bool generations_doomed(const struct generations *generations, size_t i, uint64_t epoch, size_t keep, bool reply,
			uint64_t got);

/*
 * Is a generation one that a stream in epoch can be rewound to, if its peer lacks hidden states from `from` on?
 */
bool generation_suits(const struct generation *generation, uint64_t epoch, uint64_t from);

#endif
