/*
 * Matrix products: one panel of packed weights times tiles of rows.  A tile's accumulators stay in registers over the
 * whole of k, so every row is summed in the same order in every batch.  While a panel is in use the next one is
 * fetched into the cache.
 */
#include "model/cpu_kernels.h"
#include "model/cpu_vector.h"

#define PANEL ((size_t)CPU_PANEL_VECTORS * LANES)

/* acc[r][v] = bias[v] + sum over k of x[r][k] w[k][v] */
INLINE void sum_float32(vec acc[TILE_ROWS][CPU_PANEL_VECTORS], const int rows, const struct cpu_product *product, size_t first,
			size_t panel, const char *next)
{
	const float *x = (const float *)product->x + first * product->x_stride;
	const float *w = (const float *)product->weights + panel * product->k * PANEL;

	for (size_t k = 0; k < product->k; k++, w += PANEL) {
		vec weight[CPU_PANEL_VECTORS];

		__builtin_prefetch(next + k * LANES * 4, 0, 2);
#pragma GCC unroll 3
		for (int v = 0; v < CPU_PANEL_VECTORS; v++)
			weight[v] = vec_load(w + v * LANES);
#pragma GCC unroll 8
		for (int r = 0; r < rows; r++) {
			const vec a = vec_set(x[(size_t)r * product->x_stride + k]);

#pragma GCC unroll 3
			for (int v = 0; v < CPU_PANEL_VECTORS; v++)
				acc[r][v] = vec_fma(a, weight[v], acc[r][v]);
		}
	}
}

INLINE void sum_bfloat16(vec acc[TILE_ROWS][CPU_PANEL_VECTORS], const int rows, const struct cpu_product *product, size_t first,
			 size_t panel, const char *next)
{
	const uint16_t *x = (const uint16_t *)product->x + first * product->x_stride;
	const uint16_t *w = (const uint16_t *)product->weights + panel * product->k * PANEL;

	for (size_t k = 0; k < product->k; k += 2, w += 2 * PANEL) {
		veci weight[CPU_PANEL_VECTORS];

		__builtin_prefetch(next + k * LANES * 2, 0, 2);
#pragma GCC unroll 3
		for (int v = 0; v < CPU_PANEL_VECTORS; v++)
			weight[v] = veci_load(w + v * 2 * LANES);
#pragma GCC unroll 8
		for (int r = 0; r < rows; r++) {
			const veci a = veci_set_pair(x + (size_t)r * product->x_stride + k);

#pragma GCC unroll 3
			for (int v = 0; v < CPU_PANEL_VECTORS; v++)
				acc[r][v] = vec_dot_pairs(a, weight[v], acc[r][v]);
		}
	}
}

INLINE void tile(const bool bfloat16, const int rows, const struct cpu_product *product, size_t first, size_t panel,
		 const char *next)
{
	vec acc[TILE_ROWS][CPU_PANEL_VECTORS];
	const size_t column = panel * PANEL;

#pragma GCC unroll 8
	for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
		for (int v = 0; v < CPU_PANEL_VECTORS; v++)
			acc[r][v] = vec_load(product->bias + column + v * LANES);
	if (bfloat16)
		sum_bfloat16(acc, rows, product, first, panel, next);
	else
		sum_float32(acc, rows, product, first, panel, next);
#pragma GCC unroll 3
	for (int v = 0; v < CPU_PANEL_VECTORS; v++) {
		const size_t c = column + (size_t)v * LANES;
		float *out = product->out.data + c / CPU_BLOCK * product->out.block_stride + c % CPU_BLOCK +
			     first * product->out.row_stride;

		if (c >= product->columns)
			break;
#pragma GCC unroll 8
		for (int r = 0; r < rows; r++, out += product->out.row_stride) {
			if (product->add)
				acc[r][v] += vec_load(out);
			vec_store(out, acc[r][v]);
		}
	}
}

INLINE void panel_times_rows(const bool bfloat16, const struct cpu_product *product, size_t panel, size_t first,
			     size_t rows)
{
	const size_t bytes = product->k * PANEL * (bfloat16 ? 2 : 4);
	const char *next = (const char *)product->weights + (panel + 1) * bytes;
	const size_t end = first + rows;

	for (size_t i = 0; first + TILE_ROWS <= end; first += TILE_ROWS, i++)
		tile(bfloat16, TILE_ROWS, product, first, panel, next + i % CPU_PANEL_VECTORS * (bytes / CPU_PANEL_VECTORS));
	switch (end - first) {
#if TILE_ROWS > 4
	case 7: tile(bfloat16, 7, product, first, panel, next); break;
	case 6: tile(bfloat16, 6, product, first, panel, next); break;
	case 5: tile(bfloat16, 5, product, first, panel, next); break;
	case 4: tile(bfloat16, 4, product, first, panel, next); break;
#endif
	case 3: tile(bfloat16, 3, product, first, panel, next); break;
	case 2: tile(bfloat16, 2, product, first, panel, next); break;
	case 1: tile(bfloat16, 1, product, first, panel, next); break;
	}
}

void CPU_NAME(cpu_product_float32)(const struct cpu_product *product, size_t panel, size_t first, size_t rows)
{
	panel_times_rows(false, product, panel, first, rows);
}

void CPU_NAME(cpu_product_bfloat16)(const struct cpu_product *product, size_t panel, size_t first, size_t rows)
{
	panel_times_rows(true, product, panel, first, rows);
}
