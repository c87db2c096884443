extern "C" {
#include "gpu/probe.h"
}
#include "gpu/number.cuh"

template <typename T> static __global__ void fill(T *to, size_t n)
{
	size_t step = (size_t)gridDim.x * blockDim.x;

	for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
		uint64_t mixed = (i + 1) * 0x9e3779b97f4a7c15u;

		mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
		narrow((float)(int32_t)(mixed >> 32) * 0x1p-31f, &to[i]);
	}
}

static __global__ void compare(const uint32_t *a, const uint32_t *b, size_t n, unsigned *differ)
{
	size_t step = (size_t)gridDim.x * blockDim.x;
	unsigned mine = 0;

	for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
		mine += a[i] != b[i];
	if (mine > 0)
		atomicAdd(differ, mine);
}

cudaError_t probe_fill(void *to, bool to_bfloat16, size_t n, cudaStream_t stream)
{
	if (to_bfloat16)
		fill<<<1024, 256, 0, stream>>>((bfloat16 *)to, n);
	else
		fill<<<1024, 256, 0, stream>>>((float *)to, n);
	return cudaGetLastError();
}

cudaError_t probe_compare(const void *a, const void *b, size_t bytes, unsigned *differ, cudaStream_t stream)
{
	compare<<<1024, 256, 0, stream>>>((const uint32_t *)a, (const uint32_t *)b, bytes / 4, differ);
	return cudaGetLastError();
}
