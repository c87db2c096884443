extern "C" {
#include "gpu/convert.h"
}
#include "gpu/number.cuh"

static __device__ float number_at(const void *src, enum dtype dtype, size_t i)
{
	switch (dtype) {
	case DTYPE_FLOAT16:
		return __half2float(((const __half *)src)[i]);
	case DTYPE_BFLOAT16:
		return __bfloat162float(((const bfloat16 *)src)[i]);
	default:
		return ((const float *)src)[i];
	}
}

template <typename T>
static __global__ void convert(const void *src, enum dtype dtype, size_t n, size_t cols, T *dst, size_t dst_cols)
{
	size_t step = (size_t)gridDim.x * blockDim.x;

	for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
		narrow(number_at(src, dtype, i), &dst[i / cols * dst_cols + i % cols]);
}

cudaError_t convert_rows(const void *src, enum dtype dtype, size_t rows, size_t cols, void *dst, bool to_bfloat16,
			 size_t dst_cols, cudaStream_t stream)
{
	if (to_bfloat16)
		convert<<<1024, 256, 0, stream>>>(src, dtype, rows * cols, cols, (bfloat16 *)dst, dst_cols);
	else
		convert<<<1024, 256, 0, stream>>>(src, dtype, rows * cols, cols, (float *)dst, dst_cols);
	return cudaGetLastError();
}
