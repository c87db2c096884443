/*
 * Matrix products: one panel of packed weights times tiles of rows.  A tile's accumulators stay in registers over the
 * whole of k, so every row is summed in the same order in every batch.  While a panel is in use the next one is
 * fetched into the cache.
 */
#include "model/cpu_tile.h"

#define PANEL ((size_t)TILE_VECS * LANES)

/* acc = x W over numbers begin ... end - 1 of k. */
INLINE void sum_group(tile acc, const bool bfloat16, const int rows, const struct cpu_product *product, size_t panel,
		      size_t first, size_t begin, size_t end, const char *upcoming)
{
	const size_t stride = product->x->stride, n = end - begin;
	const size_t x = first * stride + begin, w = (panel * product->k + begin) * PANEL;

	if (bfloat16)
		tile_sum_pairs(acc, rows, TILE_VECS, (const uint32_t *)product->x->data + x / 2, stride / 2, 1,
			       (const uint32_t *)product->weights + w / 2, PANEL, n / 2,
			       (struct fetch){ upcoming + begin * LANES * 2, LANES * 4 });
	else
		tile_sum(acc, rows, TILE_VECS, (const float *)product->x->data + x, stride, 1,
			 (const float *)product->weights + w, PANEL, n,
			 (struct fetch){ upcoming + begin * LANES * 4, LANES * 4 });
}

/* The rows of a tile in out, as the operand of the next product. */
INLINE void prepare_next(const int rows, const struct cpu_product *product, size_t panel, size_t first)
{
	const struct cpu_operand *next = product->next;

	for (size_t r = first; r < first + (size_t)rows; r++) {
		vec squares = vec_set(0);

		for (size_t c = panel * PANEL; c < (panel + 1) * PANEL && c < product->columns; c += LANES) {
			const vec a = vec_load(product->out.data + c / CPU_BLOCK * product->out.block_stride +
					       c % CPU_BLOCK + r * product->out.row_stride);

			squares = vec_fma(a, a, squares);
			operand_store(next, r, c, a * vec_load(product->next_weight + c));
		}
		next->squares[panel * next->squares_stride + r] = vec_sum(squares);
	}
}

/* out = bias + scale acc, or out += the same; after the first group, out += scale acc. */
INLINE void store_tile(tile acc, const int rows, const struct cpu_product *product, size_t panel, size_t first,
		       size_t group)
{
	const float *scale = product->scale + group * product->scale_stride + first;
	const bool add = product->add || group > 0;

#pragma GCC unroll 3
	for (size_t v = 0; v < TILE_VECS; v++) {
		const size_t c = panel * PANEL + v * LANES;
		float *out = product->out.data + c / CPU_BLOCK * product->out.block_stride + c % CPU_BLOCK +
			     first * product->out.row_stride;
		vec bias;

		if (c >= product->columns)
			break;
		bias = group > 0 ? vec_set(0) : vec_load(product->bias + c);
#pragma GCC unroll 8
		for (int r = 0; r < rows; r++, out += product->out.row_stride) {
			vec a = vec_fma(acc[r][v], vec_set(scale[r]), bias);

			if (add)
				a += vec_load(out);
			vec_store(out, a);
		}
	}
}

INLINE void multiply_tile(const bool bfloat16, const int rows, const struct cpu_product *product, size_t panel,
			  size_t first, const char *upcoming)
{
	const size_t k = product->k / product->groups;

	for (size_t group = 0; group < product->groups; group++) {
		tile acc;

#pragma GCC unroll 8
		for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
			for (int v = 0; v < TILE_VECS; v++)
				acc[r][v] = vec_set(0);
		sum_group(acc, bfloat16, rows, product, panel, first, group * k, (group + 1) * k, upcoming);
		store_tile(acc, rows, product, panel, first, group);
	}
	if (product->next)
		prepare_next(rows, product, panel, first);
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

void CPU_NAME(cpu_product)(const struct cpu_product *product, size_t panel, size_t first, size_t rows)
{
	if (product->x->bfloat16)
		multiply_rows(true, product, panel, first, rows);
	else
		multiply_rows(false, product, panel, first, rows);
}
