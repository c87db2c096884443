/* Which states are kept, and what they promise: see generations.h.  Pure functions of a few numbers. */
#include "daemon/generations.h"

#include <assert.h>
#include <string.h>

void generations_remove(struct generations *generations, uint64_t number)
{
	struct generation *item = generations->item;

	for (size_t i = 0; i < generations->n; i++) {
		if (item[i].number != number)
			continue;
		generations->n--;
		memmove(&item[i], &item[i + 1], (generations->n - i) * sizeof *item);
		return;
	}
}

void generations_add(struct generations *generations, const struct generation *newest)
{
	assert(generations->n < GENERATIONS_MAX);
	generations->item[generations->n++] = *newest;
}

uint64_t generations_surplus(const struct generations *generations)
{
	return generations->n < GENERATIONS_MAX ? 0 : generations->item[GENERATIONS_MAX / 2].number;
}

void generations_learn(struct generations *generations, const struct generation *known)
{
	for (size_t i = 0; i < generations->n; i++) {
		bool doomed = generations->item[i].doomed;

		if (generations->item[i].number != known->number)
			continue;
		generations->item[i] = *known;
		generations->item[i].doomed = doomed;
	}
}

bool generation_suits(const struct generation *generation, uint64_t epoch, uint64_t from)
{
	return generation->known && !generation->doomed && generation->epoch == epoch && generation->emitted <= from;
}

bool generations_has(const struct generations *generations, uint64_t epoch)
{
	for (size_t i = 0; i < generations->n; i++)
		if (generation_suits(&generations->item[i], epoch, UINT64_MAX))
			return true;
	return false;
}

uint64_t generations_durable(const struct generations *generations, uint64_t epoch, bool reply, uint64_t got)
{
	for (size_t i = generations->n; i-- > 0;)
		if (generation_suits(&generations->item[i], epoch, reply ? got : UINT64_MAX))
			return generations->item[i].reach;
	return 0;
}

/* Is a generation behind the first i confirmed? */
static bool confirmed_behind(const struct generations *generations, size_t i, const struct generation *newest,
			     uint64_t got)
{
	for (; i < generations->n; i++)
		if (generation_suits(&generations->item[i], newest->epoch, got))
			return true;
	return generation_suits(newest, newest->epoch, got);
}

/* Of the first n generations, all that are not confirmed: is the i-th the one that will be first? */
static bool next_confirmed(const struct generations *generations, size_t n, size_t i, uint64_t epoch, uint64_t got)
{
	const struct generation *item = generations->item;

	for (size_t k = 0; k < n; k++) {
		if (k == i || !item[k].known || item[k].epoch != epoch || item[k].emitted <= got)
			continue;
		if (item[k].emitted < item[i].emitted || (item[k].emitted == item[i].emitted && k > i))
			return false;
	}
	return item[i].epoch == epoch;
}

void generations_doom(struct generations *generations, const struct generation *newest, size_t keep, bool reply,
		      uint64_t got)
{
	size_t older = generations->n + 1 > keep ? generations->n + 1 - keep : 0; /* than the newest keep */
	size_t left = generations->n + 1;
	bool doomed[GENERATIONS_MAX] = { false };

	for (size_t i = 0; i < older; i++) {
		const struct generation *item = &generations->item[i];

		doomed[i] = !reply || confirmed_behind(generations, i + 1, newest, got) ||
			    (item->known && !generation_suits(item, newest->epoch, got) &&
			     !next_confirmed(generations, older, i, newest->epoch, got));
		left -= doomed[i];
	}
	for (size_t i = older; i-- > 0;) {
		generations->item[i].doomed = doomed[i] || left >= GENERATIONS_MAX;
		left -= !doomed[i] && left >= GENERATIONS_MAX;
	}
}

void generations_spare(struct generations *generations)
{
	for (size_t i = 0; i < generations->n; i++)
		generations->item[i].doomed = false;
}
