/*
 * The weights as the CPU kernels want them: padded, products packed in panels, everything else float32.
 */
#ifndef MODEL_CPU_WEIGHTS_H
#define MODEL_CPU_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>

#include "model/cpu_kernels.h"
#include "model/cpu_threads.h"
#include "model/model.h"

struct cpu_layer {
	float *norm;          /* [hidden] */
	void *in_proj;        /* [hidden, in_columns] packed: z, x of each head, B, C, dt */
	float *in_proj_bias;  /* [in_columns] */
	float *conv;          /* [conv_columns / CPU_BLOCK, taps, CPU_BLOCK] */
	float *conv_bias;     /* [conv_columns] */
	float *dt_bias;       /* [dt_columns] */
	float *a;             /* [dt_columns]: -exp(A_log) */
	float *d;             /* [dt_columns] */
	float *gated_norm;    /* [inner] */
	void *out_proj;       /* [inner, hidden] packed */
	float *out_proj_bias; /* [hidden] */
};

struct cpu_weights {
	/* Padded sizes, in numbers: multiples of CPU_BLOCK. */
	size_t hidden, head_dim, state_size;
	size_t inner;        /* num_heads * head_dim */
	size_t conv_columns; /* inner + 2 * n_groups * state_size: x, B, C */
	size_t dt_columns;   /* num_heads */
	size_t in_columns;   /* inner + conv_columns + dt_columns */

	bool bfloat16;           /* in_proj and out_proj; else float32 */
	struct cpu_layer *layers; /* [num_layers] */
	float *norm_f;           /* [hidden] */
	void *memory;            /* in which all of them lie */
	size_t bytes;
};

/* Pack a model's weights for these kernels.  Free with cpu_weights_free. */
int cpu_weights_new(const struct model *model, const struct cpu_kernels *kernels, bool bfloat16,
		    struct cpu_threads *threads, struct cpu_weights **ret_weights, struct error *err);
void cpu_weights_free(struct cpu_weights *weights); /* NULL is fine */

#endif
