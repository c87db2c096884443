/*
 * The model's weights in device memory, packed for the kernels: matrices in the precision of the products with their
 * rows and columns padded as layout.h says, everything else float32.
 */
#ifndef GPU_WEIGHTS_H
#define GPU_WEIGHTS_H

#include <cuda_runtime_api.h>

#include "gpu/layout.h"
#include "model/device.h"
#include "model/error.h"
#include "model/model.h"

/* Pointers into device memory; NULL where the model has no such weight. */
struct layer_weights {
	const void *in_proj;      /* [proj_cols, hidden_cols] in the precision of the products */
	const void *in_proj_bias; /* [proj_cols], likewise */
	const void *out_proj;     /* [hidden_cols, inner_cols], likewise */
	const float *norm;        /* [hidden_cols] */
	const float *conv;        /* [taps, conv_cols], oldest first */
	const float *conv_bias;   /* [conv_cols] */
	const float *dt_bias;     /* [heads] */
	const float *a;           /* [heads]: -exp(A_log) */
	const float *d;           /* [heads] */
	const float *gated_norm;  /* [inner_cols] */
	const float *out_bias;    /* [hidden_cols] */
};

struct weights {
	struct layer_weights *layers; /* [num_layers] */
	const float *norm_f;          /* [hidden_cols] */
	size_t bytes;                 /* of device memory */
	void *matrices, *vectors;     /* the memory itself */
};

/* Copy the weights to the device through page-locked memory; returns when they are there. */
int weights_upload(const struct model *model, const struct layout *layout, enum precision precision,
		   cudaStream_t stream, struct weights **ret_weights, struct error *err);
void weights_free(struct weights *weights); /* NULL is fine */

#endif
