/* Kernels: bring a batch's rows from page-locked host memory, and its hidden states there. */
#ifndef GPU_ROWS_H
#define GPU_ROWS_H
#include "gpu/kernel.h"

/* rows[n].in [hidden] -> input [n, cols]; cols - hidden columns of each are left alone. */
cudaError_t rows_gather(const struct row_view *rows, size_t n, int hidden, int cols, float *input, cudaStream_t stream);

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
