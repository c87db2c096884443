/*
 * A pool of threads that run the tasks of one phase of the forward pass after another.  Between phases the threads
 * spin for a few microseconds; when there is nothing to do they sleep.
 */
#ifndef MODEL_CPU_THREADS_H
#define MODEL_CPU_THREADS_H

#include <stddef.h>

#include "model/error.h"

struct cpu_threads;

/* A task of a phase: number task, on thread number thread (for memory that belongs to a thread). */
typedef void cpu_task(void *arg, size_t task, size_t thread);

/* A pool of count threads, of which the caller of cpu_threads_run is one; 0: as many as the process may use. */
int cpu_threads_new(size_t count, struct cpu_threads **ret_threads, struct error *err);
void cpu_threads_free(struct cpu_threads *threads); /* NULL is fine */
size_t cpu_threads_count(const struct cpu_threads *threads);

/*
 * Run tasks 0 ... n - 1 and return when all are done.  Each thread runs an equal share of consecutive tasks in order,
 * so that what one phase leaves in a thread's cache the next may find there; who is done early helps the others.
 * Within tasks denormal numbers count as zero.  One caller at a time.
 */
void cpu_threads_run(struct cpu_threads *threads, cpu_task *task, void *arg, size_t n);

#endif
