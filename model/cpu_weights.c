/*
 * Packing of the weights at start-up, in parallel: a task is one panel of a layer's products, or a layer's vectors.
 * A map says for every padded column which of the model's it is; padding comes from nowhere and becomes zero.
 */
#include "model/cpu_weights.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/cpu_memory.h"

#define NOWHERE SIZE_MAX

struct packing {
	const struct model *model;
	struct cpu_weights *weights;
	size_t panel;        /* columns */
	size_t in_panels, out_panels;
	size_t *in_from;     /* [in_columns, up to whole panels] */
	size_t *hidden_from; /* [hidden, up to whole panels] */
	size_t *inner_from;  /* [inner] */
	size_t *conv_from;   /* [conv_columns] */
	size_t *head_from;   /* [dt_columns] */
	float *scratch;      /* [threads, scratch_floats] */
	size_t scratch_floats;
};

static size_t round_up(size_t n, size_t unit)
{
	return (n + unit - 1) / unit * unit;
}

/* Append count parts of size columns each, padded, the first of which is the model's column first. */
static size_t *map_append(size_t *map, size_t count, size_t size, size_t padded, size_t first)
{
	for (size_t i = 0; i < count; i++)
		for (size_t j = 0; j < padded; j++)
			*map++ = j < size ? first + i * size + j : NOWHERE;
	return map;
}

static size_t *map_append_conv(size_t *map, const struct cpu_weights *weights, const struct shape *shape, size_t first)
{
	map = map_append(map, shape->num_heads, shape->head_dim, weights->head_dim, first);
	return map_append(map, 2 * shape->n_groups, shape->state_size, weights->state_size, first + shape->d_inner);
}

/* z and x of each head together, B, C, then dt up to n columns. */
static size_t *map_append_in(size_t *map, const struct cpu_weights *weights, const struct shape *shape, size_t n)
{
	const size_t x = shape->d_inner, b = x + shape->d_inner, dt = x + shape->conv_dim;

	for (size_t h = 0; h < shape->num_heads; h++) {
		map = map_append(map, 1, shape->head_dim, weights->head_dim, h * shape->head_dim);
		map = map_append(map, 1, shape->head_dim, weights->head_dim, x + h * shape->head_dim);
	}
	map = map_append(map, 2 * shape->n_groups, shape->state_size, weights->state_size, b);
	return map_append(map, 1, shape->num_heads, n - weights->inner - weights->conv_columns, dt);
}

static int make_maps(struct packing *packing, struct error *err)
{
	const struct cpu_weights *weights = packing->weights;
	const struct shape *shape = &packing->model->shape;
	const size_t in = packing->in_panels * packing->panel, out = packing->out_panels * packing->panel;
	size_t *map = malloc((in + out + weights->inner + weights->conv_columns + weights->dt_columns) * sizeof *map);

	packing->in_from = map;
	if (!map)
		return error_memory(err, "maps of weights");
	map = map_append_in(map, weights, shape, in);
	packing->hidden_from = map;
	map = map_append(map, 1, shape->hidden_size, out, 0);
	packing->inner_from = map;
	map = map_append(map, shape->num_heads, shape->head_dim, weights->head_dim, 0);
	packing->conv_from = map;
	map = map_append_conv(map, weights, shape, 0);
	packing->head_from = map;
	map_append(map, 1, shape->num_heads, weights->dt_columns, 0);
	return 0;
}

/* Column c of a panel [k, panel], from a row of the tensor. */
static void pack_column(const struct packing *packing, const float *row, const size_t *k_from, size_t k_size,
			float *panel, size_t c)
{
	for (size_t k = 0; k < k_size; k++)
		panel[k * packing->panel + c] = k_from[k] == NOWHERE ? 0 : row[k_from[k]];
}

/* The same for pairs of bfloat16: panel [k / 2, panel, 2]. */
static void pack_column_pairs(const struct packing *packing, const uint16_t *row, const size_t *k_from, size_t k_size,
			      uint16_t *panel, size_t c)
{
	for (size_t k = 0; k < k_size; k++)
		panel[(k / 2 * packing->panel + c) * 2 + k % 2] = k_from[k] == NOWHERE ? 0 : row[k_from[k]];
}

/* One panel of a product: column c is the tensor's row columns_from[c], number k of it its number k_from[k]. */
static void pack_panel(const struct packing *packing, const struct tensor *tensor, const size_t *columns_from,
		       size_t row_size, const size_t *k_from, size_t k_size, void *panel, float *row)
{
	const size_t row_bytes = row_size * dtype_size(tensor->dtype);
	uint16_t *narrow = (uint16_t *)(row + row_size);

	for (size_t c = 0; c < packing->panel; c++) {
		if (columns_from[c] == NOWHERE)
			memset(row, 0, row_size * sizeof *row);
		else
			dtype_widen(tensor->dtype, (const char *)tensor->data + columns_from[c] * row_bytes, row_size,
				    row);
		if (packing->weights->bfloat16) {
			dtype_narrow(DTYPE_BFLOAT16, row, row_size, narrow);
			pack_column_pairs(packing, narrow, k_from, k_size, panel, c);
		} else {
			pack_column(packing, row, k_from, k_size, panel, c);
		}
	}
}

/* dst[i] = number from[i] of a vector [size], or 0. */
static void pack_vector(const struct tensor *tensor, size_t size, const size_t *from, size_t n, float *dst,
			float *scratch)
{
	tensor_widen(tensor, scratch, size);
	for (size_t i = 0; i < n; i++)
		dst[i] = from[i] == NOWHERE ? 0 : scratch[from[i]];
}

static void pack_conv(const struct packing *packing, const struct tensor *tensor, float *dst, float *scratch)
{
	const struct shape *shape = &packing->model->shape;
	const size_t taps = shape->conv_kernel;

	tensor_widen(tensor, scratch, shape->conv_dim * taps);
	for (size_t i = 0; i < packing->weights->conv_columns; i++)
		for (size_t k = 0; k < taps; k++) {
			const size_t from = packing->conv_from[i];

			dst[(i / CPU_BLOCK * taps + k) * CPU_BLOCK + i % CPU_BLOCK] =
				from == NOWHERE ? 0 : scratch[from * taps + k];
		}
}

static void pack_vectors(const struct packing *packing, size_t index, float *scratch)
{
	const struct cpu_weights *weights = packing->weights;
	const struct shape *shape = &packing->model->shape;
	const struct layer *from = &packing->model->layers[index];
	const struct cpu_layer *to = &weights->layers[index];
	const size_t in = packing->in_panels * packing->panel, out = packing->out_panels * packing->panel;

	pack_vector(&from->norm, shape->hidden_size, packing->hidden_from, weights->hidden, to->norm, scratch);
	pack_vector(&from->in_proj_bias, shape->in_proj_rows, packing->in_from, in, to->in_proj_bias, scratch);
	pack_conv(packing, &from->conv, to->conv, scratch);
	pack_vector(&from->conv_bias, shape->conv_dim, packing->conv_from, weights->conv_columns, to->conv_bias,
		    scratch);
	pack_vector(&from->dt_bias, shape->num_heads, packing->head_from, weights->dt_columns, to->dt_bias, scratch);
	pack_vector(&from->d, shape->num_heads, packing->head_from, weights->dt_columns, to->d, scratch);
	pack_vector(&from->a_log, shape->num_heads, packing->head_from, weights->dt_columns, to->a, scratch);
	for (size_t i = 0; i < weights->dt_columns; i++)
		to->a[i] = -expf(to->a[i]);
	pack_vector(&from->gated_norm, shape->d_inner, packing->inner_from, weights->inner, to->gated_norm, scratch);
	pack_vector(&from->out_proj_bias, shape->hidden_size, packing->hidden_from, out, to->out_proj_bias, scratch);
}

static void pack_task(void *arg, size_t task, size_t thread)
{
	const struct packing *packing = arg;
	const struct cpu_weights *weights = packing->weights;
	const size_t per_layer = packing->in_panels + packing->out_panels + 1;
	const size_t layer = task / per_layer, part = task % per_layer, out = part - packing->in_panels;
	const size_t number = weights->bfloat16 ? sizeof(uint16_t) : sizeof(float);
	const struct layer *from = &packing->model->layers[layer];
	const struct cpu_layer *to = &weights->layers[layer];
	float *scratch = packing->scratch + thread * packing->scratch_floats;

	if (part < packing->in_panels)
		pack_panel(packing, &from->in_proj, packing->in_from + part * packing->panel,
			   packing->model->shape.hidden_size, packing->hidden_from, weights->hidden,
			   (char *)to->in_proj + part * packing->panel * weights->hidden * number, scratch);
	else if (out < packing->out_panels)
		pack_panel(packing, &from->out_proj, packing->hidden_from + out * packing->panel,
			   packing->model->shape.d_inner, packing->inner_from, weights->inner,
			   (char *)to->out_proj + out * packing->panel * weights->inner * number, scratch);
	else
		pack_vectors(packing, layer, scratch);
}

/* The next bytes of memory, or with NULL only the count of them. */
static void *carve(void *memory, size_t *used, size_t bytes)
{
	void *here = memory ? (char *)memory + *used : NULL;

	*used += round_up(bytes, 64);
	return here;
}

/* Where everything lies in memory; returns the bytes that it takes. */
static size_t lay_out(struct packing *packing, void *memory)
{
	struct cpu_weights *weights = packing->weights;
	const size_t number = weights->bfloat16 ? sizeof(uint16_t) : sizeof(float);
	const size_t taps = packing->model->shape.conv_kernel;
	const size_t in = packing->in_panels * packing->panel, out = packing->out_panels * packing->panel;
	size_t used = 0;

	for (size_t i = 0; i < packing->model->shape.num_layers; i++) {
		struct cpu_layer *layer = &weights->layers[i];

		layer->in_proj = carve(memory, &used, weights->hidden * in * number);
		layer->out_proj = carve(memory, &used, weights->inner * out * number);
		layer->norm = carve(memory, &used, weights->hidden * sizeof(float));
		layer->in_proj_bias = carve(memory, &used, in * sizeof(float));
		layer->conv = carve(memory, &used, weights->conv_columns * taps * sizeof(float));
		layer->conv_bias = carve(memory, &used, weights->conv_columns * sizeof(float));
		layer->dt_bias = carve(memory, &used, weights->dt_columns * sizeof(float));
		layer->a = carve(memory, &used, weights->dt_columns * sizeof(float));
		layer->d = carve(memory, &used, weights->dt_columns * sizeof(float));
		layer->gated_norm = carve(memory, &used, weights->inner * sizeof(float));
		layer->out_proj_bias = carve(memory, &used, out * sizeof(float));
	}
	weights->norm_f = carve(memory, &used, weights->hidden * sizeof(float));
	return used;
}

static void set_sizes(struct packing *packing, const struct cpu_kernels *kernels, size_t threads)
{
	struct cpu_weights *weights = packing->weights;
	const struct shape *shape = &packing->model->shape;

	weights->hidden = round_up(shape->hidden_size, CPU_BLOCK);
	weights->head_dim = round_up(shape->head_dim, CPU_BLOCK);
	weights->state_size = round_up(shape->state_size, CPU_BLOCK);
	weights->inner = shape->num_heads * weights->head_dim;
	weights->conv_columns = weights->inner + 2 * shape->n_groups * weights->state_size;
	weights->dt_columns = round_up(shape->num_heads, CPU_BLOCK);
	weights->in_columns = weights->inner + weights->conv_columns + weights->dt_columns;
	packing->panel = kernels->panel;
	packing->in_panels = round_up(weights->in_columns, kernels->panel) / kernels->panel;
	packing->out_panels = round_up(weights->hidden, kernels->panel) / kernels->panel;
	packing->scratch_floats = 2 * (shape->hidden_size + shape->in_proj_rows) + shape->conv_dim * shape->conv_kernel;
	packing->scratch = malloc(threads * packing->scratch_floats * sizeof *packing->scratch);
}

static int pack(struct packing *packing, const struct cpu_kernels *kernels, struct cpu_threads *threads,
		struct error *err)
{
	struct cpu_weights *weights = packing->weights;
	const size_t layers = packing->model->shape.num_layers;

	set_sizes(packing, kernels, cpu_threads_count(threads));
	weights->layers = calloc(layers, sizeof *weights->layers);
	if (!packing->scratch || !weights->layers)
		return error_memory(err, "weights");
	weights->bytes = lay_out(packing, NULL);
	weights->memory = cpu_memory_new(weights->bytes);
	if (!weights->memory)
		return error_memory(err, "weights");
	lay_out(packing, weights->memory);
	if (make_maps(packing, err))
		return ERR_MEMORY;
	cpu_threads_run(threads, pack_task, packing, layers * (packing->in_panels + packing->out_panels + 1));
	pack_vector(&packing->model->norm_f, packing->model->shape.hidden_size, packing->hidden_from, weights->hidden,
		    weights->norm_f, packing->scratch);
	return 0;
}

int cpu_weights_new(const struct model *model, const struct cpu_kernels *kernels, bool bfloat16,
		    struct cpu_threads *threads, struct cpu_weights **ret_weights, struct error *err)
{
	struct cpu_weights *weights = calloc(1, sizeof *weights);
	struct packing packing = { .model = model, .weights = weights };
	int rc;

	if (!weights)
		return error_memory(err, "weights");
	weights->bfloat16 = bfloat16;
	rc = pack(&packing, kernels, threads, err);
	free(packing.in_from);
	free(packing.scratch);
	if (rc) {
		cpu_weights_free(weights);
		return rc;
	}
	*ret_weights = weights;
	return 0;
}

void cpu_weights_free(struct cpu_weights *weights)
{
	if (!weights)
		return;
	free(weights->memory);
	free(weights->layers);
	free(weights);
}
