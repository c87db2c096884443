/*
 * The cuda back end: the golden cases within the promised tolerance, the CPU as oracle for shapes that tensor cores
 * serve, bit-identical results however streams are cut up, mixed, moved and evicted.  Exits with 77 without a GPU.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/golden.h"
#include "tests/stream.h"
#include "tests/suite.h"

#define STREAMS 16
#define MOST_OUTPUTS 8
#define CACHE_BYTES ((size_t)256 << 20) /* of a device, where the test does not depend on it */

static const size_t windows[] = { 1, 8, 64, 256 };
#define N_WINDOWS (sizeof windows / sizeof *windows)

static const int final_output[] = { OUTPUT_FINAL };

static struct device *open_final(const char *name, const struct model *model, enum precision precision, size_t window,
				 size_t cache_bytes)
{
	const struct device_options options = {
		.precision = precision, .window = window, .outputs = final_output, .n_outputs = 1,
		.cache_bytes = cache_bytes ? cache_bytes : CACHE_BYTES, .threads = 2
	};

	return stream_device(name, model, &options);
}

static void cache_free(struct device *device, struct cache *cache)
{
	device->backend->cache_free(device, cache);
}

static void cache_import(struct device *device, struct cache *cache, const float *state)
{
	ck_assert_int_eq(device->backend->cache_import(device, cache, state, NULL), 0);
}

static float *random_rows(size_t n, unsigned seed)
{
	float *rows = malloc(n * sizeof *rows);

	for (size_t i = 0; i < n; i++)
		rows[i] = (float)rand_r(&seed) / (float)RAND_MAX * 2 - 1;
	return rows;
}

/* --- against the golden cases ------------------------------------------------------------------------------------ */

/* The cache after n rows, as the CPU leaves it in float32, row by row. */
static float *cpu_cache(const struct model *model, const float *rows, size_t n)
{
	struct device *cpu = open_final("cpu", model, PRECISION_FLOAT32, 1, 0);
	struct cache *cache = stream_cache(cpu);
	float *hidden = malloc((n + 1) * model->shape.hidden_size * sizeof *hidden), *state;

	stream_run(cpu, cache, rows, n, hidden);
	state = stream_export(cpu, cache);
	cache_free(cpu, cache);
	device_close(cpu);
	free(hidden);
	return state;
}

/*
 * Conv and SSM states of every layer.  An SSM state sums rows whose signs differ, so that in bfloat16 the same errors
 * weigh more in it than in the hidden states.
 */
static void check_cache(const struct shape *shape, const float *got, const float *want, double tolerance)
{
	const size_t conv = shape_conv_state_floats(shape), ssm = shape_ssm_state_floats(shape);

	for (size_t i = 0; i < shape->num_layers; i++, got += conv + ssm, want += conv + ssm) {
		ck_assert_double_le(relative_error(got, want, conv), tolerance);
		ck_assert_double_le(relative_error(got + conv, want + conv, ssm), tolerance);
	}
}

static void check_golden(const struct golden *golden, enum precision precision, size_t window)
{
	const double tolerance = precision == PRECISION_FLOAT32 ? 1e-5 : 1e-2;
	const size_t layers = golden->model->shape.num_layers, whole = golden->rows / window * window;
	const size_t n = golden->rows * golden->model->shape.hidden_size;
	struct device_options options = {
		.precision = precision, .window = window, .max_rows = 1024, .cache_bytes = CACHE_BYTES
	};
	int outputs[MOST_OUTPUTS];
	struct device *device;
	struct cache *cache;
	float *hidden = malloc((layers + 1) * n * sizeof *hidden), *got, *want;

	for (size_t i = 0; i < layers; i++)
		outputs[options.n_outputs++] = (int)i;
	outputs[options.n_outputs++] = OUTPUT_FINAL;
	options.outputs = outputs;
	device = stream_device("cuda", golden->model, &options);
	cache = stream_cache(device);
	stream_run(device, cache, golden->inputs_embeds, golden->rows, hidden);
	for (size_t i = 0; i < layers; i++)
		ck_assert_double_le(relative_error(hidden + i * n, golden->hidden_states + i * n, n), tolerance);
	ck_assert_double_le(relative_error(hidden + layers * n, golden->last_hidden_state, n), tolerance);
	got = stream_export(device, cache);
	want = cpu_cache(golden->model, golden->inputs_embeds, whole);
	if (whole > 0)
		check_cache(&golden->model->shape, got, want, precision == PRECISION_FLOAT32 ? 1e-5 : 2e-2);
	else
		ck_assert_mem_eq(got, want, shape_cache_floats(&golden->model->shape) * sizeof *got);
	free(got);
	free(want);
	free(hidden);
	cache_free(device, cache);
	device_close(device);
}

START_TEST(golden_case_within_tolerance)
{
	struct golden golden;

	golden_load(golden_cases[_i], &golden);
	for (size_t i = 0; i < N_WINDOWS; i++) {
		check_golden(&golden, PRECISION_FLOAT32, windows[i]);
		check_golden(&golden, PRECISION_BFLOAT16, windows[i]);
	}
	golden_free(&golden);
}
END_TEST

/* --- shapes that run on tensor cores ----------------------------------------------------------------------------- */

/* Wide enough that a few segments fill a GPU one chunk after another, and a single one does not. */
static struct model *wide_model(size_t head_dim, size_t state_size, size_t groups)
{
	struct shape shape = {
		.num_layers = 2, .hidden_size = 64, .d_inner = 4096, .num_heads = 4096 / head_dim,
		.head_dim = head_dim, .n_groups = groups, .state_size = state_size, .conv_kernel = 4,
		.gated_norm_groups = groups, .norm_epsilon = 1e-5f, .dt_max = HUGE_VALF
	};
	struct model *model = NULL;

	ck_assert_int_eq(shape_derive(&shape, NULL), 0);
	ck_assert_int_eq(model_random(&shape, 7, &model, NULL), 0);
	return model;
}

static const struct {
	size_t head_dim, state_size, groups, window;
} chunked[] = { { 64, 128, 1, 256 }, { 64, 128, 2, 100 }, { 32, 64, 4, 64 }, { 128, 128, 8, 16 }, { 64, 64, 1, 65 } };
#define N_CHUNKED (int)(sizeof chunked / sizeof *chunked)

static struct model *chunked_model(int i)
{
	return wide_model(chunked[i].head_dim, chunked[i].state_size, chunked[i].groups);
}

START_TEST(chunks_agree_with_cpu)
{
	const size_t n = 700, columns = 64, whole = n / chunked[_i].window * chunked[_i].window;
	struct model *model = chunked_model(_i);
	struct device *devices[] = {
		open_final("cpu", model, PRECISION_FLOAT32, chunked[_i].window, 0),
		open_final("cuda", model, PRECISION_BFLOAT16, chunked[_i].window, 0)
	};
	float *rows = random_rows(n * columns, 1), *hidden[2], *state[2];

	for (int i = 0; i < 2; i++) {
		struct cache *cache = stream_cache(devices[i]);

		hidden[i] = malloc(n * columns * sizeof **hidden);
		stream_run(devices[i], cache, rows, n, hidden[i]);
		state[i] = stream_export(devices[i], cache);
		cache_free(devices[i], cache);
		device_close(devices[i]);
	}
	ck_assert_uint_gt(whole, 0);
	ck_assert_double_le(relative_error(hidden[1], hidden[0], n * columns), 1e-2);
	check_cache(&model->shape, state[1], state[0], 2e-2);
	for (int i = 0; i < 2; i++) {
		free(hidden[i]);
		free(state[i]);
	}
	free(rows);
	model_free(model);
}
END_TEST

/* --- determinism ------------------------------------------------------------------------------------------------- */

/* Streams of one model, and what they yield when each is run alone and at once. */
struct trial {
	const struct model *model;
	struct device *device;
	size_t n, columns;      /* rows of each stream */
	float *rows[STREAMS];   /* [n, columns] */
	float *hidden[STREAMS]; /* [n, columns]: expected */
	float *state[STREAMS];  /* canonical cache at the end: expected */
	struct cache *caches[STREAMS];
	size_t next[STREAMS];   /* row */
	unsigned seed;
};

static size_t random_below(struct trial *trial, size_t n)
{
	return (size_t)rand_r(&trial->seed) % n;
}

static void trial_new(const struct model *model, struct device *device, size_t n, struct trial *ret_trial)
{
	struct trial trial = { .model = model, .device = device, .n = n, .columns = model->shape.hidden_size };

	for (size_t i = 0; i < STREAMS; i++) {
		struct cache *cache = stream_cache(device);

		trial.rows[i] = random_rows(n * trial.columns, (unsigned)i);
		trial.hidden[i] = malloc(n * trial.columns * sizeof **trial.hidden);
		stream_run(device, cache, trial.rows[i], n, trial.hidden[i]);
		trial.state[i] = stream_export(device, cache);
		cache_free(device, cache);
		trial.caches[i] = stream_cache(device);
	}
	*ret_trial = trial;
}

static void trial_free(struct trial *trial)
{
	for (size_t i = 0; i < STREAMS; i++) {
		cache_free(trial->device, trial->caches[i]);
		free(trial->rows[i]);
		free(trial->hidden[i]);
		free(trial->state[i]);
	}
}

/* Up to five windows of what is left of a stream, at times with rows of an unfinished one behind them. */
static struct piece random_piece(struct trial *trial, size_t i, float *got)
{
	const size_t window = trial->device->window, left = trial->n - trial->next[i];
	size_t n = random_below(trial, 6) * window;

	if (n == 0 || random_below(trial, 3) == 0)
		n += 1 + random_below(trial, window);
	if (n > left)
		n = left;
	return (struct piece){
		.cache = trial->caches[i], .rows = trial->rows[i] + trial->next[i] * trial->columns,
		.n = n, .hidden = got, .stride = n
	};
}

/* One batch of pieces of some of the streams; returns whether there was anything left to run. */
static bool random_batch(struct trial *trial, size_t most)
{
	const size_t row = trial->columns * sizeof(float), window = trial->device->window;
	struct piece pieces[STREAMS];
	size_t streams[STREAMS], n = 0, rows = 0;
	bool left = false;

	for (size_t i = 0; i < STREAMS; i++) {
		left |= trial->next[i] < trial->n;
		if (n == most || trial->next[i] == trial->n || random_below(trial, 3) == 0)
			continue;
		pieces[n] = random_piece(trial, i, NULL);
		if (rows + pieces[n].n > trial->device->max_rows)
			continue;
		pieces[n].hidden = malloc(pieces[n].n * row);
		rows += pieces[n].n;
		streams[n++] = i;
	}
	if (n > 0)
		stream_batch(trial->device, pieces, n);
	for (size_t k = 0; k < n; k++) {
		size_t i = streams[k], from = trial->next[i];

		ck_assert(!memcmp(pieces[k].hidden, trial->hidden[i] + from * trial->columns, pieces[k].n * row));
		trial->next[i] += pieces[k].n / window * window;
		if (trial->n - trial->next[i] < window && from + pieces[k].n == trial->n)
			trial->next[i] = trial->n;
		free(pieces[k].hidden);
	}
	return left;
}

/* Export a random stream's cache, and import it into a new one. */
static void random_move(struct trial *trial)
{
	const size_t i = random_below(trial, STREAMS);
	float *state = stream_export(trial->device, trial->caches[i]);

	cache_free(trial->device, trial->caches[i]);
	trial->caches[i] = stream_cache(trial->device);
	cache_import(trial->device, trial->caches[i], state);
	free(state);
}

static void check_trial(struct trial *trial, size_t most)
{
	const size_t bytes = shape_cache_floats(&trial->model->shape) * sizeof(float);

	while (random_batch(trial, most))
		if (random_below(trial, 4) == 0)
			random_move(trial);
	for (size_t i = 0; i < STREAMS; i++) {
		float *state = stream_export(trial->device, trial->caches[i]);

		ck_assert(!memcmp(state, trial->state[i], bytes));
		free(state);
	}
}

static void check_determinism(const struct model *model, enum precision precision, size_t window, size_t n)
{
	struct device *device = open_final("cuda", model, precision, window, 0);
	struct trial trial;

	trial_new(model, device, n, &trial);
	check_trial(&trial, STREAMS);
	trial_free(&trial);
	device_close(device);
}

START_TEST(cut_golden_streams_are_bit_identical)
{
	struct golden golden;

	golden_load(golden_cases[_i], &golden);
	check_determinism(golden.model, PRECISION_FLOAT32, 7, 150);
	check_determinism(golden.model, PRECISION_BFLOAT16, 1, 40);
	check_determinism(golden.model, PRECISION_BFLOAT16, 24, 500);
	golden_free(&golden);
}
END_TEST

START_TEST(cut_chunked_streams_are_bit_identical)
{
	struct model *model = chunked_model(_i);

	check_determinism(model, PRECISION_BFLOAT16, chunked[_i].window, 9 * chunked[_i].window + 5);
	model_free(model);
}
END_TEST

/* A stream of so many chunks at once that the states of later ones are on their way while earlier ones are put out. */
START_TEST(long_streams_are_bit_identical)
{
	const size_t window = chunked[_i].window, columns = 64, chunks = (window + 63) / 64;
	const size_t n = (150 / chunks + 1) * window + 5, step = 3 * window;
	struct model *model = chunked_model(_i);
	const struct device_options options = {
		.precision = PRECISION_BFLOAT16, .window = window, .max_rows = n + window, .outputs = final_output,
		.n_outputs = 1, .cache_bytes = CACHE_BYTES
	};
	struct device *device = stream_device("cuda", model, &options);
	struct cache *whole = stream_cache(device), *cut = stream_cache(device);
	float *rows = random_rows(n * columns, 5), *want = malloc(n * columns * sizeof *want), *states[2];
	float *got = malloc(n * columns * sizeof *got);

	stream_run(device, whole, rows, n, want);
	for (size_t from = 0; from < n; from += step) {
		const struct piece piece = {
			.cache = cut, .rows = rows + from * columns, .n = n - from < step ? n - from : step,
			.hidden = got + from * columns, .stride = n
		};

		stream_batch(device, &piece, 1);
	}
	ck_assert(!memcmp(got, want, n * columns * sizeof *got));
	states[0] = stream_export(device, whole);
	states[1] = stream_export(device, cut);
	ck_assert(!memcmp(states[0], states[1], shape_cache_floats(&model->shape) * sizeof(float)));
	for (int i = 0; i < 2; i++)
		free(states[i]);
	cache_free(device, whole);
	cache_free(device, cut);
	free(rows);
	free(want);
	free(got);
	device_close(device);
	model_free(model);
}
END_TEST

/* All streams have run: every cache is in a slot or on the host, and some came back again and again. */
static void check_counts(struct device *device, size_t slots)
{
	struct cache_counts counts;

	device->backend->cache_counts(device, &counts);
	ck_assert_uint_eq(counts.slots, slots);
	ck_assert_uint_eq(counts.device, slots);
	ck_assert_uint_eq(counts.host, STREAMS - slots);
	ck_assert_uint_gt(counts.moved_out, STREAMS);
	ck_assert_uint_gt(counts.moved_in, STREAMS);
}

/* A pool of three caches for sixteen streams: nearly every batch evicts some and brings others back. */
START_TEST(evicted_caches_come_back)
{
	struct model *model = chunked_model(1);
	struct device *device = open_final("cuda", model, PRECISION_BFLOAT16, 100, 0);
	struct trial trial;
	size_t bytes;

	trial_new(model, device, 1234, &trial);
	for (size_t i = 0; i < STREAMS; i++)
		cache_free(device, trial.caches[i]);
	device_close(device);
	bytes = shape_cache_floats(&model->shape) * sizeof(float);
	trial.device = open_final("cuda", model, PRECISION_BFLOAT16, 100, 7 * bytes / 2);
	ck_assert_uint_eq(trial.device->max_segments, 3);
	for (size_t i = 0; i < STREAMS; i++)
		trial.caches[i] = stream_cache(trial.device);
	check_trial(&trial, 3);
	check_counts(trial.device, 3);
	device = trial.device;
	trial_free(&trial);
	device_close(device);
	model_free(model);
}
END_TEST

/* What follows a row in its window, however large, changes nothing. */
START_TEST(rows_that_follow_change_nothing)
{
	const size_t window = 64, before = 37, columns = 64;
	struct model *model = chunked_model(0);
	float *rows = random_rows(window * columns, 3), *want = malloc(window * columns * sizeof *want);
	float *got = malloc(window * columns * sizeof *got);

	for (enum precision precision = PRECISION_FLOAT32; precision <= PRECISION_BFLOAT16; precision++) {
		struct device *device = open_final("cuda", model, precision, window, 0);
		struct cache *cache = stream_cache(device);

		stream_run(device, cache, rows, before, want);
		for (size_t i = before * columns; i < window * columns; i++)
			rows[i] = i % 2 ? 3e38f : -3e38f;
		stream_run(device, cache, rows, window, got);
		ck_assert(!memcmp(got, want, before * columns * sizeof *got));
		cache_free(device, cache);
		device_close(device);
	}
	free(rows);
	free(want);
	free(got);
	model_free(model);
}
END_TEST

/* --- the device -------------------------------------------------------------------------------------------------- */

/* A stream begun on one device goes on on the other. */
START_TEST(cache_moves_between_cpu_and_gpu)
{
	struct golden golden;
	size_t half, columns, n;
	float *hidden;

	golden_load(golden_cases[_i], &golden);
	half = golden.rows / 2 / 8 * 8;
	columns = golden.model->shape.hidden_size;
	n = golden.rows * columns;
	hidden = malloc(n * sizeof *hidden);
	for (int first = 0; first < 2; first++) {
		struct device *devices[] = {
			open_final("cpu", golden.model, PRECISION_FLOAT32, 8, 0),
			open_final("cuda", golden.model, PRECISION_FLOAT32, 8, 0)
		};
		struct device *one = devices[first], *other = devices[!first];
		struct cache *cache = stream_cache(one);
		float *state;

		stream_run(one, cache, golden.inputs_embeds, half, hidden);
		state = stream_export(one, cache);
		cache_free(one, cache);
		cache = stream_cache(other);
		cache_import(other, cache, state);
		stream_run(other, cache, golden.inputs_embeds + half * columns, golden.rows - half,
			   hidden + half * columns);
		ck_assert_double_le(relative_error(hidden, golden.last_hidden_state, n), 1e-5);
		cache_free(other, cache);
		free(state);
		device_close(one);
		device_close(other);
	}
	free(hidden);
	golden_free(&golden);
}
END_TEST

START_TEST(recycled_cache_is_zero)
{
	struct golden golden;
	struct device *device;
	struct cache *cache;
	float *first, *again;
	size_t bytes;

	golden_load("odd-shapes", &golden);
	bytes = shape_cache_floats(&golden.model->shape) * sizeof(float);
	device = open_final("cuda", golden.model, PRECISION_FLOAT32, 7, 2 * bytes);
	first = malloc(golden.rows * golden.model->shape.hidden_size * sizeof *first);
	again = malloc(golden.rows * golden.model->shape.hidden_size * sizeof *again);
	for (int i = 0; i < 3; i++) {
		float *state;

		cache = stream_cache(device);
		state = stream_export(device, cache);
		for (size_t k = 0; k < bytes / sizeof *state; k++)
			ck_assert(state[k] == 0);
		free(state);
		stream_run(device, cache, golden.inputs_embeds, golden.rows, i ? again : first);
		if (i)
			ck_assert(!memcmp(first, again, golden.rows * golden.model->shape.hidden_size * sizeof *first));
		cache_free(device, cache);
	}
	free(first);
	free(again);
	device_close(device);
	golden_free(&golden);
}
END_TEST

/* Two batches of one stream at once give what one after the other gives. */
START_TEST(batches_overlap)
{
	const size_t window = 64, columns = 64;
	struct model *model = chunked_model(0);
	struct device *device = open_final("cuda", model, PRECISION_BFLOAT16, window, 0);
	float *rows = device->backend->host_alloc(device, 2 * window * columns * sizeof *rows);
	float *hidden = device->backend->host_alloc(device, 2 * window * columns * sizeof *hidden);
	float *want = malloc(2 * window * columns * sizeof *want), *random = random_rows(2 * window * columns, 5);
	struct cache *cache = stream_cache(device);
	struct window at[2];
	struct segment segments[2];
	struct batch batches[2];

	memcpy(rows, random, 2 * window * columns * sizeof *rows);
	stream_run(device, cache, rows, 2 * window, want);
	cache_free(device, cache);
	cache = stream_cache(device);
	ck_assert_uint_eq(device->depth, 2);
	for (int i = 0; i < 2; i++) {
		at[i] = (struct window){
			.rows = rows + (size_t)i * window * columns, .hidden = hidden + (size_t)i * window * columns
		};
		segments[i] = (struct segment){ .cache = cache, .windows = &at[i], .rows = window };
		batches[i] = (struct batch){ .segments = &segments[i], .n_segments = 1 };
		ck_assert_int_eq(device->backend->submit(device, &batches[i], NULL), 0);
	}
	for (int i = 0; i < 2; i++)
		ck_assert_int_eq(device->backend->wait(device, NULL), 0);
	ck_assert(!memcmp(hidden, want, 2 * window * columns * sizeof *want));
	cache_free(device, cache);
	device->backend->host_free(device, rows);
	device->backend->host_free(device, hidden);
	free(want);
	free(random);
	device_close(device);
	model_free(model);
}
END_TEST

static void check_dtypes(const struct model *model, size_t window)
{
	const size_t n = 3 * window + window / 3, each[] = { 1, window, window + 7, (n + 1) / 2 };
	const struct device_options options = {
		.precision = PRECISION_BFLOAT16, .window = window, .max_rows = 4 * window, .outputs = final_output,
		.n_outputs = 1, .cache_bytes = CACHE_BYTES
	};
	float *rows = random_rows(n * model->shape.hidden_size, 7);
	struct device *device = stream_device("cuda", model, &options);

	for (size_t i = 0; i < sizeof each / sizeof *each; i++)
		ck_assert(stream_same_in_any_dtype(device, rows, n, each[i]));
	device_close(device);
	free(rows);
}

/*
 * A row counts for what it says, whichever dtype says it: in turns, window by window, two in a window; where copy
 * engines move long runs of rows, and where a kernel moves short ones; of widths that are padded, too.
 */
START_TEST(rows_of_any_dtype)
{
	static const size_t hidden_sizes[] = { 512, 101, 17 };

	for (size_t i = 0; i < sizeof hidden_sizes / sizeof *hidden_sizes; i++) {
		struct shape shape = {
			.num_layers = 1, .hidden_size = hidden_sizes[i], .d_inner = 64, .num_heads = 1,
			.head_dim = 64, .n_groups = 1, .state_size = 64, .conv_kernel = 4, .gated_norm_groups = 1,
			.norm_epsilon = 1e-5f, .dt_max = HUGE_VALF
		};
		struct model *model = NULL;

		ck_assert_int_eq(shape_derive(&shape, NULL), 0);
		ck_assert_int_eq(model_random(&shape, 7, &model, NULL), 0);
		check_dtypes(model, 256);
		check_dtypes(model, 1);
		model_free(model);
	}
}
END_TEST

/* Hidden states in half precision are the float32 ones, rounded. */
START_TEST(outputs_are_rounded)
{
	const enum dtype dtype = _i ? DTYPE_BFLOAT16 : DTYPE_FLOAT16;
	struct device_options options = {
		.window = 64, .outputs = final_output, .n_outputs = 1, .output_dtype = dtype,
		.cache_bytes = CACHE_BYTES
	};
	struct golden golden;
	struct device *device;
	struct cache *cache;
	float *wide, *rows;
	uint16_t *got, *want;
	size_t n;

	golden_load("odd-shapes", &golden);
	n = 64 * golden.model->shape.hidden_size;
	wide = malloc(n * sizeof *wide);
	want = malloc(n * sizeof *want);
	device = open_final("cuda", golden.model, PRECISION_FLOAT32, 64, 0);
	cache = stream_cache(device);
	stream_run(device, cache, golden.inputs_embeds, 64, wide);
	cache_free(device, cache);
	device_close(device);
	dtype_narrow(dtype, wide, n, want);
	ck_assert_int_eq(device_open("cuda", golden.model, &options, &device, NULL), 0);
	cache = stream_cache(device);
	rows = device->backend->host_alloc(device, n * sizeof *rows);
	got = device->backend->host_alloc(device, n * sizeof *got);
	memcpy(rows, golden.inputs_embeds, n * sizeof *rows);
	{
		const struct window window = { .rows = rows, .hidden = got };
		const struct segment segment = { .cache = cache, .windows = &window, .rows = 64 };
		const struct batch batch = { .segments = &segment, .n_segments = 1 };

		ck_assert_int_eq(device->backend->submit(device, &batch, NULL), 0);
		ck_assert_int_eq(device->backend->wait(device, NULL), 0);
	}
	ck_assert(!memcmp(got, want, n * sizeof *got));
	device->backend->host_free(device, rows);
	device->backend->host_free(device, got);
	cache_free(device, cache);
	device_close(device);
	free(wide);
	free(want);
	golden_free(&golden);
}
END_TEST

START_TEST(refusals_say_why)
{
	struct device_options options = { .window = 8, .max_rows = 16, .outputs = final_output, .n_outputs = 1 };
	struct segment segment = { .rows = 17 };
	const struct batch batch = { .segments = &segment, .n_segments = 1 };
	struct golden golden;
	struct device *device = NULL;
	struct error err;

	golden_load("seed-46032", &golden);
	options.max_rows = 7;
	ck_assert_int_eq(device_open("cuda", golden.model, &options, &device, &err), ERR_ARGUMENT);
	options.max_rows = 16;
	options.cache_bytes = 1000;
	ck_assert_int_eq(device_open("cuda", golden.model, &options, &device, &err), ERR_DEVICE);
	ck_assert_ptr_nonnull(strstr(err.text, "one cache takes"));
	options.cache_bytes = (size_t)1 << 50;
	ck_assert_int_eq(device_open("cuda", golden.model, &options, &device, &err), ERR_DEVICE);
	ck_assert_ptr_nonnull(strstr(err.text, "out of memory"));
	options.cache_bytes = CACHE_BYTES;
	ck_assert_int_eq(device_open("cuda:9999", golden.model, &options, &device, &err), ERR_UNSUPPORTED);
	ck_assert_int_eq(device_open("cuda", golden.model, &options, &device, &err), 0);
	segment.cache = stream_cache(device);
	ck_assert_int_eq(device->backend->submit(device, &batch, &err), ERR_ARGUMENT);
	segment.rows = 0;
	ck_assert_int_eq(device->backend->submit(device, &batch, &err), ERR_ARGUMENT);
	cache_free(device, segment.cache);
	device_close(device);
	golden_free(&golden);
}
END_TEST

/* --- every kernel, in so little time that it can be done under a memory checker ---------------------------------- */

static const struct {
	size_t window;
	enum precision precision;
} kernels[] = {
	{ 1, PRECISION_FLOAT32 }, { 65, PRECISION_FLOAT32 }, { 1, PRECISION_BFLOAT16 }, { 65, PRECISION_BFLOAT16 }
};
#define N_KERNELS (int)(sizeof kernels / sizeof *kernels)

/*
 * Streams in one batch, so many that each processor has segments one after another; and one alone, whose chunks all run
 * at once, and are more than chunk_states has stages.
 */
START_TEST(every_kernel_agrees_with_cpu)
{
	const size_t streams = 13, columns = 64, window = kernels[_i].window, n = 2 * window + window / 2;
	const size_t longer = n + 2 * window, all = streams * n;
	const double tolerance = kernels[_i].precision == PRECISION_FLOAT32 ? 1e-5 : 1e-2;
	struct model *model = wide_model(64, 128, 2);
	const struct device_options options = {
		.precision = kernels[_i].precision, .window = window, .max_rows = (all + window - 1) / window * window,
		.outputs = final_output, .n_outputs = 1, .cache_bytes = CACHE_BYTES
	};
	struct device *cpu = open_final("cpu", model, PRECISION_FLOAT32, window, 0);
	struct device *device = stream_device("cuda", model, &options);
	float *rows = random_rows(all * columns, 11), *want = malloc(n * columns * sizeof *want);
	float *hidden = malloc((all + longer) * columns * sizeof *hidden);
	struct piece pieces[STREAM_BATCH];
	struct cache *cache;

	for (size_t i = 0; i < streams; i++)
		pieces[i] = (struct piece){
			.cache = stream_cache(device), .rows = rows + i * n * columns, .n = n,
			.hidden = hidden + i * n * columns, .stride = n
		};
	pieces[streams] = (struct piece){
		.cache = stream_cache(device), .rows = rows, .n = longer, .hidden = hidden + all * columns,
		.stride = longer
	};
	stream_batch(device, pieces, streams);
	stream_batch(device, pieces + streams, 1);
	for (size_t i = 0; i < streams; i++) {
		cache = stream_cache(cpu);
		stream_run(cpu, cache, pieces[i].rows, n, want);
		cache_free(cpu, cache);
		ck_assert_double_le(relative_error(pieces[i].hidden, want, n * columns), tolerance);
	}
	ck_assert(!memcmp(pieces[streams].hidden, pieces[0].hidden, n * columns * sizeof *hidden));
	for (size_t i = 0; i <= streams; i++)
		cache_free(device, pieces[i].cache);
	free(rows);
	free(want);
	free(hidden);
	device_close(cpu);
	device_close(device);
	model_free(model);
}
END_TEST

static bool have_gpu(void)
{
	struct device_options options = {
		.window = 1, .max_rows = 1, .outputs = final_output, .n_outputs = 1, .cache_bytes = CACHE_BYTES
	};
	struct golden golden;
	struct device *device = NULL;
	struct error err;
	int rc;

	golden_load("odd-shapes", &golden);
	rc = device_open("cuda", golden.model, &options, &device, &err);
	device_close(device);
	golden_free(&golden);
	if (rc)
		fprintf(stderr, "%s\n", err.text);
	return rc != ERR_UNSUPPORTED;
}

int main(void)
{
	Suite *suite;
	TCase *golden, *chunks, *determinism, *device, *small;

	if (!have_gpu())
		return 77;
	suite = suite_create("cuda");
	golden = tcase_create("golden");
	chunks = tcase_create("chunks");
	determinism = tcase_create("determinism");
	device = tcase_create("device");
	small = tcase_create("kernels");
	setenv("CK_FORK", "no", 1); /* a forked child cannot use its parent's GPU */
	tcase_add_loop_test(golden, golden_case_within_tolerance, 0, GOLDEN_CASES);
	tcase_add_loop_test(chunks, chunks_agree_with_cpu, 0, N_CHUNKED);
	tcase_add_loop_test(determinism, cut_golden_streams_are_bit_identical, 0, GOLDEN_CASES);
	tcase_add_loop_test(determinism, cut_chunked_streams_are_bit_identical, 0, N_CHUNKED);
	tcase_add_loop_test(determinism, long_streams_are_bit_identical, 0, N_CHUNKED);
	tcase_add_test(determinism, evicted_caches_come_back);
	tcase_add_test(determinism, rows_that_follow_change_nothing);
	tcase_add_loop_test(device, cache_moves_between_cpu_and_gpu, 0, GOLDEN_CASES);
	tcase_add_test(device, recycled_cache_is_zero);
	tcase_add_test(device, batches_overlap);
	tcase_add_loop_test(device, outputs_are_rounded, 0, 2);
	tcase_add_test(device, refusals_say_why);
	tcase_add_loop_test(small, every_kernel_agrees_with_cpu, 0, N_KERNELS);
	tcase_add_loop_test(small, long_streams_are_bit_identical, 1, 2);
	tcase_add_test(small, rows_of_any_dtype);
	suite_add_tcase(suite, golden);
	suite_add_tcase(suite, chunks);
	suite_add_tcase(suite, determinism);
	suite_add_tcase(suite, device);
	suite_add_tcase(suite, small);
	return suite_run(suite);
}
