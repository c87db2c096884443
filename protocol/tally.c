/*
 * Messages on their way are counted in two generations.  A drop ends the present generation: the subscriber that has
 * no room holds messages of it, and will not be full once the last of them has gone.
 */
#include "protocol/tally.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct generation {
	atomic_size_t messages; /* on their way */
	struct tally *tally;
};

struct tally {
	struct generation generations[2];
	atomic_size_t references; /* of every message on its way, and of the owner */
	int present;              /* the generation that new messages belong to */
	bool dropped_in_present;  /* end it as soon as the older one is gone */
	bool waiting;             /* a drop ended the older one, and it is not gone yet */
};

struct tally *tally_new(void)
{
	struct tally *tally = calloc(1, sizeof *tally);

	if (!tally)
		return NULL;
	tally->generations[0].tally = tally->generations[1].tally = tally;
	atomic_init(&tally->references, 1);
	return tally;
}

void tally_free(struct tally *tally)
{
	if (tally && atomic_fetch_sub(&tally->references, 1) == 1)
		free(tally);
}

void *tally_track(struct tally *tally, const void *data, size_t size, void **ret_arg)
{
	struct generation *generation = &tally->generations[tally->present];
	void *copy = malloc(size > 0 ? size : 1);

	if (!copy)
		return NULL;
	if (size > 0)
		memcpy(copy, data, size);
	atomic_fetch_add(&generation->messages, 1);
	atomic_fetch_add(&tally->references, 1);
	*ret_arg = generation;
	return copy;
}

void tally_release(void *copy, void *arg)
{
	struct generation *generation = arg;

	free(copy);
	atomic_fetch_sub(&generation->messages, 1);
	tally_free(generation->tally);
}

bool tally_missed(struct tally *tally, bool dropped)
{
	tally->dropped_in_present |= dropped;
	if (atomic_load(&tally->generations[!tally->present].messages) == 0) {
		tally->waiting = tally->dropped_in_present;
		if (tally->dropped_in_present)
			tally->present = !tally->present;
		tally->dropped_in_present = false;
	}
	return dropped || tally->waiting || tally->dropped_in_present;
}
