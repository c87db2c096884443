/* Kernels: bring a batch's rows from page-locked host memory, widen them, and bring its hidden states there. */
#ifndef GPU_ROWS_H
#define GPU_ROWS_H
#include "gpu/kernel.h"

/*
 * rows[n].in [hidden] -> input [n, cols], as they are; rows of 16-bit numbers to the second half of their places, from
 * which rows_widen makes float32 of them.  Then the cols - hidden columns behind each are 0, as before.
 */
cudaError_t rows_gather(const struct row_view *rows, size_t n, int hidden, int cols, float *input, cudaStream_t stream);
cudaError_t rows_widen(const struct row_view *rows, size_t n, int hidden, int cols, float *input, cudaStream_t stream);

/* How far into its place in input a row of that dtype arrives. */
static __host__ __device__ inline size_t rows_offset(enum dtype dtype, int cols)
{
	return dtype == DTYPE_FLOAT32 ? 0 : (size_t)cols / 2;
}

/*
 * output [planes, max_rows, row_bytes] -> rows[n].out, for each of n_outputs: output o comes from plane planes[o] and
 * goes o * window rows further.
 */
struct scatter {
	const char *output;
	const int *planes; /* [n_outputs] in device memory */
	size_t n_outputs, max_rows, row_bytes, window;
};
cudaError_t rows_scatter(const struct scatter *scatter, const struct row_view *rows, size_t n, cudaStream_t stream);

#endif
