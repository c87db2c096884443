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

#include "model/cpu_cache.h"
#include "model/cpu_memory.h"
#include "model/cpu_multiply.h"

#define SLICE_ROWS 256 /* enough that the weights are read from memory for nothing, and activations stay in the cache */
#define ROWS_PER_TASK 8
#define SPARE_ROWS 8 /* beyond the last row, which tiles of the scan may read */
#define SKEW 16 /* numbers between rows, so that rows of a tile do not fall on the same cache lines */

/* Where a row of the slice comes from. */
struct row {
	const struct window *window;
	size_t index;
};

struct cpu_forward {
	const struct device *device;
	const int *outputs;
	const struct cpu_weights *weights;
	const struct cpu_kernels *kernels;
	struct cpu_threads *threads;

	/* The slice under way. */
	size_t capacity; /* rows */
	size_t n_rows, n_runs, n_chunks;
	struct row *rows;         /* [capacity] */
	struct cpu_run *runs;     /* [capacity] */
	struct cpu_chunk *chunks; /* [capacity] */
	size_t layer, output;     /* what the phases work on */

	/* Its activations. */
	float *residual;        /* [capacity, hidden] */
	void *operand;          /* [capacity, operand_stride]: x of a product, float32 or bfloat16 */
	size_t operand_stride;
	float *projected;       /* z, x, B, C, dt: [in_columns / CPU_BLOCK, capacity, CPU_BLOCK] */
	float *gated;           /* [capacity, inner] */
	struct cpu_scan scan;
	struct cpu_product product;
	float *scratch;         /* [threads, scratch_floats] */
	size_t scratch_floats;
};

/* The next slice: windows from *segment, *window on, until the buffers are full.  False when there are none. */
struct cursor {
	const struct batch *batch;
	size_t segment, window;
};

static size_t round_up(size_t n, size_t unit)
{
	return (n + unit - 1) / unit * unit;
}

static void add_chunks(struct cpu_forward *f, size_t first, size_t rows)
{
	const size_t window = f->device->window;

	for (size_t at = 0; at < rows; at += CPU_CHUNK) {
		const size_t whole = window - at < CPU_CHUNK ? window - at : CPU_CHUNK;

		f->chunks[f->n_chunks++] = (struct cpu_chunk){
			.run = f->n_runs - 1,
			.first = first + at,
			.rows = rows - at < whole ? rows - at : whole,
			.recurrent = whole == 1,
			.advance = rows == window || at + whole < rows,
			.keep = rows == window,
		};
	}
}

static void add_window(struct cpu_forward *f, const struct segment *segment, size_t index, bool new_run)
{
	const size_t before = index * f->device->window;
	const size_t rows = segment->rows - before < f->device->window ? segment->rows - before : f->device->window;
	struct cpu_run *run;

	if (new_run)
		f->runs[f->n_runs++] = (struct cpu_run){
			.cache = segment->cache->data, .first = f->n_rows, .first_chunk = f->n_chunks
		};
	run = &f->runs[f->n_runs - 1];
	add_chunks(f, run->rows, rows);
	run->n_chunks = f->n_chunks - run->first_chunk;
	run->rows += rows;
	for (size_t i = 0; i < rows; i++)
		f->rows[f->n_rows++] = (struct row){ .window = &segment->windows[index], .index = i };
}

static bool next_slice(struct cpu_forward *f, struct cursor *cursor)
{
	f->n_rows = f->n_runs = f->n_chunks = 0;
	for (; cursor->segment < cursor->batch->n_segments; cursor->segment++, cursor->window = 0) {
		const struct segment *segment = &cursor->batch->segments[cursor->segment];
		bool new_run = true;

		for (; cursor->window * f->device->window < segment->rows; cursor->window++, new_run = false) {
			if (f->n_rows + f->device->window > f->capacity)
				return true;
			add_window(f, segment, cursor->window, new_run);
		}
	}
	return f->n_rows > 0;
}

static void for_rows(struct cpu_forward *f, cpu_task *task)
{
	cpu_threads_run(f->threads, task, f, round_up(f->n_rows, ROWS_PER_TASK) / ROWS_PER_TASK);
}

static size_t task_end(const struct cpu_forward *f, size_t task)
{
	const size_t end = (task + 1) * ROWS_PER_TASK;

	return end < f->n_rows ? end : f->n_rows;
}

/* h = rows */
static void load_rows(void *arg, size_t task, size_t thread)
{
	const struct cpu_forward *f = arg;
	const size_t hidden_size = f->device->model->shape.hidden_size;

	(void)thread;
	for (size_t r = task * ROWS_PER_TASK; r < task_end(f, task); r++)
		dtype_widen(DTYPE_FLOAT32, f->rows[r].window->rows + f->rows[r].index * hidden_size, hidden_size,
			    f->residual + r * f->weights->hidden);
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
		normalise(f, f->gated + r * inner, f->weights->layers[f->layer].gated_norm, groups, inner / groups,
			  shape->d_inner / groups, r);
}

/* f->product = operand times weights */
static void multiply(struct cpu_forward *f)
{
	cpu_multiply(f->kernels, f->threads, &f->product, f->weights->bfloat16, f->n_rows);
}

static void multiply_in(struct cpu_forward *f)
{
	const struct cpu_layer *layer = &f->weights->layers[f->layer];

	f->product = (struct cpu_product){
		.x = f->operand, .x_stride = f->operand_stride, .weights = layer->in_proj,
		.bias = layer->in_proj_bias, .k = f->weights->hidden, .columns = f->weights->in_columns,
		.out = f->scan.in,
	};
	multiply(f);
}

static void multiply_out(struct cpu_forward *f)
{
	const struct cpu_layer *layer = &f->weights->layers[f->layer];

	f->product = (struct cpu_product){
		.x = f->operand, .x_stride = f->operand_stride, .weights = layer->out_proj,
		.bias = layer->out_proj_bias, .k = f->weights->inner, .columns = f->weights->hidden,
		.out = { .data = f->residual, .row_stride = f->weights->hidden, .block_stride = CPU_BLOCK },
		.add = true,
	};
	multiply(f);
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
	const size_t upcoming = task + cpu_threads_count(f->threads);
	const bool last = upcoming >= f->n_runs * f->scan.heads;

	f->kernels->scan_head(&f->scan, task, last ? task : upcoming, f->scratch + thread * f->scratch_floats);
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
	cpu_threads_run(f->threads, scan_inputs, f, f->n_chunks * f->scan.groups);
	cpu_threads_run(f->threads, scan_head, f, f->n_runs * f->scan.heads);
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
		const struct row *row = &f->rows[r];
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
	struct cursor cursor = { .batch = batch };

	while (next_slice(f, &cursor)) {
		for_rows(f, load_rows);
		for (size_t layer = 0; layer < f->device->model->shape.num_layers; layer++) {
			run_layer(f, layer);
			store_outputs(f, (int)layer);
		}
		store_outputs(f, OUTPUT_FINAL);
	}
}

static void set_scan(struct cpu_forward *f)
{
	const struct shape *shape = &f->device->model->shape;
	const size_t skewed = (f->capacity + 1) * CPU_BLOCK;

	f->scan.heads = shape->num_heads;
	f->scan.head_dim = f->weights->head_dim;
	f->scan.groups = shape->n_groups;
	f->scan.state_size = f->weights->state_size;
	f->scan.taps = shape->conv_kernel;
	f->scan.dt_min = shape->dt_min;
	f->scan.dt_max = shape->dt_max;
	f->scan.pairs = f->weights->bfloat16 && f->kernels->has_bfloat16;
	f->scan.runs = f->runs;
	f->scan.chunks = f->chunks;
	f->scan.in = (struct cpu_matrix){ .data = f->projected, .row_stride = CPU_BLOCK, .block_stride = skewed };
	f->scan.dt_stride = skewed;
	f->scan.out = f->gated;
}

static int allocate(struct cpu_forward *f, struct error *err)
{
	const struct cpu_weights *weights = f->weights;
	const size_t rows = f->capacity, groups = f->device->model->shape.n_groups;
	const size_t widest = weights->hidden > weights->inner ? weights->hidden : weights->inner;
	const size_t number = weights->bfloat16 ? sizeof(uint16_t) : sizeof(float);
	bool failed;

	f->rows = calloc(rows, sizeof *f->rows);
	f->runs = calloc(rows, sizeof *f->runs);
	f->chunks = calloc(rows, sizeof *f->chunks);
	f->operand_stride = widest + SKEW;
	f->residual = cpu_memory_zeroed(rows * weights->hidden * sizeof(float));
	f->operand = cpu_memory_zeroed(rows * f->operand_stride * number);
	f->projected = cpu_memory_zeroed((rows + 1) * weights->in_columns * sizeof(float));
	f->gated = cpu_memory_zeroed(rows * weights->inner * sizeof(float));
	f->scan.b = cpu_memory_zeroed(rows * groups * weights->state_size * sizeof(float));
	f->scan.c = cpu_memory_zeroed((rows + SPARE_ROWS) * groups * weights->state_size * sizeof(float));
	f->scan.b_pairs = cpu_memory_zeroed(rows * groups * weights->state_size * sizeof(uint32_t));
	f->scan.c_pairs = cpu_memory_zeroed((rows + SPARE_ROWS) * groups * weights->state_size * sizeof(uint16_t));
	f->scan.scores = cpu_memory_zeroed(rows * groups * CPU_CHUNK * sizeof(float));
	f->scan.dt = cpu_memory_zeroed((rows + 1) * weights->dt_columns * sizeof(float));
	f->scan.log_decay = cpu_memory_zeroed((rows + 1) * weights->dt_columns * sizeof(float));
	set_scan(f);
	f->scratch_floats = round_up(cpu_scan_scratch(&f->scan), CPU_BLOCK);
	if (f->scratch_floats < weights->hidden)
		f->scratch_floats = weights->hidden;
	f->scratch = cpu_memory_zeroed(cpu_threads_count(f->threads) * f->scratch_floats * sizeof(float));
	failed = !f->rows || !f->runs || !f->chunks || !f->residual || !f->operand || !f->projected || !f->gated ||
		 !f->scan.b || !f->scan.c || !f->scan.b_pairs || !f->scan.c_pairs || !f->scan.scores || !f->scan.dt || !f->scan.log_decay || !f->scratch;
	return failed ? error_memory(err, "activations") : 0;
}

int cpu_forward_new(const struct device *device, const int *outputs, const struct cpu_weights *weights,
		    const struct cpu_kernels *kernels, struct cpu_threads *threads, struct cpu_forward **ret_forward,
		    struct error *err)
{
	struct cpu_forward *f = calloc(1, sizeof *f);
	int rc;

	if (!f)
		return error_memory(err, "activations");
	f->device = device;
	f->outputs = outputs;
	f->weights = weights;
	f->kernels = kernels;
	f->threads = threads;
	f->capacity = round_up(SLICE_ROWS, device->window);
	if (f->capacity > device->max_rows)
		f->capacity = device->max_rows;
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
	free(f->rows);
	free(f->runs);
	free(f->chunks);
	free(f->residual);
	free(f->operand);
	free(f->projected);
	free(f->gated);
	free(f->scan.b);
	free(f->scan.c);
	free(f->scan.b_pairs);
	free(f->scan.c_pairs);
	free(f->scan.scores);
	free(f->scan.dt);
	free(f->scan.log_decay);
	free(f->scratch);
	free(f);
}
