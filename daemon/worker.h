/*
 * The worker: the thread that runs batches on the device, in the order in which they were handed over.
 *
 * The loop hands over whole jobs and collects them when done; while the worker has a job, nobody else touches it.
 * A failed job fails those queued behind it unrun (their caches would have started from a state that never came about),
 * until the loop has collected them all.
 */
#ifndef DAEMON_WORKER_H
#define DAEMON_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "model/device.h"

struct job {
	struct batch batch;
	struct error error; /* code 0, or why the batch failed: no cache has advanced */
	bool skipped;       /* not run, because a batch before it failed */
	uint64_t started_ns, ended_ns; /* CLOCK_MONOTONIC */
};

struct worker;

/* Start the thread.  device->depth jobs may be handed over at once. */
int worker_new(struct device *device, struct worker **ret_worker, struct error *err);
void worker_free(struct worker *worker); /* waits for what was handed over; NULL is fine */

/* Hand a job over.  The caller keeps count: never more than device->depth before collecting. */
void worker_submit(struct worker *worker, struct job *job);

/* A file descriptor that can be read when there is something to collect. */
int worker_fd(const struct worker *worker);

/* The next finished job, in order; NULL if there is none. */
struct job *worker_collect(struct worker *worker);

/* Nanoseconds spent with at least one batch on the device. */
uint64_t worker_busy_ns(struct worker *worker);

#endif
