/*
 * Kernel: products of few rows, y [rows, n] = x [rows, k] w [n, k]^T in bfloat16 with float32 sums, for compute
 * capability 9.0.  What takes time is the way of the weights: they set out before the kernel ahead has ended.
 */
#ifndef GPU_PRODUCT_H
#define GPU_PRODUCT_H

#include <cuda.h>

#include "gpu/kernel.h"

#define PRODUCT_ROWS 64  /* at most */
#define PRODUCT_PIECES 4 /* of 64 columns of x and w, that one copy brings */

/* Columns of y for each block, among which the caller chooses. */
#define PRODUCT_CUTS 7
extern const int product_cuts[PRODUCT_CUTS];

/* How high the boxes of x are for so many rows. */
static inline unsigned product_box_rows(size_t rows)
{
	return rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : PRODUCT_ROWS;
}

/*
 * x, w: boxes of operands, PRODUCT_PIECES long, of product_box_rows(rows) and cut rows; n even, k a multiple of 64.
 * Begins early: see launch.cuh.  cudaErrorInvalidValue: the cut is too wide for so many rows.
 */
cudaError_t product(int cut, const CUtensorMap *x, const CUtensorMap *w, void *y, size_t rows, size_t n, size_t k,
		    cudaStream_t stream);

/* Raise the kernels' limits of shared memory; once before any is launched. */
cudaError_t product_setup(void);

#endif
