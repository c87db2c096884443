/*
 * Where the chunked SSD's kernels leave what the next one needs.  All of it is bfloat16 arithmetic on tensor cores with
 * float32 sums; the mathematics is section 6 of Dao & Gu 2024 (arXiv:2405.21060), with chunks cut as batch.h says.
 *
 * A slice is 32 neighbouring columns of x, a part of one head: what a warp works on.  Within a slice, and within 16
 * columns n of B and C, numbers lie in the order in which a lane holds them in registers:
 *   x: column 8 a + 2 t + e at 8 t + 2 a + e          (a, t < 4; e < 2)
 *   B, C: column 16 v + 4 q + 2 b + e at 16 v + 8 b + 2 q + e          (q < 4; b, e < 2)
 */
#ifndef GPU_CHUNK_H
#define GPU_CHUNK_H

#include "gpu/kernel.h"
#include "gpu/weights.h"

#define SLICE 32
#define CHUNK_MIN_WINDOW 16 /* below it the scan is quicker */

struct chunk_buffers {
	const void *proj; /* [rows, proj_cols] bfloat16: in_proj's output */
	void *x;          /* [rows, inner_cols] bfloat16: behind convolution and silu */
	void *bc;         /* [rows, 2, groups, state] bfloat16: B and C, likewise */
	float *scores;    /* [tiles, 2, 32, 4] for each chunk and group: C B^T's tiles on and below the diagonal */
	float2 *steps;    /* [heads, rows of the chunk] for each chunk: log2 of the decay since its start; dt */
	void *states;     /* [chunks, slices, 2, state / 16, 32] uint4 bfloat16: the state before each chunk */
	void *gated;      /* [rows, inner_cols] bfloat16: y * silu(z) * gated_norm, not yet scaled */
	float *squares;   /* [rows, slices]: sums of (y * silu(z))^2 over a slice */
};

/* Rows behind the convolution, its next state, dt and decay, and C B^T. */
cudaError_t chunk_conv(const struct layout *layout, const struct layer_weights *weights, int layer,
		       const struct chunk_buffers *buffers, const struct batch_view *batch, size_t chunks,
		       cudaStream_t stream);

/* Whole segments, one chunk after another, the state on chip. */
cudaError_t chunk_segments(const struct layout *layout, const struct layer_weights *weights, int layer,
			   const struct chunk_buffers *buffers, const struct batch_view *batch, size_t segments,
			   cudaStream_t stream);

/* The same bits in two steps, for a few long segments: the states before each chunk, then all chunks at once. */
cudaError_t chunk_states(const struct layout *layout, int layer, const struct chunk_buffers *buffers,
			 const struct batch_view *batch, size_t segments, cudaStream_t stream);
cudaError_t chunk_outputs(const struct layout *layout, const struct layer_weights *weights, int layer,
			  const struct chunk_buffers *buffers, const struct batch_view *batch, size_t chunks,
			  cudaStream_t stream);

/* Raise the kernels' limits of shared memory; once before any of them is launched. */
cudaError_t chunk_ssd_setup(void);
cudaError_t chunk_states_setup(void);

#endif
