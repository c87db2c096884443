/*
 * The configuration.  One table names every key with its kind, default, bounds and meaning; reading and overriding
 * walk that table, and so do config_print.c and config_live.c.  The only file that knows libyaml.
 */
#include "daemon/config.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "daemon/config_key.h"
#include "daemon/generations.h"

static const struct choice precisions[] = {
	{ "auto", PRECISION_AUTO }, { "float32", PRECISION_FLOAT32 }, { "bfloat16", PRECISION_BFLOAT16 }, { NULL, 0 }
};
static const struct choice dtypes[] = {
	{ "float32", DTYPE_FLOAT32 }, { "float16", DTYPE_FLOAT16 }, { "bfloat16", DTYPE_BFLOAT16 }, { NULL, 0 }
};
static const struct choice rows[] = { { "all", ROWS_ALL }, { "last", ROWS_LAST }, { NULL, 0 } };
static const struct choice gaps[] = {
	{ "auto", GAP_AUTO }, { "reject", GAP_REJECT }, { "reset", GAP_RESET }, { "skip", GAP_SKIP }, { NULL, 0 }
};
static const struct choice booleans[] = { { "false", false }, { "true", true }, { NULL, 0 } };
static const struct choice levels[] = {
	{ "error", LOG_LEVEL_ERROR }, { "warning", LOG_LEVEL_WARNING }, { "notice", LOG_LEVEL_NOTICE },
	{ "info", LOG_LEVEL_INFO }, { "debug", LOG_LEVEL_DEBUG }, { NULL, 0 }
};

int config_layer(const char *text)
{
	char *end;
	long layer = strtol(text, &end, 10);

	if (!strcmp(text, "final"))
		return OUTPUT_FINAL;
	return *text >= '0' && *text <= '9' && !*end && layer <= 100000 ? (int)layer : -2;
}

static bool layer_valid(const char *text)
{
	return config_layer(text) != -2;
}

#define AT(field) offsetof(struct config, field)
#define GIB (UINT64_C(1) << 30)

const struct key config_keys[] = {
	{ "model", KIND_STRING, AT(model), "",
	  "folder of the checkpoint (config.json, *.safetensors); required", .live = false },
	{ "device", KIND_STRINGS, AT(device), "[auto]",
	  "auto, cpu, cuda or cuda:N, or a list, over which streams are spread; auto takes a GPU that fits the model",
	  .valid = device_known, .live = false },
	{ "precision", KIND_CHOICE, AT(precision), "auto",
	  "auto, float32 or bfloat16; auto follows the checkpoint where the device is good at it",
	  .choices = precisions },
	{ "threads", KIND_UINT, AT(threads), "auto",
	  "CPU threads; auto: as many as the process may use", .least = 1, .most = 1024, .automatic = true },
	{ "window", KIND_UINT, AT(window), "256",
	  "rows; caches advance by whole windows", .least = 1, .most = 65536 },
	{ "output.dtype", KIND_CHOICE, AT(output.dtype), "float32",
	  "of hidden states: float32, float16 or bfloat16", .choices = dtypes },
	{ "output.rows", KIND_CHOICE, AT(output.rows), "all",
	  "all, or last: only the last row of each window", .choices = rows },
	{ "output.layers", KIND_STRINGS, AT(output.layers), "[final]",
	  "which hidden states: final (after the last norm) and layer numbers from 0", .valid = layer_valid },
	{ "sockets.ingest", KIND_STRINGS, AT(sockets.ingest), "[\"tcp://127.0.0.1:5701\"]",
	  "ROUTER for producers; an address, or >ADDRESS to connect", .live = false },
	{ "sockets.subscribe", KIND_STRINGS, AT(sockets.subscribe), "[]",
	  "SUB for producers that publish; >ADDRESS connects to one that binds", .live = false },
	{ "sockets.publish", KIND_STRINGS, AT(sockets.publish), "[\"tcp://127.0.0.1:5702\"]",
	  "XPUB for consumers", .live = false },
	{ "sockets.control", KIND_STRINGS, AT(sockets.control), "[auto]",
	  "ROUTER for mamba2ctl; auto: an ipc socket in the runtime folder", .live = false },
	{ "streams.max", KIND_UINT, AT(streams.max), "1024",
	  "streams open at once", .least = 1, .most = 10000000, .live = true },
	{ "streams.idle_timeout", KIND_SECONDS, AT(streams.idle_timeout), "0",
	  "seconds without a message after which a stream leaves memory; 0: never", .live = true },
	{ "streams.on_gap", KIND_CHOICE, AT(streams.on_gap), "auto",
	  "when rows are missing: reject, reset or skip; auto: reject on ROUTER, reset on SUB",
	  .choices = gaps, .live = true },
	{ "streams.flush_after", KIND_SECONDS, AT(streams.flush_after), "0",
	  "seconds after which the rows of an unfinished window are emitted; 0: never", .live = true },
	{ "state.dir", KIND_STRING, AT(state.dir), "",
	  "folder in which streams outlive the daemon; empty: they do not", .live = false },
	{ "state.interval", KIND_SECONDS, AT(state.interval), "30",
	  "seconds after which the state of a stream that changed is written", .live = true },
	{ "state.keep", KIND_UINT, AT(state.keep), "2",
	  "states kept of each stream", .least = 1, .most = GENERATIONS_KEEP_MAX, .live = true },
	{ "limits.message_bytes", KIND_UINT, AT(limits.message_bytes), "67108864",
	  "bytes; largest payload accepted: a larger one is refused, a frame of twice as many ends its connection",
	  .least = 1024, .most = 4 * GIB },
	{ "limits.credit_rows", KIND_UINT, AT(limits.credit_rows), "16384",
	  "rows that one peer may have accepted but not done", .least = 1, .most = GIB, .live = true },
	{ "limits.batch_rows", KIND_UINT, AT(limits.batch_rows), "auto",
	  "rows in one batch, at least a window", .least = 1, .most = GIB, .automatic = true },
	{ "limits.cache_bytes", KIND_UINT, AT(limits.cache_bytes), "auto",
	  "bytes for streams' caches; beyond them a GPU moves idle ones to the host, a CPU refuses; auto: what is free",
	  .least = 1, .most = GIB << 20, .automatic = true },
	{ "limits.peer_streams", KIND_UINT, AT(limits.peer_streams), "0",
	  "streams that one key, or one connection without a key, may have open; 0: any number",
	  .most = 10000000, .live = true },
	{ "limits.peer_messages", KIND_UINT, AT(limits.peer_messages), "0",
	  "messages in a second from one key, or from one connection without a key; 0: any number",
	  .most = 10000000, .live = true },
	{ "security.secret_key", KIND_STRING, AT(security.secret_key), "",
	  "key file of this daemon; with it every TCP socket asks for keys (mamba2ctl keygen)", .live = false },
	{ "security.authorized_keys", KIND_STRING, AT(security.authorized_keys), "",
	  "file of the keys to let in and of what each may do; a reload reads it anew", .live = true },
	{ "security.insecure", KIND_CHOICE, AT(security.insecure), "false",
	  "true allows TCP sockets without keys that are not on loopback", .choices = booleans },
	{ "security.ipc_mode", KIND_MODE, AT(security.ipc_mode), "0600",
	  "file mode of ipc sockets, octal: who may write such a file may do everything", .live = false },
	{ "log.level", KIND_CHOICE, AT(log.level), "info",
	  "error, warning, notice, info or debug", .choices = levels, .live = true },
	{ "metrics.listen", KIND_STRING, AT(metrics.listen), "127.0.0.1:9464",
	  "HOST:PORT for HTTP: /metrics, /healthz, /readyz and a page for people; empty: none", .live = false },
	{ "shutdown_timeout", KIND_SECONDS, AT(shutdown_timeout), "30",
	  "seconds that SIGTERM leaves for finishing and publishing what was accepted", .live = true },
};
#define N_KEYS (sizeof config_keys / sizeof config_keys[0])
const size_t config_n_keys = N_KEYS;

#define PLACE_MAX 256 /* bytes of a place as text; a longer path is cut */

/* Where a value stands, for errors. */
struct place {
	const char *file; /* NULL: on the command line */
	const char *name; /* the key; may be NULL */
	yaml_mark_t mark;
};

/* As errors begin: "etc/mamba2d.yaml:3:9: " or "-s ". */
static const char *place_text(const struct place *place, char text[PLACE_MAX])
{
	if (place->file)
		snprintf(text, PLACE_MAX, "%.200s:%zu:%zu: ", place->file, place->mark.line + 1,
			 place->mark.column + 1);
	else
		snprintf(text, PLACE_MAX, "-s ");
	return text;
}

static int bad(const struct place *place, struct error *err, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static int bad(const struct place *place, struct error *err, const char *format, ...)
{
	char text[256], where[PLACE_MAX];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	return error_set(err, ERR_ARGUMENT, "%s%s%s%s", place_text(place, where), place->name ? place->name : "",
			 place->name ? ": " : "", text);
}

/* The key with this name [length]. */
static const struct key *key_named(const char *name, size_t length)
{
	for (size_t i = 0; i < N_KEYS; i++)
		if (strlen(config_keys[i].name) == length && !memcmp(config_keys[i].name, name, length))
			return &config_keys[i];
	return NULL;
}

static const struct key *key_find(const char *name)
{
	return key_named(name, strlen(name));
}

/* Is there a key "section.*"? */
static bool section_exists(const char *section)
{
	size_t length = strlen(section);

	for (size_t i = 0; i < N_KEYS; i++)
		if (!strncmp(config_keys[i].name, section, length) && config_keys[i].name[length] == '.')
			return true;
	return false;
}

static int set_string(char **field, const char *text, struct error *err)
{
	char *copy = strdup(text);

	if (!copy)
		return error_memory(err, "configuration");
	free(*field);
	*field = copy;
	return 0;
}

void string_list_clear(struct string_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->item[i]);
	free(list->item);
	*list = (struct string_list){ NULL, 0 };
}

int string_list_add(struct string_list *list, const char *text, struct error *err)
{
	char **item = realloc(list->item, (list->n + 1) * sizeof *item);

	if (!item)
		return error_memory(err, "configuration");
	list->item = item;
	item[list->n] = NULL;
	if (set_string(&item[list->n], text, err))
		return ERR_MEMORY;
	list->n++;
	return 0;
}

static int set_uint(const struct key *key, uint64_t *field, const char *text, const struct place *place,
		    struct error *err)
{
	char *end;
	unsigned long long value;

	if (key->automatic && !strcmp(text, "auto")) {
		*field = 0;
		return 0;
	}
	errno = 0;
	value = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end || errno || value < key->least || value > key->most)
		return bad(place, err, "\"%s\", expected a whole number from %" PRIu64 " to %" PRIu64 "%s", text,
			   key->least, key->most, key->automatic ? ", or auto" : "");
	*field = value;
	return 0;
}

static int set_seconds(double *field, const char *text, const struct place *place, struct error *err)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !isfinite(value) || value < 0 || value > 1e9)
		return bad(place, err, "\"%s\" is no number of seconds (0 to 1e9)", text);
	*field = value;
	return 0;
}

static int set_choice(const struct key *key, int *field, const char *text, const struct place *place, struct error *err)
{
	char known[128] = "";

	for (const struct choice *c = key->choices; c->name; c++) {
		if (!strcmp(c->name, text)) {
			*field = c->value;
			return 0;
		}
		snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", known[0] ? ", " : "", c->name);
	}
	return bad(place, err, "\"%s\" is none of: %s", text, known);
}

static int set_mode(uint64_t *field, const char *text, const struct place *place, struct error *err)
{
	char *end;
	unsigned long value = strtoul(text, &end, 8);

	if (*text < '0' || *text > '7' || *end || value > 0777)
		return bad(place, err, "\"%s\" is no file mode, expected 0000 to 0777", text);
	*field = value;
	return 0;
}

static int set_scalar(const struct key *key, void *field, const char *text, const struct place *place,
		      struct error *err)
{
	switch (key->kind) {
	case KIND_STRING:
		return set_string(field, text, err);
	case KIND_STRINGS:
		if (key->valid && !key->valid(text))
			return bad(place, err, "\"%s\", expected %s", text, key->help);
		return string_list_add(field, text, err);
	case KIND_UINT:
		return set_uint(key, field, text, place, err);
	case KIND_SECONDS:
		return set_seconds(field, text, place, err);
	case KIND_CHOICE:
		return set_choice(key, field, text, place, err);
	case KIND_MODE:
		return set_mode(field, text, place, err);
	}
	return 0;
}

/* The key's value now stands here. */
static int note_place(struct config *config, const struct key *key, const struct place *place, struct error *err)
{
	char text[PLACE_MAX];

	if (!config->places) /* a default */
		return 0;
	return set_string(&config->places[key - config_keys], place_text(place, text), err);
}

/* Set a key from a YAML node: a scalar, or for a list also a sequence of scalars. */
static int set_node(struct config *config, const struct key *key, yaml_document_t *document, yaml_node_t *node,
		    struct place *place, struct error *err)
{
	void *field = (char *)config + key->offset;
	int rc;

	place->name = key->name;
	place->mark = node->start_mark;
	rc = note_place(config, key, place, err);
	if (rc)
		return rc;
	if (key->kind == KIND_STRINGS)
		string_list_clear(field);
	if (node->type == YAML_SCALAR_NODE)
		return set_scalar(key, field, (const char *)node->data.scalar.value, place, err);
	if (key->kind != KIND_STRINGS || node->type != YAML_SEQUENCE_NODE)
		return bad(place, err, "expected a %s",
			   key->kind == KIND_STRINGS ? "value or a list of values" : "single value");
	for (yaml_node_item_t *item = node->data.sequence.items.start; !rc && item < node->data.sequence.items.top;
	     item++) {
		yaml_node_t *element = yaml_document_get_node(document, *item);

		place->mark = element->start_mark;
		if (element->type != YAML_SCALAR_NODE)
			return bad(place, err, "expected a list of single values");
		rc = set_scalar(key, field, (const char *)element->data.scalar.value, place, err);
	}
	return rc;
}

static bool key_repeated(yaml_document_t *document, yaml_node_t *mapping, yaml_node_pair_t *pair)
{
	const yaml_node_t *key = yaml_document_get_node(document, pair->key);

	for (yaml_node_pair_t *p = mapping->data.mapping.pairs.start; p < pair; p++) {
		const yaml_node_t *other = yaml_document_get_node(document, p->key);

		if (other->type == YAML_SCALAR_NODE &&
		    !strcmp((const char *)other->data.scalar.value, (const char *)key->data.scalar.value))
			return true;
	}
	return false;
}

static bool node_is_null(const yaml_node_t *node)
{
	return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
	       (!node->data.scalar.length || !strcmp((const char *)node->data.scalar.value, "~"));
}

/* Read a mapping; section is NULL at the top and the section's name below it. */
static int read_mapping(struct config *config, const char *section, yaml_document_t *document, yaml_node_t *mapping,
			struct place *place, struct error *err)
{
	place->name = section;
	place->mark = mapping->start_mark;
	if (mapping->type != YAML_MAPPING_NODE)
		return bad(place, err, "expected keys with values");
	for (yaml_node_pair_t *pair = mapping->data.mapping.pairs.start; pair < mapping->data.mapping.pairs.top;
	     pair++) {
		yaml_node_t *key_node = yaml_document_get_node(document, pair->key);
		yaml_node_t *value = yaml_document_get_node(document, pair->value);
		const struct key *key;
		char name[128];
		int rc;

		place->name = NULL;
		place->mark = key_node->start_mark;
		if (key_node->type != YAML_SCALAR_NODE)
			return bad(place, err, "expected a key");
		snprintf(name, sizeof name, "%s%s%s", section ? section : "", section ? "." : "",
			 (const char *)key_node->data.scalar.value);
		if (key_repeated(document, mapping, pair))
			return bad(place, err, "key \"%s\" stands here twice", name);
		key = key_find(name);
		if (key)
			rc = set_node(config, key, document, value, place, err);
		else if (!section && section_exists(name))
			rc = node_is_null(value) ? 0 : read_mapping(config, name, document, value, place, err);
		else
			rc = bad(place, err, "unknown key \"%s\" (--print-config lists all)", name);
		place->name = NULL;
		if (rc)
			return rc;
	}
	return 0;
}

static int parser_error(const yaml_parser_t *parser, struct place *place, struct error *err)
{
	place->mark = parser->problem_mark;
	return bad(place, err, "%s", parser->problem ? parser->problem : "not readable as YAML");
}

/* Nothing may follow the document. */
static int expect_end(yaml_parser_t *parser, struct place *place, struct error *err)
{
	yaml_document_t document;
	const yaml_node_t *root;

	if (!yaml_parser_load(parser, &document))
		return parser_error(parser, place, err);
	root = yaml_document_get_root_node(&document);
	place->name = NULL;
	place->mark = document.start_mark;
	yaml_document_delete(&document);
	return root ? bad(place, err, "a second document, expected one") : 0;
}

static int read_file(struct config *config, const char *path, struct error *err)
{
	struct place place = { .file = path };
	yaml_parser_t parser;
	yaml_document_t document;
	FILE *file = fopen(path, "re");
	int rc = 0;

	if (!file)
		return error_system(err, "%s", path);
	if (!yaml_parser_initialize(&parser)) {
		fclose(file);
		return error_memory(err, "YAML parser");
	}
	yaml_parser_set_input_file(&parser, file);
	if (!yaml_parser_load(&parser, &document)) {
		rc = parser_error(&parser, &place, err);
	} else {
		yaml_node_t *root = yaml_document_get_root_node(&document);

		if (root && !node_is_null(root))
			rc = read_mapping(config, NULL, &document, root, &place, err);
		yaml_document_delete(&document);
		if (!rc)
			rc = expect_end(&parser, &place, err);
	}
	yaml_parser_delete(&parser);
	fclose(file);
	return rc;
}

static int override(struct config *config, const char *assignment, struct error *err)
{
	const char *equals = strchr(assignment, '=');
	char name[128];
	struct place place = { .name = name };
	const struct key *key;
	yaml_parser_t parser;
	yaml_document_t document;
	int rc;

	if (!equals || equals == assignment || (size_t)(equals - assignment) >= sizeof name)
		return error_set(err, ERR_ARGUMENT, "-s %s: expected KEY=VALUE", assignment);
	memcpy(name, assignment, (size_t)(equals - assignment));
	name[equals - assignment] = '\0';
	key = key_find(name);
	if (!key)
		return bad(&place, err, "unknown key (--print-config lists all)");
	if (key->kind == KIND_STRING) { /* a path: taken as it is */
		rc = set_string((char **)(void *)((char *)config + key->offset), equals + 1, err);
		return rc ? rc : note_place(config, key, &place, err);
	}
	if (!yaml_parser_initialize(&parser))
		return error_memory(err, "YAML parser");
	yaml_parser_set_input_string(&parser, (const unsigned char *)equals + 1, strlen(equals + 1));
	if (!yaml_parser_load(&parser, &document)) {
		rc = parser_error(&parser, &place, err);
	} else {
		yaml_node_t *root = yaml_document_get_root_node(&document);

		rc = root ? set_node(config, key, &document, root, &place, err) : bad(&place, err, "expected a value");
		yaml_document_delete(&document);
	}
	yaml_parser_delete(&parser);
	return rc;
}

static int set_defaults(struct config *config, struct error *err)
{
	*config = (struct config){ .model = NULL };
	for (size_t i = 0; i < N_KEYS; i++) {
		char assignment[256];
		int rc;

		snprintf(assignment, sizeof assignment, "%s=%s", config_keys[i].name, config_keys[i].fallback);
		rc = override(config, assignment, err);
		if (rc)
			return rc;
	}
	config->places = calloc(N_KEYS, sizeof *config->places);
	return config->places ? 0 : error_memory(err, "configuration");
}

int config_load(struct config *config, const struct config_source *source, struct error *err)
{
	int rc = set_defaults(config, err);

	for (size_t i = 0; i < source->files.n && !rc; i++)
		rc = read_file(config, source->files.item[i], err);
	for (size_t i = 0; i < source->overrides.n && !rc; i++)
		rc = override(config, source->overrides.item[i], err);
	return rc;
}

void config_free(struct config *config)
{
	for (size_t i = 0; i < N_KEYS; i++) {
		void *field = (char *)config + config_keys[i].offset;

		if (config_keys[i].kind == KIND_STRING)
			free(*(char **)field);
		else if (config_keys[i].kind == KIND_STRINGS)
			string_list_clear(field);
		if (config->places)
			free(config->places[i]);
	}
	free(config->places);
	free(config->output.outputs);
	*config = (struct config){ .model = NULL };
}

void config_locate(const struct config *config, struct error *err)
{
	const struct key *key = key_named(err->text, strcspn(err->text, ": "));
	char text[sizeof err->text];

	if (!key || !config->places || !config->places[key - config_keys])
		return;
	memcpy(text, err->text, sizeof text);
	snprintf(err->text, sizeof err->text, "%s%s", config->places[key - config_keys], text);
}
