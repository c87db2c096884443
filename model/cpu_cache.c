/* Where things lie in a cache, and the way to and from the canonical layout. */
#include "model/cpu_cache.h"

static size_t history_floats(const struct cpu_weights *weights, const struct shape *shape)
{
	return weights->conv_columns * (shape->conv_kernel - 1);
}

static size_t layer_floats(const struct cpu_weights *weights, const struct shape *shape)
{
	return history_floats(weights, shape) + weights->inner * weights->state_size;
}

size_t cpu_cache_history(const struct cpu_weights *weights, const struct shape *shape, size_t layer)
{
	return layer * layer_floats(weights, shape);
}

size_t cpu_cache_state(const struct cpu_weights *weights, const struct shape *shape, size_t layer)
{
	return layer * layer_floats(weights, shape) + history_floats(weights, shape);
}

size_t cpu_cache_floats(const struct cpu_weights *weights, const struct shape *shape)
{
	return shape->num_layers * layer_floats(weights, shape);
}

/* Where the cache has canonical column i of x, B, C. */
static size_t padded_column(const struct cpu_weights *weights, const struct shape *shape, size_t i)
{
	if (i < shape->d_inner)
		return i / shape->head_dim * weights->head_dim + i % shape->head_dim;
	i -= shape->d_inner;
	return weights->inner + i / shape->state_size * weights->state_size + i % shape->state_size;
}

static size_t history_at(const struct cpu_weights *weights, const struct shape *shape, size_t column, size_t tap)
{
	const size_t at = padded_column(weights, shape, column);

	return (at / CPU_BLOCK * (shape->conv_kernel - 1) + tap) * CPU_BLOCK + at % CPU_BLOCK;
}

void cpu_cache_export(const struct cpu_weights *weights, const struct shape *shape, const float *cache,
		      float *canonical)
{
	for (size_t layer = 0; layer < shape->num_layers; layer++) {
		const float *history = cache + cpu_cache_history(weights, shape, layer);
		const float *state = cache + cpu_cache_state(weights, shape, layer);

		for (size_t i = 0; i < shape->conv_dim; i++)
			for (size_t tap = 0; tap < shape->conv_kernel - 1; tap++)
				*canonical++ = history[history_at(weights, shape, i, tap)];
		for (size_t h = 0; h < shape->num_heads; h++, state += weights->state_size * weights->head_dim)
			for (size_t p = 0; p < shape->head_dim; p++)
				for (size_t n = 0; n < shape->state_size; n++)
					*canonical++ = state[n * weights->head_dim + p];
	}
}

void cpu_cache_import(const struct cpu_weights *weights, const struct shape *shape, const float *canonical,
		      float *cache)
{
	for (size_t layer = 0; layer < shape->num_layers; layer++) {
		float *history = cache + cpu_cache_history(weights, shape, layer);
		float *state = cache + cpu_cache_state(weights, shape, layer);

		for (size_t i = 0; i < shape->conv_dim; i++)
			for (size_t tap = 0; tap < shape->conv_kernel - 1; tap++)
				history[history_at(weights, shape, i, tap)] = *canonical++;
		for (size_t h = 0; h < shape->num_heads; h++, state += weights->state_size * weights->head_dim)
			for (size_t p = 0; p < shape->head_dim; p++)
				for (size_t n = 0; n < shape->state_size; n++)
					state[n * weights->head_dim + p] = *canonical++;
	}
}
