/*
 * Metrics: what the daemon has done and how it is, by name.  Counters lie where they are counted, in struct server;
 * what is only asked for now and then is looked up when it is.  A table in metrics.c says which there are.
 */
#ifndef DAEMON_METRICS_H
#define DAEMON_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "protocol/control.h"

struct server;
struct hidden;

#define HISTOGRAM_BUCKETS 18

/* How often which values were seen; metrics.c has the bounds. */
struct histogram {
	uint64_t count[HISTOGRAM_BUCKETS + 1]; /* in each bucket, the last being above all bounds */
	double sum;
};

/* What a window's time from its last row's arrival until it was published was spent on. */
enum window_stage { STAGE_WAIT, STAGE_COMPUTE, STAGE_SEND, STAGE_COUNT };

enum place { PLACE_DEVICE, PLACE_HOST, PLACE_DISK, PLACE_COUNT };

struct metrics {
	struct histogram batch_rows;
	struct histogram window_latency, window_stages[STAGE_COUNT]; /* seconds */
	/* Looked up when they are asked for: */
	uint64_t streams[PLACE_COUNT];
	uint64_t devices, peers, ready, stalled, batches_running, max_rows, cache_bytes, queue_bytes, resident_bytes;
	uint64_t busy_ns, uptime_ns, serving;
};

/* A batch of so many rows was handed to the device. */
void metrics_batch(struct metrics *metrics, size_t rows);

/* A window is published. */
void metrics_window(struct metrics *metrics, const struct hidden *hidden);

/* All metrics in Prometheus' text format; free with free.  NULL: out of memory. */
char *metrics_text(struct server *server, size_t *ret_size);

/* The same for a control answer: a number, a map of numbers by label, or a map {le, count, sum} for each histogram. */
void metrics_put(struct server *server, struct control_writer *answer);

#endif
