/*
 * The forward pass on the device: its working memory, and the sequence of kernels and products.
 */
#ifndef GPU_FORWARD_H
#define GPU_FORWARD_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#include "gpu/batch.h"
#include "gpu/chunk.h"
#include "gpu/layout.h"
#include "gpu/matmul.h"
#include "gpu/weights.h"
#include "model/device.h"
#include "model/error.h"

/* How the mixers run: row by row; or in chunks, a segment at a time, or all chunks at once: the same bits. */
enum mixer { MIXER_SCAN, MIXER_SEGMENTS, MIXER_CHUNKS, MIXER_COUNT };

#define FORWARD_BLOCKS 16

struct forward {
	struct layout layout;
	struct batch_limits limits;
	bool bfloat16, chunked;
	bool hopper;    /* compute capability 9.0: kernels may begin early, see launch.cuh */
	bool on_chip;   /* MIXER_SEGMENTS serves this shape on this device */
	int processors; /* of the device */
	const struct weights *weights;
	const struct matmul *in_proj, *out_proj;
	cudaStream_t stream;
	const struct batch_view *view; /* in device memory: the batch to run */

	const int *planes; /* [layers + 1]: the output's plane of the stream after each layer, of the final norm; -1 */
	enum dtype output_dtype;

	float *residual; /* [rows, hidden_cols] */
	void *normed;    /* [rows, hidden_cols] in the products' precision, as are the following */
	void *proj;      /* [rows, proj_cols] */
	void *gated;     /* [rows, inner_cols] */
	void *mixed;     /* [rows, hidden_cols] */
	float *squares;  /* [rows, parts] */
	int parts;
	struct chunk_buffers chunk;
	CUtensorMap proj_boxes; /* where on_chip */
	size_t state_chunks; /* for how many chunks.states has room */
	void *memory[FORWARD_BLOCKS];
	size_t n_memory;
};

/* Whether this shape and window run in chunks. */
bool forward_chunked(const struct layout *layout, enum precision precision, size_t window);

/* Bytes of device memory that forward_open would take with these limits. */
size_t forward_bytes(const struct forward *forward, const struct batch_limits *limits);

/* Take working memory; what comes before it in the struct is the caller's to set. */
int forward_open(struct forward *forward, struct error *err);
void forward_close(struct forward *forward);

/* How a batch of this size runs best. */
enum mixer forward_mixer(const struct forward *forward, const struct batch_size *size);

/*
 * Enqueue the forward pass of the batch in view, of size->rows rows (or fewer) and about size->segments segments and
 * size->chunks chunks.  An error leaves the caches in an unknown state.
 */
int forward_run(const struct forward *forward, const struct batch_size *size, enum mixer mixer, struct error *err);

/* Enqueue what layer i of it does between in_proj and out_proj. */
cudaError_t forward_mix(const struct forward *forward, int i, const struct batch_size *size, enum mixer mixer);

#endif
