/* Kernel: a mixer between its two products, row after row: exact for any shape and window, the one for float32. */
#ifndef GPU_SCAN_H
#define GPU_SCAN_H
#include "gpu/kernel.h"
#include "gpu/weights.h"

#define SCAN_MAX_STATE 256
#define SCAN_MAX_HEAD_DIM 128

struct scan {
	const struct layer_weights *weights;
	int layer;
	const void *proj; /* [rows, proj_cols] */
	void *gated;      /* [rows, inner_cols]: y * silu(z) * gated_norm, not yet scaled */
	float *squares;   /* [rows, heads]: sums of (y * silu(z))^2 over a head */
	bool early;       /* see launch.cuh */
};

cudaError_t scan(const struct layout *layout, const struct scan *args, bool bfloat16, const struct batch_view *batch,
		 size_t segments, cudaStream_t stream);

#endif
