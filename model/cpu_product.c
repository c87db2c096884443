/*
 * Matrix products: one panel of packed weights times tiles of rows.  A tile's accumulators stay in registers over the
 * whole of k, so every row is summed in the same order in every batch.  While a panel is in use the next one is
 * fetched into the cache.
 */
#include "model/cpu_tile.h"

#define PANEL ((size_t)TILE_VECS * LANES)

/* out = bias + x W, or out += bias + x W */
INLINE void multiply_tile(const bool bfloat16, const int rows, const struct cpu_product *product, size_t panel,
			  size_t first, const char *upcoming)
{
	const size_t column = panel * PANEL, k = product->k, stride = product->x_stride;
	tile acc;

#pragma GCC unroll 8
	for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
		for (int v = 0; v < TILE_VECS; v++)
			acc[r][v] = vec_load(product->bias + column + v * LANES);
	if (bfloat16)
		tile_sum_pairs(acc, rows, TILE_VECS, (const uint32_t *)product->x + first * stride / 2, stride / 2, 1,
			       (const uint32_t *)product->weights + column * k / 2, PANEL, k / 2,
			       (struct fetch){ upcoming, LANES * sizeof(uint32_t) });
	else
		tile_sum(acc, rows, TILE_VECS, (const float *)product->x + first * stride, stride, 1,
			 (const float *)product->weights + column * k, PANEL, k,
			 (struct fetch){ upcoming, LANES * sizeof(float) });
#pragma GCC unroll 3
	for (int v = 0; v < TILE_VECS; v++) {
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

/* Each tile fetches another third of the next panel: whoever comes after the third finds it in the cache. */
INLINE void multiply_rows(const bool bfloat16, const struct cpu_product *product, size_t panel, size_t first,
			  size_t rows)
{
	const size_t bytes = product->k * PANEL * (bfloat16 ? sizeof(uint16_t) : sizeof(float));
	const char *next = (const char *)product->weights + (panel + 1) * bytes;
	const size_t end = first + rows;

	for (size_t i = 0; first + TILE_ROWS <= end; first += TILE_ROWS, i++)
		multiply_tile(bfloat16, TILE_ROWS, product, panel, first, next + i % TILE_VECS * (bytes / TILE_VECS));
	switch (end - first) {
#if TILE_ROWS > 4
	case 7: multiply_tile(bfloat16, 7, product, panel, first, next); break;
	case 6: multiply_tile(bfloat16, 6, product, panel, first, next); break;
	case 5: multiply_tile(bfloat16, 5, product, panel, first, next); break;
	case 4: multiply_tile(bfloat16, 4, product, panel, first, next); break;
#endif
	case 3: multiply_tile(bfloat16, 3, product, panel, first, next); break;
	case 2: multiply_tile(bfloat16, 2, product, panel, first, next); break;
	case 1: multiply_tile(bfloat16, 1, product, panel, first, next); break;
	}
}

void CPU_NAME(cpu_product_float32)(const struct cpu_product *product, size_t panel, size_t first, size_t rows)
{
	multiply_rows(false, product, panel, first, rows);
}

void CPU_NAME(cpu_product_bfloat16)(const struct cpu_product *product, size_t panel, size_t first, size_t rows)
{
	multiply_rows(true, product, panel, first, rows);
}
