/*
 * CUDA's and cuBLASLt's errors as ours.
 */
#ifndef GPU_CHECK_H
#define GPU_CHECK_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "model/error.h"

/*
 * 0 for cudaSuccess.  Else ERR_DEVICE_LOST if the device answers nothing any more, ERR_DEVICE if it lives; the text
 * says what was tried and CUDA's reason.
 */
int cuda_check(cudaError_t status, const char *what, struct error *err);
int cublas_check(cublasStatus_t status, const char *what, struct error *err);

#endif
