/*
 * The cpu back end: opening a device, its caches, and batches.  A batch is computed by submit, on a pool of threads of
 * which the caller is one; the forward pass itself is in cpu_forward.c.
 */
#include "model/cpu.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/cpu_cache.h"
#include "model/cpu_forward.h"
#include "model/cpu_memory.h"
#include "model/cpu_slice.h"

#define ROWS_OF_A_BATCH 1024 /* unless the options say otherwise */
#define ALIGNMENT 64         /* of host memory: a cache line */

struct cpu_device {
	struct device device;
	int *outputs; /* [n_outputs] */
	const struct cpu_kernels *kernels;
	struct cpu_threads *threads;
	struct cpu_weights *weights;
	struct cpu_forward *forward;
	size_t max_caches;
	atomic_size_t n_caches;
};

static struct cpu_device *cpu_of(struct device *device)
{
	return (struct cpu_device *)device;
}

struct cpu_parts cpu_parts_of(struct device *device)
{
	const struct cpu_device *cpu = cpu_of(device);

	return (struct cpu_parts){ .kernels = cpu->kernels, .threads = cpu->threads, .weights = cpu->weights };
}

static enum precision choose_precision(const struct model *model, const struct cpu_kernels *kernels,
				       enum precision asked)
{
	const enum dtype dtype = model->layers[0].in_proj.dtype;
	const bool half = dtype == DTYPE_BFLOAT16 || dtype == DTYPE_FLOAT16;

	if (asked != PRECISION_AUTO)
		return asked;
	return half && kernels->has_bfloat16 ? PRECISION_BFLOAT16 : PRECISION_FLOAT32;
}

/* The squares that the gated norm needs are summed head by head. */
static int check_model(const struct model *model, struct error *err)
{
	const struct shape *shape = &model->shape;

	if (shape->num_heads % shape->gated_norm_groups)
		return error_set(err, ERR_UNSUPPORTED, "device cpu: gated norm in %zu groups of %zu heads",
				 shape->gated_norm_groups, shape->num_heads);
	return 0;
}

static int check_options(const struct model *model, const struct device_options *options, struct error *err)
{
	if (options->window == 0)
		return error_set(err, ERR_ARGUMENT, "window is 0: expected at least 1 row");
	if (options->max_rows > 0 && options->max_rows < options->window)
		return error_set(err, ERR_ARGUMENT, "batches of %zu rows: expected at least a window of %zu",
				 options->max_rows, options->window);
	for (size_t i = 0; i < options->n_outputs; i++)
		if (options->outputs[i] != OUTPUT_FINAL &&
		    (options->outputs[i] < 0 || (size_t)options->outputs[i] >= model->shape.num_layers))
			return error_set(err, ERR_ARGUMENT, "output of layer %d: expected 0 to %zu",
					 options->outputs[i], model->shape.num_layers - 1);
	if (!dtype_is_float(options->output_dtype))
		return error_set(err, ERR_ARGUMENT, "output as %s: expected float32, float16 or bfloat16",
				 dtype_name(options->output_dtype));
	return check_model(model, err);
}

static int set_public_part(struct cpu_device *cpu, const struct model *model, const struct device_options *options,
			   struct error *err)
{
	struct device *device = &cpu->device;
	const size_t rows = options->window > ROWS_OF_A_BATCH ? options->window : ROWS_OF_A_BATCH;

	device->backend = &backend_cpu;
	device->model = model;
	device->window = options->window;
	device->max_rows = options->max_rows ? options->max_rows : rows;
	device->max_segments = options->max_segments ? options->max_segments : device->max_rows;
	device->n_outputs = options->n_outputs;
	device->output_dtype = options->output_dtype;
	device->precision = choose_precision(model, cpu->kernels, options->precision);
	device->depth = 1;
	snprintf(device->description, sizeof device->description, "cpu %s %s", cpu->kernels->name,
		 precision_name(device->precision));
	cpu->outputs = malloc((options->n_outputs + 1) * sizeof *cpu->outputs);
	if (!cpu->outputs)
		return error_memory(err, "device cpu");
	memcpy(cpu->outputs, options->outputs, options->n_outputs * sizeof *cpu->outputs);
	return 0;
}

static void cpu_close(struct device *device)
{
	struct cpu_device *cpu = cpu_of(device);

	cpu_forward_free(cpu->forward);
	cpu_weights_free(cpu->weights);
	cpu_threads_free(cpu->threads);
	free(cpu->outputs);
	free(cpu);
}

static int build(struct cpu_device *cpu, const struct model *model, const struct device_options *options,
		 struct error *err)
{
	int rc = cpu_kernels_find(getenv("MAMBA2D_CPU_KERNELS"), &cpu->kernels, err);

	if (!rc)
		rc = set_public_part(cpu, model, options, err);
	if (!rc)
		rc = cpu_threads_new(options->threads, &cpu->threads, err);
	if (!rc)
		rc = cpu_weights_new(model, cpu->kernels, cpu->device.precision == PRECISION_BFLOAT16, cpu->threads,
				     &cpu->weights, err);
	if (!rc)
		rc = cpu_forward_new(&cpu->device, cpu->outputs, cpu->weights, cpu->kernels, cpu->threads,
				     &cpu->forward, err);
	return rc;
}

static size_t cache_bytes(const struct cpu_device *cpu)
{
	return cpu_cache_floats(cpu->weights, &cpu->device.model->shape) * sizeof(float);
}

static int cpu_open(const struct model *model, const struct device_options *options, struct device **ret_device,
		    struct error *err)
{
	struct cpu_device *cpu;
	int rc = check_options(model, options, err);

	if (rc)
		return rc;
	cpu = calloc(1, sizeof *cpu);
	if (!cpu)
		return error_memory(err, "device cpu");
	rc = build(cpu, model, options, err);
	if (rc) {
		cpu_close(&cpu->device);
		return rc;
	}
	model_release_pages(model);
	cpu->max_caches = options->cache_bytes ? options->cache_bytes / cache_bytes(cpu) : SIZE_MAX;
	*ret_device = &cpu->device;
	return 0;
}

static int cpu_cache_new(struct device *device, struct cache **ret_cache, struct error *err)
{
	struct cpu_device *cpu = cpu_of(device);
	struct cache *cache;

	if (atomic_fetch_add(&cpu->n_caches, 1) >= cpu->max_caches) {
		atomic_fetch_sub(&cpu->n_caches, 1);
		return error_set(err, ERR_MEMORY, "all %zu caches are in use", cpu->max_caches);
	}
	cache = malloc(sizeof *cache);
	if (cache)
		cache->data = cpu_memory_zeroed(cache_bytes(cpu));
	if (!cache || !cache->data) {
		free(cache);
		atomic_fetch_sub(&cpu->n_caches, 1);
		return error_memory(err, "cache");
	}
	*ret_cache = cache;
	return 0;
}

static void cpu_cache_free(struct device *device, struct cache *cache)
{
	if (!cache)
		return;
	atomic_fetch_sub(&cpu_of(device)->n_caches, 1);
	free(cache->data);
	free(cache);
}

static int export_cache(struct device *device, const struct cache *cache, float *state, struct error *err)
{
	(void)err;
	cpu_cache_export(cpu_of(device)->weights, &device->model->shape, cache->data, state);
	return 0;
}

static int import_cache(struct device *device, struct cache *cache, const float *state, struct error *err)
{
	(void)err;
	cpu_cache_import(cpu_of(device)->weights, &device->model->shape, state, cache->data);
	return 0;
}

static void *cpu_host_alloc(struct device *device, size_t bytes)
{
	(void)device;
	return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

static void cpu_host_free(struct device *device, void *memory)
{
	(void)device;
	free(memory);
}

static int cpu_submit(struct device *device, const struct batch *batch, struct error *err)
{
	(void)err;
	cpu_forward_run(cpu_of(device)->forward, batch);
	return 0;
}

static int cpu_wait(struct device *device, struct error *err)
{
	(void)device;
	(void)err;
	return 0;
}

const struct backend backend_cpu = {
	.name = "cpu",
	.open = cpu_open,
	.close = cpu_close,
	.cache_new = cpu_cache_new,
	.cache_free = cpu_cache_free,
	.cache_export = export_cache,
	.cache_import = import_cache,
	.host_alloc = cpu_host_alloc,
	.host_free = cpu_host_free,
	.submit = cpu_submit,
	.wait = cpu_wait,
};
