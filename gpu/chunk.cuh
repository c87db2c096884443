/*
 * Device code that the chunk kernels share: where numbers lie, and the convolution.
 *
 * Tiles that tensor cores multiply are made of cores, 8 rows of 8 numbers (16 bytes) one after another: neither
 * ldmatrix nor wgmma then meets a bank twice.  Within 16 columns of x, B and C, numbers lie in the order in which lanes
 * hold them as operands and accumulators: column 4 q + 2 t + e at place 8 t + 2 q + e (q < 4; t, e < 2).  So a lane's
 * share of a row is four neighbours.
 */
#ifndef GPU_CHUNK_CUH
#define GPU_CHUNK_CUH

extern "C" {
#include "gpu/chunk.h"
}
#include "gpu/tile.cuh"

#define BLOCK_THREADS (32 * BLOCK_SLICES)
#define BLOCK_COLUMNS (SLICE * BLOCK_SLICES)
#define TAPS 4
#define SCORE_TILE 256 /* numbers of a tile of scores */

struct chunk_params {
	struct layout layout;
	struct layer_weights weights;
	struct chunk_buffers buffers;
	int layer;
	const struct batch_view *batch;
};

static __device__ inline int edge_of(const struct chunk_view &k)
{
	return (k.rows + 15) / 16;
}

static __device__ inline int tiles_of(int edge)
{
	return edge * (edge + 1) / 2;
}

/* Where a row's place lies in a tile of so many places. */
static __device__ inline int core_place(int row, int place, int places)
{
	return (row / 8 * (places / 8) + place / 8) * 64 + row % 8 * 8 + place % 8;
}

/*
 * The lane's row and places of a tile of 16 rows and 16 places, as ldmatrix takes them; those of rows 16 j and places 16 v
 * on lie core_place(16 j, 16 v, places) further.
 */
static __device__ inline int lane_place(int places)
{
	return core_place(threadIdx.x % 16, threadIdx.x % 32 / 16 * 8, places);
}

/* A chunk's B (which = 0) or C (1). */
static __device__ inline bfloat16 *bc_of(const struct chunk_params &a, const struct chunk_view &k, int group, int which)
{
	size_t unit = 2 * ((size_t)k.unit * a.layout.groups + group * edge_of(k)) + which * edge_of(k);

	return (bfloat16 *)a.buffers.bc + unit * 16 * a.layout.state;
}

static __device__ inline float *scores_of(const struct chunk_params &a, const struct chunk_view &k, int group)
{
	return a.buffers.scores +
	       ((size_t)k.scores * a.layout.groups + group * tiles_of(edge_of(k))) * SCORE_TILE;
}

static __device__ inline float *steps_of(const struct chunk_params &a, const struct chunk_view &k, int head)
{
	return a.buffers.steps + ((size_t)k.unit * a.layout.heads + head * edge_of(k)) * 16 * STEP_PLANES;
}

static __device__ inline bfloat16 *x_of(const struct chunk_params &a, int chunk, int slice)
{
	return (bfloat16 *)a.buffers.x + ((size_t)chunk * (a.layout.inner / SLICE) + slice) * CHUNK_ROWS * SLICE;
}

static __device__ inline uint4 *states_of(const struct chunk_params &a, int chunk, int slice)
{
	return (uint4 *)a.buffers.states +
	       ((size_t)chunk * (a.layout.inner / SLICE) + slice) * (a.layout.state / 16) * 32;
}

/* The cache of a layer: conv state `which` of the two, and the SSM state. */
static __device__ inline float *conv_state_of(const struct chunk_params &a, const struct segment_view &s, int which)
{
	return s.cache + a.layer * a.layout.layer_floats + which * a.layout.conv_floats;
}

static __device__ inline float *state_of(const struct chunk_params &a, const struct segment_view &s, int slice)
{
	return s.cache + a.layer * a.layout.layer_floats + 2 * a.layout.conv_floats +
	       (size_t)slice * SLICE * a.layout.state;
}

/* A slice's rows 16 j on as right operands of a product over rows: (r0, r1) places 0 to 7, (r2, r3) places 8 to 15. */
static __device__ inline void load_x(const bfloat16 *x, int j, uint32_t r[4])
{
	tile_load_transposed(r, x + lane_place(SLICE) + core_place(16 * j, 0, SLICE));
}

/* Of 16 rows' weights, those that a lane weighs with. */
struct row_weights {
	float2 low, high;
};

static __device__ inline struct row_weights row_weights(const float *weight)
{
	int q = threadIdx.x % 4 * 2;

	return { *(const float2 *)(weight + q), *(const float2 *)(weight + 8 + q) };
}

/* Such rows, of any 16 places, as a left operand [place, row], each row times its weight: 16 from weight on. */
static __device__ inline void weigh(const uint32_t (&r)[4], const struct row_weights &w, uint32_t (&left)[4])
{
	left[0] = pack2(first_of(r[0]) * w.low.x, second_of(r[0]) * w.low.y);
	left[1] = pack2(first_of(r[2]) * w.low.x, second_of(r[2]) * w.low.y);
	left[2] = pack2(first_of(r[1]) * w.high.x, second_of(r[1]) * w.high.y);
	left[3] = pack2(first_of(r[3]) * w.high.x, second_of(r[3]) * w.high.y);
}

/* silu(bias + sum_k weight_k row_{r - 3 + k}) of COUNT columns, weights and bias halved; rows [TAPS], oldest first. */
template <int COUNT>
static __device__ inline void convolve(const float (&rows)[TAPS][COUNT], const float (&weight)[TAPS][COUNT],
				       const float (&bias)[COUNT], float (&out)[COUNT])
{
#pragma unroll
	for (int i = 0; i < COUNT; i++) {
		float sum = bias[i];

#pragma unroll
		for (int tap = 0; tap < TAPS; tap++)
			sum = fmaf(weight[tap][i], rows[tap][i], sum);
		out[i] = fast_silu(sum);
	}
}

template <int COUNT> static __device__ inline void shift(float (&rows)[TAPS][COUNT])
{
#pragma unroll
	for (int tap = 0; tap + 1 < TAPS; tap++)
#pragma unroll
		for (int i = 0; i < COUNT; i++)
			rows[tap][i] = rows[tap + 1][i];
}

/* Which of a slice's columns an accumulator's row g (0 .. 7) of either half is. */
static __device__ inline int slice_column(int g, int half)
{
	return g / 2 * 4 + 2 * half + g % 2;
}

/* A chunk's steps, packed for its rows: a plane of one of several heads. */
static __device__ inline const float *step_plane(const float *steps, int head, int rows, enum step_plane plane)
{
	return steps + (head * STEP_PLANES + plane) * rows;
}

/*
 * Tile (i, j) of the scores with the decay from each column's row to each row's, and dt; on the diagonal nothing right
 * of it, and D added on it: a left operand.
 */
static __device__ inline uint4 masked_tile(const float *scores, const float *since, const float *source, float d,
					   int i, int j)
{
	int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4 * 2;
	float v[2][2][2]; /* half of the columns, half of the rows, column */
	uint32_t left[4];

	*(float4 *)v[0] = *(const float4 *)(scores + (tiles_of(i) + j) * SCORE_TILE + lane * 4);
	*(float4 *)v[1] = *(const float4 *)(scores + (tiles_of(i) + j) * SCORE_TILE + 128 + lane * 4);
#pragma unroll
	for (int half = 0; half < 2; half++) {
		float2 from = *(const float2 *)(source + 16 * j + 8 * half + q);

#pragma unroll
		for (int row = 0; row < 2; row++) {
			float end = since[16 * i + 8 * row + g];

			v[half][row][0] *= fast_exp2(end - from.x);
			v[half][row][1] *= fast_exp2(end - from.y);
		}
	}
	if (i == j)
#pragma unroll
		for (int e = 0; e < 8; e++) {
			int right = 8 * (e / 4) + q + e % 2 - (8 * (e / 2 % 2) + g); /* of the diagonal */
			float *at = &v[e / 4][e / 2 % 2][e % 2];

			*at = right > 0 ? 0.0f : right == 0 ? *at + d : *at;
		}
#pragma unroll
	for (int n = 0; n < 4; n++)
		left[n] = pack2(v[n / 2][n % 2][0], v[n / 2][n % 2][1]);
	return make_uint4(left[0], left[1], left[2], left[3]);
}

/* Four columns of a row, gated; returns the sum of their squares. */
static __device__ inline float gate4(const float *y, uint2 z, float (&gated)[4])
{
	uint32_t low = half_of(z.x), high = half_of(z.y);

	gated[0] = y[0] * fast_silu(first_of(low));
	gated[1] = y[1] * fast_silu(second_of(low));
	gated[2] = y[2] * fast_silu(first_of(high));
	gated[3] = y[3] * fast_silu(second_of(high));
	return fmaf(gated[3], gated[3], fmaf(gated[2], gated[2], fmaf(gated[1], gated[1], gated[0] * gated[0])));
}

/* Four gated columns, times the norm's weight, as they are stored. */
static __device__ inline uint2 weighted4(const float (&gated)[4], float4 weight)
{
	return make_uint2(pack2(gated[0] * weight.x, gated[1] * weight.y),
			  pack2(gated[2] * weight.z, gated[3] * weight.w));
}

#endif
