/*
 * The numbers that define a Mamba-2 backbone, in the terms of transformers' Mamba2Config.
 */
#ifndef MODEL_SHAPE_H
#define MODEL_SHAPE_H

#include <stddef.h>

#include "model/error.h"

struct shape {
	size_t num_layers;
	size_t hidden_size;  /* columns of a row */
	size_t d_inner;      /* expand * hidden_size == num_heads * head_dim */
	size_t num_heads;
	size_t head_dim;
	size_t n_groups;     /* of B and C; divides num_heads */
	size_t state_size;
	size_t conv_kernel;  /* taps of the causal convolution, >= 2 */
	size_t vocab_size;   /* 0: the checkpoint has no embeddings */
	size_t gated_norm_groups; /* the gated RMSNorm normalises each of so many equal parts; 1 in transformers */
	float norm_epsilon;
	float dt_min, dt_max; /* time_step_limit; dt_max may be infinite */

	/* Derived by shape_derive. */
	size_t conv_dim;   /* d_inner + 2 * n_groups * state_size: x, B, C */
	size_t in_proj_rows; /* d_inner + conv_dim + num_heads: z, x, B, C, dt */
};

/* Fill the derived numbers, and refuse numbers that contradict each other (ERR_FORMAT). */
int shape_derive(struct shape *shape, struct error *err);

/* The shape of a published model: "130m", "370m", "780m", "1.3b", "2.7b", "codestral-7b".  ERR_ARGUMENT if unknown. */
int shape_named(const char *name, struct shape *ret_shape, struct error *err);

/*
 * A stream's cache in the canonical layout, in which it is exported, imported and written to disk: for each layer
 * conv_state [conv_dim, conv_kernel - 1], oldest first, then ssm_state [num_heads, head_dim, state_size]; float32.
 */
size_t shape_conv_state_floats(const struct shape *shape); /* of one layer */
size_t shape_ssm_state_floats(const struct shape *shape);  /* of one layer */
size_t shape_cache_floats(const struct shape *shape);      /* of all layers */

#endif
