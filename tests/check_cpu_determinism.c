/*
 * The cpu back end's promise: the same bits however a stream is cut up, mixed with others, moved between devices and
 * spread over threads, whatever rows follow.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/cpu_paths.h"
#include "tests/golden.h"
#include "tests/stream.h"
#include "tests/suite.h"

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
		trial.devices[i] = cpu_paths_open(golden->model, precision, window, i + 1);
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
	if (cpu_paths_choose(cpu_paths[path]))
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
	for (size_t i = 0; i < CPU_PATHS; i++) {
		if (!cpu_paths_choose(cpu_paths[i]))
			continue;
		device = cpu_paths_open(golden.model, PRECISION_FLOAT32, window, 2);
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

int main(void)
{
	Suite *suite = suite_create("cpu_determinism");
	TCase *determinism = tcase_create("determinism");

	tcase_set_timeout(determinism, 600);
	tcase_add_loop_test(determinism, chopped_streams_are_bit_identical, 0, GOLDEN_CASES * CPU_PATHS);
	tcase_add_test(determinism, rows_that_follow_change_nothing);
	suite_add_tcase(suite, determinism);
	return suite_run(suite);
}
