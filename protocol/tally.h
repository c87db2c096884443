/*
 * Which published messages did some subscriber miss?
 *
 * ZeroMQ says that a subscriber has no room just once: from then on it skips that subscriber without a word, until
 * half of the queue has been read.  So messages are counted while they are on their way to any subscriber, and once
 * one was dropped every further message counts as missed until all that had been sent before have left.  That is exact
 * for a subscriber that stands still, and errs on the side of too many for one that is merely slow.
 */
#ifndef PROTOCOL_TALLY_H
#define PROTOCOL_TALLY_H

#include <stdbool.h>
#include <stddef.h>

struct tally;

struct tally *tally_new(void); /* NULL when out of memory */
void tally_free(struct tally *tally); /* messages may still be on their way; NULL is fine */

/*
 * Count a message as on its way: returns a copy of data [size] to be lent to ZeroMQ, NULL when out of memory.
 * tally_release(copy, *ret_arg), from any thread, frees it and counts the message as gone.
 */
void *tally_track(struct tally *tally, const void *data, size_t size, void **ret_arg);
void tally_release(void *copy, void *arg);

/* To be asked after each message: dropped says that ZeroMQ refused it to a subscriber.  Was it missed by one? */
bool tally_missed(struct tally *tally, bool dropped);

#endif
