/*
 * Throughput and latency of a running daemon over its sockets, beside what libzmq alone does with messages of that size
 * over the same transport, and with --model what the device does in process.  Prints one line of JSON.
 *
 *	bench_daemon --ingest ADDRESS --columns N [--streams S] [--window L] [--ahead K] [--dtype bfloat16]
 *		     [--seconds N] [--model DIR] [--device NAME]
 *
 * The three take turns; with --streams 1 --ahead 1 and --model there is a fourth, libzmq_held, where libzmq's messages
 * are held for as long as a pass takes: what a daemon that did nothing else would reach.  The window, and the dtype of
 * hidden states, should be the daemon's; a daemon on the same GPU has to leave memory for --model (limits.cache_bytes).
 * rows_per_s counts rows whose hidden states came back; latency is from sending a window to their arrival, which with
 * --streams 1 --ahead 1 is the device's own time and what the daemon and the sockets add to it.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/bench_daemon.h"

#define TURNS 5

double bench_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void bench_check(int rc, const struct error *err)
{
	if (!rc)
		return;
	fprintf(stderr, "bench_daemon: %s\n", err->text);
	exit(1);
}

void *bench_must(void *memory)
{
	struct error err;

	bench_check(memory ? 0 : error_memory(&err, "the benchmark"), &err);
	return memory;
}

void bench_sample(struct bench_samples *samples, double latency)
{
	if (samples->n < BENCH_SAMPLES_MAX)
		samples->latency[samples->n++] = latency;
}

static int read_options(int argc, char **argv, struct bench_options *o)
{
	static const struct option options[] = {
		{ "ingest", required_argument, NULL, 'i' }, { "columns", required_argument, NULL, 'c' },
		{ "streams", required_argument, NULL, 's' }, { "window", required_argument, NULL, 'w' },
		{ "ahead", required_argument, NULL, 'a' }, { "dtype", required_argument, NULL, 'd' },
		{ "seconds", required_argument, NULL, 'n' }, { "model", required_argument, NULL, 'm' },
		{ "device", required_argument, NULL, 'g' }, { NULL, 0, NULL, 0 }
	};
	const char *dtype = "bfloat16";
	int option;

	*o = (struct bench_options){ .ingest = "tcp://127.0.0.1:5701", .device = "auto", .streams = 64, .window = 256,
				     .ahead = 2, .seconds = 5 };
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'i': o->ingest = optarg; break;
		case 'c': o->columns = strtoul(optarg, NULL, 10); break;
		case 's': o->streams = strtoul(optarg, NULL, 10); break;
		case 'w': o->window = strtoul(optarg, NULL, 10); break;
		case 'a': o->ahead = strtoul(optarg, NULL, 10); break;
		case 'd': dtype = optarg; break;
		case 'n': o->seconds = strtod(optarg, NULL); break;
		case 'm': o->model = optarg; break;
		case 'g': o->device = optarg; break;
		default: return -1;
		}
	}
	return o->columns && o->streams && o->window && o->ahead && dtype_find(dtype, strlen(dtype), &o->dtype) &&
	       dtype_is_float(o->dtype) ? 0 : -1;
}

static struct bench_samples samples_new(void)
{
	return (struct bench_samples){ .latency = bench_must(malloc(BENCH_SAMPLES_MAX * sizeof(double))) };
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double percentile(struct bench_samples *s, size_t percent)
{
	qsort(s->latency, s->n, sizeof *s->latency, compare);
	return s->n ? s->latency[s->n * percent / 100] : 0;
}

/* Print what was measured, under names with this prefix, and free it. */
static void print(const char *prefix, struct bench_samples *s)
{
	if (s->n)
		printf(", \"%srows_per_s\": %.1f, \"%slatency_ms_p50\": %.3f, \"%slatency_ms_p99\": %.3f", prefix,
		       s->rows / s->seconds, prefix, percentile(s, 50) * 1e3, prefix, percentile(s, 99) * 1e3);
	free(s->latency);
}

int main(int argc, char **argv)
{
	struct bench_options o;
	struct bench_samples daemon = samples_new(), libzmq = samples_new(), held = samples_new();
	struct bench_samples in_process = samples_new();
	struct load *load, *echoed;
	struct passes *passes;
	struct echo *echo;

	if (read_options(argc, argv, &o)) {
		fprintf(stderr, "usage: bench_daemon --ingest ADDRESS --columns N [--streams S] [--window L] [--ahead "
				"K] [--dtype D] [--seconds N] [--model DIR] [--device NAME]\n");
		return 2;
	}
	passes = o.model ? passes_new(&o) : NULL;
	load = load_new(&o, o.ingest);
	echo = echo_new(o.ingest);
	echoed = load_new(&o, echo_address(echo));
	for (int turn = 0; turn < TURNS; turn++) {
		load_run(load, o.seconds / TURNS, &daemon);
		load_run(echoed, o.seconds / TURNS, &libzmq);
		if (passes)
			passes_run(passes, o.seconds / TURNS, &in_process);
		if (passes && o.streams * o.ahead == 1) {
			echo_hold(echo, percentile(&in_process, 50));
			load_run(echoed, o.seconds / TURNS, &held);
			echo_hold(echo, 0);
		}
	}
	printf("{\"streams\": %zu, \"window\": %zu, \"ahead\": %zu, \"dtype\": \"%s\"", o.streams, o.window, o.ahead,
	       dtype_name(o.dtype));
	print("", &daemon);
	print("libzmq_", &libzmq);
	print("libzmq_held_", &held);
	print("in_process_", &in_process);
	puts("}");
	passes_free(passes);
	load_free(load);
	load_free(echoed);
	echo_free(echo);
	return 0;
}
