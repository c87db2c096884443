/*
 * A 128-bit hash of any amount of bytes: XXH3.  It tells accidents from the truth, not attackers.  The only file that
 * knows xxHash.
 */
#ifndef MODEL_HASH_H
#define MODEL_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "model/error.h"

#define HASH_TEXT 33 /* bytes of a hash in hex, with the NUL */

struct hash;

int hash_new(struct hash **ret_hash, struct error *err);
void hash_free(struct hash *hash); /* NULL is fine */
void hash_update(struct hash *hash, const void *data, size_t size);

/* The hash of what came until now, in hex; more may follow. */
void hash_text(const struct hash *hash, char ret_text[HASH_TEXT]);

/* The same of bytes that are all there. */
void hash_bytes(const void *data, size_t size, char ret_text[HASH_TEXT]);

/* 64 bits of hash of a few bytes under a key that peers do not know: for hash tables. */
uint64_t hash_keyed(const void *data, size_t size, uint64_t key);

#endif
