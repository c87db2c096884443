/*
 * CUDA graphs of the forward pass, for batches so small that launching kernel by kernel would take longer than running
 * them: one for each rung of matmul's ladder up to GRAPHS_MAX_ROWS, and each way to run the mixers.
 */
#ifndef GPU_GRAPHS_H
#define GPU_GRAPHS_H

#include "gpu/forward.h"

#define GRAPHS_MAX_ROWS 2048

struct graphs {
	size_t n_rungs;
	struct {
		size_t rows;
		cudaGraphExec_t run[MIXER_COUNT]; /* NULL for the ways that the model does not need */
	} rungs[MATMUL_RUNGS];
};

/* Capture them all, and run each once; forward's view must hold a batch of no rows. */
int graphs_open(struct graphs *graphs, const struct forward *forward, struct error *err);
void graphs_close(struct graphs *graphs);

/* Enqueue the forward pass, by a graph if there is one for this size. */
int graphs_run(const struct graphs *graphs, const struct forward *forward, const struct batch_size *size,
	       struct error *err);

#endif
