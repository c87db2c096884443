/*
 * The forward pass, for one slice of rows after another:
 *
 *   h = rows
 *   each layer:  z, x, B, C, dt = in_proj(norm(h));  y = scan(conv(x, B, C), dt);  h += out_proj(norm(y silu(z)))
 *   hidden = norm_f(h)
 *
 * Every line of run_layer is a phase that all threads work on, its tasks taken from a common counter.
 */
#include "model/cpu_forward.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/cpu_cache.h"
#include "model/cpu_memory.h"
#include "model/cpu_multiply.h"
#include "model/cpu_slice.h"

#define SLICE_ROWS 256 /* enough that the weights are read from memory for nothing, and activations stay in the cache */
#define ROWS_PER_TASK 8
#define SPARE_ROWS 8 /* beyond the last row, which tiles of the scan may read */
#define SKEW 16 /* numbers between rows, so that rows of a tile do not fall on the same cache lines */

struct cpu_forward {
	const struct device *device;
	const int *outputs;
	const struct cpu_weights *weights;
	const struct cpu_kernels *kernels;
	struct cpu_threads *threads;

	struct cpu_slice slice;
	size_t layer, output; /* what the phases work on */

	/* The slice's activations. */
	float *residual;       /* [capacity, hidden] */
	void *operand;         /* [capacity, operand_stride]: x of a product, float32 or bfloat16 */
	size_t operand_stride;
	struct cpu_scan scan;  /* with z, x, B, C, dt in, y silu(z) out, and what lies between them */
	float *scratch;        /* [threads, scratch_floats] */
	size_t scratch_floats;
};

static size_t round_up(size_t n, size_t unit)
{
	return (n + unit - 1) / unit * unit;
}

static void for_rows(struct cpu_forward *f, cpu_task *task)
{
	cpu_threads_run(f->threads, task, f, round_up(f->slice.n_rows, ROWS_PER_TASK) / ROWS_PER_TASK);
}

static size_t task_end(const struct cpu_forward *f, size_t task)
{
	const size_t end = (task + 1) * ROWS_PER_TASK;

	return end < f->slice.n_rows ? end : f->slice.n_rows;
}

/* h = rows */
static void load_rows(void *arg, size_t task, size_t thread)
{
	const struct cpu_forward *f = arg;
	const size_t hidden_size = f->device->model->shape.hidden_size;

	(void)thread;
	for (size_t r = task * ROWS_PER_TASK; r < task_end(f, task); r++) {
		const struct cpu_row *row = &f->slice.rows[r];

		memcpy(f->residual + r * f->weights->hidden, row->window->rows + row->index * hidden_size,
		       hidden_size * sizeof(float));
	}
}

static void normalise(const struct cpu_forward *f, const float *x, const float *weight, size_t groups, size_t n,
		      size_t count, size_t row)
{
	const float epsilon = f->device->model->shape.norm_epsilon;

	if (f->weights->bfloat16)
		f->kernels->normalise_bfloat16(x, weight, groups, n, (float)count, epsilon,
					       (uint16_t *)f->operand + row * f->operand_stride);
	else
		f->kernels->normalise(x, weight, groups, n, (float)count, epsilon,
				      (float *)f->operand + row * f->operand_stride);
}

/* operand = norm(h) */
static void normalise_residual(void *arg, size_t task, size_t thread)
{
	const struct cpu_forward *f = arg;
	const size_t hidden = f->weights->hidden;

	(void)thread;
	for (size_t r = task * ROWS_PER_TASK; r < task_end(f, task); r++)
		normalise(f, f->residual + r * hidden, f->weights->layers[f->layer].norm, 1, hidden,
			  f->device->model->shape.hidden_size, r);
}

/* operand = norm(y silu(z)) */
static void normalise_gated(void *arg, size_t task, size_t thread)
{
	const struct cpu_forward *f = arg;
	const struct shape *shape = &f->device->model->shape;
	const size_t inner = f->weights->inner, groups = shape->gated_norm_groups;

	(void)thread;
	for (size_t r = task * ROWS_PER_TASK; r < task_end(f, task); r++)
		normalise(f, f->scan.out + r * inner, f->weights->layers[f->layer].gated_norm, groups, inner / groups,
			  shape->d_inner / groups, r);
}

/* z, x, B, C, dt = operand times in_proj */
static void multiply_in(struct cpu_forward *f)
{
	const struct cpu_layer *layer = &f->weights->layers[f->layer];
	const struct cpu_product product = {
		.x = f->operand, .x_stride = f->operand_stride, .weights = layer->in_proj,
		.bias = layer->in_proj_bias, .k = f->weights->hidden, .columns = f->weights->in_columns,
		.out = f->scan.in,
	};

	cpu_multiply(f->kernels, f->threads, &product, f->weights->bfloat16, f->slice.n_rows);
}

/* h += operand times out_proj */
static void multiply_out(struct cpu_forward *f)
{
	const struct cpu_layer *layer = &f->weights->layers[f->layer];
	const struct cpu_product product = {
		.x = f->operand, .x_stride = f->operand_stride, .weights = layer->out_proj,
		.bias = layer->out_proj_bias, .k = f->weights->inner, .columns = f->weights->hidden,
		.out = { .data = f->residual, .row_stride = f->weights->hidden, .block_stride = CPU_BLOCK },
		.add = true,
	};

	cpu_multiply(f->kernels, f->threads, &product, f->weights->bfloat16, f->slice.n_rows);
}

static void scan_inputs(void *arg, size_t task, size_t thread)
{
	const struct cpu_forward *f = arg;
	const size_t groups = f->scan.groups;

	f->kernels->scan_inputs(&f->scan, task / groups, task % groups, f->scratch + thread * f->scratch_floats);
}

static void scan_head(void *arg, size_t task, size_t thread)
{
	const struct cpu_forward *f = arg;
	const bool last = task + 1 == f->slice.n_runs * f->scan.heads;

	f->kernels->scan_head(&f->scan, task, last ? task : task + 1, f->scratch + thread * f->scratch_floats);
}

static void set_layer(struct cpu_forward *f, size_t index)
{
	const struct cpu_layer *layer = &f->weights->layers[index];
	const struct shape *shape = &f->device->model->shape;

	f->layer = index;
	f->scan.conv = layer->conv;
	f->scan.conv_bias = layer->conv_bias;
	f->scan.dt_bias = layer->dt_bias;
	f->scan.a = layer->a;
	f->scan.d = layer->d;
	f->scan.history = cpu_cache_history(f->weights, shape, index);
	f->scan.state = cpu_cache_state(f->weights, shape, index);
}

static void run_layer(struct cpu_forward *f, size_t index)
{
	set_layer(f, index);
	for_rows(f, normalise_residual);
	multiply_in(f);
	cpu_threads_run(f->threads, scan_inputs, f, f->slice.n_chunks * f->scan.groups);
	cpu_threads_run(f->threads, scan_head, f, f->slice.n_runs * f->scan.heads);
	for_rows(f, normalise_gated);
	multiply_out(f);
}

/* Output number f->output of each row, from the residual stream. */
static void store_rows(void *arg, size_t task, size_t thread)
{
	const struct cpu_forward *f = arg;
	const struct device *device = f->device;
	const struct shape *shape = &device->model->shape;
	const size_t bytes = shape->hidden_size * dtype_size(device->output_dtype);

	for (size_t r = task * ROWS_PER_TASK; r < task_end(f, task); r++) {
		const struct cpu_row *row = &f->slice.rows[r];
		const float *hidden = f->residual + r * f->weights->hidden;
		float *normed = f->scratch + thread * f->scratch_floats;

		if (f->outputs[f->output] == OUTPUT_FINAL) {
			f->kernels->normalise(hidden, f->weights->norm_f, 1, f->weights->hidden,
					      (float)shape->hidden_size, shape->norm_epsilon, normed);
			hidden = normed;
		}
		dtype_narrow(device->output_dtype, hidden, shape->hidden_size,
			     (char *)row->window->hidden + (f->output * device->window + row->index) * bytes);
	}
}

static void store_outputs(struct cpu_forward *f, int which)
{
	for (f->output = 0; f->output < f->device->n_outputs; f->output++)
		if (f->outputs[f->output] == which)
			for_rows(f, store_rows);
}

void cpu_forward_run(struct cpu_forward *f, const struct batch *batch)
{
	struct cpu_cursor cursor = { .batch = batch };

	while (cpu_slice_next(&f->slice, &cursor)) {
		for_rows(f, load_rows);
		for (size_t layer = 0; layer < f->device->model->shape.num_layers; layer++) {
			run_layer(f, layer);
			store_outputs(f, (int)layer);
		}
		store_outputs(f, OUTPUT_FINAL);
	}
}

/* What the scan has in common in all layers. */
static void set_scan(struct cpu_forward *f)
{
	const struct shape *shape = &f->device->model->shape;

	f->scan.heads = shape->num_heads;
	f->scan.head_dim = f->weights->head_dim;
	f->scan.groups = shape->n_groups;
	f->scan.state_size = f->weights->state_size;
	f->scan.taps = shape->conv_kernel;
	f->scan.dt_min = shape->dt_min;
	f->scan.dt_max = shape->dt_max;
	f->scan.pairs = f->weights->bfloat16 && f->kernels->has_bfloat16;
	f->scan.runs = f->slice.runs;
	f->scan.chunks = f->slice.chunks;
	f->scan.in.row_stride = CPU_BLOCK;
	f->scan.in.block_stride = f->scan.dt_stride = (f->slice.capacity + 1) * CPU_BLOCK;
}

static bool zeroed(float **ret_memory, size_t floats)
{
	*ret_memory = cpu_memory_zeroed(floats * sizeof **ret_memory);
	return *ret_memory;
}

static bool allocate_scan(struct cpu_scan *scan, const struct cpu_weights *weights, size_t rows)
{
	const size_t b = rows * scan->groups * scan->state_size;
	const size_t c = (rows + SPARE_ROWS) * scan->groups * scan->state_size;

	scan->b_pairs = cpu_memory_zeroed(b * sizeof *scan->b_pairs);
	scan->c_pairs = cpu_memory_zeroed(c / 2 * sizeof *scan->c_pairs);
	return scan->b_pairs && scan->c_pairs && zeroed(&scan->b, b) && zeroed(&scan->c, c) &&
	       zeroed(&scan->in.data, (rows + 1) * weights->in_columns) &&
	       zeroed(&scan->scores, rows * scan->groups * CPU_CHUNK) &&
	       zeroed(&scan->dt, (rows + 1) * weights->dt_columns) &&
	       zeroed(&scan->log_decay, (rows + 1) * weights->dt_columns) &&
	       zeroed(&scan->out, rows * weights->inner);
}

static int allocate(struct cpu_forward *f, struct error *err)
{
	const struct cpu_weights *weights = f->weights;
	const size_t rows = f->slice.capacity;
	const size_t widest = weights->hidden > weights->inner ? weights->hidden : weights->inner;
	const size_t number = weights->bfloat16 ? sizeof(uint16_t) : sizeof(float);

	set_scan(f);
	f->operand_stride = widest + SKEW;
	f->operand = cpu_memory_zeroed(rows * f->operand_stride * number);
	f->scratch_floats = round_up(cpu_scan_scratch(&f->scan), CPU_BLOCK);
	if (f->scratch_floats < weights->hidden)
		f->scratch_floats = weights->hidden; /* of store_rows */
	if (!f->operand || !zeroed(&f->residual, rows * weights->hidden) ||
	    !zeroed(&f->scratch, cpu_threads_count(f->threads) * f->scratch_floats) ||
	    !allocate_scan(&f->scan, weights, rows))
		return error_memory(err, "activations");
	return 0;
}

int cpu_forward_new(const struct device *device, const int *outputs, const struct cpu_weights *weights,
		    const struct cpu_kernels *kernels, struct cpu_threads *threads, struct cpu_forward **ret_forward,
		    struct error *err)
{
	struct cpu_forward *f = calloc(1, sizeof *f);
	size_t capacity = round_up(SLICE_ROWS, device->window);
	int rc;

	if (!f)
		return error_memory(err, "activations");
	f->device = device;
	f->outputs = outputs;
	f->weights = weights;
	f->kernels = kernels;
	f->threads = threads;
	if (capacity > device->max_rows)
		capacity = device->max_rows;
	rc = cpu_slice_init(&f->slice, capacity, device->window, err);
	if (!rc)
		rc = allocate(f, err);
	if (rc) {
		cpu_forward_free(f);
		return rc;
	}
	*ret_forward = f;
	return 0;
}

void cpu_forward_free(struct cpu_forward *f)
{
	if (!f)
		return;
	cpu_slice_clear(&f->slice);
	free(f->residual);
	free(f->operand);
	free(f->scratch);
	free(f->scan.in.data);
	free(f->scan.b);
	free(f->scan.c);
	free(f->scan.b_pairs);
	free(f->scan.c_pairs);
	free(f->scan.scores);
	free(f->scan.dt);
	free(f->scan.log_decay);
	free(f->scan.out);
	free(f);
}
