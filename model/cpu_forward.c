/*
 * The forward pass, for one slice of rows after another:
 *
 *   h = rows
 *   each layer:  z, x, B, C, dt = in_proj(norm(h));  y = scan(conv(x, B, C), dt);  h += out_proj(norm(y silu(z)))
 *   hidden = norm_f(h)
 *
 * A layer is four phases, in each of which all threads run tasks.  The norms are folded into the products around them:
 * who makes rows multiplies them by the norm's weight and sums their squares; the product scales its sums.  Tasks are
 * ordered by heads in every phase but scan_inputs, so a thread mostly reads what it wrote itself.
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
	float *residual;       /* [capacity, hidden]: h */
	struct cpu_operand in; /* [capacity, hidden]: h for in_proj */
	struct cpu_scan scan;  /* from what in_proj makes to the operand of out_proj */
	float *scale;          /* [groups, rows_stride] of the product that comes next */
	size_t rows_stride;    /* capacity, up to whole blocks */
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
	struct cpu_forward *f = arg;
	const size_t hidden_size = f->device->model->shape.hidden_size;

	(void)thread;
	for (size_t r = task * ROWS_PER_TASK; r < task_end(f, task); r++) {
		const struct cpu_row *row = &f->slice.rows[r];
		float *h = f->residual + r * f->weights->hidden;

		dtype_widen(window_dtype(row->window, row->index), row->window->rows + row->index * hidden_size,
			    hidden_size, h);
		f->kernels->prepare(h, f->weights->layers[0].norm, f->weights->hidden, &f->in, r);
	}
}

static void scale_rows(struct cpu_forward *f, const struct cpu_operand *operand, size_t groups, size_t columns)
{
	f->kernels->scale(operand, f->slice.n_rows, groups, columns / groups, f->device->model->shape.norm_epsilon,
			  f->scale);
}

/* z, x, B, C, dt = in_proj(norm(h)) */
static void project_in(struct cpu_forward *f)
{
	const struct cpu_layer *layer = &f->weights->layers[f->layer];
	const struct cpu_product product = {
		.x = &f->in, .scale = f->scale, .scale_stride = f->rows_stride, .groups = 1,
		.weights = layer->in_proj, .bias = layer->in_proj_bias,
		.k = f->weights->hidden, .columns = f->weights->in_columns, .out = f->scan.in,
	};

	scale_rows(f, &f->in, 1, f->device->model->shape.hidden_size);
	cpu_multiply(f->kernels, f->threads, &product, f->slice.n_rows);
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
	const size_t runs = f->slice.n_runs, next = task + 1 < runs * f->scan.heads ? task + 1 : task;
	const float *upcoming = f->slice.runs[next % runs].cache + f->scan.state +
				next / runs * f->scan.head_dim * f->scan.state_size;

	f->kernels->scan_head(&f->scan, task % runs, task / runs, upcoming, f->scratch + thread * f->scratch_floats);
}

/* h += out_proj(norm(y silu(z))) */
static void project_out(struct cpu_forward *f)
{
	const struct shape *shape = &f->device->model->shape;
	const struct cpu_layer *layer = &f->weights->layers[f->layer];
	const bool last = f->layer + 1 == shape->num_layers;
	const struct cpu_product product = {
		.x = &f->scan.out, .scale = f->scale, .scale_stride = f->rows_stride,
		.groups = shape->gated_norm_groups, .weights = layer->out_proj, .bias = layer->out_proj_bias,
		.k = f->weights->inner, .columns = f->weights->hidden,
		.out = { .data = f->residual, .row_stride = f->weights->hidden, .block_stride = CPU_BLOCK },
		.add = true,
		.next = last ? NULL : &f->in, .next_weight = last ? NULL : layer[1].norm,
	};

	scale_rows(f, &f->scan.out, shape->gated_norm_groups, shape->d_inner);
	cpu_multiply(f->kernels, f->threads, &product, f->slice.n_rows);
	f->in.parts = (f->weights->hidden + f->kernels->panel - 1) / f->kernels->panel;
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
	f->scan.out_weight = layer->gated_norm;
	f->scan.history = cpu_cache_history(f->weights, shape, index);
	f->scan.state = cpu_cache_state(f->weights, shape, index);
}

static void run_layer(struct cpu_forward *f, size_t index)
{
	set_layer(f, index);
	project_in(f);
	cpu_threads_run(f->threads, scan_inputs, f, f->slice.n_chunks * f->scan.groups);
	cpu_threads_run(f->threads, scan_head, f, f->slice.n_runs * f->scan.heads);
	project_out(f);
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
		const float *h = f->residual + r * f->weights->hidden;
		float *normed = f->scratch + thread * f->scratch_floats;

		if (f->outputs[f->output] == OUTPUT_FINAL) {
			f->kernels->normalise(h, f->weights->norm_f, f->weights->hidden, shape->hidden_size,
					      shape->norm_epsilon, normed);
			h = normed;
		}
		dtype_narrow(device->output_dtype, h, shape->hidden_size,
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
		f->in.parts = 1;
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

static bool allocate_operand(const struct cpu_forward *f, struct cpu_operand *operand, size_t columns, size_t parts)
{
	const size_t number = f->weights->bfloat16 ? sizeof(uint16_t) : sizeof(float);

	operand->bfloat16 = f->weights->bfloat16;
	operand->stride = columns + SKEW;
	operand->parts = parts;
	operand->squares_stride = f->rows_stride;
	operand->data = cpu_memory_zeroed(f->slice.capacity * operand->stride * number);
	return operand->data && zeroed(&operand->squares, parts * f->rows_stride);
}

static bool allocate_scan(struct cpu_forward *f)
{
	const struct cpu_weights *weights = f->weights;
	struct cpu_scan *scan = &f->scan;
	const size_t rows = f->slice.capacity, bc = scan->groups * scan->state_size;

	scan->b_pairs = cpu_memory_zeroed(rows * bc * sizeof *scan->b_pairs);
	scan->c_pairs = cpu_memory_zeroed((rows + SPARE_ROWS) * bc / 2 * sizeof *scan->c_pairs);
	return scan->b_pairs && scan->c_pairs && zeroed(&scan->b, rows * bc) &&
	       zeroed(&scan->c, (rows + SPARE_ROWS) * bc) &&
	       zeroed(&scan->in.data, (rows + 1) * weights->in_columns) &&
	       zeroed(&scan->scores, rows * scan->groups * CPU_CHUNK) &&
	       zeroed(&scan->dt, (rows + 1) * weights->dt_columns) &&
	       zeroed(&scan->log_decay, (rows + 1) * weights->dt_columns) &&
	       allocate_operand(f, &scan->out, weights->inner, scan->heads);
}

static int allocate(struct cpu_forward *f, struct error *err)
{
	const size_t hidden = f->weights->hidden;
	const size_t panels = (hidden + f->kernels->panel - 1) / f->kernels->panel;

	set_scan(f);
	f->rows_stride = round_up(f->slice.capacity, CPU_BLOCK);
	f->scratch_floats = round_up(cpu_scan_scratch(&f->scan), CPU_BLOCK);
	if (f->scratch_floats < hidden)
		f->scratch_floats = hidden; /* of store_rows */
	if (!zeroed(&f->residual, f->slice.capacity * hidden) ||
	    !zeroed(&f->scale, f->device->model->shape.gated_norm_groups * f->rows_stride) ||
	    !zeroed(&f->scratch, cpu_threads_count(f->threads) * f->scratch_floats) ||
	    !allocate_operand(f, &f->in, hidden, panels) || !allocate_scan(f))
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
	free(f->in.data);
	free(f->in.squares);
	free(f->scale);
	free(f->scratch);
	free(f->scan.in.data);
	free(f->scan.b);
	free(f->scan.c);
	free(f->scan.b_pairs);
	free(f->scan.c_pairs);
	free(f->scan.scores);
	free(f->scan.dt);
	free(f->scan.log_decay);
	free(f->scan.out.data);
	free(f->scan.out.squares);
	free(f);
}
