extern "C" {
#include "gpu/rows.h"
}
#include "gpu/number.cuh"

/*
 * A warp moves a row: the host's memory is read and written over PCIe by the kernel itself, so that one launch serves
 * any number of windows.  Few blocks are enough to fill the link, and leave the machine to the batch that computes.
 */
#define BLOCKS 24
#define THREADS 512
#define AHEAD 4 /* loads of a lane before it stores */

template <typename T>
static __device__ void lane_copy(T *__restrict__ to, const T *__restrict__ from, size_t n)
{
#pragma unroll 8
	for (size_t i = threadIdx.x % 32; i < n; i += 32)
		to[i] = from[i];
}

/* Copy bytes with a warp, 16 at a time where both ends allow. */
static __device__ void warp_copy(void *to, const void *from, size_t bytes)
{
	if ((((uintptr_t)to | (uintptr_t)from | bytes) & 15) == 0)
		lane_copy((uint4 *)to, (const uint4 *)from, bytes / 16);
	else
		lane_copy((uint16_t *)to, (const uint16_t *)from, bytes / 2);
}

static __global__ void gather(const struct row_view *rows, size_t n, int hidden, int cols, float *input)
{
	size_t step = (size_t)gridDim.x * (blockDim.x / 32);

	for (size_t r = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32; r < n; r += step) {
		const struct row_view row = rows[r];

		warp_copy(input + r * cols + rows_offset(row.dtype, cols), row.in,
			  hidden * (row.dtype == DTYPE_FLOAT32 ? sizeof(float) : sizeof(uint16_t)));
	}
}

/*
 * Widen a row from its second half to all of it.  What a warp stores may lie where numbers came to, but only such as it
 * has loaded already: columns up to c fill the first 4 c bytes, and those from c on lie behind 2 cols + 2 c of them.
 */
template <typename T>
static __device__ void warp_widen(float *row, int hidden, int cols)
{
	const T *from = (const T *)(row + cols / 2);

	for (int first = 0; first < cols; first += 4 * 32 * AHEAD) {
		__align__(8) T v[AHEAD][4];

#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			int c = first + 4 * (32 * k + threadIdx.x % 32);

			if (c < cols)
				*(uint2 *)v[k] = *(const uint2 *)(from + c);
		}
		__syncwarp();
#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			int c = first + 4 * (32 * k + threadIdx.x % 32);

			if (c < cols)
				*(float4 *)(row + c) = make_float4(c + 0 < hidden ? widen(v[k][0]) : 0.0f,
								   c + 1 < hidden ? widen(v[k][1]) : 0.0f,
								   c + 2 < hidden ? widen(v[k][2]) : 0.0f,
								   c + 3 < hidden ? widen(v[k][3]) : 0.0f);
		}
	}
}

static __global__ void widen_rows(const struct row_view *rows, size_t n, int hidden, int cols, float *input)
{
	size_t step = (size_t)gridDim.x * (blockDim.x / 32);

	for (size_t r = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32; r < n; r += step) {
		enum dtype dtype = rows[r].dtype;

		if (dtype == DTYPE_FLOAT16)
			warp_widen<__half>(input + r * cols, hidden, cols);
		else if (dtype == DTYPE_BFLOAT16)
			warp_widen<bfloat16>(input + r * cols, hidden, cols);
	}
}

static __global__ void scatter_rows(const struct scatter s, const struct row_view *rows, size_t n)
{
	size_t step = (size_t)gridDim.x * (blockDim.x / 32);

	for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32; i < n * s.n_outputs; i += step) {
		size_t r = i / s.n_outputs, o = i % s.n_outputs;

		warp_copy(rows[r].out + o * s.window * s.row_bytes,
			  s.output + ((size_t)s.planes[o] * s.max_rows + r) * s.row_bytes, s.row_bytes);
	}
}

cudaError_t rows_gather(const struct row_view *rows, size_t n, int hidden, int cols, float *input, cudaStream_t stream)
{
	gather<<<BLOCKS, THREADS, 0, stream>>>(rows, n, hidden, cols, input);
	return cudaGetLastError();
}

cudaError_t rows_widen(const struct row_view *rows, size_t n, int hidden, int cols, float *input, cudaStream_t stream)
{
	widen_rows<<<BLOCKS, THREADS, 0, stream>>>(rows, n, hidden, cols, input);
	return cudaGetLastError();
}

cudaError_t rows_scatter(const struct scatter *scatter, const struct row_view *rows, size_t n, cudaStream_t stream)
{
	scatter_rows<<<BLOCKS, THREADS, 0, stream>>>(*scatter, rows, n);
	return cudaGetLastError();
}
