/*
 * Measures a device's forward pass in process: S streams x L rows, over and over, in turns with what the device could
 * do at best (bench_limits.h).  Prints one line of JSON.  Rates are those of the best pass; ms_median beside it tells
 * how quiet the machine was.  A pass is timed from handing the rows over to having the hidden states, in host memory;
 * ms_overlapped is the time for each pass where as many are under way as the device takes, which hides its copies.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/device.h"
#include "tests/bench_limits.h"

#define ROUND_SECONDS 0.2 /* of forward passes between two measurements of the limits */
#define MOST_PASSES 100000

struct options {
	const char *shape, *model, *device;
	enum precision precision;
	size_t streams, window, windows, threads;
	double seconds;
};

/* Everything that a forward pass needs. */
struct bench {
	struct model *model;
	struct device *device;
	size_t rows; /* of a pass */
	float *inputs, *hidden;
	struct window *windows;
	struct segment *segments;
	struct batch batch;
};

struct result {
	double *ms; /* [passes] of each pass, in order of length at the end */
	size_t passes;
	double overlapped_ms; /* of a pass, with several under way; 0 where the device takes one */
	struct bench_limits best;
};

static const struct bench_meter_type *const meters[] = { &bench_meter_cpu, &bench_meter_cuda };

static const char usage[] =
	"usage: bench_forward [--shape NAME | --model DIR] [--device NAME] [--precision NAME] [--streams N]\n"
	"                     [--window ROWS] [--windows N] [--threads N] [--seconds S]\n"
	"  --shape     130m, 370m, 780m, 1.3b, 2.7b or codestral-7b, with random weights (130m)\n"
	"  --windows   windows that each stream has queued (1)\n";

double bench_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "bench_forward: %s\n", what);
	exit(1);
}

static void check(int rc, const struct error *err)
{
	if (rc)
		fail(err->text);
}

static void *must(void *memory)
{
	if (!memory)
		fail("out of memory");
	return memory;
}

static size_t count(const char *text)
{
	char *end;
	const unsigned long long n = strtoull(text, &end, 10);

	if (*end || end == text || n > 1 << 24)
		fail("expected a count");
	return (size_t)n;
}

static struct options parse(int argc, char **argv)
{
	static const struct option known[] = {
		{ "shape", 1, NULL, 's' }, { "model", 1, NULL, 'm' }, { "device", 1, NULL, 'd' },
		{ "precision", 1, NULL, 'p' }, { "streams", 1, NULL, 'S' }, { "window", 1, NULL, 'L' },
		{ "windows", 1, NULL, 'W' }, { "threads", 1, NULL, 't' }, { "seconds", 1, NULL, 'T' }, { 0 }
	};
	struct options options = {
		.shape = "130m", .device = "cpu", .streams = 1, .window = 256, .windows = 1, .seconds = 5
	};
	int c;

	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1)
		switch (c) {
		case 's': options.shape = optarg; break;
		case 'm': options.model = optarg; break;
		case 'd': options.device = optarg; break;
		case 'p':
			if (!precision_find(optarg, &options.precision))
				fail("expected auto, float32 or bfloat16");
			break;
		case 'S': options.streams = count(optarg); break;
		case 'L': options.window = count(optarg); break;
		case 'W': options.windows = count(optarg); break;
		case 't': options.threads = count(optarg); break;
		case 'T': options.seconds = strtod(optarg, NULL); break;
		default: fputs(usage, stderr); exit(2);
		}
	if (optind < argc || !options.streams || !options.window || !options.windows)
		fail(usage);
	return options;
}

static void open_model(const struct options *options, struct bench *bench)
{
	struct shape shape;
	struct error err;

	if (options->model) {
		check(model_open(options->model, &bench->model, &err), &err);
		return;
	}
	check(shape_named(options->shape, &shape, &err), &err);
	check(model_random(&shape, 1, &bench->model, &err), &err);
}

static void open_device(const struct options *options, struct bench *bench)
{
	const int outputs[] = { OUTPUT_FINAL };
	const struct device_options device_options = {
		.precision = options->precision,
		.threads = options->threads,
		.window = options->window,
		.max_rows = bench->rows,
		.max_segments = options->streams,
		.cache_bytes = 2 * options->streams * shape_cache_floats(&bench->model->shape) * sizeof(float),
		.outputs = outputs,
		.n_outputs = 1,
		.output_dtype = DTYPE_FLOAT32,
	};
	struct error err;

	check(device_open(options->device, bench->model, &device_options, &bench->device, &err), &err);
}

/* One segment a stream, its windows side by side; the rows are noise of a plausible size. */
static void make_batch(const struct options *options, struct bench *bench)
{
	const struct backend *backend = bench->device->backend;
	const size_t columns = bench->model->shape.hidden_size, n = options->streams * options->windows;
	const size_t window_floats = options->window * columns;
	unsigned seed = 1;
	struct error err;

	bench->inputs = must(backend->host_alloc(bench->device, bench->rows * columns * sizeof(float)));
	bench->hidden = must(backend->host_alloc(bench->device, bench->rows * columns * sizeof(float)));
	bench->windows = must(calloc(n, sizeof *bench->windows));
	bench->segments = must(calloc(options->streams, sizeof *bench->segments));
	for (size_t i = 0; i < bench->rows * columns; i++)
		bench->inputs[i] = (float)rand_r(&seed) / (float)RAND_MAX - 0.5f;
	for (size_t i = 0; i < n; i++)
		bench->windows[i] = (struct window){
			.rows = bench->inputs + i * window_floats, .hidden = bench->hidden + i * window_floats
		};
	for (size_t i = 0; i < options->streams; i++) {
		bench->segments[i].windows = bench->windows + i * options->windows;
		bench->segments[i].rows = options->windows * options->window;
		check(backend->cache_new(bench->device, &bench->segments[i].cache, &err), &err);
	}
	bench->batch = (struct batch){ .segments = bench->segments, .n_segments = options->streams };
}

static void bench_free(struct bench *bench)
{
	const struct backend *backend = bench->device->backend;

	for (size_t i = 0; i < bench->batch.n_segments; i++)
		backend->cache_free(bench->device, bench->segments[i].cache);
	backend->host_free(bench->device, bench->inputs);
	backend->host_free(bench->device, bench->hidden);
	device_close(bench->device);
	model_free(bench->model);
	free(bench->windows);
	free(bench->segments);
}

static void submit(struct bench *bench)
{
	struct error err;

	check(bench->device->backend->submit(bench->device, &bench->batch, &err), &err);
}

static void await(struct bench *bench)
{
	struct error err;

	check(bench->device->backend->wait(bench->device, &err), &err);
}

/* Milliseconds of one forward pass. */
static double pass(struct bench *bench)
{
	const double start = bench_now();

	submit(bench);
	await(bench);
	return 1e3 * (bench_now() - start);
}

/* Milliseconds of a forward pass where device->depth of them are always under way. */
static double overlapped_pass(struct bench *bench)
{
	const size_t depth = bench->device->depth;
	size_t passes = 0;
	double start;

	for (size_t i = 0; i < depth; i++)
		submit(bench);
	await(bench);
	start = bench_now();
	for (; bench_now() - start < ROUND_SECONDS; passes++) {
		submit(bench);
		await(bench);
	}
	start = 1e3 * (bench_now() - start) / (double)passes;
	for (size_t i = 1; i < depth; i++)
		await(bench);
	return start;
}

/* best: 0 at first */
static void keep_shortest(double *best, double ms)
{
	if (*best == 0 || ms < *best)
		*best = ms;
}

static void keep_best(struct bench_limits *best, const struct bench_limits *now)
{
	if (now->matmul_gflops > best->matmul_gflops)
		best->matmul_gflops = now->matmul_gflops;
	if (now->bytes_per_s > best->bytes_per_s)
		best->bytes_per_s = now->bytes_per_s;
	keep_shortest(&best->matmul_only_ms, now->matmul_only_ms);
	keep_shortest(&best->model_widths_ms, now->model_widths_ms);
	keep_shortest(&best->mixer_ms, now->mixer_ms);
	best->weight_bytes = now->weight_bytes;
	best->threads = now->threads;
}

static int by_length(const void *a, const void *b)
{
	const double *first = a, *second = b;

	return (*first > *second) - (*first < *second);
}

static void measure(const struct options *options, struct bench *bench, struct result *result)
{
	const struct bench_meter_type *type = NULL;
	const double start = bench_now();
	struct bench_limits limits;
	struct bench_meter *meter;
	struct error err;

	for (size_t i = 0; i < sizeof meters / sizeof *meters; i++)
		if (!strcmp(meters[i]->backend, bench->device->backend->name))
			type = meters[i];
	if (type)
		check(type->open(bench->device, bench->rows, &meter, &err), &err);
	do {
		const double round = bench_now();

		do
			result->ms[result->passes++] = pass(bench);
		while (result->passes < MOST_PASSES && bench_now() - round < ROUND_SECONDS);
		if (bench->device->depth > 1)
			keep_shortest(&result->overlapped_ms, overlapped_pass(bench));
		if (type) {
			check(type->run(meter, &limits, &err), &err);
			keep_best(&result->best, &limits);
		}
	} while (result->passes < MOST_PASSES && bench_now() - start < options->seconds);
	if (type)
		type->close(meter);
	qsort(result->ms, result->passes, sizeof *result->ms, by_length);
}

static double mean(const struct result *result)
{
	double sum = 0;

	for (size_t i = 0; i < result->passes; i++)
		sum += result->ms[i];
	return sum / (double)result->passes;
}

static void print(const struct options *options, const struct bench *bench, const struct result *result)
{
	const struct shape *shape = &bench->model->shape;
	const double weights = (double)shape->num_layers * (double)shape->hidden_size *
			       (double)(shape->in_proj_rows + shape->d_inner);
	const double seconds = 1e-3 * result->ms[0], rows = (double)bench->rows;

	printf("{\"shape\": \"%s\", \"device\": \"%s\", \"precision\": \"%s\", \"streams\": %zu, \"window\": %zu, "
	       "\"windows\": %zu, \"threads\": %zu, ", options->model ? options->model : options->shape,
	       bench->device->description, precision_name(bench->device->precision), options->streams,
	       options->window, options->windows, result->best.threads);
	printf("\"rows_per_s\": %.1f, \"ms_per_forward\": %.4f, \"ms_median\": %.4f, \"ms_mean\": %.4f, "
	       "\"ms_overlapped\": %.4f, \"matmul_gflops\": %.1f, ", rows / seconds, result->ms[0],
	       result->ms[result->passes / 2], mean(result), result->overlapped_ms, 2e-9 * weights * rows / seconds);
	printf("\"limit_matmul_gflops\": %.1f, \"limit_bytes_per_s\": %.4g, \"matmul_only_ms\": %.4f, "
	       "\"model_widths_ms\": %.4f, \"mixer_ms\": %.4f, \"weight_bytes\": %zu, \"cache_bytes\": %zu}\n",
	       result->best.matmul_gflops, result->best.bytes_per_s, result->best.matmul_only_ms,
	       result->best.model_widths_ms, result->best.mixer_ms, result->best.weight_bytes,
	       shape_cache_floats(shape) * sizeof(float));
}

int main(int argc, char **argv)
{
	const struct options options = parse(argc, argv);
	struct bench bench = { .rows = options.streams * options.window * options.windows };
	struct result result = { .ms = must(calloc(MOST_PASSES, sizeof *result.ms)) };

	open_model(&options, &bench);
	open_device(&options, &bench);
	make_batch(&options, &bench);
	pass(&bench);
	measure(&options, &bench, &result);
	print(&options, &bench, &result);
	bench_free(&bench);
	free(result.ms);
	return 0;
}
