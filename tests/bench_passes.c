/*
 * Passes of the device in process: a batch with one window of each stream, over and over.
 */
#include <stdlib.h>

#include "model/device.h"
#include "tests/bench_daemon.h"

struct passes {
	struct model *model;
	struct device *device;
	size_t rows; /* of a pass */
	float *inputs;
	enum dtype *dtype;        /* [window] of its rows */
	unsigned char *hidden;
	struct window *windows;   /* [streams] */
	struct segment *segments; /* [streams] */
	struct batch batch;
};

static void open_device(const struct bench_options *options, struct passes *passes)
{
	const int outputs[] = { OUTPUT_FINAL };
	struct device_options device_options = {
		.window = options->window,
		.max_rows = passes->rows,
		.max_segments = options->streams,
		.outputs = outputs,
		.n_outputs = 1,
		.output_dtype = options->dtype,
	};
	struct error err;

	bench_check(model_open(options->model, &passes->model, &err), &err);
	device_options.cache_bytes = 2 * options->streams * shape_cache_floats(&passes->model->shape) * sizeof(float);
	bench_check(device_open(options->device, passes->model, &device_options, &passes->device, &err), &err);
}

/* Noise, in the dtype of the messages. */
static void fill_row(const struct bench_options *options, float *row)
{
	for (size_t i = 0; i < options->columns; i++) {
		const float noise = (float)rand() / (float)RAND_MAX * 2 - 1;

		dtype_narrow(options->dtype, &noise, 1, (char *)row + i * dtype_size(options->dtype));
	}
}

struct passes *passes_new(const struct bench_options *options)
{
	struct passes *passes = bench_must(calloc(1, sizeof *passes));
	const size_t window = options->window * options->columns;
	const struct backend *backend;
	struct error err;

	passes->rows = options->streams * options->window;
	open_device(options, passes);
	backend = passes->device->backend;
	if (passes->model->shape.hidden_size != options->columns)
		bench_check(error_set(&err, ERR_ARGUMENT, "the model has %zu columns",
				      passes->model->shape.hidden_size), &err);
	passes->inputs = bench_must(backend->host_alloc(passes->device, options->streams * window * sizeof(float)));
	passes->hidden = bench_must(backend->host_alloc(passes->device, options->streams * window * sizeof(float)));
	passes->windows = bench_must(calloc(options->streams, sizeof *passes->windows));
	passes->segments = bench_must(calloc(options->streams, sizeof *passes->segments));
	passes->dtype = bench_must(malloc(options->window * sizeof *passes->dtype));
	for (size_t i = 0; i < options->window; i++)
		passes->dtype[i] = options->dtype;
	for (size_t i = 0; i < passes->rows; i++)
		fill_row(options, passes->inputs + i * options->columns);
	for (size_t i = 0; i < options->streams; i++) {
		passes->windows[i] = (struct window){
			.rows = passes->inputs + i * window,
			.dtype = passes->dtype,
			.hidden = passes->hidden + i * window * dtype_size(options->dtype)
		};
		passes->segments[i] = (struct segment){ .windows = &passes->windows[i], .rows = options->window };
		bench_check(backend->cache_new(passes->device, &passes->segments[i].cache, &err), &err);
	}
	passes->batch = (struct batch){ .segments = passes->segments, .n_segments = options->streams };
	return passes;
}

static void submit(struct passes *passes)
{
	struct error err;

	bench_check(passes->device->backend->submit(passes->device, &passes->batch, &err), &err);
}

static void await(struct passes *passes)
{
	struct error err;

	bench_check(passes->device->backend->wait(passes->device, &err), &err);
}

void passes_run(struct passes *passes, double seconds, struct bench_samples *samples)
{
	const size_t depth = passes->device->depth;
	double start = bench_now();

	while (bench_now() < start + seconds / 2) {
		const double began = bench_now();

		submit(passes);
		await(passes);
		bench_sample(samples, bench_now() - began);
	}
	for (size_t i = 0; i < depth; i++)
		submit(passes);
	await(passes);
	for (start = bench_now(); bench_now() < start + seconds / 2; samples->rows += (double)passes->rows) {
		submit(passes);
		await(passes);
	}
	samples->seconds += bench_now() - start;
	for (size_t i = 1; i < depth; i++)
		await(passes);
}

void passes_free(struct passes *passes)
{
	const struct backend *backend = passes ? passes->device->backend : NULL;

	if (!passes)
		return;
	for (size_t i = 0; i < passes->batch.n_segments; i++)
		backend->cache_free(passes->device, passes->segments[i].cache);
	backend->host_free(passes->device, passes->inputs);
	backend->host_free(passes->device, passes->hidden);
	device_close(passes->device);
	model_free(passes->model);
	free(passes->dtype);
	free(passes->windows);
	free(passes->segments);
	free(passes);
}
