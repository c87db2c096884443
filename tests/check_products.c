/*
 * The CUDA back end's own products of few rows: the bits of cuBLASLt's, for every cut, however many rows there are.
 * Exits with 77 without a GPU that runs them.
 */
#include <check.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/matmul.h"
#include "gpu/probe.h"
#include "tests/suite.h"

#define WEIGHTS 2 /* matrices */

static const size_t row_counts[] = { 1, 7, 8, 9, 16, 31, 33, 63, 64 };
#define N_ROW_COUNTS (sizeof row_counts / sizeof *row_counts)

/* Columns of y and of x: mamba2-130m; few columns for the last block; fewer pieces than a copy brings; mamba2-2.7b. */
static const struct {
	size_t n, k;
} shapes[] = { { 3392, 768 }, { 768, 1536 }, { 200, 1344 }, { 72, 64 }, { 2560, 5120 } };
#define N_SHAPES (int)(sizeof shapes / sizeof *shapes)

struct products {
	cudaStream_t stream;
	struct matmul_library library;
	struct matmul matmul;
	size_t n, k;
	char *x, *y;
	char *w; /* [WEIGHTS, n, k] */
};

static const void *weights_at(const void *owner, size_t i)
{
	const struct products *p = owner;

	return p->w + i * p->n * p->k * 2;
}

static void products_open(struct products *p, size_t n, size_t k)
{
	const struct matmul_weights weights = { weights_at, p, WEIGHTS, NULL };
	struct error err;

	memset(p, 0, sizeof *p);
	p->n = n;
	p->k = k;
	ck_assert_int_eq(cudaMalloc((void **)&p->x, PRODUCT_ROWS * k * 2), cudaSuccess);
	ck_assert_int_eq(cudaMalloc((void **)&p->y, PRODUCT_ROWS * n * 2), cudaSuccess);
	ck_assert_int_eq(cudaMalloc((void **)&p->w, WEIGHTS * n * k * 2), cudaSuccess);
	ck_assert_int_eq(cudaStreamCreate(&p->stream), cudaSuccess);
	ck_assert_int_eq(probe_fill(p->x, true, PRODUCT_ROWS * k, p->stream), cudaSuccess);
	ck_assert_int_eq(probe_fill(p->w, true, WEIGHTS * n * k, p->stream), cudaSuccess);
	ck_assert_int_eq(matmul_library_open(&p->library, true, p->stream, &err), 0);
	ck_assert_int_eq(matmul_tune(&p->library, n, k, true, PRODUCT_ROWS, &weights, &p->matmul, &err), 0);
}

static void products_close(struct products *p)
{
	matmul_library_close(&p->library);
	cudaStreamDestroy(p->stream);
	cudaFree(p->x);
	cudaFree(p->y);
	cudaFree(p->w);
}

/* y of so many rows, all others 0xff; cut: of our kernel, or 0 for the library. */
static void *product_of(struct products *p, int cut, size_t rows)
{
	const size_t bytes = PRODUCT_ROWS * p->n * 2;
	struct matmul matmul = p->matmul;
	void *y = malloc(bytes);
	struct error err;

	for (size_t i = 0; i < matmul.n_rungs; i++)
		matmul.rungs[i].way.cut = cut;
	ck_assert_int_eq(cudaMemset(p->y, 0xff, bytes), cudaSuccess);
	ck_assert_int_eq(matmul_run(&matmul, p->x, p->w, NULL, p->y, rows, &err), 0);
	ck_assert_int_eq(cudaMemcpy(y, p->y, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
	return y;
}

START_TEST(every_cut_gives_the_librarys_bits)
{
	const size_t n = shapes[_i].n;
	struct products p;

	products_open(&p, n, shapes[_i].k);
	for (size_t i = 0; i < N_ROW_COUNTS; i++) {
		void *want = product_of(&p, 0, row_counts[i]);

		for (int cut = 0; cut < PRODUCT_CUTS; cut++) {
			void *got = product_of(&p, product_cuts[cut], row_counts[i]);

			ck_assert_msg(!memcmp(got, want, PRODUCT_ROWS * n * 2), "cut %d, %zu rows of %zu",
				      product_cuts[cut], row_counts[i], n);
			free(got);
		}
		free(want);
	}
	products_close(&p);
}
END_TEST

/* A row's product does not depend on the rows beside it, whatever they hold. */
START_TEST(rows_do_not_meet)
{
	struct products p;
	char *alone, *among;

	products_open(&p, shapes[_i].n, shapes[_i].k);
	alone = product_of(&p, product_cuts[_i], 1);
	ck_assert_int_eq(cudaMemset(p.x + p.k * 2, 0xff, (PRODUCT_ROWS - 1) * p.k * 2), cudaSuccess); /* not numbers */
	among = product_of(&p, product_cuts[_i], PRODUCT_ROWS);
	ck_assert(!memcmp(alone, among, p.n * 2));
	free(alone);
	free(among);
	products_close(&p);
}
END_TEST

static bool have_gpu(void)
{
	struct cudaDeviceProp properties;

	return cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.major == 9 && properties.minor == 0;
}

int main(void)
{
	Suite *suite;
	TCase *bits;

	if (!have_gpu()) {
		fputs("no GPU of compute capability 9.0\n", stderr);
		return 77;
	}
	suite = suite_create("products");
	bits = tcase_create("bits");
	setenv("CK_FORK", "no", 1); /* a forked child cannot use its parent's GPU */
	tcase_add_loop_test(bits, every_cut_gives_the_librarys_bits, 0, N_SHAPES);
	tcase_add_loop_test(bits, rows_do_not_meet, 0, N_SHAPES);
	suite_add_tcase(suite, bits);
	return suite_run(suite);
}
