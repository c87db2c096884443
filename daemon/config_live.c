/*
 * Two configurations side by side, for a reload: in which keys they differ, and exchanging those that are live.  Which
 * are is in the table of keys.
 */
#include <assert.h>
#include <string.h>

#include "daemon/config.h"
#include "daemon/config_key.h"

/* A value of any kind; as large as the largest. */
union value {
	char *text;
	struct string_list list;
	uint64_t number;
	double seconds;
	int choice;
};

static const size_t sizes[] = {
	[KIND_STRING] = sizeof(char *), [KIND_STRINGS] = sizeof(struct string_list), [KIND_UINT] = sizeof(uint64_t),
	[KIND_SECONDS] = sizeof(double), [KIND_CHOICE] = sizeof(int),
	[KIND_MODE] = sizeof(uint64_t)
};

static void *field(struct config *config, const struct key *key)
{
	return (char *)config + key->offset;
}

static union value get(const struct config *config, const struct key *key)
{
	union value value = { .number = 0 };

	memcpy(&value, (const char *)config + key->offset, sizes[key->kind]);
	return value;
}

static bool lists_equal(const struct string_list *a, const struct string_list *b)
{
	for (size_t i = 0; i < a->n && i < b->n; i++)
		if (strcmp(a->item[i], b->item[i]))
			return false;
	return a->n == b->n;
}

static bool values_equal(const struct key *key, const struct config *a, const struct config *b)
{
	const union value x = get(a, key), y = get(b, key);

	switch (key->kind) {
	case KIND_STRING:
		return !strcmp(x.text, y.text);
	case KIND_STRINGS:
		return lists_equal(&x.list, &y.list);
	case KIND_UINT:
	case KIND_MODE:
		return x.number == y.number;
	case KIND_SECONDS:
		return !(x.seconds < y.seconds) && !(x.seconds > y.seconds);
	case KIND_CHOICE:
		return x.choice == y.choice;
	}
	return true;
}

size_t config_compare(const struct config *a, const struct config *b, struct config_change changes[CONFIG_CHANGES_MAX])
{
	size_t n = 0;

	assert(config_n_keys <= CONFIG_CHANGES_MAX);
	for (size_t i = 0; i < config_n_keys; i++)
		if (!values_equal(&config_keys[i], a, b))
			changes[n++] = (struct config_change){ config_keys[i].name, config_keys[i].live };
	return n;
}

void config_swap_live(struct config *a, struct config *b)
{
	for (size_t i = 0; i < config_n_keys; i++) {
		const struct key *key = &config_keys[i];
		const union value x = get(a, key), y = get(b, key);

		if (!key->live)
			continue;
		memcpy(field(a, key), &y, sizes[key->kind]);
		memcpy(field(b, key), &x, sizes[key->kind]);
	}
}
