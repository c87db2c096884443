/*
 * Limits of the cpu: fused multiply-adds or bfloat16 dot products on registers alone, sequential reads of memory far
 * larger than the caches, and the matrix products of every layer from weights packed as the device packs them.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "model/cpu_memory.h"
#include "model/cpu_multiply.h"
#include "model/cpu_weights.h"
#include "tests/bench_limits.h"

#define STEPS 1000000         /* of a register loop */
#define ACCUMULATORS 24       /* independent sums: enough to hide the latency */
#define READ_BYTES ((size_t)512 << 20)
#define SLICE_ROWS 256        /* as in the forward pass */

struct bench_meter {
	const struct device *device;
	const struct cpu_kernels *kernels;
	struct cpu_threads *threads;
	struct cpu_weights *weights;
	size_t rows;
	float *x, *out;
	char *memory;       /* [READ_BYTES] */
	volatile float sink;
};

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Operations of one step of the register loop: a multiply and an add in each lane of each accumulator. */
static double operations_per_step(const struct cpu_kernels *kernels, bool bfloat16)
{
	const double lanes = (double)kernels->panel / CPU_PANEL_VECTORS;

	return 2 * lanes * ACCUMULATORS * (bfloat16 && kernels->has_bfloat16 ? 2 : 1);
}

/* A loop over ACCUMULATORS vectors; the empty asm keeps the compiler from knowing what they hold. */
#define REGISTER_LOOP(vector, zero, step)                           \
	do {                                                        \
		vector acc[ACCUMULATORS];                           \
		for (int i = 0; i < ACCUMULATORS; i++)              \
			acc[i] = zero;                              \
		for (int n = 0; n < STEPS; n++) {                   \
			_Pragma("GCC unroll 24")                    \
			for (int i = 0; i < ACCUMULATORS; i++)      \
				acc[i] = step;                      \
			__asm__ volatile("" : "+v"(acc[0]));        \
		}                                                   \
		for (int i = 1; i < ACCUMULATORS; i++)              \
			acc[0] += acc[i];                           \
		sum = acc[0][0];                                    \
	} while (0)

#if defined(CPU_X86)
__attribute__((target("avx512f,avx512bf16"))) static float loop_bfloat16(void)
{
	const __m512bh x = (__m512bh)_mm512_set1_epi32(0x3c003c00);
	float sum;

	REGISTER_LOOP(__m512, _mm512_setzero_ps(), _mm512_dpbf16_ps(acc[i], x, x));
	return sum;
}

__attribute__((target("avx512f"))) static float loop_avx512(void)
{
	const __m512 x = _mm512_set1_ps(0.5f);
	float sum;

	REGISTER_LOOP(__m512, _mm512_setzero_ps(), _mm512_fmadd_ps(acc[i], x, x));
	return sum;
}
