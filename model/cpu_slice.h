/*
 * A batch is computed slice by slice: as many whole windows, of one stream or of several, as fit the activation
 * buffers.  A window lies in one slice; the next slice goes on with the caches that this one left.
 */
#ifndef MODEL_CPU_SLICE_H
#define MODEL_CPU_SLICE_H

#include <stdbool.h>
#include <stddef.h>

#include "model/cpu_kernels.h"
#include "model/device.h"

struct cache {
	float *data; /* see cpu_cache.h */
};

/* Where a row comes from and its hidden states go: row index of a window. */
struct cpu_row {
	const struct window *window;
	size_t index;
};

struct cpu_slice {
	size_t capacity;          /* rows, at least a window */
	size_t window;
	size_t n_rows, n_runs, n_chunks;
	struct cpu_row *rows;     /* [capacity] */
	struct cpu_run *runs;     /* [capacity] */
	struct cpu_chunk *chunks; /* [capacity] */
};

/* A place in a batch: begin with segment and window 0. */
struct cpu_cursor {
	const struct batch *batch;
	size_t segment, window;
};

int cpu_slice_init(struct cpu_slice *slice, size_t capacity, size_t window, struct error *err);
void cpu_slice_clear(struct cpu_slice *slice); /* also after a failed init, or of one that is all zero */

/* Fill the slice with what comes next in the batch.  False when nothing is left. */
bool cpu_slice_next(struct cpu_slice *slice, struct cpu_cursor *cursor);

#endif
