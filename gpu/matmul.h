/*
 * Matrix products through cuBLASLt: y [rows, n] = x [rows, k] w [n, k]^T + bias, float32 sums in one fixed order.
 *
 * A row's result must not depend on how many rows there are.  cuBLASLt chooses among algorithms by the number of rows;
 * so here they are tried out when the device opens, only those are taken that give the bits of one reference, and among
 * these the fastest for each of a ladder of row counts.  So is our own kernel for few rows (product.h).
 */
#ifndef GPU_MATMUL_H
#define GPU_MATMUL_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#include "gpu/product.h"
#include "model/error.h"

#define MATMUL_RUNGS 64
#define MATMUL_WORKSPACE ((size_t)32 << 20)

/* The handle and the workspace; all products that use one run on one stream. */
struct matmul_library {
	cublasLtHandle_t handle;
	void *workspace;
	bool own; /* the device runs the kernel of product.h */
	cudaStream_t stream;
};

int matmul_library_open(struct matmul_library *library, bool own, cudaStream_t stream, struct error *err);
void matmul_library_close(struct matmul_library *library);

/* How a product runs: by the kernel of product.h, cut so; or where cut is 0, by an algorithm of cuBLASLt. */
struct matmul_way {
	int cut;
	cublasLtMatmulAlgo_t algo;
};

struct matmul {
	const struct matmul_library *library;
	size_t n, k;
	bool bfloat16;
	size_t n_rungs;
	struct {
		size_t rows; /* up to which this way serves */
		struct matmul_way way;
	} rungs[MATMUL_RUNGS];
};

/* Weights of the same shape, one after another: products in the forward pass never find them in the cache. */
struct matmul_weights {
	const void *(*at)(const void *owner, size_t i);
	const void *owner;
	size_t count;
	const void *bias; /* [n], of any of them, or NULL */
};

/* The row counts of the ladder up to max_rows, which is the last; returns how many. */
size_t matmul_ladder(size_t max_rows, size_t rows[MATMUL_RUNGS]);

/* Choose algorithms for up to max_rows rows.  Takes device memory for x, y and a reference while it runs. */
int matmul_tune(const struct matmul_library *library, size_t n, size_t k, bool bfloat16, size_t max_rows,
		const struct matmul_weights *weights, struct matmul *ret_matmul, struct error *err);

/* Enqueue the product.  All pointers 16-byte aligned, n and k multiples of 8. */
int matmul_run(const struct matmul *matmul, const void *x, const void *w, const void *bias, void *y, size_t rows,
	       struct error *err);

/* The same by cuBLASLt's best algorithm: for benchmarks. */
int matmul_run_library(const struct matmul *matmul, const void *x, const void *w, const void *bias, void *y,
		       size_t rows, struct error *err);

#endif
