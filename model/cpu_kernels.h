/*
 * The vectorised kernels of the CPU back end: one source (cpu_product.c, cpu_scan.c, cpu_rows.c), compiled once for
 * each instruction set; the table of the best one that this CPU has is chosen at run time.
 *
 * Every kernel works on padded columns: hidden_size, head_dim and state_size are rounded up to CPU_BLOCK and the
 * padding is zero from end to end (zero weights give zero activations give zero states), so that no kernel has tails.
 */
#ifndef MODEL_CPU_KERNELS_H
#define MODEL_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/error.h"

#define CPU_BLOCK 16 /* columns that lie together, and the unit of padding */
#define CPU_PANEL_VECTORS 3 /* a panel's columns are so many vectors */
#define CPU_CHUNK 32 /* rows of a window that the scan takes at a time; a multiple of CPU_BLOCK */

/* Activations, blocked by columns: number (row, column) is data[column / 16 * block_stride + row * row_stride +
 * column % 16].  A row-major matrix has a block_stride of CPU_BLOCK. */
struct cpu_matrix {
	float *data;
	size_t row_stride, block_stride;
};

/*
 * Rows on their way through an RMSNorm into a matrix product: multiplied by the norm's weight, not yet divided by their
 * root mean square, which the product does.  So whoever makes the rows prepares them for the product as well.
 */
struct cpu_operand {
	void *data;           /* [rows, stride] float32 or bfloat16 */
	size_t stride;        /* numbers, even */
	float *squares;       /* [parts, squares_stride]: sums of the squares of parts of each row, before the weight */
	size_t parts;
	size_t squares_stride;
	bool bfloat16;
};

/*
 * A matrix product out = bias + sum over groups g of scale[g] x[g] W[g], or out += the same: k consists of equal
 * groups, which are normalised by themselves.  W [k, columns] is packed in panels: numbers (k, column) of a panel lie
 * in the order of k, then column; for bfloat16, of k / 2, column, k % 2.
 */
struct cpu_product {
	const struct cpu_operand *x;
	const float *scale;  /* [groups, scale_stride], of each row */
	size_t scale_stride;
	size_t groups;
	const void *weights; /* [panels, k, panel] float32 or bfloat16, as x */
	const float *bias;   /* [columns] */
	size_t k;            /* a multiple of CPU_BLOCK, as k / groups */
	size_t columns;      /* a multiple of CPU_BLOCK: the last panel's columns beyond it are not stored */
	struct cpu_matrix out;
	bool add;
	struct cpu_operand *next; /* of out's rows, normalised by this weight: a part of squares a panel; or NULL */
	const float *next_weight; /* [columns] */
};

/* A run of rows of one stream within a slice, and the stream's cache. */
struct cpu_run {
	float *cache;
	size_t first; /* row of the slice */
	size_t rows;
	size_t first_chunk, n_chunks;
};

/* Rows of one window that the scan takes at a time. */
struct cpu_chunk {
	size_t run;
	size_t first; /* row of the run */
	size_t rows;
	bool recurrent; /* whole, the chunk is of one row: computed as a recurrence */
	bool advance;   /* the state after it is wanted, */
	bool keep;      /* and belongs into the cache: the chunk is of a whole window */
};

/*
 * Everything between the two matrix products of one layer, for the rows of a slice: the convolution, the selective
 * scan (Dao & Gu 2024, arXiv:2405.21060, section 6) and the gate.
 */
struct cpu_scan {
	size_t heads, head_dim, groups, state_size, taps; /* head_dim and state_size padded */
	const float *conv;      /* [blocks of x, B, C; taps; CPU_BLOCK] */
	const float *conv_bias; /* [x, B, C] */
	const float *dt_bias;   /* [heads, padded] */
	const float *a;         /* [heads, padded]: -exp(A_log) */
	const float *d;         /* [heads] */
	float dt_min, dt_max;
	bool pairs;             /* products with the SSM state have bfloat16 operands */
	const float *out_weight; /* [heads, head_dim] of the gated norm */
	size_t history;         /* the layer's conv state in a cache: [blocks of x, B, C; taps - 1; CPU_BLOCK] */
	size_t state;           /* and its SSM state: [heads, state_size, head_dim] */
	const struct cpu_run *runs;
	const struct cpu_chunk *chunks;
	struct cpu_matrix in;   /* columns of the first product: z, x of each head, B, C, dt; row_stride CPU_BLOCK */
	float *b, *c;           /* [rows, groups, state_size] after the convolution */
	uint32_t *b_pairs;      /* of each chunk, from its first row on: [rows / 2, groups, state_size] pairs of rows */
	uint32_t *c_pairs;      /* [rows, groups, state_size / 2] */
	float *scores;          /* [rows, groups, CPU_CHUNK]: C of the row times B of each row of its chunk */
	float *dt, *log_decay;  /* [blocks of heads, rows, CPU_BLOCK]: step; sum of a dt from the chunk's start */
	size_t dt_stride;       /* from block to block */
	struct cpu_operand out; /* [rows, heads, head_dim]: y silu(z); a part of squares a head */
};

/* Where columns lie in `in`: their first block. */
static inline size_t cpu_scan_z(const struct cpu_scan *scan, size_t head)
{
	return 2 * head * scan->head_dim / CPU_BLOCK;
}

static inline size_t cpu_scan_x(const struct cpu_scan *scan, size_t head)
{
	return (2 * head + 1) * scan->head_dim / CPU_BLOCK;
}

/* B of each group, then C of each. */
static inline size_t cpu_scan_bc(const struct cpu_scan *scan)
{
	return 2 * scan->heads * scan->head_dim / CPU_BLOCK;
}

static inline size_t cpu_scan_dt(const struct cpu_scan *scan)
{
	return cpu_scan_bc(scan) + 2 * scan->groups * scan->state_size / CPU_BLOCK;
}

struct cpu_kernels {
	const char *name;  /* "avx512bf16", "avx512", "avx2", "plain" */
	size_t panel;      /* columns of a panel of weights */
	bool has_bfloat16; /* products of bfloat16 are faster than those of float32 */

	/* Rows first ... first + rows - 1 of one panel's columns.  A row's arithmetic is the same whatever rows is. */
	void (*product)(const struct cpu_product *product, size_t panel, size_t first, size_t rows);

	/* x [n] becomes row `row` of an operand, with one part of squares. */
	void (*prepare)(const float *x, const float *weight, size_t n, struct cpu_operand *operand, size_t row);

	/*
	 * The scale of a product's rows: 1 / sqrt(mean square + epsilon) of each of `groups` equal groups of the
	 * operand's parts, over count numbers.  scale [groups, operand->squares_stride].
	 */
	void (*scale)(const struct cpu_operand *operand, size_t rows, size_t groups, size_t count, float epsilon,
		      float *scale);

	/* RMSNorm of one row: x [n], the mean over count numbers (n without the padding), times weight [n]. */
	void (*normalise)(const float *x, const float *weight, size_t n, size_t count, float epsilon, float *out);

	/* b, c and scores of one chunk and group; with group 0, dt and log_decay of all heads. */
	void (*scan_inputs)(const struct cpu_scan *scan, size_t chunk, size_t group, float *scratch);

	/*
	 * All rows of one run and head: writes out, advances the cache.  scan_inputs of all its chunks came before.
	 * The state at upcoming, which this thread may come to next, is fetched meanwhile.
	 */
	void (*scan_head)(const struct cpu_scan *scan, size_t run, size_t head, const float *upcoming, float *scratch);
};

/* Floats of scratch memory that a thread needs for the scan; its contents mean nothing between calls. */
size_t cpu_scan_scratch(const struct cpu_scan *scan);

/* The kernels called name, or with NULL the best for this CPU; ERR_UNSUPPORTED if CPU or build has not got them. */
int cpu_kernels_find(const char *name, const struct cpu_kernels **ret_kernels, struct error *err);

/* The functions behind the table, compiled once a path: CPU_PATH, the suffix, comes with the compiler's flags. */
#define CPU_NAME(name) CPU_NAME_JOIN(name, CPU_PATH)
#define CPU_NAME_JOIN(name, path) CPU_NAME_PASTE(name, path)
#define CPU_NAME_PASTE(name, path) name##_##path

#define CPU_DECLARE(path)                                                                                      \
	void cpu_product_##path(const struct cpu_product *, size_t, size_t, size_t);                           \
	void cpu_prepare_##path(const float *, const float *, size_t, struct cpu_operand *, size_t);           \
	void cpu_scale_##path(const struct cpu_operand *, size_t, size_t, size_t, float, float *);             \
	void cpu_normalise_##path(const float *, const float *, size_t, size_t, float, float *);               \
	void cpu_scan_inputs_##path(const struct cpu_scan *, size_t, size_t, float *);                         \
	void cpu_scan_head_##path(const struct cpu_scan *, size_t, size_t, const float *, float *)

CPU_DECLARE(avx512bf16);
CPU_DECLARE(avx512);
CPU_DECLARE(avx2);
CPU_DECLARE(plain);

#endif
