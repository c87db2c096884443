/*
 * A batch's rows on their way between the host's windows and the device.  Runs of rows that lie side by side, if they
 * are long or very few, go through the copy engines, which leave the processors to the batch that computes; a kernel
 * moves all others.
 */
#ifndef GPU_TRANSFER_H
#define GPU_TRANSFER_H

#include "gpu/rows.h"

/* As rows_gather with rows_widen behind it, and as rows_scatter; planes are scatter's, in host memory. */
cudaError_t transfer_in(const struct row_view *rows, size_t n, int hidden, int cols, float *input, cudaStream_t stream);
cudaError_t transfer_out(const struct scatter *scatter, const int *planes, const struct row_view *rows, size_t n,
			 cudaStream_t stream);

#endif
