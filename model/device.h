/*
 * A device that runs the backbone, and the table of back ends that implement one.
 *
 * The interface is coarse: layers are not in it.  A device is opened with a model's weights; it makes caches (the conv
 * and SSM states of every layer, for one stream); it runs batches of segments, each of which reads rows, writes hidden
 * states and advances one cache.
 *
 * Determinism, which every back end owes: the hidden states of a row and the cache after it depend on the model, the
 * back end, the precision, the window and the stream's rows up to it, bit for bit.  They do not depend on the other
 * segments of the batch, on how many windows a segment joins, on the number of threads, nor on rows that follow it.
 *
 * Threads: any may call, but only one at a time submits, exports or imports; meanwhile another one may wait, and a
 * third one call cache_new, cache_free, host_alloc and host_free.
 */
#ifndef MODEL_DEVICE_H
#define MODEL_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/dtype.h"
#include "model/error.h"
#include "model/model.h"

enum precision {
	PRECISION_AUTO,     /* bfloat16 for a half-precision checkpoint on a device that is good at it, else float32 */
	PRECISION_FLOAT32,  /* everything in float32 */
	PRECISION_BFLOAT16  /* weights, matrix inputs bfloat16; accumulation, residual, norms, decay, caches float32 */
};

/* An output that is the hidden state after the final norm, rather than the residual stream after a layer. */
#define OUTPUT_FINAL (-1)

struct device_options {
	int index;                 /* which of several devices, from 0 */
	enum precision precision;
	size_t threads;            /* CPU: 0 means as many as the process may use */
	size_t window;             /* rows; caches advance by whole windows */
	size_t max_rows;           /* most rows of a batch, >= window; 0: the device chooses (device.max_rows says) */
	size_t max_segments;       /* most segments of a batch; 0: max_rows */
	size_t cache_bytes;        /* device memory for caches; 0: what is free */
	const int *outputs;        /* [n_outputs] what a row yields: OUTPUT_FINAL or a layer's index */
	size_t n_outputs;
	enum dtype output_dtype;   /* float32, float16 or bfloat16 */
};

struct cache; /* each back end has its own */

/*
 * One window of a segment.  The memory of rows and hidden comes from host_alloc.  Of an unfinished window only the rows
 * that the segment has are read, and as many written.
 */
struct window {
	const float *rows; /* [window, hidden_size]; a row of a narrower dtype begins where its float32 would */
	const enum dtype *dtype; /* [window] of each row: float32, float16 or bfloat16; NULL: all are float32 */
	void *hidden;      /* [n_outputs, window, hidden_size] in output_dtype */
};

static inline enum dtype window_dtype(const struct window *window, size_t row)
{
	return window->dtype ? window->dtype[row] : DTYPE_FLOAT32;
}

/*
 * A run of windows of one stream, starting at a window boundary.  The cache advances by rows / window whole windows;
 * rows of an unfinished window at the end (rows % window of them) get their hidden states and leave no trace.
 */
struct segment {
	struct cache *cache;          /* in no other segment of the batch */
	const struct window *windows; /* [ceil(rows / window)] */
	size_t rows;
};

struct batch {
	const struct segment *segments;
	size_t n_segments;
};

/* Where a device's caches are; those that are still zero may be nowhere. */
struct cache_counts {
	size_t slots;            /* how many fit in the device's memory */
	size_t device, host;     /* how many are there, and in the host's memory */
	uint64_t moved_out, moved_in; /* idle ones to the host's memory, and those that came back */
};

struct device; /* public part below; back ends put it first in their own struct */

struct backend {
	const char *name; /* "cpu", "cuda" */

	/*
	 * Open a device with packed copies of the weights; it is warm: the first batch is as fast as the next.
	 * ERR_UNSUPPORTED where this build or machine has no such device.  The model must outlive the device.
	 */
	int (*open)(const struct model *model, const struct device_options *options, struct device **ret_device,
		    struct error *err);
	void (*close)(struct device *device);

	/* A zeroed cache: what a stream has at position 0. */
	int (*cache_new)(struct device *device, struct cache **ret_cache, struct error *err);
	void (*cache_free)(struct device *device, struct cache *cache);

	/* Copy a cache out and in, in the canonical layout of shape.h: state [shape_cache_floats]. */
	int (*cache_export)(struct device *device, const struct cache *cache, float *state, struct error *err);
	int (*cache_import)(struct device *device, struct cache *cache, const float *state, struct error *err);

	/* From any thread.  NULL where caches never move. */
	void (*cache_counts)(struct device *device, struct cache_counts *ret_counts);

	/* Memory that windows lie in (page-locked where that helps). */
	void *(*host_alloc)(struct device *device, size_t bytes);
	void (*host_free)(struct device *device, void *memory);

	/*
	 * Start a batch; device->depth of them may be under way.  The batch and all it points to stay unchanged until
	 * its wait.  On failure nothing was started and no cache has changed.
	 */
	int (*submit)(struct device *device, const struct batch *batch, struct error *err);

	/*
	 * Wait for the oldest batch under way.  On failure no cache of that batch has advanced, and batches submitted
	 * behind it fail as well.
	 */
	int (*wait)(struct device *device, struct error *err);
};

struct device {
	const struct backend *backend;
	const struct model *model;
	size_t window, max_rows, max_segments, n_outputs;
	enum dtype output_dtype;
	enum precision precision; /* what was chosen; never PRECISION_AUTO */
	size_t depth;             /* batches that may be under way: 1 where submit computes, 2 where it only starts */
	char description[96];     /* of hardware and code path, for logs and state files: "cpu avx512bf16 bfloat16" */
};

/*
 * Open the device called name: "cpu", "cuda", "cuda:N", or "auto" for the first of cuda and cpu that can serve the
 * model (options->index is taken from the name).  An unknown name is ERR_ARGUMENT and lists the known ones.
 * When auto succeeds, err->text says why better devices were passed over; it is empty if none was.
 */
int device_open(const char *name, const struct model *model, const struct device_options *options,
		struct device **ret_device, struct error *err);
void device_close(struct device *device); /* NULL is fine */

/* Is it a name that device_open understands, whether or not this machine has such a device? */
bool device_known(const char *name);

/* "auto", "float32", "bfloat16"; false if it is none of them. */
bool precision_find(const char *name, enum precision *ret_precision);
const char *precision_name(enum precision precision);

extern const struct backend backend_cpu;  /* model/cpu.c */
extern const struct backend backend_cuda; /* gpu/cuda.c, or gpu/stub.c in a build without CUDA */

#endif
