/*
 * The cpu back end, on every instruction set that this machine has: hidden states and caches within the promised
 * tolerance, for golden cases and against a reference; and what a device owes besides.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cpu_paths.h"
#include "tests/golden.h"
#include "tests/reference.h"
#include "tests/stream.h"
#include "tests/suite.h"

#define MOST_OUTPUTS 8

static const size_t windows[] = { 1, 8, 64, 256 };
#define N_WINDOWS (sizeof windows / sizeof *windows)

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
	device = cpu_paths_open(golden->model, precision, 1, 1);
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
	if (cpu_paths_choose(cpu_paths[_i / GOLDEN_CASES]))
		for (size_t i = 0; i < N_WINDOWS; i++) {
			check_golden(&golden, PRECISION_FLOAT32, windows[i], 1e-5);
			check_golden(&golden, PRECISION_BFLOAT16, windows[i], 1e-2);
		}
	golden_free(&golden);
}
END_TEST

/* --- shapes of which there is no golden case ---------------------------------------------------------------------- */

/* Sizes that are no multiples of anything, groups of the gated norm, short and long convolutions. */
static const struct shape shapes[] = {
	{ .num_layers = 2, .hidden_size = 48, .d_inner = 96, .num_heads = 6, .head_dim = 16, .n_groups = 3,
	  .state_size = 20, .conv_kernel = 2, .gated_norm_groups = 3, .norm_epsilon = 1e-5f, .dt_max = INFINITY },
	{ .num_layers = 2, .hidden_size = 101, .d_inner = 200, .num_heads = 5, .head_dim = 40, .n_groups = 1,
	  .state_size = 16, .conv_kernel = 5, .gated_norm_groups = 5, .norm_epsilon = 1e-6f, .dt_min = 0.005f,
	  .dt_max = 0.02f },
	{ .num_layers = 1, .hidden_size = 128, .d_inner = 256, .num_heads = 4, .head_dim = 64, .n_groups = 2,
	  .state_size = 128, .conv_kernel = 4, .gated_norm_groups = 2, .norm_epsilon = 1e-5f, .dt_max = INFINITY },
	{ .num_layers = 2, .hidden_size = 17, .d_inner = 34, .num_heads = 1, .head_dim = 34, .n_groups = 1,
	  .state_size = 8, .conv_kernel = 64, .gated_norm_groups = 1, .norm_epsilon = 1e-5f, .dt_max = INFINITY },
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)
#define SHAPE_ROWS 150

static void check_shape(const struct model *model, const float *rows, const float *want, const float *want_cache,
			enum precision precision, size_t window)
{
	const double tolerance = precision == PRECISION_FLOAT32 ? 1e-5 : 1e-2;
	struct device *device = cpu_paths_open(model, precision, window, 2);
	struct cache *cache = stream_cache(device);
	float *hidden = malloc(SHAPE_ROWS * model->shape.hidden_size * sizeof *hidden), *got;

	stream_run(device, cache, rows, SHAPE_ROWS, hidden);
	ck_assert_double_le(relative_error(hidden, want, SHAPE_ROWS * model->shape.hidden_size), tolerance);
	if (SHAPE_ROWS % window == 0 && precision == PRECISION_FLOAT32) {
		got = stream_export(device, cache);
		check_cache(&model->shape, got, want_cache, tolerance);
		free(got);
	}
	free(hidden);
	device->backend->cache_free(device, cache);
	device_close(device);
}

START_TEST(shape_agrees_with_reference)
{
	static const size_t cuts[] = { 1, 5, 64, 150 };
	struct shape shape = shapes[_i];
	struct model *model;
	struct error err;
	float *rows, *want, *want_cache;
	unsigned seed = 1;

	ck_assert_int_eq(shape_derive(&shape, &err), 0);
	ck_assert_int_eq(model_random(&shape, 1, &model, &err), 0);
	rows = malloc(SHAPE_ROWS * shape.hidden_size * sizeof *rows);
	want = malloc(SHAPE_ROWS * shape.hidden_size * sizeof *want);
	want_cache = malloc(shape_cache_floats(&shape) * sizeof *want_cache);
	for (size_t i = 0; i < SHAPE_ROWS * shape.hidden_size; i++)
		rows[i] = (float)rand_r(&seed) / (float)RAND_MAX - 0.5f;
	reference_run(model, rows, SHAPE_ROWS, want, want_cache);
	for (size_t p = 0; p < CPU_PATHS; p++)
		for (size_t i = 0; cpu_paths_choose(cpu_paths[p]) && i < sizeof cuts / sizeof *cuts; i++) {
			check_shape(model, rows, want, want_cache, PRECISION_FLOAT32, cuts[i]);
			check_shape(model, rows, want, want_cache, PRECISION_BFLOAT16, cuts[i]);
		}
	free(rows);
	free(want);
	free(want_cache);
	model_free(model);
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
	device = cpu_paths_open(golden.model, PRECISION_FLOAT32, 7, 1);
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
	setenv("MAMBA2D_CPU_KERNELS", "altivec", 1);
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

		if (!cpu_paths_choose(cases[i].path))
			continue;
		golden_load(cases[i].name, &golden);
		device = cpu_paths_open(golden.model, PRECISION_AUTO, 8, 1);
		ck_assert_int_eq(device->precision, cases[i].precision);
		ck_assert_str_eq(device->description, cases[i].description);
		device_close(device);
		golden_free(&golden);
	}
}
END_TEST

/* A row counts for what it says, whichever dtype says it: in turns, window by window, two in a window. */
START_TEST(rows_of_any_dtype)
{
	static const size_t each[] = { 1, 64, 70 };
	struct golden golden;
	struct device *device;

	golden_load("odd-shapes", &golden);
	device = cpu_paths_open(golden.model, PRECISION_FLOAT32, 64, 1);
	for (size_t i = 0; i < sizeof each / sizeof *each; i++)
		ck_assert(stream_same_in_any_dtype(device, golden.inputs_embeds, golden.rows, each[i]));
	device_close(device);
	golden_free(&golden);
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
	TCase *golden = tcase_create("golden"), *device = tcase_create("device");

	tcase_add_checked_fixture(device, cpu_paths_forget, NULL);
	tcase_set_timeout(golden, 300);
	tcase_add_loop_test(golden, golden_case_within_tolerance, 0, GOLDEN_CASES * CPU_PATHS);
	tcase_add_loop_test(golden, shape_agrees_with_reference, 0, N_SHAPES);
	tcase_add_test(device, recycled_cache_is_zero);
	tcase_add_test(device, caches_are_limited);
	tcase_add_test(device, options_are_checked);
	tcase_add_test(device, precision_follows_checkpoint_and_machine);
	tcase_add_test(device, rows_of_any_dtype);
	tcase_add_test(device, outputs_are_rounded);
	suite_add_tcase(suite, golden);
	suite_add_tcase(suite, device);
	return suite_run(suite);
}
