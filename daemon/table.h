/*
 * A hash table from byte strings to elements that carry their own entry: streams by id, peers by identity.
 * Hashing is keyed with random bytes, so that a peer cannot choose ids that collide.
 */
#ifndef DAEMON_TABLE_H
#define DAEMON_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "model/error.h"

struct table_entry {
	struct table_entry *next;
	uint64_t hash;
	const void *key; /* the element's own memory */
	size_t key_size;
};

struct table {
	struct table_entry **slot;
	size_t n_slots, n;
	uint64_t seed;
};

int table_init(struct table *table, struct error *err);
void table_free(struct table *table); /* the elements are the caller's */

struct table_entry *table_find(const struct table *table, const void *key, size_t key_size);

/* Add an entry whose key and key_size are set and not in the table yet. */
void table_insert(struct table *table, struct table_entry *entry);
void table_remove(struct table *table, struct table_entry *entry);

/* Walk all entries: start with NULL; the order is the table's own.  The table must not change meanwhile. */
struct table_entry *table_next(const struct table *table, const struct table_entry *entry);

#endif
