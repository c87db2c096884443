/*
 * Device code: mbarriers in shared memory, on which threads and copies in the background arrive (compute capability 8.0
 * on).
 */
#ifndef GPU_MBARRIER_CUH
#define GPU_MBARRIER_CUH

#include "gpu/tile.cuh"

/* An mbarrier on which `arrivals` arrive in each phase. */
static __device__ inline void mbarrier_init(uint64_t *barrier, int arrivals)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
		     : "memory");
}

static __device__ inline void mbarrier_arrive(uint64_t *barrier)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/* Arrive, and say whether that was the last of the phase's arrivals. */
static __device__ inline bool mbarrier_arrive_last(uint64_t *barrier)
{
	unsigned left;

	asm volatile("{\n"
		     ".reg .b64 state;\n"
		     "mbarrier.arrive.shared::cta.b64 state, [%1];\n"
		     "mbarrier.pending_count.b64 %0, state;\n"
		     "}"
		     : "=r"(left)
		     : "r"(shared_address(barrier))
		     : "memory");
	return left == 1;
}

/* Arrive when the copies that the thread has started with cp.async are done. */
static __device__ inline void mbarrier_arrive_behind_copies(uint64_t *barrier)
{
	asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/* Whether the phase with this parity has ended; does not wait. */
static __device__ inline bool mbarrier_passed(uint64_t *barrier, int parity)
{
	int passed;

	asm volatile("{\n"
		     ".reg .pred done;\n"
		     "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
		     "selp.s32 %0, 1, 0, done;\n"
		     "}"
		     : "=r"(passed)
		     : "r"(shared_address(barrier)), "r"(parity)
		     : "memory");
	return passed;
}

/* Wait for the end of the phase with this parity. */
static __device__ inline void mbarrier_wait(uint64_t *barrier, int parity)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("{\n"
		     ".reg .pred done;\n"
		     "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
		     "@!done bra again;\n"
		     "}" ::"r"(shared_address(barrier)), "r"(parity)
		     : "memory");
#else
	while (!mbarrier_passed(barrier, parity))
		;
#endif
}

#endif
