/*
 * The worker: it runs jobs on the device, batches above all, in the order in which they were handed over.
 *
 * The loop hands over whole jobs and collects them when done; while the worker has a job, nobody else touches it.
 * A failed job fails the batches queued behind it unrun (their caches would have started from a state that never came
 * about), until the loop has collected them all.
 */
#ifndef DAEMON_WORKER_H
#define DAEMON_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "model/device.h"

enum job_kind {
	JOB_BATCH,
	JOB_EXPORT, /* cache to state */
	JOB_IMPORT  /* state to cache */
};

struct job {
	enum job_kind kind;
	struct batch batch;   /* JOB_BATCH */
	struct cache *cache;  /* JOB_EXPORT, JOB_IMPORT */
	float *state;         /* [shape_cache_floats], canonical layout */
	struct error error;   /* code 0, or why the job failed: no cache has changed */
	bool skipped;       /* not run, because a batch before it failed */
	uint64_t started_ns, ended_ns; /* CLOCK_MONOTONIC */
};

struct worker;

#define WORKER_JOBS_MAX 16 /* handed over and not collected */

/*
 * Start the threads.  Up to device->depth batches run at once.  fd is an eventfd, which several workers may share: it
 * is written to whenever there is something to collect.
 */
int worker_new(struct device *device, int fd, struct worker **ret_worker, struct error *err);
void worker_free(struct worker *worker); /* waits for what was handed over; NULL is fine */

/*
 * Hand a job over; a little batch for an idle device may be started on the way.  The caller keeps count: never more
 * than WORKER_JOBS_MAX before collecting.
 */
void worker_submit(struct worker *worker, struct job *job);

/* The next finished job, in order; NULL if there is none. */
struct job *worker_collect(struct worker *worker);

/* Nanoseconds since it last finished a job, or got one while it had none; 0: it has none. */
uint64_t worker_stuck_ns(struct worker *worker);

/* Nanoseconds spent with at least one batch on the device. */
uint64_t worker_busy_ns(struct worker *worker);

#endif
