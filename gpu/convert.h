/* Kernel: convert a checkpoint's numbers to the precision of the products, padding rows on the way. */
#ifndef GPU_CONVERT_H
#define GPU_CONVERT_H
#include "gpu/kernel.h"
#include "model/dtype.h"

/* src [rows, cols] in a float dtype -> dst [rows, dst_cols]; columns from cols on are left alone. */
cudaError_t convert_rows(const void *src, enum dtype dtype, size_t rows, size_t cols, void *dst, bool bfloat16,
			 size_t dst_cols, cudaStream_t stream);

#endif
