/* Kernels: fill memory with noise and compare it, for the check of the matrix products at start-up. */
#ifndef GPU_PROBE_H
#define GPU_PROBE_H
#include "gpu/kernel.h"

/* n numbers between -1 and 1; number i depends on i only. */
cudaError_t probe_fill(void *to, bool bfloat16, size_t n, cudaStream_t stream);

/* *differ += 32-bit words of a that differ from b's. */
cudaError_t probe_compare(const void *a, const void *b, size_t bytes, unsigned *differ, cudaStream_t stream);

#endif
