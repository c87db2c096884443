/*
 * The configuration: a YAML file and overrides from the command line, checked strictly.  daemon/config.c holds the one
 * table of keys from which parsing, defaults, --print-config and reloading follow.
 */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "daemon/log.h"
#include "model/device.h"
#include "model/error.h"

enum gap_policy { GAP_AUTO, GAP_REJECT, GAP_RESET, GAP_SKIP };
enum output_rows { ROWS_ALL, ROWS_LAST };

struct string_list {
	char **item;
	size_t n;
};

struct config {
	char *model;  /* folder of the checkpoint */
	struct string_list device; /* one, or several that are alike */
	int precision; /* enum precision */
	uint64_t threads; /* 0: auto */
	uint64_t window;
	struct {
		int dtype; /* enum dtype */
		int rows;  /* enum output_rows */
		struct string_list layers; /* as written */
		int *outputs;              /* [n_outputs] as device_options wants them; from layers */
		size_t n_outputs;
	} output;
	struct {
		struct string_list ingest, subscribe, publish, control;
	} sockets;
	struct {
		uint64_t max;
		double idle_timeout; /* seconds, 0: never */
		int on_gap;          /* enum gap_policy */
		double flush_after;  /* seconds, 0: never */
	} streams;
	struct {
		char *dir;       /* empty: states are not kept */
		double interval; /* seconds */
		uint64_t keep;   /* generations */
	} state;
	struct {
		uint64_t message_bytes, credit_rows;
		uint64_t batch_rows, cache_bytes; /* 0: the device chooses */
		uint64_t peer_streams, peer_messages; /* 0: any number */
	} limits;
	struct {
		char *secret_key, *authorized_keys; /* paths; empty: none */
		int insecure;                       /* bool */
		uint64_t ipc_mode;
	} security;
	struct {
		int level; /* enum log_level */
	} log;
	struct {
		char *listen; /* HOST:PORT; empty: nowhere */
	} metrics;
	double shutdown_timeout; /* seconds */

	char **places; /* of each key, where its value stands, as errors begin; NULL: by default */
};

/* Where a configuration comes from, so that it can be read again: files, then what overrides them. */
struct config_source {
	struct string_list files;     /* paths */
	struct string_list overrides; /* "key.sub=value"; the value is YAML */
};

int string_list_add(struct string_list *list, const char *text, struct error *err); /* a copy */
void string_list_clear(struct string_list *list);

/*
 * Every key's default, the files' values over them, the overrides over those.  Errors give file, line and column.
 * Free with config_free, also after a failure.
 */
int config_load(struct config *config, const struct config_source *source, struct error *err);
void config_free(struct config *config);

/* Check what concerns several keys.  config_finish also derives output.outputs. */
int config_check(const struct config *config, struct error *err);
int config_finish(struct config *config, struct error *err);

/* Put where the value stands before an error that begins with a key's name, as those of the checks below do. */
void config_locate(const struct config *config, struct error *err);

/* Check what concerns the model. */
int config_suits(const struct config *config, const struct model *model, struct error *err);

/* Open the checkpoint, and check that the configuration suits it.  Free with model_free. */
int config_open_model(const struct config *config, struct model **ret_model, struct error *err);

/* Write all keys as a YAML file with a comment on each: its meaning, its unit, if it is live, and its default. */
void config_print(const struct config *config, FILE *file);

/* A key whose values differ: in two configurations.  live: it can be changed while the daemon runs. */
struct config_change {
	const char *name;
	bool live;
};
#define CONFIG_CHANGES_MAX 128

/* The keys in which a and b differ; returns how many. */
size_t config_compare(const struct config *a, const struct config *b, struct config_change changes[CONFIG_CHANGES_MAX]);

/* Exchange the values of all live keys. */
void config_swap_live(struct config *a, struct config *b);

#endif
