/*
 * The chunked SSD: kernels between in_proj and out_proj for windows of many rows, in bfloat16 on tensor cores with
 * float32 sums.  The mathematics is section 6 of Dao & Gu 2024 (arXiv:2405.21060), with chunks cut as batch.h says.
 *
 * What one kernel leaves for another lies as that one will have it in shared memory, chunk by chunk, rows rounded up to
 * whole tiles of 16 (edge of them): see chunk.cuh.
 */
#ifndef GPU_CHUNK_H
#define GPU_CHUNK_H

#include <cuda.h>

#include "gpu/kernel.h"
#include "gpu/weights.h"

#define SLICE 16            /* neighbouring columns of x, of one head: what a warp works on */
#define GROUP_COLUMNS 64    /* what four warps work on, and for which a row's sum of squares is told */
#define BLOCK_SLICES 8      /* of one group of B and C: what a block works on */
#define CHUNK_MIN_WINDOW 16 /* below it the scan is quicker */
#define CHUNK_HEADS(state) ((state) == 128 ? 2 : 4) /* most heads of a block: what its shared memory holds */

struct chunk_buffers {
	const void *proj; /* [rows, proj_cols] bfloat16: in_proj's output */
	void *bc;         /* [groups, 2, 16 edge, state] bfloat16 for each chunk: B and C behind the silu, in cores */
	float *scores;    /* [groups, tiles, 2, 32, 4] for each chunk: C B^T's tiles on and below the diagonal */
	float *steps;     /* [heads, 4, 16 edge] for each chunk: see enum step_plane */
	void *x;          /* [chunks, slices, 64, SLICE] bfloat16, in cores: x likewise; only where with_x */
	void *states;     /* [chunks, slices, state / 16, 32] uint4 of bfloat16: the state before each chunk */
	void *gated;      /* [rows, inner_cols] bfloat16: y * silu(z) * gated_norm, not yet scaled */
	float *squares;   /* [rows, inner / GROUP_COLUMNS]: sums of (y * silu(z))^2 */
	unsigned *known;  /* [chunks]: heads of whose state before the chunk 64 n are there; 0 before and after a pass */
};

/* Of each row and head, where l is the log2 of the decay since the chunk's start. */
enum step_plane {
	STEP_SINCE,  /* l */
	STEP_REACH,  /* 2^l */
	STEP_SOURCE, /* l - log2(dt) */
	STEP_WEIGHT, /* 2^(l of the last row - l) dt */
	STEP_PLANES
};

/* Blocks that share a segment's columns. */
static __host__ __device__ inline int chunk_blocks(const struct layout *layout)
{
	int slices = layout->inner / layout->groups / SLICE;

	return layout->groups * ((slices + BLOCK_SLICES - 1) / BLOCK_SLICES);
}

/*
 * B, C, their conv states, scores and steps; with_x also x and its conv state, for chunk_states and chunk_outputs.
 * early: it begins early behind the kernel ahead, as in launch.cuh.
 */
cudaError_t chunk_prepare(const struct layout *layout, const struct layer_weights *weights, int layer,
			  const struct chunk_buffers *buffers, bool with_x, const struct batch_view *batch,
			  size_t chunks, bool early, int processors, cudaStream_t stream);

/*
 * Whole segments, one chunk after another, the state on chip.  For compute capability 9.0 and heads of 64.
 * proj_boxes: of proj, CHUNK_ROWS by GROUP_COLUMNS.  Begins early behind chunk_prepare: see launch.cuh.
 */
bool chunk_segments_serves(const struct layout *layout);
cudaError_t chunk_segments(const struct layout *layout, const struct layer_weights *weights, int layer,
			   const struct chunk_buffers *buffers, const CUtensorMap *proj_boxes,
			   const struct batch_view *batch, size_t segments, int processors, cudaStream_t stream);

/*
 * The same bits in two steps, for a few long segments: the states before each chunk, then all chunks at once.  early:
 * each begins early behind the one before; quicker where chunks are few, no more than there are processors.
 */
cudaError_t chunk_states(const struct layout *layout, int layer, const struct chunk_buffers *buffers,
			 const struct batch_view *batch, size_t segments, bool early, cudaStream_t stream);

/*
 * What chunk_states does, for many chunks, on compute capability 9.0: with few enough heads for each to have a processor
 * to itself.  Begins early; chunk_outputs, early and apart, runs beside it and follows chunk by chunk.
 */
bool chunk_heads_serves(const struct layout *layout, size_t segments, int processors);
cudaError_t chunk_heads(const struct layout *layout, int layer, const struct chunk_buffers *buffers,
			const struct batch_view *batch, size_t segments, int processors, cudaStream_t stream);

cudaError_t chunk_outputs(const struct layout *layout, const struct layer_weights *weights, int layer,
			  const struct chunk_buffers *buffers, const struct batch_view *batch, size_t chunks,
			  bool early, bool apart, int processors, cudaStream_t stream);

/* Raise the kernels' limits of shared memory; once before any of them is launched, early or not. */
cudaError_t chunk_prepare_setup(bool early);
cudaError_t chunk_segments_setup(void);
cudaError_t chunk_outputs_setup(void);
cudaError_t chunk_states_setup(void);
cudaError_t chunk_heads_setup(void);

#endif
