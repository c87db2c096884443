/* Kernel: the gated RMSNorm of models that normalise d_inner in several groups.  (With one, add_norm applies it.) */
#ifndef GPU_GATED_NORM_H
#define GPU_GATED_NORM_H
#include "gpu/kernel.h"

/* gated [rows, inner_cols] in place; squares [rows, parts], parts a multiple of gated_norm_groups. */
cudaError_t gated_norm(const struct layout *layout, void *gated, bool bfloat16, const float *squares, int parts,
		       const struct batch_view *batch, size_t rows, cudaStream_t stream);

#endif
