/*
 * The device's layout of rows and caches, derived from a model's shape.
 */
#include "gpu/layout.h"

static size_t padded(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

void layout_of(const struct shape *shape, struct layout *ret_layout)
{
	size_t hidden = padded(shape->hidden_size, 8), inner = padded(shape->d_inner, 8);
	size_t state = padded(shape->state_size, 8), conv = inner + 2 * shape->n_groups * state;
	size_t conv_floats = padded((shape->conv_kernel - 1) * conv, 64);
	size_t layer_floats = 2 * conv_floats + padded(shape->num_heads * shape->head_dim * state, 64);

	*ret_layout = (struct layout){
		.layers = (int)shape->num_layers,
		.heads = (int)shape->num_heads,
		.head_dim = (int)shape->head_dim,
		.groups = (int)shape->n_groups,
		.taps = (int)shape->conv_kernel,
		.hidden = (int)shape->hidden_size,
		.hidden_cols = (int)hidden,
		.inner = (int)shape->d_inner,
		.inner_cols = (int)inner,
		.state = (int)shape->state_size,
		.state_cols = (int)state,
		.proj_cols = (int)padded(inner + conv + shape->num_heads, 64), /* rows begin at a cache line */
		.dt_col = (int)(inner + conv),
		.conv_cols = (int)conv,
		.conv_floats = conv_floats,
		.layer_floats = layer_floats,
		.cache_floats = shape->num_layers * layer_floats,
		.gated_norm_groups = (int)shape->gated_norm_groups,
		.norm_epsilon = shape->norm_epsilon,
		.dt_min = shape->dt_min,
		.dt_max = shape->dt_max,
	};
}

size_t layout_conv_dim(const struct layout *layout)
{
	return (size_t)layout->inner + 2 * (size_t)layout->groups * (size_t)layout->state;
}

size_t layout_proj_rows(const struct layout *layout)
{
	return (size_t)layout->inner + layout_conv_dim(layout) + (size_t)layout->heads;
}

size_t layout_conv_column(const struct layout *layout, size_t c)
{
	size_t inner = (size_t)layout->inner, state = (size_t)layout->state;

	if (c < inner)
		return c;
	return (size_t)layout->inner_cols + (c - inner) / state * (size_t)layout->state_cols + (c - inner) % state;
}

size_t layout_proj_column(const struct layout *layout, size_t r)
{
	size_t inner = (size_t)layout->inner, conv = layout_conv_dim(layout);

	if (r < inner)
		return r;
	if (r < inner + conv)
		return (size_t)layout->inner_cols + layout_conv_column(layout, r - inner);
	return (size_t)layout->dt_col + r - inner - conv;
}
