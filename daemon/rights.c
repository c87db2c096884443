/*
 * The file of authorised keys: see rights.h.
 */
#include "daemon/rights.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/list.h"
#include "daemon/table.h"
#include "protocol/endpoint.h"
#include "protocol/streamid.h"

#define LINE_BYTES 8192
#define KEYS_MAX 10000
#define BLANKS " \t\r\n"

/* A key; without a name it is not authorised any more. */
struct grant {
	struct table_entry entry;
	unsigned user; /* from 1 on */
	char *name;
	struct {
		struct prefix *item;
		size_t n;
	} prefixes[N_RIGHTS];
	unsigned char key[KEY_BYTES];
};

struct rights {
	struct table keys;    /* grants */
	struct grant **grant; /* [n], by user - 1 */
	size_t n, authorised;
};

static const char *const names[N_RIGHTS] = { "write", "read", "control" };

/* --- building --- */

static void clear(struct grant *grant)
{
	free(grant->name);
	for (size_t i = 0; i < N_RIGHTS; i++)
		free(grant->prefixes[i].item);
}

void rights_free(struct rights *rights)
{
	if (!rights)
		return;
	for (size_t i = 0; i < rights->n; i++) {
		clear(rights->grant[i]);
		free(rights->grant[i]);
	}
	free(rights->grant);
	table_free(&rights->keys);
	free(rights);
}

/* The grant of a key, found or made. */
static int get(struct rights *rights, const unsigned char key[KEY_BYTES], struct grant **ret_grant, struct error *err)
{
	struct table_entry *entry = table_find(&rights->keys, key, KEY_BYTES);
	struct grant *grant, **grown;

	if (entry) {
		*ret_grant = list_entry(entry, struct grant, entry);
		return 0;
	}
	grown = realloc(rights->grant, (rights->n + 1) * sizeof(struct grant *));
	if (!grown)
		return error_memory(err, "authorised keys");
	rights->grant = grown;
	grant = calloc(1, sizeof *grant);
	if (!grant)
		return error_memory(err, "authorised keys");
	memcpy(grant->key, key, KEY_BYTES);
	grant->entry.key = grant->key;
	grant->entry.key_size = KEY_BYTES;
	rights->grant[rights->n++] = grant;
	grant->user = (unsigned)rights->n;
	table_insert(&rights->keys, &grant->entry);
	*ret_grant = grant;
	return 0;
}

/* --- reading --- */

struct place {
	const char *path;
	size_t line;
};

static int bad(const struct place *place, const char *what, const char *text, struct error *err)
{
	return error_set(err, ERR_FORMAT, "%s:%zu: \"%.60s\": %s", place->path, place->line, text, what);
}

/* One word "RIGHT" or "RIGHT=PREFIX". */
static int read_right(const struct place *place, const char *word, struct grant *grant, struct error *err)
{
	struct prefix prefix = { .size = 0 }, *grown;
	size_t length = strcspn(word, "="), right = 0;
	struct error mistake;

	while (right < N_RIGHTS && (strlen(names[right]) != length || memcmp(names[right], word, length)))
		right++;
	if (right == N_RIGHTS)
		return bad(place, "expected write, read or control, with =PREFIX or without", word, err);
	if (word[length] && streamid_parse(word + length + 1, prefix.bytes, &prefix.size, &mistake))
		return bad(place, mistake.text, word, err);
	grown = realloc(grant->prefixes[right].item, (grant->prefixes[right].n + 1) * sizeof *grown);
	if (!grown)
		return error_memory(err, "authorised keys");
	grown[grant->prefixes[right].n++] = prefix;
	grant->prefixes[right].item = grown;
	return 0;
}

static bool name_taken(const struct rights *rights, const char *name)
{
	for (size_t i = 0; i < rights->n; i++)
		if (rights->grant[i]->name && !strcmp(rights->grant[i]->name, name))
			return true;
	return false;
}

/* One line; empty ones and comments are fine. */
static int read_line(const struct place *place, char *line, struct rights *rights, struct error *err)
{
	char *rest, *name = strtok_r(line, BLANKS, &rest), *key, *word;
	unsigned char bytes[KEY_BYTES];
	struct grant *grant;
	int rc;

	if (!name || *name == '#')
		return 0;
	key = strtok_r(NULL, BLANKS, &rest);
	if (!key || !keys_parse(key, bytes))
		return bad(place, "no key, expected the 40 characters of a public key in Z85", key ? key : "", err);
	if (name_taken(rights, name))
		return bad(place, "this name has a key already", name, err);
	if (rights->authorised == KEYS_MAX)
		return error_set(err, ERR_FORMAT, "%s:%zu: \"%.60s\": one key too many, expected up to %d", place->path,
				 place->line, name, KEYS_MAX);
	rc = get(rights, bytes, &grant, err);
	if (rc)
		return rc;
	if (grant->name)
		return bad(place, "this key stands here twice", key, err);
	grant->name = strdup(name);
	if (!grant->name)
		return error_memory(err, "authorised keys");
	rights->authorised++;
	while (!rc && (word = strtok_r(NULL, BLANKS, &rest)))
		rc = read_right(place, word, grant, err);
	return rc;
}

static int read_lines(FILE *file, const char *path, struct rights *rights, struct error *err)
{
	struct place place = { .path = path };
	char line[LINE_BYTES];
	int rc = 0;

	while (!rc && fgets(line, sizeof line, file)) {
		place.line++;
		if (!strchr(line, '\n') && !feof(file))
			return bad(&place, "too long a line", line, err);
		rc = read_line(&place, line, rights, err);
	}
	return rc || !ferror(file) ? rc : error_system(err, "%s", path);
}

int rights_read(const char *path, const struct rights *old, struct rights **ret_rights, struct error *err)
{
	FILE *file = fopen(path, "re");
	struct rights *rights;
	struct grant *grant;
	int rc;

	if (!file)
		return error_system(err, "%s", path);
	rights = calloc(1, sizeof *rights);
	rc = rights ? table_init(&rights->keys, err) : error_memory(err, "authorised keys");
	for (size_t i = 0; !rc && old && i < old->n; i++) /* they keep their numbers */
		rc = get(rights, old->grant[i]->key, &grant, err);
	if (!rc)
		rc = read_lines(file, path, rights, err);
	if (rc)
		rights_free(rights);
	else
		*ret_rights = rights;
	fclose(file);
	return rc;
}

/* --- asking --- */

size_t rights_count(const struct rights *rights)
{
	return rights->authorised;
}

unsigned rights_users(const struct rights *rights)
{
	return (unsigned)rights->n;
}

/* NULL: nobody's. */
static const struct grant *grant_of(const struct rights *rights, unsigned user)
{
	if (!rights || user == ENDPOINT_ANYBODY || user > rights->n)
		return NULL;
	return rights->grant[user - 1];
}

unsigned rights_find(const struct rights *rights, const unsigned char key[KEY_BYTES])
{
	struct table_entry *entry = table_find(&rights->keys, key, KEY_BYTES);
	const struct grant *grant = entry ? list_entry(entry, struct grant, entry) : NULL;

	return grant && grant->name ? grant->user : ENDPOINT_NOBODY;
}

bool rights_known(const struct rights *rights, unsigned user)
{
	return user == ENDPOINT_ANYBODY || *rights_name(rights, user);
}

const char *rights_name(const struct rights *rights, unsigned user)
{
	const struct grant *grant = grant_of(rights, user);

	return grant && grant->name ? grant->name : "";
}

const struct prefix *rights_prefixes(const struct rights *rights, unsigned user, enum right right, size_t *ret_n)
{
	static const struct prefix all = { .size = 0 };
	const struct grant *grant = grant_of(rights, user);

	*ret_n = user == ENDPOINT_ANYBODY ? 1 : grant ? grant->prefixes[right].n : 0;
	return user == ENDPOINT_ANYBODY ? &all : grant ? grant->prefixes[right].item : NULL;
}

bool rights_allow(const struct rights *rights, unsigned user, enum right right, const void *id, size_t size)
{
	size_t n;
	const struct prefix *prefix = rights_prefixes(rights, user, right, &n);

	for (size_t i = 0; i < n; i++)
		if (!prefix[i].size || (prefix[i].size <= size && !memcmp(prefix[i].bytes, id, prefix[i].size)))
			return true;
	return false;
}

bool rights_same(const struct rights *a, const struct rights *b, unsigned user, enum right right)
{
	size_t n, m;
	const struct prefix *x = rights_prefixes(a, user, right, &n), *y = rights_prefixes(b, user, right, &m);

	for (size_t i = 0; i < n && i < m; i++)
		if (x[i].size != y[i].size || memcmp(x[i].bytes, y[i].bytes, x[i].size))
			return false;
	return n == m;
}
