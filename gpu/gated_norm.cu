extern "C" {
#include "gpu/gated_norm.h"
}
#include "gpu/number.cuh"

/* gated = gated / sqrt(mean(gated^2) + eps) over each group of columns; a warp takes a row's group. */
#define THREADS 256

/* to [size] *= scale, by a warp. */
template <typename T> static __device__ void scale_columns(T *to, int size, float scale)
{
	int lane = threadIdx.x % 32;
	float v[8];

	if (size % 8 != 0) {
		for (int c = lane; c < size; c += 32)
			narrow(widen(to[c]) * scale, &to[c]);
		return;
	}
#pragma unroll 4
	for (int c = 8 * lane; c < size; c += 8 * 32) {
		load8(to + c, v);
		for (int i = 0; i < 8; i++)
			v[i] *= scale;
		store8(to + c, v);
	}
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
normalise(const struct layout l, T *gated, const float *squares, int parts, const struct batch_view *batch)
{
	int groups = l.gated_norm_groups, size = l.inner / groups, lane = threadIdx.x % 32;
	size_t step = (size_t)gridDim.x * (THREADS / 32), items = (size_t)batch->rows * groups;

	for (size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) / 32; i < items; i += step) {
		size_t row = i / groups, group = i % groups;
		const float *from = squares + row * parts + group * (parts / groups);
		T *to = gated + row * l.inner_cols + group * size;
		float sum = 0.0f;

		for (int k = lane; k < parts / groups; k += 32)
			sum += from[k];
		float scale = rsqrtf(warp_sum(sum) / size + l.norm_epsilon);
		scale_columns(to, size, scale);
	}
}

cudaError_t gated_norm(const struct layout *layout, void *gated, bool to_bfloat16, const float *squares, int parts,
		       const struct batch_view *batch, size_t rows, cudaStream_t stream)
{
	size_t blocks = (rows * (size_t)layout->gated_norm_groups + THREADS / 32 - 1) / (THREADS / 32);
	unsigned grid = (unsigned)(blocks < 1u << 16 ? blocks : 1u << 16);

	if (to_bfloat16)
		normalise<<<grid, THREADS, 0, stream>>>(*layout, (bfloat16 *)gated, squares, parts, batch);
	else
		normalise<<<grid, THREADS, 0, stream>>>(*layout, (float *)gated, squares, parts, batch);
	return cudaGetLastError();
}
