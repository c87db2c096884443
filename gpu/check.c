/*
 * Errors of CUDA and cuBLASLt.  Some of CUDA's stick: after an illegal address or a failed kernel every later call
 * fails, and the device is lost to this process.  Out of memory and the like do not.
 */
#include "gpu/check.h"

int cuda_check(cudaError_t status, const char *what, struct error *err)
{
	if (status == cudaSuccess)
		return 0;
	cudaGetLastError(); /* clears an error that does not stick */
	int code = cudaFree(NULL) == cudaSuccess ? ERR_DEVICE : ERR_DEVICE_LOST;
	return error_set(err, code, "device cuda: %s: %s", what, cudaGetErrorString(status));
}

int cublas_check(cublasStatus_t status, const char *what, struct error *err)
{
	if (status == CUBLAS_STATUS_SUCCESS)
		return 0;
	cudaGetLastError();
	int code = cudaFree(NULL) == cudaSuccess ? ERR_DEVICE : ERR_DEVICE_LOST;
	return error_set(err, code, "device cuda: %s: %s", what, cublasLtGetStatusString(status));
}
