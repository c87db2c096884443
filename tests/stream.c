/* Streams run through a device: see stream.h. */
#include "tests/stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *must(void *memory, const char *what)
{
	if (!memory) {
		fprintf(stderr, "%s: out of memory\n", what);
		exit(1);
	}
	return memory;
}

static void check(int rc, const struct error *err)
{
	if (rc) {
		fprintf(stderr, "device: %s\n", err->text);
		exit(1);
	}
}

struct device *stream_device(const char *name, const struct model *model, const struct device_options *options)
{
	struct device_options with_float32 = *options;
	struct device *device = NULL;
	struct error err;

	with_float32.output_dtype = DTYPE_FLOAT32;
	check(device_open(name, model, &with_float32, &device, &err), &err);
	return device;
}

struct cache *stream_cache(struct device *device)
{
	struct cache *cache = NULL;
	struct error err;

	check(device->backend->cache_new(device, &cache, &err), &err);
	return cache;
}

/* Memory of a batch: the windows of its pieces one after the other. */
struct arena {
	struct window *windows;
	float *rows, *hidden;
};

/* Copy a piece's rows to windows of their own. */
static struct segment place(const struct device *device, const struct piece *piece, struct arena *at)
{
	const size_t columns = device->model->shape.hidden_size, window = device->window;
	const struct segment segment = { .cache = piece->cache, .windows = at->windows, .rows = piece->n };

	for (size_t first = 0; first < piece->n; first += window) {
		const size_t rows = piece->n - first < window ? piece->n - first : window;

		*at->windows = (struct window){
			.rows = at->rows, .dtype = piece->dtype ? piece->dtype + first : NULL, .hidden = at->hidden
		};
		memset(at->rows, 0xff, rows * columns * sizeof *at->rows); /* not numbers, behind narrower rows */
		for (size_t r = 0; r < rows; r++)
			dtype_narrow(window_dtype(at->windows, r), piece->rows + (first + r) * columns, columns,
				     at->rows + r * columns);
		at->windows++;
		at->rows += window * columns;
		at->hidden += device->n_outputs * window * columns;
	}
	return segment;
}

static void collect(const struct device *device, const struct piece *piece, const struct segment *segment)
{
	const size_t columns = device->model->shape.hidden_size, window = device->window;

	for (size_t first = 0; first < piece->n; first += window) {
		const size_t rows = piece->n - first < window ? piece->n - first : window;
		const float *hidden = segment->windows[first / window].hidden;

		for (size_t i = 0; i < device->n_outputs; i++)
			memcpy(piece->hidden + (i * piece->stride + first) * columns, hidden + i * window * columns,
			       rows * columns * sizeof *hidden);
	}
}

void stream_batch(struct device *device, const struct piece *pieces, size_t n)
{
	struct segment segments[STREAM_BATCH];
	const struct batch batch = { .segments = segments, .n_segments = n };
	const size_t row = device->model->shape.hidden_size * sizeof(float);
	size_t windows = 0;
	struct arena arena, at;
	struct error err;

	for (size_t i = 0; i < n; i++)
		windows += (pieces[i].n + device->window - 1) / device->window;
	arena.windows = must(calloc(windows + 1, sizeof *arena.windows), "windows");
	arena.rows = must(device->backend->host_alloc(device, windows * device->window * row), "rows");
	arena.hidden = must(device->backend->host_alloc(device, windows * device->window * row * device->n_outputs),
			    "hidden states");
	at = arena;
	for (size_t i = 0; i < n; i++)
		segments[i] = place(device, &pieces[i], &at);
	check(device->backend->submit(device, &batch, &err), &err);
	check(device->backend->wait(device, &err), &err);
	for (size_t i = 0; i < n; i++)
		collect(device, &pieces[i], &segments[i]);
	device->backend->host_free(device, arena.hidden);
	device->backend->host_free(device, arena.rows);
	free(arena.windows);
}

void stream_run(struct device *device, struct cache *cache, const float *rows, size_t n, float *hidden)
{
	const size_t most = device->max_rows / device->window * device->window;
	const size_t columns = device->model->shape.hidden_size;

	for (size_t first = 0; first < n; first += most) {
		const struct piece piece = {
			.cache = cache,
			.rows = rows + first * columns,
			.n = n - first < most ? n - first : most,
			.hidden = hidden + first * columns,
			.stride = n,
		};

		stream_batch(device, &piece, 1);
	}
}

static void round_rows(float *rows, size_t n, size_t columns, size_t each, enum dtype *dtype)
{
	static const enum dtype dtypes[] = { DTYPE_FLOAT32, DTYPE_FLOAT16, DTYPE_BFLOAT16 };
	float *rounded = must(malloc(columns * sizeof *rounded), "a row");

	for (size_t r = 0; r < n; r++, rows += columns) {
		dtype[r] = dtypes[r / each % 3];
		dtype_narrow(dtype[r], rows, columns, rounded);
		dtype_widen(dtype[r], rounded, columns, rows);
	}
	free(rounded);
}

/* Run n rows of a new stream, as they come in these dtypes. */
static float *run_dtypes(struct device *device, const float *rows, size_t n, const enum dtype *dtype)
{
	float *hidden = must(malloc(n * device->model->shape.hidden_size * sizeof *hidden), "hidden states");
	const struct piece piece = {
		.cache = stream_cache(device), .rows = rows, .n = n, .hidden = hidden, .stride = n, .dtype = dtype
	};

	stream_batch(device, &piece, 1);
	device->backend->cache_free(device, piece.cache);
	return hidden;
}

bool stream_same_in_any_dtype(struct device *device, float *rows, size_t n, size_t each)
{
	const size_t columns = device->model->shape.hidden_size;
	enum dtype *dtype = must(malloc(n * sizeof *dtype), "dtypes");
	float *wide, *narrow;
	bool same;

	round_rows(rows, n, columns, each, dtype);
	wide = run_dtypes(device, rows, n, NULL);
	narrow = run_dtypes(device, rows, n, dtype);
	same = !memcmp(narrow, wide, n * columns * sizeof *wide);
	free(wide);
	free(narrow);
	free(dtype);
	return same;
}

float *stream_export(struct device *device, const struct cache *cache)
{
	float *state = must(calloc(shape_cache_floats(&device->model->shape), sizeof *state), "state");
	struct error err;

	check(device->backend->cache_export(device, cache, state, &err), &err);
	return state;
}
