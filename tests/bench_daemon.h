/*
 * What bench_daemon measures in turns: a daemon over its sockets, what libzmq alone does with messages of that size,
 * and passes of the device in process.  All failures end the program.
 */
#ifndef TESTS_BENCH_DAEMON_H
#define TESTS_BENCH_DAEMON_H

#include <stddef.h>
#include <stdint.h>

#include "model/dtype.h"
#include "model/error.h"

struct bench_options {
	const char *ingest;          /* the daemon's address */
	const char *model, *device;  /* model NULL: nothing is computed in process */
	size_t streams, window, columns, ahead; /* ahead: windows of a stream that are under way */
	enum dtype dtype;            /* of rows and hidden states */
	double seconds;              /* for each of the three */
};

#define BENCH_SAMPLES_MAX 1000000

struct bench_samples {
	double *latency; /* [n] seconds from a window, or a batch in process, to its hidden states */
	size_t n;
	double rows, seconds; /* whose hidden states came back in this time */
};

void bench_sample(struct bench_samples *samples, double latency);
double bench_now(void); /* seconds of a clock that never jumps */
void bench_check(int rc, const struct error *err);
void *bench_must(void *memory); /* not NULL */

/* --- tests/bench_load.c: streams that are kept busy over sockets --- */

struct load;

struct load *load_new(const struct bench_options *options, const char *address);
void load_run(struct load *load, double seconds, struct bench_samples *samples); /* leaves nothing under way */
void load_free(struct load *load);

/* --- tests/bench_echo.c: libzmq alone, sending back what it gets; for a load --- */

struct echo;

struct echo *echo_new(const char *like); /* with an address of its own over the same transport */
const char *echo_address(const struct echo *echo);
void echo_hold(struct echo *echo, double seconds); /* each message for so long: what sleeps meanwhile has to wake up */
void echo_free(struct echo *echo);

/* --- tests/bench_passes.c: the device in process --- */

struct passes;

struct passes *passes_new(const struct bench_options *options);

/* Latencies of single passes, a window of each stream in one; rows while as many are under way as the device takes. */
void passes_run(struct passes *passes, double seconds, struct bench_samples *samples);
void passes_free(struct passes *passes); /* NULL is fine */

#endif
