/* RMSNorm of rows, on the way from float32 activations to the operand of a matrix product. */
#include <math.h>

#include "model/cpu_kernels.h"
#include "model/cpu_vector.h"

/* 1 / sqrt(mean of x^2 + epsilon) */
static float inverse_root_mean_square(const float *x, size_t n, float count, float epsilon)
{
	vec even = vec_set(0), odd = vec_set(0);

	for (size_t i = 0; i < n; i += CPU_BLOCK)
		for (size_t v = 0; v < CPU_BLOCK; v += 2 * LANES) {
			const vec first = vec_load(x + i + v);

			even = vec_fma(first, first, even);
			if (v + LANES < CPU_BLOCK) {
				const vec second = vec_load(x + i + v + LANES);

				odd = vec_fma(second, second, odd);
			}
		}
	return 1.0f / sqrtf(vec_sum(even + odd) / count + epsilon);
}

void CPU_NAME(cpu_normalise)(const float *x, const float *weight, size_t groups, size_t n, float count, float epsilon,
			     float *out)
{
	for (size_t g = 0; g < groups; g++, x += n, weight += n, out += n) {
		const vec scale = vec_set(inverse_root_mean_square(x, n, count, epsilon));

		for (size_t i = 0; i < n; i += LANES)
			vec_store(out + i, vec_load(x + i) * scale * vec_load(weight + i));
	}
}

void CPU_NAME(cpu_normalise_bfloat16)(const float *x, const float *weight, size_t groups, size_t n, float count,
				      float epsilon, uint16_t *out)
{
	for (size_t g = 0; g < groups; g++, x += n, weight += n, out += n) {
		const vec scale = vec_set(inverse_root_mean_square(x, n, count, epsilon));

		for (size_t i = 0; i < n; i += LANES)
			vec_store_bfloat16(out + i, vec_load(x + i) * scale * vec_load(weight + i));
	}
}
