/*
 * Launches of kernels that may begin early: while the kernel before them in the stream still runs (programmatic
 * dependent launch, compute capability 9.0 on).
 */
#ifndef GPU_LAUNCH_CUH
#define GPU_LAUNCH_CUH

#include <cuda_runtime.h>

/* Let the kernel behind this one begin as soon as all of this one's blocks have begun. */
static __device__ inline void next_may_begin(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* Wait, where this kernel began early, for the end of the one ahead: before what that one wrote is read or written. */
static __device__ inline void previous_ended(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Launch; early: where the one before it lets it, and it waits for that one's end. */
template <typename... Parameters, typename... Arguments>
static inline cudaError_t launch_early(bool early, void (*kernel)(Parameters...), dim3 blocks, unsigned threads,
				       size_t shared, cudaStream_t stream, const Arguments &...arguments)
{
	cudaLaunchAttribute attribute = {};
	cudaLaunchConfig_t config = {};

	attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute.val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = blocks;
	config.blockDim = threads;
	config.dynamicSmemBytes = shared;
	config.stream = stream;
	config.attrs = &attribute;
	config.numAttrs = early ? 1 : 0;
	return cudaLaunchKernelEx(&config, kernel, arguments...);
}

#endif
