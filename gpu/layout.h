/*
 * How a model's numbers lie in device memory.  Every section of a row starts at a multiple of 8 numbers, so that eight
 * of them load at once whatever the shape; what pads a section is zero and stays zero.
 */
#ifndef GPU_LAYOUT_H
#define GPU_LAYOUT_H

#include <stddef.h>

#include "model/shape.h"

struct layout {
	int layers, heads, head_dim, groups, taps;
	int hidden, hidden_cols;  /* columns of a row, and with padding */
	int inner, inner_cols;
	int state, state_cols;

	/* A row of in_proj's output: z [inner_cols], x [inner_cols], B and C [groups, state_cols], dt [heads]. */
	int proj_cols, dt_col;
	int conv_cols; /* x, B, C: what the convolution sees; it starts at column inner_cols */

	/*
	 * A cache: for each layer two conv states [taps - 1, conv_cols], of which one is current (a batch reads it and
	 * writes the other), then the SSM state [heads, head_dim, state_cols]; float32.
	 */
	size_t conv_floats;  /* of one conv state */
	size_t layer_floats; /* of a layer */
	size_t cache_floats; /* of a cache */

	int gated_norm_groups;
	float norm_epsilon, dt_min, dt_max;
};

void layout_of(const struct shape *shape, struct layout *ret_layout);

/* The device's column of row r of in_proj, and of channel c of the convolution (from inner_cols). */
size_t layout_proj_column(const struct layout *layout, size_t r);
size_t layout_conv_column(const struct layout *layout, size_t c);

size_t layout_conv_dim(const struct layout *layout);  /* channels without padding */
size_t layout_proj_rows(const struct layout *layout); /* rows of in_proj without padding */

#endif
