/*
 * Device code that the kernels of states before chunks share: a slice's state in a warp's registers, 16 p by WIDTH n,
 * as accumulators: [u] of n 8 u to 8 u + 7.
 */
#ifndef GPU_STATES_CUH
#define GPU_STATES_CUH

#include "gpu/chunk.cuh"

/* Four numbers of the slice's state [SLICE, n_columns]: the lane's of one half of the places, n from 16 v on. */
static __device__ inline float4 *four_of(float *state, int n_columns, int half, int v)
{
	int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

	return (float4 *)(state + slice_column(g, half) * n_columns + 16 * v + 4 * q);
}

/* The slice's state in the cache, n from 16 first on. */
template <int WIDTH>
static __device__ inline void load_state(float *state, int n_columns, int first, float (&h)[WIDTH / 2])
{
#pragma unroll
	for (int i = 0; i < WIDTH / 8; i++) {
		float4 n = *four_of(state, n_columns, i % 2, first + i / 2);
		float *low = h + i / 2 * 8 + i % 2 * 2, *high = low + 4;

		low[0] = n.x, low[1] = n.y;
		high[0] = n.z, high[1] = n.w;
	}
}

template <int WIDTH>
static __device__ inline void store_state(float *state, int n_columns, int first, const float (&h)[WIDTH / 2])
{
#pragma unroll
	for (int i = 0; i < WIDTH / 8; i++) {
		const float *low = h + i / 2 * 8 + i % 2 * 2, *high = low + 4;

		*four_of(state, n_columns, i % 2, first + i / 2) = make_float4(low[0], low[1], high[0], high[1]);
	}
}

/* The state as chunk_outputs multiplies with it; a lane's v_th goes 32 v behind its first, of n 16 first on. */
template <int WIDTH> static __device__ inline void pack_state(const float (&h)[WIDTH / 2], uint4 (&left)[WIDTH / 16])
{
#pragma unroll
	for (int v = 0; v < WIDTH / 16; v++) {
		const float *low = h + 8 * v, *high = low + 4;

		left[v] = make_uint4(pack2(low[0], low[1]), pack2(high[0], high[1]), pack2(low[2], low[3]),
				     pack2(high[2], high[3]));
	}
}

#endif
