/*
 * Products and the choice of their algorithms.  In cuBLASLt's column-major terms y^T [n, rows] = w^T' x^T.
 */
#include "gpu/matmul.h"

#include <string.h>

#include "gpu/boxes.h"
#include "gpu/check.h"
#include "gpu/probe.h"

#define CANDIDATES 8
#define REPEATS 8
#define REFERENCE_ROWS 1024 /* whose first algorithm says which bits are right, whatever the largest batch */

int matmul_library_open(struct matmul_library *library, bool own, cudaStream_t stream, struct error *err)
{
	int rc = cublas_check(cublasLtCreate(&library->handle), "starting cuBLASLt", err);

	library->stream = stream;
	library->own = own;
	if (rc == 0 && own)
		rc = cuda_check(product_setup(), "preparing kernels", err);
	if (rc == 0)
		rc = cuda_check(cudaMalloc(&library->workspace, MATMUL_WORKSPACE), "memory for cuBLASLt", err);
	return rc;
}

void matmul_library_close(struct matmul_library *library)
{
	cudaFree(library->workspace);
	if (library->handle)
		cublasLtDestroy(library->handle);
}

/* What describes a product to cuBLASLt; plain values, nothing to free. */
struct problem {
	cublasLtMatmulDescOpaque_t product;
	cublasLtMatrixLayoutOpaque_t w, x, y;
};

static cublasStatus_t describe(const struct matmul *m, size_t rows, const void *bias, struct problem *p)
{
	cudaDataType type = m->bfloat16 ? CUDA_R_16BF : CUDA_R_32F;
	cublasOperation_t transposed = CUBLAS_OP_T;
	cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
	cublasStatus_t status = cublasLtMatmulDescInit(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);

	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmulDescSetAttribute(&p->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
							sizeof(transposed));
	if (status == CUBLAS_STATUS_SUCCESS && bias)
		status = cublasLtMatmulDescSetAttribute(&p->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
							sizeof(epilogue));
	if (status == CUBLAS_STATUS_SUCCESS && bias)
		status = cublasLtMatmulDescSetAttribute(&p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
							sizeof(bias));
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatrixLayoutInit(&p->w, type, m->k, m->n, (int64_t)m->k);
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatrixLayoutInit(&p->x, type, m->k, rows, (int64_t)m->k);
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatrixLayoutInit(&p->y, type, m->n, rows, (int64_t)m->n);
	return status;
}

static int run_own(const struct matmul *m, int cut, const void *x, const void *w, void *y, size_t rows,
		   struct error *err)
{
	CUtensorMap x_boxes, w_boxes;
	int rc = boxes_of_operand(x, rows, m->k, product_box_rows(rows), PRODUCT_PIECES, &x_boxes, err);

	if (rc == 0)
		rc = boxes_of_operand(w, m->n, m->k, (unsigned)cut, PRODUCT_PIECES, &w_boxes, err);
	if (rc == 0)
		rc = cuda_check(product(cut, &x_boxes, &w_boxes, y, rows, m->n, m->k, m->library->stream),
				"a matrix product", err);
	return rc;
}

static int run(const struct matmul *m, const struct matmul_way *way, const void *x, const void *w, const void *bias,
	       void *y, size_t rows, struct error *err)
{
	const struct matmul_library *library = m->library;
	struct problem p;
	float one = 1.0f, zero = 0.0f;
	cublasStatus_t status;

	if (way->cut > 0)
		return run_own(m, way->cut, x, w, y, rows, err);
	status = describe(m, rows, bias, &p);
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmul(library->handle, &p.product, &one, w, &p.w, x, &p.x, &zero, y, &p.y, y, &p.y,
					&way->algo, library->workspace, MATMUL_WORKSPACE, library->stream);
	return cublas_check(status, "a matrix product", err);
}

static size_t rung_of(const struct matmul *matmul, size_t rows)
{
	size_t i = 0;

	while (i + 1 < matmul->n_rungs && matmul->rungs[i].rows < rows)
		i++;
	return i;
}

int matmul_run(const struct matmul *matmul, const void *x, const void *w, const void *bias, void *y, size_t rows,
	       struct error *err)
{
	return run(matmul, &matmul->rungs[rung_of(matmul, rows)].way, x, w, bias, y, rows, err);
}

int matmul_run_library(const struct matmul *matmul, const void *x, const void *w, const void *bias, void *y,
		       size_t rows, struct error *err)
{
	struct matmul_way way = matmul->rungs[rung_of(matmul, rows)].way;

	way.cut = 0;
	return run(matmul, &way, x, w, bias, y, rows, err);
}

size_t matmul_ladder(size_t max_rows, size_t rows[MATMUL_RUNGS])
{
	size_t n = 0;

	/* Steps of a quarter of a power of two, of a half beyond 2048; all multiples of 8 from 8 on. */
	for (size_t power = 1; power < max_rows && n + 5 < MATMUL_RUNGS; power *= 2) {
		size_t step = power < 8 ? power : power < 32 ? 8 : power < 2048 ? power / 4 : power / 2;

		for (size_t r = power; r < 2 * power && r < max_rows; r += step)
			rows[n++] = r;
	}
	rows[n++] = max_rows;
	return n;
}

/* What choosing needs, and the reference: y of the most rows by one algorithm. */
struct tuning {
	struct matmul *matmul;
	const struct matmul_weights *weights;
	size_t max_rows, number_size;
	void *x, *y, *reference;
	unsigned *differ;
	struct matmul_way way; /* that made the reference */
	cudaEvent_t start, stop;
};

static int tuning_open(struct tuning *t, struct error *err)
{
	const struct matmul *m = t->matmul;
	size_t x_bytes = t->max_rows * m->k * t->number_size, y_bytes = t->max_rows * m->n * t->number_size;
	int rc = cuda_check(cudaMalloc(&t->x, x_bytes), "memory to tune products", err);

	if (rc == 0)
		rc = cuda_check(cudaMalloc(&t->y, y_bytes), "memory to tune products", err);
	if (rc == 0)
		rc = cuda_check(cudaMalloc(&t->reference, y_bytes), "memory to tune products", err);
	if (rc == 0)
		rc = cuda_check(cudaMemsetAsync(t->reference, 0xff, y_bytes, m->library->stream), "tuning products",
				err);
	if (rc == 0)
		rc = cuda_check(cudaMalloc((void **)&t->differ, sizeof(*t->differ)), "memory to tune products", err);
	if (rc == 0)
		rc = cuda_check(cudaEventCreate(&t->start), "event", err);
	if (rc == 0)
		rc = cuda_check(cudaEventCreate(&t->stop), "event", err);
	if (rc == 0)
		rc = cuda_check(probe_fill(t->x, m->bfloat16, t->max_rows * m->k, m->library->stream), "noise", err);
	return rc;
}

static void tuning_close(struct tuning *t)
{
	cudaFree(t->x);
	cudaFree(t->y);
	cudaFree(t->reference);
	cudaFree(t->differ);
	if (t->start)
		cudaEventDestroy(t->start);
	if (t->stop)
		cudaEventDestroy(t->stop);
}

/* The algorithms that cuBLASLt proposes for this many rows, best first by its estimate. */
static int propose(const struct tuning *t, size_t rows, cublasLtMatmulHeuristicResult_t found[CANDIDATES],
		   int *ret_found, struct error *err)
{
	uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
	uint64_t workspace = MATMUL_WORKSPACE;
	cublasLtMatmulPreferenceOpaque_t preference;
	struct problem p;
	cublasStatus_t status = describe(t->matmul, rows, t->weights->bias, &p);

	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmulPreferenceInit(&preference);
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
							      &reduction, sizeof(reduction));
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
							      &workspace, sizeof(workspace));
	*ret_found = 0;
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmulAlgoGetHeuristic(t->matmul->library->handle, &p.product, &p.w, &p.x, &p.y, &p.y,
							&preference, CANDIDATES, found, ret_found);
	if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && *ret_found == 0))
		return error_set(err, ERR_UNSUPPORTED, "device cuda: cuBLASLt has no product for %zu rows of %zu x %zu",
				 rows, t->matmul->n, t->matmul->k);
	return cublas_check(status, "choosing a matrix product", err);
}

static int run_probe(const struct tuning *t, const struct matmul_way *way, size_t weight, void *y, size_t rows,
		     struct error *err)
{
	const struct matmul_weights *w = t->weights;

	return run(t->matmul, way, t->x, w->at(w->owner, weight % w->count), w->bias, y, rows, err);
}

/* Whether a way gives the reference's bits.  One that does not run at all does not. */
static int agrees(const struct tuning *t, const struct matmul_way *way, size_t rows, bool *ret_agrees,
		  struct error *err)
{
	cudaStream_t stream = t->matmul->library->stream;
	size_t bytes = rows * t->matmul->n * t->number_size;
	unsigned differ = 1;
	int rc;

	*ret_agrees = false;
	rc = cuda_check(cudaMemsetAsync(t->y, 0xff, bytes, stream), "tuning products", err);
	if (rc == 0)
		rc = cuda_check(cudaMemsetAsync(t->differ, 0, sizeof(differ), stream), "tuning products", err);
	if (rc != 0 || run_probe(t, way, 0, t->y, rows, err) != 0)
		return rc;
	rc = cuda_check(probe_compare(t->y, t->reference, bytes, t->differ, stream), "tuning products", err);
	if (rc == 0)
		rc = cuda_check(cudaMemcpyAsync(&differ, t->differ, sizeof(differ), cudaMemcpyDeviceToHost, stream),
				"tuning products", err);
	if (rc == 0)
		rc = cuda_check(cudaStreamSynchronize(stream), "tuning products", err);
	*ret_agrees = differ == 0;
	return rc;
}

/* REPEATS products, each with the next weights, as a graph. */
static int capture(const struct tuning *t, const struct matmul_way *way, size_t rows, cudaGraphExec_t *ret_run,
		   struct error *err)
{
	cudaStream_t stream = t->matmul->library->stream;
	cudaGraph_t graph = NULL;
	cudaError_t status;
	int rc = cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "tuning products", err);

	if (rc != 0)
		return rc;
	for (size_t i = 0; i < REPEATS && rc == 0; i++)
		rc = run_probe(t, way, i, t->y, rows, err);
	status = cudaStreamEndCapture(stream, &graph);
	if (rc == 0)
		rc = cuda_check(status, "tuning products", err);
	if (rc == 0)
		rc = cuda_check(cudaGraphInstantiate(ret_run, graph, 0), "tuning products", err);
	if (graph)
		cudaGraphDestroy(graph);
	return rc;
}

/* Milliseconds for REPEATS products, under a graph: the host would take longer to start small ones than the device. */
static int measure(const struct tuning *t, const struct matmul_way *way, size_t rows, float *ret_ms,
		   struct error *err)
{
	cudaStream_t stream = t->matmul->library->stream;
	cudaGraphExec_t products = NULL;
	int rc = capture(t, way, rows, &products, err);

	if (rc == 0)
		rc = cuda_check(cudaGraphLaunch(products, stream), "tuning products", err);
	if (rc == 0)
		rc = cuda_check(cudaEventRecord(t->start, stream), "tuning products", err);
	if (rc == 0)
		rc = cuda_check(cudaGraphLaunch(products, stream), "tuning products", err);
	if (rc == 0)
		rc = cuda_check(cudaEventRecord(t->stop, stream), "tuning products", err);
	if (rc == 0)
		rc = cuda_check(cudaEventSynchronize(t->stop), "tuning products", err);
	if (rc == 0)
		rc = cuda_check(cudaEventElapsedTime(ret_ms, t->start, t->stop), "tuning products", err);
	if (products)
		cudaGraphExecDestroy(products);
	return rc;
}

/* Whether the kernel of product.h can stand in for the library. */
static bool own_serves(const struct tuning *t, size_t rows)
{
	return t->matmul->library->own && t->matmul->bfloat16 && !t->weights->bias && t->matmul->k % 64 == 0 &&
	       rows <= PRODUCT_ROWS;
}

/* Take this way if it gives the reference's bits and is quicker than *best_ms, 0 at first. */
static int consider(const struct tuning *t, const struct matmul_way *way, size_t rows, float *best_ms,
		    struct matmul_way *ret_best, struct error *err)
{
	float ms;
	bool same;
	int rc = agrees(t, way, rows, &same, err);

	if (rc != 0 || !same)
		return rc;
	rc = measure(t, way, rows, &ms, err);
	if (rc == 0 && (*best_ms == 0.0f || ms < *best_ms)) {
		*best_ms = ms;
		*ret_best = *way;
	}
	return rc;
}

/* The fastest way for this many rows that agrees with the reference: one of the library's, or else one of ours. */
static int choose(const struct tuning *t, size_t rows, struct matmul_way *ret_way, struct error *err)
{
	cublasLtMatmulHeuristicResult_t found[CANDIDATES];
	struct matmul_way way = t->way;
	float best = 0.0f;
	int n, rc = propose(t, rows, found, &n, err);

	if (rc == 0)
		rc = consider(t, &t->way, rows, &best, ret_way, err);
	for (int i = 0; i < n && rc == 0; i++) {
		way.algo = found[i].algo;
		rc = consider(t, &way, rows, &best, ret_way, err);
	}
	if (rc == 0 && best == 0.0f)
		return error_set(err, ERR_UNSUPPORTED,
				 "device cuda: products of %zu x %zu differ between %zu and %zu rows", t->matmul->n,
				 t->matmul->k, rows, t->max_rows);
	way.algo = ret_way->algo;
	for (int i = 0; i < PRODUCT_CUTS && rc == 0 && own_serves(t, rows); i++) {
		way.cut = product_cuts[i];
		rc = consider(t, &way, rows, &best, ret_way, err);
	}
	return rc;
}

/* One algorithm's result for the most rows, against which all others are held. */
static int make_reference(struct tuning *t, struct error *err)
{
	cublasLtMatmulHeuristicResult_t found[CANDIDATES];
	int n, rc = propose(t, REFERENCE_ROWS, found, &n, err);
	bool made = false;

	if (rc != 0)
		return rc;
	for (int i = 0; i < n && !made; i++) {
		t->way.algo = found[i].algo;
		rc = run_probe(t, &t->way, 0, t->reference, t->max_rows, err);
		made = rc == 0;
	}
	if (rc == 0)
		rc = cuda_check(cudaStreamSynchronize(t->matmul->library->stream), "tuning products", err);
	return rc;
}

int matmul_tune(const struct matmul_library *library, size_t n, size_t k, bool bfloat16, size_t max_rows,
		const struct matmul_weights *weights, struct matmul *ret_matmul, struct error *err)
{
	struct matmul matmul = { .library = library, .n = n, .k = k, .bfloat16 = bfloat16 };
	struct tuning t = {
		.matmul = &matmul, .weights = weights, .max_rows = max_rows, .number_size = bfloat16 ? 2 : 4
	};
	size_t rows[MATMUL_RUNGS], rungs = matmul_ladder(max_rows, rows);
	int rc = tuning_open(&t, err);

	if (rc == 0)
		rc = make_reference(&t, err);
	for (size_t i = 0; i < rungs && rc == 0; i++) {
		matmul.rungs[i].rows = rows[i];
		rc = choose(&t, rows[i], &matmul.rungs[i].way, err);
	}
	matmul.n_rungs = rungs;
	tuning_close(&t);
	if (rc == 0)
		*ret_matmul = matmul;
	return rc;
}
