/*
 * Errors of CUDA and cuBLASLt.  Some of CUDA's stick: after an illegal address or a failed kernel every later call
 * fails, and the device is lost to this process.  Out of memory and the like do not.
 */
#include "gpu/check.h"

#include <stdbool.h>

/* Whether every call fails now.  The probe is one that a capture under way would refuse, unless told to let it pass. */
static bool is_lost(void)
{
	enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
	cudaError_t status;

	cudaThreadExchangeStreamCaptureMode(&mode);
	status = cudaFree(NULL);
	cudaThreadExchangeStreamCaptureMode(&mode);
	return status != cudaSuccess;
}

int cuda_check(cudaError_t status, const char *what, struct error *err)
{
	if (status == cudaSuccess)
		return 0;
	cudaGetLastError(); /* clears an error that does not stick */
	int code = is_lost() ? ERR_DEVICE_LOST : ERR_DEVICE;
	return error_set(err, code, "device cuda: %s: %s", what, cudaGetErrorString(status));
}

int cublas_check(cublasStatus_t status, const char *what, struct error *err)
{
	if (status == CUBLAS_STATUS_SUCCESS)
		return 0;
	cudaGetLastError();
	int code = is_lost() ? ERR_DEVICE_LOST : ERR_DEVICE;
	return error_set(err, code, "device cuda: %s: %s", what, cublasLtGetStatusString(status));
}
