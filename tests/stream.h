/*
 * Streams run through a device, for tests: pieces of several streams are gathered into one batch, run, and the hidden
 * states handed back.  What fails ends the program with a message.
 */
#ifndef TESTS_STREAM_H
#define TESTS_STREAM_H

#include <stddef.h>

#include "model/device.h"

#define STREAM_BATCH 16 /* most pieces of a batch */

/* Rows of a stream, from a window boundary on, and where their hidden states go. */
struct piece {
	struct cache *cache;
	const float *rows; /* [n, hidden_size] */
	size_t n;
	float *hidden;     /* [n_outputs, stride rows, hidden_size], of which n rows from the first are written */
	size_t stride;
	const enum dtype *dtype; /* [n] of the rows, which it holds exactly; NULL: float32 */
};

/* Open a device with float32 outputs; window and outputs are the caller's, the rest of options may be zero. */
struct device *stream_device(const char *name, const struct model *model, const struct device_options *options);

struct cache *stream_cache(struct device *device);

/* Run pieces (at most STREAM_BATCH, of at most device->max_rows rows together) as one batch. */
void stream_batch(struct device *device, const struct piece *pieces, size_t n);

/* Run a stream of n rows from its start, in as few batches as possible: hidden [n_outputs, n, hidden_size]. */
void stream_run(struct device *device, struct cache *cache, const float *rows, size_t n, float *hidden);

/*
 * Round rows [n, hidden_size], at most device->max_rows, to float32, float16 and bfloat16, `each` of one after the
 * other.  Does a stream whose rows come in these have the same hidden states as one whose rows come in float32?
 */
bool stream_same_in_any_dtype(struct device *device, float *rows, size_t n, size_t each);

/* The cache in the canonical layout.  Free with free. */
float *stream_export(struct device *device, const struct cache *cache);

#endif
