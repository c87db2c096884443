/*
 * A batch as the kernels see it.  The host builds it in page-locked memory, one copy brings it to the device, and
 * every kernel finds there which rows belong to which stream: nothing about a batch is baked into a CUDA graph.
 */
#ifndef GPU_BATCH_H
#define GPU_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/layout.h"
#include "model/device.h"

#define CHUNK_ROWS 64 /* of the chunked SSD: rows that are multiplied as one block */
#define CHUNK_TILES 10 /* 16 x 16 tiles on and below the diagonal of a whole chunk's score matrix */

struct segment_view {
	float *cache;    /* of layer 0 */
	int parity;      /* the conv state that is current: 0 or 1 */
	int row;         /* of the batch: where the segment starts */
	int rows, kept;  /* how many it has, and how many in whole windows */
	int chunk, chunks, kept_chunks; /* the same in chunks; chunks start anew in each window */
};

struct chunk_view {
	int segment;
	int row;    /* of the batch */
	int first;  /* of the segment */
	int rows;   /* 1 to CHUNK_ROWS */
	int unit;   /* tiles of 16 rows of the chunks before it */
	int scores; /* tiles of scores of the chunks before it */
};

struct batch_view {
	int rows, n_segments, n_chunks;
	const float *input; /* [rows, hidden_cols] */
	char *output;       /* [planes, max_rows, hidden] in the output's dtype */
	const struct segment_view *segments;
	const struct chunk_view *chunks;
};

/* Where a row comes from and where its hidden states go, in page-locked host memory. */
struct row_view {
	const void *in;  /* [hidden] in its dtype */
	enum dtype dtype;
	char *out;       /* of the first output; the next one lies window rows further */
};

/* The most of everything that batches of a device have. */
struct batch_limits {
	size_t window, rows, segments;
	size_t chunks, units, score_tiles; /* 0 where the chunked SSD is not used */
	size_t bytes;               /* of a batch_view and its arrays */
};

struct batch_limits batch_limits(size_t max_rows, size_t max_segments, size_t window, bool chunked);

/* What the host wants to know of a batch that was built. */
struct batch_size {
	size_t rows, segments, chunks;
	size_t longest; /* chunks of the longest segment */
	size_t bytes;   /* to copy to the device */
};

/*
 * Write batch, whose caches all lie on the device, to view [limits->bytes], to be copied to the address device_view,
 * and its rows to rows [limits->rows].  number_size: of the output's dtype.  The caller sets view's input and output.
 */
struct batch_size batch_build(const struct batch_limits *limits, const struct batch *batch, int hidden,
			      size_t number_size, struct batch_view *view, uintptr_t device_view,
			      struct row_view *rows);

#endif
