#include "gpu/chunk_output.cuh"

/* y of chunks on their own, from the states that chunk_states left; a block of eight warps takes eight slices. */

template <int N>
static __global__ void __launch_bounds__(BLOCK_THREADS, 2) ssd_outputs(const struct chunk_params a)
{
	extern __shared__ __align__(16) char shared[];
	struct chunk_memory<N> &s = *(struct chunk_memory<N> *)shared;
	int blocks = chunk_blocks(&a.layout), warp = threadIdx.x / 32, lane = threadIdx.x % 32;

	for (int item = blockIdx.x; item < a.batch->n_chunks * blocks; item += gridDim.x) {
		struct chunk_place p = chunk_place_of(a.layout, item % blocks);
		const struct chunk_view k = a.batch->chunks[item / blocks];
		const uint4 *states = states_of(a, item / blocks, p.slice);
		int warps = active_warps(a.layout, p.block);
		uint4 h[N / 16];

		fetch_bc<N>(a, k, p.group, 1, s.c);
		fetch_scores(a, k, p.group, s.scores);
		fetch_steps(a, k, p, s.steps[0]);
		fetch(s.x, x_of(a, item / blocks, p.slice - (p.active ? warp : 0)), warps * X_TILE / 8);
		copies_close();
		if (lane < SLICE)
			s.norm[warp][lane] = a.weights.gated_norm[p.slice * SLICE + lane];
#pragma unroll
		for (int v = 0; v < N / 16; v++)
			h[v] = states[v * 32 + lane];
		copies_wait<0>();
		__syncthreads();
		mask_scores<N>(a, s, p, s.steps[0], edge_of(k));
		__syncthreads();
		if (p.active)
			output_chunk<N>(a, s, p, k, s.steps[0], h);
		__syncthreads();
		add_squares<N>(a, s, p, k);
		__syncthreads();
	}
}

cudaError_t chunk_outputs(const struct layout *layout, const struct layer_weights *weights, int layer,
			  const struct chunk_buffers *buffers, const struct batch_view *batch, size_t chunks,
			  cudaStream_t stream)
{
	struct chunk_params a = { *layout, *weights, *buffers, layer, batch };
	size_t items = chunks * (size_t)chunk_blocks(layout);
	unsigned blocks = (unsigned)(items < 1 << 16 ? items : 1 << 16);

	if (layout->state == 64)
		ssd_outputs<64><<<blocks, BLOCK_THREADS, sizeof(struct chunk_memory<64>), stream>>>(a);
	else
		ssd_outputs<128><<<blocks, BLOCK_THREADS, sizeof(struct chunk_memory<128>), stream>>>(a);
	return cudaGetLastError();
}

cudaError_t chunk_outputs_setup(void)
{
	cudaError_t status = cudaFuncSetAttribute(ssd_outputs<64>, cudaFuncAttributeMaxDynamicSharedMemorySize,
						  sizeof(struct chunk_memory<64>));

	if (status != cudaSuccess)
		return status;
	return cudaFuncSetAttribute(ssd_outputs<128>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				    sizeof(struct chunk_memory<128>));
}
