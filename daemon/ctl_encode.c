/*
 * mamba2ctl encode: run a whole recording through a checkpoint without sockets.  The recording is one stream: segments
 * of whole windows, as many as a batch takes, and the unfinished window at the end.
 */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/ctl.h"
#include "daemon/npy.h"
#include "model/device.h"

struct arguments {
	const char *model, *device, *in, *out;
	enum precision precision;
	size_t window, threads;
};

/* One batch's worth of rows and hidden states; device->depth of them are in turn. */
struct slot {
	float *rows, *hidden;  /* [max_rows, hidden_size] */
	struct window *windows;
	struct segment segment;
	struct batch batch;
};

struct encoding {
	const struct arguments *arguments;
	struct npy in;
	struct npy_writer out;
	struct model *model;
	struct device *device;
	struct cache *cache;
	struct slot slot[2];
	size_t read, written; /* rows */
	double started;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void show_progress(const struct encoding *e)
{
	enum { WIDTH = 40 };
	double seconds = now() - e->started;
	size_t filled = e->in.rows ? e->written * WIDTH / e->in.rows : WIDTH;
	char bar[WIDTH + 1];

	if (!isatty(STDERR_FILENO))
		return;
	memset(bar, ' ', WIDTH);
	memset(bar, '#', filled);
	bar[WIDTH] = '\0';
	fprintf(stderr, "\r[%s] %zu/%zu rows, %.0f rows/s ", bar, e->written, e->in.rows,
		seconds > 0 ? (double)e->written / seconds : 0.0);
	if (e->written == e->in.rows)
		fputc('\n', stderr);
}

static int check_input(const struct encoding *e, struct error *err)
{
	const struct npy *in = &e->in;
	size_t hidden_size = e->model->shape.hidden_size;

	if (dtype_is_float(in->dtype) && in->columns != hidden_size)
		return error_set(err, ERR_FORMAT, "%s: rows of %zu columns, the model expects [rows, %zu]",
				 e->arguments->in, in->columns, hidden_size);
	if (!dtype_is_float(in->dtype) && in->columns)
		return error_set(err, ERR_FORMAT, "%s: two dimensions of token ids, expected [rows]", e->arguments->in);
	return 0;
}

static int open_slots(struct encoding *e, struct error *err)
{
	struct device *device = e->device;
	size_t window = device->window, hidden_size = e->model->shape.hidden_size;
	size_t bytes = device->max_rows * hidden_size * sizeof(float);

	for (size_t i = 0; i < device->depth; i++) {
		struct slot *slot = &e->slot[i];

		slot->rows = device->backend->host_alloc(device, bytes);
		slot->hidden = device->backend->host_alloc(device, bytes);
		slot->windows = calloc(device->max_rows / window, sizeof *slot->windows);
		if (!slot->rows || !slot->hidden || !slot->windows)
			return error_memory(err, "rows of a batch");
		for (size_t w = 0; w < device->max_rows / window; w++) {
			slot->windows[w].rows = slot->rows + w * window * hidden_size;
			slot->windows[w].hidden = slot->hidden + w * window * hidden_size;
		}
		slot->segment = (struct segment){ .cache = e->cache, .windows = slot->windows };
		slot->batch = (struct batch){ .segments = &slot->segment, .n_segments = 1 };
	}
	return 0;
}

static int open_encoding(struct encoding *e, struct error *err)
{
	static const int outputs[] = { OUTPUT_FINAL };
	const struct arguments *a = e->arguments;
	struct device_options options = {
		.precision = a->precision, .threads = a->threads, .window = a->window, .max_segments = 1,
		.outputs = outputs, .n_outputs = 1, .output_dtype = DTYPE_FLOAT32
	};
	int rc;

	if ((rc = model_open(a->model, &e->model, err)) || (rc = npy_open(a->in, &e->in, err)) ||
	    (rc = check_input(e, err)) || (rc = device_open(a->device, e->model, &options, &e->device, err)) ||
	    (rc = e->device->backend->cache_new(e->device, &e->cache, err)) || (rc = open_slots(e, err)))
		return rc;
	return npy_create(&e->out, a->out, e->in.rows, e->model->shape.hidden_size, err);
}

static void close_encoding(struct encoding *e)
{
	npy_abandon(&e->out);
	npy_close(&e->in);
	for (size_t i = 0; e->device && i < e->device->depth; i++) {
		e->device->backend->host_free(e->device, e->slot[i].rows);
		e->device->backend->host_free(e->device, e->slot[i].hidden);
		free(e->slot[i].windows);
	}
	if (e->cache)
		e->device->backend->cache_free(e->device, e->cache);
	device_close(e->device);
	model_free(e->model);
}

/* Read the next rows into the slot and start them: whole windows, or at the end what is left. */
static int start(struct encoding *e, struct slot *slot, struct error *err)
{
	const struct npy *in = &e->in;
	size_t hidden_size = e->model->shape.hidden_size;
	size_t whole = e->device->max_rows / e->device->window * e->device->window;
	size_t rows = in->rows - e->read < whole ? in->rows - e->read : whole;
	const char *src = (const char *)in->data + e->read * (in->columns ? in->columns : 1) * dtype_size(in->dtype);

	if (!dtype_is_float(in->dtype)) {
		struct error mistake;

		if (model_embed(e->model, in->dtype, src, rows, slot->rows, &mistake))
			return error_set(err, mistake.code, "%s: from row %zu on: %s", e->arguments->in, e->read,
					 mistake.text);
	} else if (!dtype_widen(in->dtype, src, rows * hidden_size, slot->rows)) {
		size_t i = dtype_finite(slot->rows, rows * hidden_size);

		return error_set(err, ERR_FORMAT, "%s: row %zu, column %zu is not finite", e->arguments->in,
				 e->read + i / hidden_size, i % hidden_size);
	}
	slot->segment.rows = rows;
	e->read += rows;
	return e->device->backend->submit(e->device, &slot->batch, err);
}

static int run(struct encoding *e, struct error *err)
{
	size_t depth = e->device->depth, started = 0, finished = 0;
	int rc = 0;

	e->started = now();
	while (e->written < e->in.rows) {
		struct slot *slot;

		while (started - finished < depth && e->read < e->in.rows) {
			rc = start(e, &e->slot[started % depth], err);
			if (rc)
				return rc;
			started++;
		}
		slot = &e->slot[finished++ % depth];
		if ((rc = e->device->backend->wait(e->device, err)) ||
		    (rc = npy_append(&e->out, slot->hidden, slot->segment.rows, err)))
			return rc;
		e->written += slot->segment.rows;
		show_progress(e);
	}
	return npy_commit(&e->out, err);
}

static int read_arguments(int argc, char **argv, struct arguments *a)
{
	static const struct option options[] = {
		{ "model", required_argument, NULL, 'm' }, { "window", required_argument, NULL, 'w' },
		{ "device", required_argument, NULL, 'd' }, { "precision", required_argument, NULL, 'p' },
		{ "threads", required_argument, NULL, 't' }, { NULL, 0, NULL, 0 }
	};
	int option;
	char *end = NULL;

	*a = (struct arguments){ .device = "auto", .window = 256 };
	while ((option = getopt_long(argc, argv, "m:", options, NULL)) != -1) {
		switch (option) {
		case 'm':
			a->model = optarg;
			break;
		case 'd':
			a->device = optarg;
			break;
		case 'w':
			a->window = strtoul(optarg, &end, 10);
			if (*end || !a->window || a->window > 65536)
				return ctl_usage("encode", "--window: expected 1 to 65536 rows");
			break;
		case 't':
			a->threads = strcmp(optarg, "auto") ? strtoul(optarg, &end, 10) : 0;
			if (end && (*end || a->threads > 1024))
				return ctl_usage("encode", "--threads: expected auto or 1 to 1024");
			break;
		case 'p':
			if (!precision_find(optarg, &a->precision))
				return ctl_usage("encode", "--precision: expected auto, float32 or bfloat16");
			break;
		default:
			return ctl_usage("encode", NULL);
		}
	}
	if (!a->model)
		return ctl_usage("encode", "--model DIR is missing");
	if (argc - optind != 2)
		return ctl_usage("encode", "expected IN.npy and OUT.npy");
	a->in = argv[optind];
	a->out = argv[optind + 1];
	return 0;
}

int ctl_encode(int argc, char **argv)
{
	struct arguments arguments;
	struct encoding encoding = { .arguments = &arguments };
	struct error err;
	int rc = read_arguments(argc, argv, &arguments);

	if (rc)
		return rc;
	rc = open_encoding(&encoding, &err);
	if (!rc)
		rc = run(&encoding, &err);
	close_encoding(&encoding);
	return rc ? ctl_fail("encode", CTL_FAILED, &err) : CTL_OK;
}
