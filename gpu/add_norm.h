/* Kernel: finish a layer's mixer, add it to the residual stream, and normalise for the next one (RMSNorm). */
#ifndef GPU_ADD_NORM_H
#define GPU_ADD_NORM_H
#include "gpu/kernel.h"
#include "model/dtype.h"

struct add_norm {
	float *residual;      /* [rows, hidden_cols] */
	bool from_input;      /* the residual stream so far is the batch's input */
	const void *mixer;    /* [rows, hidden_cols] out_proj's output in the products' precision; NULL: none yet */
	const float *bias;    /* [hidden_cols] of out_proj, or NULL */
	const float *squares; /* [rows, parts] of the gated norm, if mixer still lacks its scale; else NULL */
	int parts;
	const float *weight;  /* [hidden_cols] of the norm */
	void *normed;         /* [rows, hidden_cols] in the products' precision, or NULL */

	/* Outputs, each a plane [max_rows, hidden] of the batch's output: the stream itself, the normed rows; or -1. */
	int stream_plane, normed_plane;
	size_t max_rows;
	enum dtype output_dtype;

	bool early; /* see launch.cuh */
};

cudaError_t add_norm(const struct layout *layout, const struct add_norm *args, bool bfloat16,
		     const struct batch_view *batch, size_t rows, int processors, cudaStream_t stream);

#endif
