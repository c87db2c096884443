/*
 * The table of configuration keys, for those who walk it: config.c, which reads, config_print.c and config_live.c; and
 * what they share.
 */
#ifndef DAEMON_CONFIG_KEY_H
#define DAEMON_CONFIG_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kind { KIND_STRING, KIND_STRINGS, KIND_UINT, KIND_SECONDS, KIND_CHOICE, KIND_MODE };

struct choice {
	const char *name;
	int value;
};

struct key {
	const char *name; /* "section.key" */
	enum kind kind;
	size_t offset;        /* in struct config */
	const char *fallback; /* as YAML */
	const char *help;
	uint64_t least, most;            /* KIND_UINT */
	bool automatic;                  /* KIND_UINT: "auto" is written for 0 */
	const struct choice *choices;    /* KIND_CHOICE */
	bool (*valid)(const char *text); /* KIND_STRINGS: may be NULL */
	bool live;                       /* a reload changes it; the others need a restart */
};

extern const struct key config_keys[];
extern const size_t config_n_keys;

/* A layer number, or -1 (OUTPUT_FINAL) for "final", or -2. */
int config_layer(const char *text);

#endif
