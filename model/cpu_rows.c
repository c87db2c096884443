/*
 * RMSNorm of rows.  Before a product it is folded into what is around it (struct cpu_operand); what is left for here
 * are the first layer's rows, the scale of the products, and the final hidden states.
 */
#include "model/cpu_tile.h"

static float sum_of_squares(const float *x, size_t n)
{
	vec sum = vec_set(0);

	for (size_t i = 0; i < n; i += LANES)
		sum = vec_fma(vec_load(x + i), vec_load(x + i), sum);
	return vec_sum(sum);
}

void CPU_NAME(cpu_prepare)(const float *x, const float *weight, size_t n, struct cpu_operand *operand, size_t row)
{
	for (size_t i = 0; i < n; i += LANES)
		operand_store(operand, row, i, vec_load(x + i) * vec_load(weight + i));
	operand->squares[row] = sum_of_squares(x, n);
}

static vec inverse_root(vec squares, size_t count, float epsilon)
{
	return vec_set(1) / vec_sqrt(squares / vec_set((float)count) + vec_set(epsilon));
}

void CPU_NAME(cpu_scale)(const struct cpu_operand *operand, size_t rows, size_t groups, size_t count, float epsilon,
			 float *scale)
{
	const size_t parts = operand->parts / groups, stride = operand->squares_stride;

	for (size_t g = 0; g < groups; g++)
		for (size_t row = 0; row < rows; row += LANES) {
			vec squares = vec_set(0);

			for (size_t i = g * parts; i < (g + 1) * parts; i++)
				squares += vec_load(operand->squares + i * stride + row);
			vec_store(scale + g * stride + row, inverse_root(squares, count, epsilon));
		}
}

void CPU_NAME(cpu_normalise)(const float *x, const float *weight, size_t n, size_t count, float epsilon, float *out)
{
	const vec root = inverse_root(vec_set(sum_of_squares(x, n)), count, epsilon);

	for (size_t i = 0; i < n; i += LANES)
		vec_store(out + i, vec_load(x + i) * root * vec_load(weight + i));
}
