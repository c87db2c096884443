/*
 * The configuration: a YAML file and overrides from the command line, checked strictly.  daemon/config.c holds the one
 * table of keys from which parsing, defaults and --print-config follow.
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
	char *device;
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
		uint64_t message_bytes, credit_rows, batch_rows; /* batch_rows 0: the device chooses */
	} limits;
	struct {
		int level; /* enum log_level */
	} log;
	double shutdown_timeout; /* seconds */
};

/* Set every key to its default.  Free with config_free. */
int config_init(struct config *config, struct error *err);
void config_free(struct config *config);

/* Read a YAML file over config.  Errors give file, line and column.  On failure config is fit for config_free only. */
int config_read(struct config *config, const char *path, struct error *err);

/* Apply "key.sub=value"; the value is YAML. */
int config_override(struct config *config, const char *assignment, struct error *err);

/* Check what concerns several keys, and derive output.outputs. */
int config_finish(struct config *config, struct error *err);

/* Check what concerns the model. */
int config_suits(const struct config *config, const struct model *model, struct error *err);

/* Write all keys as a YAML file with a comment on each: its meaning, its unit and its default. */
void config_print(const struct config *config, FILE *file);

#endif
