/*
 * Capturing and choosing graphs.  A graph's launches have the grids of a typical batch of its row count; kernels stride
 * over whatever the batch really has, so that any batch of up to as many rows may run on it.
 */
#include "gpu/graphs.h"

#include "gpu/check.h"

static struct batch_size typical(const struct forward *f, size_t rows)
{
	size_t window = f->limits.window, chunk = window < CHUNK_ROWS ? window : CHUNK_ROWS;

	return (struct batch_size){
		.rows = rows,
		.segments = (rows + window - 1) / window,
		.chunks = f->chunked ? (rows + chunk - 1) / chunk : 0,
	};
}

static int capture(const struct forward *f, size_t rows, enum mixer mixer, cudaGraphExec_t *ret_run,
		   struct error *err)
{
	struct batch_size size = typical(f, rows);
	cudaGraph_t graph = NULL;
	cudaError_t status;
	int rc = cuda_check(cudaStreamBeginCapture(f->stream, cudaStreamCaptureModeThreadLocal), "capturing", err);

	if (rc != 0)
		return rc;
	rc = forward_run(f, &size, mixer, err);
	status = cudaStreamEndCapture(f->stream, &graph);
	if (rc == 0)
		rc = cuda_check(status, "capturing", err);
	if (rc == 0)
		rc = cuda_check(cudaGraphInstantiate(ret_run, graph, 0), "instantiating a graph", err);
	if (graph)
		cudaGraphDestroy(graph);
	if (rc == 0)
		rc = cuda_check(cudaGraphLaunch(*ret_run, f->stream), "warming up", err);
	return rc;
}

int graphs_open(struct graphs *graphs, const struct forward *forward, struct error *err)
{
	size_t most = forward->limits.rows, rows[MATMUL_RUNGS];
	size_t n = matmul_ladder(most < GRAPHS_MAX_ROWS ? most : GRAPHS_MAX_ROWS, rows);
	int rc = 0;

	graphs->n_rungs = n;
	for (size_t i = 0; i < n; i++) {
		graphs->rungs[i].rows = rows[i];
		for (enum mixer mixer = 0; mixer < MIXER_COUNT && rc == 0; mixer++)
			if ((mixer == MIXER_SCAN) == !forward->chunked && (mixer != MIXER_SEGMENTS || forward->on_chip))
				rc = capture(forward, rows[i], mixer, &graphs->rungs[i].run[mixer], err);
	}
	if (rc == 0)
		rc = cuda_check(cudaStreamSynchronize(forward->stream), "warming up", err);
	return rc;
}

void graphs_close(struct graphs *graphs)
{
	for (size_t i = 0; i < graphs->n_rungs; i++)
		for (int mixer = 0; mixer < MIXER_COUNT; mixer++)
			if (graphs->rungs[i].run[mixer])
				cudaGraphExecDestroy(graphs->rungs[i].run[mixer]);
}

int graphs_run(const struct graphs *graphs, const struct forward *forward, const struct batch_size *size,
	       struct error *err)
{
	enum mixer mixer = forward_mixer(forward, size);

	for (size_t i = 0; i < graphs->n_rungs; i++)
		if (graphs->rungs[i].rows >= size->rows)
			return cuda_check(cudaGraphLaunch(graphs->rungs[i].run[mixer], forward->stream),
					  "launching a graph", err);
	return forward_run(forward, size, mixer, err);
}
