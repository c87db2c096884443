/*
 * Device code that the chunk kernels share: where numbers lie, the convolution, and y of a chunk.
 *
 * Within 16 columns of x, B and C, numbers lie in the order in which lanes hold them as operands and accumulators:
 * column 4 q + 2 t + e at place 8 t + 2 q + e (q < 4; t, e < 2).  So a lane's share of a row is four neighbours.
 */
#ifndef GPU_CHUNK_CUH
#define GPU_CHUNK_CUH

extern "C" {
#include "gpu/chunk.h"
}
#include "gpu/tile.cuh"

#define BLOCK_THREADS (32 * BLOCK_SLICES)
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

/* A chunk's B (which = 0) or C (1). */
static __device__ inline bfloat16 *bc_of(const struct chunk_params &a, const struct chunk_view &k, int group, int which)
{
	size_t tile = 16 * (a.layout.state + BC_PAD);

	return (bfloat16 *)a.buffers.bc +
	       (2 * ((size_t)k.unit * a.layout.groups + group * edge_of(k)) + which * edge_of(k)) * tile;
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
	return (bfloat16 *)a.buffers.x + ((size_t)chunk * (a.layout.inner / SLICE) + slice) * X_TILE;
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

/*
 * Where a row's place lies in a slice's tile of x.  Rows of 32 bytes, the halves of every second four swapped, and 16
 * bytes behind every eight: neither ldmatrix nor eight lanes that are eight rows apart meet on a bank.
 */
static __device__ inline int x_place(int row, int place)
{
	return row / 8 * 136 + row % 8 * 16 + ((place / 8) ^ (row / 4 % 2)) * 8 + place % 8;
}

/* Tile rows 16 j on as right operands of a product over rows: (r0, r1) places 0 to 7, (r2, r3) places 8 to 15. */
static __device__ inline void load_x(const bfloat16 *x, int j, uint32_t r[4])
{
	int lane = threadIdx.x % 32;

	tile_load_transposed(r, x + x_place(16 * j + lane % 16, lane / 16 * 8));
}

/* The same as a left operand [place, row], each row times its weight. */
static __device__ inline void load_weighted_x(const bfloat16 *x, const float *weight, int j, uint32_t left[4])
{
	int q = threadIdx.x % 4 * 2;
	float2 low = *(const float2 *)(weight + 16 * j + q), high = *(const float2 *)(weight + 16 * j + 8 + q);
	uint32_t r[4];

	load_x(x, j, r);
	left[0] = pack2(first_of(r[0]) * low.x, second_of(r[0]) * low.y);
	left[1] = pack2(first_of(r[2]) * low.x, second_of(r[2]) * low.y);
	left[2] = pack2(first_of(r[1]) * high.x, second_of(r[1]) * high.y);
	left[3] = pack2(first_of(r[3]) * high.x, second_of(r[3]) * high.y);
}

/* silu(bias + sum_k weight_k row_{r - 3 + k}) of COUNT columns; rows [TAPS], oldest first. */
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

/*
 * A slice's state in registers: h[u] is the accumulator of 16 places p and n 8 u to 8 u + 7.  As the right operand of a
 * product over n, 16 v on, it gives two: (x, y) for places 0 to 7, (z, w) for places 8 to 15.
 */
template <int N> static __device__ inline uint4 state_operand(const float (&h)[N / 8][4], int v)
{
	const float *even = h[2 * v], *odd = h[2 * v + 1];

	return make_uint4(pack2(even[0], even[1]), pack2(odd[0], odd[1]), pack2(even[2], even[3]),
			  pack2(odd[2], odd[3]));
}

template <int N> static __device__ inline uint4 state_operand(const uint4 (&h)[N / 16], int v)
{
	return h[v];
}

/* Which of a slice's columns an accumulator's row g (0 .. 7) of either half is. */
static __device__ inline int slice_column(int g, int half)
{
	return g / 2 * 4 + 2 * half + g % 2;
}

#endif
