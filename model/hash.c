/* The wrapper around xxHash's streaming XXH3-128. */
#include "model/hash.h"

#include <stdio.h>
#include <xxhash.h>

/* struct hash stands for XXH3_state_t, which headers shall not see. */

int hash_new(struct hash **ret_hash, struct error *err)
{
	XXH3_state_t *state = XXH3_createState();

	if (!state)
		return error_memory(err, "a hash");
	XXH3_128bits_reset(state);
	*ret_hash = (struct hash *)state;
	return 0;
}

void hash_free(struct hash *hash)
{
	XXH3_freeState((XXH3_state_t *)hash);
}

void hash_update(struct hash *hash, const void *data, size_t size)
{
	if (size)
		XXH3_128bits_update((XXH3_state_t *)hash, data, size);
}

static void to_text(XXH128_hash_t value, char ret_text[HASH_TEXT])
{
	snprintf(ret_text, HASH_TEXT, "%016llx%016llx", (unsigned long long)value.high64,
		 (unsigned long long)value.low64);
}

void hash_text(const struct hash *hash, char ret_text[HASH_TEXT])
{
	to_text(XXH3_128bits_digest((const XXH3_state_t *)hash), ret_text);
}

void hash_bytes(const void *data, size_t size, char ret_text[HASH_TEXT])
{
	to_text(XXH3_128bits(data, size), ret_text);
}

uint64_t hash_keyed(const void *data, size_t size, uint64_t key)
{
	return XXH3_64bits_withSeed(data, size, key);
}
