/* A hash table of intrusive entries: see table.h. */
#include "daemon/table.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "model/hash.h"

#define SLOTS_MIN 64

int table_init(struct table *table, struct error *err)
{
	*table = (struct table){ .n_slots = SLOTS_MIN };
	if (getrandom(&table->seed, sizeof table->seed, 0) != (ssize_t)sizeof table->seed)
		return error_system(err, "random bytes");
	table->slot = calloc(table->n_slots, sizeof *table->slot);
	return table->slot ? 0 : error_memory(err, "table");
}

void table_free(struct table *table)
{
	free(table->slot);
	table->slot = NULL;
}

struct table_entry *table_find(const struct table *table, const void *key, size_t key_size)
{
	uint64_t hash = hash_keyed(key, key_size, table->seed);
	struct table_entry *entry = table->slot[hash & (table->n_slots - 1)];

	while (entry && (entry->hash != hash || entry->key_size != key_size || memcmp(entry->key, key, key_size)))
		entry = entry->next;
	return entry;
}

/* Twice the slots.  Without memory the table stays as it is: slower, not wrong. */
static void grow(struct table *table)
{
	size_t n_slots = table->n_slots * 2;
	struct table_entry **slot = calloc(n_slots, sizeof *slot);

	if (!slot)
		return;
	for (size_t i = 0; i < table->n_slots; i++) {
		while (table->slot[i]) {
			struct table_entry *entry = table->slot[i];

			table->slot[i] = entry->next;
			entry->next = slot[entry->hash & (n_slots - 1)];
			slot[entry->hash & (n_slots - 1)] = entry;
		}
	}
	free(table->slot);
	table->slot = slot;
	table->n_slots = n_slots;
}

void table_insert(struct table *table, struct table_entry *entry)
{
	struct table_entry **slot;

	if (table->n >= table->n_slots)
		grow(table);
	entry->hash = hash_keyed(entry->key, entry->key_size, table->seed);
	slot = &table->slot[entry->hash & (table->n_slots - 1)];
	entry->next = *slot;
	*slot = entry;
	table->n++;
}

void table_remove(struct table *table, struct table_entry *entry)
{
	struct table_entry **at = &table->slot[entry->hash & (table->n_slots - 1)];

	while (*at != entry)
		at = &(*at)->next;
	*at = entry->next;
	table->n--;
}

struct table_entry *table_next(const struct table *table, const struct table_entry *entry)
{
	size_t i = 0;

	if (entry) {
		if (entry->next)
			return entry->next;
		i = (entry->hash & (table->n_slots - 1)) + 1;
	}
	while (i < table->n_slots && !table->slot[i])
		i++;
	return i < table->n_slots ? table->slot[i] : NULL;
}
