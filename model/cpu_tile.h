/*
 * A tile of a matrix product, in registers: TILE_ROWS rows or fewer of one operand times up to TILE_VECS vectors of
 * columns of the other.  rows, vecs and fetch_step are constants wherever these are called, so that loops over them
 * disappear.  A row's sum runs over k in order and does not depend on the other rows.
 */
#ifndef MODEL_CPU_TILE_H
#define MODEL_CPU_TILE_H

#include "model/cpu_kernels.h"
#include "model/cpu_vector.h"

#define TILE_VECS CPU_PANEL_VECTORS

typedef vec tile[TILE_ROWS][TILE_VECS];

/* Memory to be fetched into the cache meanwhile: step bytes for each k. */
struct fetch {
	const void *from;
	size_t step;
};

/* acc[r][v] += sum over k < n of x[r x_row + k x_step] y[k y_step + v] */
INLINE void tile_sum(tile acc, const int rows, const int vecs, const float *x, size_t x_row, size_t x_step,
		     const float *y, size_t y_step, size_t n, const struct fetch fetch)
{
	for (size_t k = 0; k < n; k++) {
		vec right[TILE_VECS];

		if (fetch.step)
			__builtin_prefetch((const char *)fetch.from + k * fetch.step, 0, 2);
#pragma GCC unroll 3
		for (int v = 0; v < vecs; v++)
			right[v] = vec_load(y + k * y_step + v * LANES);
#pragma GCC unroll 8
		for (int r = 0; r < rows; r++) {
			const vec left = vec_set(x[(size_t)r * x_row + k * x_step]);

#pragma GCC unroll 3
			for (int v = 0; v < vecs; v++)
				acc[r][v] = vec_fma(left, right[v], acc[r][v]);
		}
	}
}

/* The same for bfloat16: k counts pairs of numbers, x_row, x_step and y_step count pairs. */
INLINE void tile_sum_pairs(tile acc, const int rows, const int vecs, const uint32_t *x, size_t x_row, size_t x_step,
			   const uint32_t *y, size_t y_step, size_t n, const struct fetch fetch)
{
	for (size_t k = 0; k < n; k++) {
		veci right[TILE_VECS];

		if (fetch.step)
			__builtin_prefetch((const char *)fetch.from + k * fetch.step, 0, 2);
#pragma GCC unroll 3
		for (int v = 0; v < vecs; v++)
			right[v] = veci_load(y + k * y_step + v * LANES);
#pragma GCC unroll 8
		for (int r = 0; r < rows; r++) {
			const veci left = veci_set(x[(size_t)r * x_row + k * x_step]);

#pragma GCC unroll 3
			for (int v = 0; v < vecs; v++)
				acc[r][v] = vec_dot_pairs(left, right[v], acc[r][v]);
		}
	}
}

/* A vector of a row of a product's operand, from number `at` on. */
static inline void operand_store(const struct cpu_operand *operand, size_t row, size_t at, vec a)
{
	if (operand->bfloat16)
		vec_store_bfloat16((uint16_t *)operand->data + row * operand->stride + at, a);
	else
		vec_store((float *)operand->data + row * operand->stride + at, a);
}

#endif
