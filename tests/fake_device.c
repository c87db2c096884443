/* See fake_device.h. */
#include "tests/fake_device.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/device.h"

#define DEPTH 2

struct fake {
	struct device base;
	int index;
};

struct cache {
	uint32_t state;
};

atomic_bool fake_failure, fake_full;
atomic_int fake_broken;
atomic_uint fake_stuck;

static void wait_unstuck(const struct device *device)
{
	while (fake_stuck >> ((const struct fake *)device)->index & 1)
		usleep(100);
}

static int check_whole(struct error *err)
{
	return fake_broken ? error_set(err, fake_broken, "the device is broken") : 0;
}

static int open_kind(const struct backend *backend, const char *description, const struct model *model,
		     const struct device_options *options, struct device **ret_device, struct error *err)
{
	struct fake *fake = calloc(1, sizeof *fake);

	if (!fake)
		return error_memory(err, "device");
	fake->index = options->index;
	fake->base = (struct device){
		.backend = backend, .model = model, .window = options->window, .max_rows = 4 * options->window,
		.max_segments = 4, .n_outputs = 1, .output_dtype = options->output_dtype,
		.precision = PRECISION_FLOAT32, .depth = DEPTH
	};
	strcpy(fake->base.description, description);
	*ret_device = &fake->base;
	return 0;
}

static int fake_open(const struct model *model, const struct device_options *options, struct device **ret_device,
		     struct error *err)
{
	return open_kind(&backend_cpu, "fake", model, options, ret_device, err);
}

static int other_open(const struct model *model, const struct device_options *options, struct device **ret_device,
		      struct error *err)
{
	return open_kind(&backend_cuda, "another fake", model, options, ret_device, err);
}

static void fake_close(struct device *device)
{
	free(device);
}

static int fake_cache_new(struct device *device, struct cache **ret_cache, struct error *err)
{
	(void)device;
	*ret_cache = fake_full ? NULL : calloc(1, sizeof **ret_cache);
	return *ret_cache ? 0 : error_memory(err, "cache");
}

static void fake_cache_free(struct device *device, struct cache *cache)
{
	(void)device;
	free(cache);
}

static int fake_export(struct device *device, const struct cache *cache, float *state, struct error *err)
{
	wait_unstuck(device);
	if (check_whole(err))
		return err->code;
	memset(state, 0, shape_cache_floats(&device->model->shape) * sizeof *state);
	state[0] = (float)cache->state;
	return 0;
}

static int fake_import(struct device *device, struct cache *cache, const float *state, struct error *err)
{
	wait_unstuck(device);
	if (check_whole(err))
		return err->code;
	cache->state = fake_number(state[0]);
	return 0;
}

static void *fake_host_alloc(struct device *device, size_t bytes)
{
	(void)device;
	return fake_full ? NULL : malloc(bytes);
}

static void fake_host_free(struct device *device, void *memory)
{
	(void)device;
	free(memory);
}

static void run_segment(const struct device *device, const struct segment *segment)
{
	const size_t columns = device->model->shape.hidden_size;
	uint32_t state = segment->cache->state;

	for (size_t row = 0; row < segment->rows; row++) {
		const struct window *window = &segment->windows[row / device->window];
		const size_t at = row % device->window * columns;
		float *hidden = (float *)window->hidden + at, first;

		dtype_widen(window_dtype(window, row % device->window), window->rows + at, 1, &first);
		state = fake_step(state, first);
		memset(hidden, 0, columns * sizeof *hidden);
		hidden[0] = (float)state;
		if ((row + 1) % device->window == 0)
			segment->cache->state = state;
	}
}

static int fake_submit(struct device *device, const struct batch *batch, struct error *err)
{
	static atomic_bool failed;

	if (check_whole(err))
		return err->code;
	failed = atomic_exchange(&fake_failure, false) && !failed;
	if (failed)
		return error_set(err, ERR_DEVICE, "a failure was asked for");
	for (size_t i = 0; i < batch->n_segments; i++)
		run_segment(device, &batch->segments[i]);
	return 0;
}

static int fake_wait(struct device *device, struct error *err)
{
	(void)err;
	wait_unstuck(device);
	return 0;
}

/* As if caches moved. */
static void fake_counts(struct device *device, struct cache_counts *ret_counts)
{
	(void)device;
	*ret_counts = (struct cache_counts){ .slots = 8, .device = 1, .host = 1, .moved_out = 5, .moved_in = 4 };
}

#define FAKE(name_, open_) { \
	.name = (name_), .open = (open_), .close = fake_close, .cache_new = fake_cache_new, \
	.cache_free = fake_cache_free, .cache_export = fake_export, .cache_import = fake_import, \
	.cache_counts = fake_counts, .host_alloc = fake_host_alloc, .host_free = fake_host_free, \
	.submit = fake_submit, .wait = fake_wait \
}

const struct backend backend_cpu = FAKE("cpu", fake_open);
const struct backend backend_cuda = FAKE("cuda", other_open);
