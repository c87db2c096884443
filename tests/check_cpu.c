/*
 * The cpu back end, on every instruction set that this machine has: the golden cases within the promised tolerance, and
 * bit-identical results however a stream is cut up, mixed with others and spread over threads.
 */
#include <stdlib.h>
#include <string.h>

#include "model/cpu_kernels.h"
#include "tests/golden.h"
#include "tests/stream.h"
#include "tests/suite.h"

#define KERNELS "MAMBA2D_CPU_KERNELS"
#define MOST_OUTPUTS 8

static const char *const paths[] = { "plain", "avx2", "avx512", "avx512bf16" };
#define N_PATHS (sizeof paths / sizeof *paths)

static const size_t windows[] = { 1, 8, 64, 256 };
#define N_WINDOWS (sizeof windows / sizeof *windows)

/* False where the machine has not got this path: there is nothing to test then. */
static bool choose_path(const char *path)
{
	const struct cpu_kernels *kernels;

	if (cpu_kernels_find(path, &kernels, NULL))
		return false;
	setenv(KERNELS, path, 1);
	return true;
}

static void forget_path(void)
{
	unsetenv(KERNELS);
}

/* Every layer's residual stream, then the final hidden states. */
static struct device *open_all_outputs(const struct model *model, enum precision precision, size_t window,
				       size_t threads)
{
	int outputs[MOST_OUTPUTS];
	struct device_options options = {
		.precision = precision, .threads = threads, .window = window, .outputs = outputs
	};

	while (options.n_outputs < model->shape.num_layers) {
		outputs[options.n_outputs] = (int)options.n_outputs;
		options.n_outputs++;
	}
	outputs[options.n_outputs++] = OUTPUT_FINAL;
	return stream_device("cpu", model, &options);
}

static struct device *open_final(const struct model *model, enum precision precision, size_t window, size_t threads)
{
	const int outputs[] = { OUTPUT_FINAL };
	const struct device_options options = {
		.precision = precision, .threads = threads, .window = window, .outputs = outputs, .n_outputs = 1
	};

	return stream_device("cpu", model, &options);
}

/* What the cache should be after n rows: the golden one, or what steps of one row leave. */
static float *expected_cache(const struct golden *golden, enum precision precision, size_t n)
{
	const size_t floats = shape_cache_floats(&golden->model->shape);
	float *cache, *hidden;
	struct device *device;
	struct cache *stepped;

	if (n == golden->rows) {
		cache = malloc(floats * sizeof *cache);
		return memcpy(cache, golden->cache, floats * sizeof *cache);
	}
	device = open_final(golden->model, precision, 1, 1);
	stepped = stream_cache(device);
	hidden = malloc((n + 1) * golden->model->shape.hidden_size * sizeof *hidden);
	stream_run(device, stepped, golden->inputs_embeds, n, hidden);
	cache = stream_export(device, stepped);
	device->backend->cache_free(device, stepped);
	device_close(device);
	free(hidden);
	return cache;
}

/* Error of a layer's share of the cache: conv state and SSM state by themselves. */
static void check_cache(const struct shape *shape, const float *got, const float *want, double tolerance)
{
	const size_t conv = shape_conv_state_floats(shape), ssm = shape_ssm_state_floats(shape);

	for (size_t i = 0; i < shape->num_layers; i++, got += conv + ssm, want += conv + ssm) {
		ck_assert_double_le(relative_error(got, want, conv), tolerance);
		ck_assert_double_le(relative_error(got + conv, want + conv, ssm), tolerance);
	}
}

/*
 * The tolerance is that of hidden states.  An SSM state sums rows whose signs differ, so in bfloat16 the same errors
 * weigh more in it.
 */
static void check_golden(const struct golden *golden, enum precision precision, size_t window, double tolerance)
{
	const double cache_tolerance = precision == PRECISION_BFLOAT16 ? 2 * tolerance : tolerance;
	const size_t layers = golden->model->shape.num_layers;
	const size_t n = golden->rows * golden->model->shape.hidden_size, whole = golden->rows / window * window;
	struct device *device = open_all_outputs(golden->model, precision, window, 2);
	struct cache *cache = stream_cache(device);
	float *hidden = malloc((layers + 1) * n * sizeof *hidden), *got, *want;

	stream_run(device, cache, golden->inputs_embeds, golden->rows, hidden);
	for (size_t i = 0; i < layers; i++)
		ck_assert_double_le(relative_error(hidden + i * n, golden->hidden_states + i * n, n), tolerance);
	ck_assert_double_le(relative_error(hidden + layers * n, golden->last_hidden_state, n), tolerance);
	got = stream_export(device, cache);
	want = expected_cache(golden, precision, whole);
	if (whole > 0)
		check_cache(&golden->model->shape, got, want, cache_tolerance);
	else
		ck_assert_mem_eq(got, want, shape_cache_floats(&golden->model->shape) * sizeof *got);
	free(got);
	free(want);
	free(hidden);
	device->backend->cache_free(device, cache);
	device_close(device);
}

START_TEST(golden_case_within_tolerance)
{
	struct golden golden;

	golden_load(golden_cases[_i % GOLDEN_CASES], &golden);
	if (choose_path(paths[_i / GOLDEN_CASES]))
		for (size_t i = 0; i < N_WINDOWS; i++) {
			check_golden(&golden, PRECISION_FLOAT32, windows[i], 1e-5);
			check_golden(&golden, PRECISION_BFLOAT16, windows[i], 1e-2);
		}
	golden_free(&golden);
}
END_TEST

/* --- determinism ------------------------------------------------------------------------------------------------- */

#define STREAMS 3
#define DEVICES 3

/* Streams of one model, what they yield when each is run alone and at once, and the devices to run them otherwise. */
struct trial {
	const struct model *model;
	size_t n, columns;      /* rows of each stream */
	float *rows[STREAMS];   /* [n, columns] */
	float *hidden[STREAMS]; /* [n, columns]: expected */
	float *state[STREAMS];  /* canonical cache at the end: expected */
	float *got;             /* [n, columns] */
	struct device *devices[DEVICES]; /* with 1, 2, 3 threads */
	unsigned seed;
};

static size_t random_below(struct trial *trial, size_t n)
{
	return (size_t)rand_r(&trial->seed) % n;
}

/* The golden input, shuffled row by row, a different way for each stream. */
static void fill_streams(struct trial *trial, const struct golden *golden)
{
	const size_t bytes = trial->columns * sizeof(float);

	for (size_t i = 0; i < STREAMS; i++) {
		trial->rows[i] = malloc(trial->n * bytes);
		trial->hidden[i] = malloc(trial->n * bytes);
		for (size_t r = 0; r < trial->n; r++)
			memcpy(trial->rows[i] + r * trial->columns, golden->inputs_embeds +
			       random_below(trial, golden->rows) * trial->columns, bytes);
	}
	trial->got = malloc(trial->n * bytes);
}

static struct trial trial_new(const struct golden *golden, enum precision precision, size_t window, size_t n)
{
	struct trial trial = {
		.model = golden->model, .n = n, .columns = golden->model->shape.hidden_size, .seed = (unsigned)window
	};

	fill_streams(&trial, golden);
	for (size_t i = 0; i < DEVICES; i++)
		trial.devices[i] = open_final(golden->model, precision, window, i + 1);
	for (size_t i = 0; i < STREAMS; i++) {
		struct cache *cache = stream_cache(trial.devices[0]);

		stream_run(trial.devices[0], cache, trial.rows[i], n, trial.hidden[i]);
		trial.state[i] = stream_export(trial.devices[0], cache);
		trial.devices[0]->backend->cache_free(trial.devices[0], cache);
	}
	return trial;
}

static void trial_free(struct trial *trial)
{
	for (size_t i = 0; i < DEVICES; i++)
		device_close(trial->devices[i]);
	for (size_t i = 0; i < STREAMS; i++) {
		free(trial->rows[i]);
		free(trial->hidden[i]);
		free(trial->state[i]);
	}
	free(trial->got);
}

/* One stream in the middle of a chopping: it may be on any device, and moves. */
struct walker {
	size_t device, next; /* row */
	struct cache *cache;
};

static void move_walker(struct trial *trial, struct walker *walker, size_t to)
{
	struct device *from_device = trial->devices[walker->device], *to_device = trial->devices[to];
	float *state = stream_export(from_device, walker->cache);

	from_device->backend->cache_free(from_device, walker->cache);
	walker->device = to;
	walker->cache = stream_cache(to_device);
	ck_assert_int_eq(to_device->backend->cache_import(to_device, walker->cache, state, NULL), 0);
	free(state);
}

/* A random piece of what is left of a stream: some whole windows, and at times rows of an unfinished one. */
static struct piece random_piece(struct trial *trial, size_t stream, const struct walker *walker)
{
	const struct device *device = trial->devices[walker->device];
	const size_t left = trial->n - walker->next, budget = device->max_rows / STREAMS / device->window;
	size_t n = random_below(trial, random_below(trial, 2) ? 3 : budget) * device->window;

	if (random_below(trial, 2))
		n += random_below(trial, device->window);
	if (n > left || n == 0)
		n = left < device->window ? left : device->window;
	return (struct piece){
		.cache = walker->cache,
		.rows = trial->rows[stream] + walker->next * trial->columns,
		.n = n,
		.hidden = trial->got,
		.stride = n,
	};
}

/* Run one batch of random pieces of the streams on this device, each of which must be what is expected. */
static void step(struct trial *trial, struct walker *walkers, size_t index)
{
	struct device *device = trial->devices[index];
	struct piece pieces[STREAMS];
	size_t of[STREAMS], n = 0, rows = 0;

	for (size_t i = 0; i < STREAMS; i++) {
		const size_t stream = (i + index) % STREAMS;

		if (walkers[stream].device != index || walkers[stream].next == trial->n || random_below(trial, 4) == 0)
			continue;
		pieces[n] = random_piece(trial, stream, &walkers[stream]);
		pieces[n].hidden = malloc(pieces[n].n * trial->columns * sizeof(float));
		rows += pieces[n].n;
		of[n++] = stream;
	}
	ck_assert_uint_le(rows, device->max_rows);
	stream_batch(device, pieces, n);
	for (size_t i = 0; i < n; i++) {
		struct walker *walker = &walkers[of[i]];

		ck_assert(!memcmp(pieces[i].hidden, trial->hidden[of[i]] + walker->next * trial->columns,
				  pieces[i].n * trial->columns * sizeof(float)));
		walker->next += pieces[i].n / device->window * device->window;
		if (walker->next + pieces[i].n % device->window == trial->n)
			walker->next = trial->n;
		free(pieces[i].hidden);
	}
}

/* All streams from start to end, cut, mixed and moved at random; their caches at the end are what is expected. */
static void chop(struct trial *trial)
{
	struct walker walkers[STREAMS];
	bool busy = true;

	for (size_t i = 0; i < STREAMS; i++) {
		walkers[i].device = random_below(trial, DEVICES);
		walkers[i].next = 0;
		walkers[i].cache = stream_cache(trial->devices[walkers[i].device]);
	}
	while (busy) {
		busy = false;
		for (size_t i = 0; i < DEVICES; i++)
			step(trial, walkers, i);
		for (size_t i = 0; i < STREAMS; i++) {
			busy |= walkers[i].next < trial->n;
			if (random_below(trial, 4) == 0)
				move_walker(trial, &walkers[i], random_below(trial, DEVICES));
		}
	}
	for (size_t i = 0; i < STREAMS; i++) {
		struct device *device = trial->devices[walkers[i].device];
		float *state = stream_export(device, walkers[i].cache);

		ck_assert(!memcmp(state, trial->state[i], shape_cache_floats(&trial->model->shape) * sizeof *state));
		free(state);
		device->backend->cache_free(device, walkers[i].cache);
	}
}

START_TEST(chopped_streams_are_bit_identical)
{
	static const struct {
		size_t window, rows, choppings;
	} cuts[] = { { 1, 40, 25 }, { 7, 100, 20 }, { 33, 200, 15 }, { 64, 300, 10 } }; /* times STREAMS */
	const size_t path = (size_t)_i / GOLDEN_CASES;
	struct golden golden;

	golden_load(golden_cases[_i % GOLDEN_CASES], &golden);
	if (choose_path(paths[path]))
		for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
			const enum precision precision = (i + path) % 2 ? PRECISION_BFLOAT16 : PRECISION_FLOAT32;
			struct trial trial = trial_new(&golden, precision, cuts[i].window, cuts[i].rows);

			for (size_t c = 0; c < cuts[i].choppings; c++)
				chop(&trial);
			trial_free(&trial);
		}
	golden_free(&golden);
}
END_TEST

/* Rows so large that everything after them is infinite or not a number must not touch the rows before them. */
START_TEST(rows_that_follow_change_nothing)
{
	const size_t window = 64, before = 37;
	struct golden golden;
	struct device *device;
	struct cache *cache;
	float *want, *got, *rows;
	size_t columns;

	golden_load("seed-46032", &golden);
	columns = golden.model->shape.hidden_size;
	want = malloc(window * columns * sizeof *want);
	got = malloc(window * columns * sizeof *got);
	rows = malloc(window * columns * sizeof *rows);
	memcpy(rows, golden.inputs_embeds, window * columns * sizeof *rows);
	for (size_t i = before * columns; i < window * columns; i++)
		rows[i] = i % 2 ? 3e38f : -3e38f;
	for (size_t i = 0; i < N_PATHS; i++) {
		if (!choose_path(paths[i]))
			continue;
		device = open_final(golden.model, PRECISION_FLOAT32, window, 2);
		cache = stream_cache(device);
		stream_run(device, cache, golden.inputs_embeds, before, want);
		stream_run(device, cache, rows, window, got);
		ck_assert(!memcmp(got, want, before * columns * sizeof *got));
		device->backend->cache_free(device, cache);
		device_close(device);
	}
	free(want);
	free(got);
	free(rows);
	golden_free(&golden);
}
END_TEST

/* --- the device -------------------------------------------------------------------------------------------------- */

START_TEST(recycled_cache_is_zero)
{
	struct golden golden;
	struct device *device;
	float *hidden, *state;
	size_t floats;

	golden_load("odd-shapes", &golden);
	device = open_final(golden.model, PRECISION_FLOAT32, 7, 1);
	floats = shape_cache_floats(&golden.model->shape);
	hidden = malloc(golden.rows * golden.model->shape.hidden_size * sizeof *hidden);
	for (int i = 0; i < 3; i++) {
		struct cache *cache = stream_cache(device);

		state = stream_export(device, cache);
		for (size_t j = 0; j < floats; j++)
			ck_assert(state[j] == 0);
		free(state);
		stream_run(device, cache, golden.inputs_embeds, golden.rows, hidden);
		device->backend->cache_free(device, cache);
	}
	free(hidden);
	device_close(device);
	golden_free(&golden);
}
END_TEST

START_TEST(caches_are_limited)
{
	struct golden golden;
	struct device *device;
	struct cache *caches[2], *third;
	const int outputs[] = { OUTPUT_FINAL };
	struct device_options options = { .window = 8, .outputs = outputs, .n_outputs = 1 };
	struct error err;

	golden_load("seed-46032", &golden);
	options.cache_bytes = 5 * shape_cache_floats(&golden.model->shape) * sizeof(float) / 2;
	device = stream_device("cpu", golden.model, &options);
	caches[0] = stream_cache(device);
	caches[1] = stream_cache(device);
	ck_assert_int_eq(device->backend->cache_new(device, &third, &err), ERR_MEMORY);
	device->backend->cache_free(device, caches[0]);
	caches[0] = stream_cache(device);
	device->backend->cache_free(device, caches[0]);
	device->backend->cache_free(device, caches[1]);
	device->backend->cache_free(device, NULL);
	device_close(device);
	golden_free(&golden);
}
END_TEST

START_TEST(options_are_checked)
{
	const int outputs[] = { OUTPUT_FINAL, 1, 2 };
	struct device_options options = { .window = 8, .outputs = outputs, .n_outputs = 2 };
	struct golden golden;
	struct device *device = NULL;
	struct error err;

	golden_load("seed-46032", &golden); /* of two layers */
	options.n_outputs = 3;
	ck_assert_int_eq(device_open("cpu", golden.model, &options, &device, &err), ERR_ARGUMENT);
	options.n_outputs = 2;
	options.max_rows = 7;
	ck_assert_int_eq(device_open("cpu", golden.model, &options, &device, &err), ERR_ARGUMENT);
	options.max_rows = 0;
	options.window = 0;
	ck_assert_int_eq(device_open("cpu", golden.model, &options, &device, &err), ERR_ARGUMENT);
	options.window = 8;
	options.output_dtype = DTYPE_INT32;
	ck_assert_int_eq(device_open("cpu", golden.model, &options, &device, &err), ERR_ARGUMENT);
	options.output_dtype = DTYPE_FLOAT32;
	setenv(KERNELS, "altivec", 1);
	ck_assert_int_eq(device_open("cpu", golden.model, &options, &device, &err), ERR_UNSUPPORTED);
	ck_assert_ptr_null(device);
	golden_free(&golden);
}
END_TEST

START_TEST(precision_follows_checkpoint_and_machine)
{
	static const struct {
		const char *name, *path;
		enum precision precision;
		const char *description;
	} cases[] = {
		{ "seed-46032", "plain", PRECISION_FLOAT32, "cpu plain float32" },
		{ "bfloat16", "plain", PRECISION_FLOAT32, "cpu plain float32" },
		{ "seed-46032", "avx512bf16", PRECISION_FLOAT32, "cpu avx512bf16 float32" },
		{ "float16", "avx512bf16", PRECISION_BFLOAT16, "cpu avx512bf16 bfloat16" },
		{ "bfloat16", "avx512bf16", PRECISION_BFLOAT16, "cpu avx512bf16 bfloat16" },
	};

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct golden golden;
		struct device *device;

		if (!choose_path(cases[i].path))
			continue;
		golden_load(cases[i].name, &golden);
		device = open_final(golden.model, PRECISION_AUTO, 8, 1);
		ck_assert_int_eq(device->precision, cases[i].precision);
		ck_assert_str_eq(device->description, cases[i].description);
		device_close(device);
		golden_free(&golden);
	}
}
END_TEST

/* Hidden states in half precision are the float32 ones, rounded. */
START_TEST(outputs_are_rounded)
{
	const int outputs[] = { OUTPUT_FINAL };
	struct device_options options = { .window = 64, .outputs = outputs, .n_outputs = 1 };
	struct golden golden;
	struct device *device;
	struct cache *cache;
	struct error err;
	uint16_t *got, *want;
	float *hidden;
	size_t n;

	golden_load("seed-46032", &golden);
	n = golden.rows * golden.model->shape.hidden_size;
	hidden = malloc(n * sizeof *hidden);
	got = malloc(n * sizeof *got);
	want = malloc(n * sizeof *want);
	device = stream_device("cpu", golden.model, &options);
	cache = stream_cache(device);
	stream_run(device, cache, golden.inputs_embeds, golden.rows, hidden);
	device->backend->cache_free(device, cache);
	device_close(device);
	dtype_narrow(DTYPE_BFLOAT16, hidden, n, want);
	options.output_dtype = DTYPE_BFLOAT16;
	ck_assert_int_eq(device_open("cpu", golden.model, &options, &device, &err), 0);
	cache = stream_cache(device);
	{
		const struct window window = { .rows = golden.inputs_embeds, .hidden = got };
		const struct segment segment = { .cache = cache, .windows = &window, .rows = golden.rows };
		const struct batch batch = { .segments = &segment, .n_segments = 1 };

		ck_assert_int_eq(device->backend->submit(device, &batch, &err), 0);
		ck_assert_int_eq(device->backend->wait(device, &err), 0);
	}
	ck_assert(!memcmp(got, want, n * sizeof *got));
	device->backend->cache_free(device, cache);
	device_close(device);
	free(hidden);
	free(got);
	free(want);
	golden_free(&golden);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cpu");
	TCase *golden = tcase_create("golden"), *determinism = tcase_create("determinism");
	TCase *device = tcase_create("device");

	tcase_add_checked_fixture(device, forget_path, NULL);
	tcase_set_timeout(golden, 300);
	tcase_add_loop_test(golden, golden_case_within_tolerance, 0, GOLDEN_CASES * N_PATHS);
	tcase_set_timeout(determinism, 600);
	tcase_add_loop_test(determinism, chopped_streams_are_bit_identical, 0, GOLDEN_CASES * N_PATHS);
	tcase_add_test(determinism, rows_that_follow_change_nothing);
	tcase_add_test(device, recycled_cache_is_zero);
	tcase_add_test(device, caches_are_limited);
	tcase_add_test(device, options_are_checked);
	tcase_add_test(device, precision_follows_checkpoint_and_machine);
	tcase_add_test(device, outputs_are_rounded);
	suite_add_tcase(suite, golden);
	suite_add_tcase(suite, determinism);
	suite_add_tcase(suite, device);
	return suite_run(suite);
}
