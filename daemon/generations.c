/* Which states are kept, and what they promise: see generations.h.  Pure functions of a few numbers. */
#include "daemon/generations.h"

#include <string.h>

void generations_remove(struct generations *generations, uint64_t number)
{
	for (size_t i = 0; i < generations->n; i++) {
		if (generations->item[i].number != number)
			continue;
		generations->n--;
		memmove(&generations->item[i], &generations->item[i + 1], (generations->n - i) * sizeof generations->item[0]);
		return;
	}
}

void generations_add(struct generations *generations, const struct generation *newest)
{
	if (generations->n == GENERATIONS_MAX)
		generations_remove(generations, generations->item[0].number);
	generations->item[generations->n++] = *newest;
}

bool generation_suits(const struct generation *generation, uint64_t epoch, uint64_t from)
{
	return generation->known && generation->epoch == epoch && generation->emitted <= from;
}

uint64_t generations_durable(const struct generations *generations, uint64_t epoch, bool reply, uint64_t got)
{
	for (size_t i = generations->n; i-- > 0;)
		if (generation_suits(&generations->item[i], epoch, reply ? got : UINT64_MAX))
			return generations->item[i].reach;
	return 0;
}

bool generations_doomed(const struct generations *generations, size_t i, uint64_t epoch, size_t keep, bool reply,
			uint64_t got)
{
	if (i + keep >= generations->n)
		return false;
	if (!reply)
		return true;
	for (size_t later = i + 1; later < generations->n; later++)
		if (generation_suits(&generations->item[later], epoch, got))
			return true; /* a newer one is confirmed */
	return false;
}
