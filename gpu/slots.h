/*
 * The caches of all streams: slots of one allocation of device memory.  When no slot is free, the cache that was
 * longest idle moves to page-locked host memory, and comes back when a batch names it.
 *
 * slots_bring, slots_export and slots_import are for one thread, which also enqueues what uses the caches on
 * the stream; the others may be called from other ones meanwhile.
 */
#ifndef GPU_SLOTS_H
#define GPU_SLOTS_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/layout.h"
#include "model/device.h"
#include "model/error.h"

/* In a slot (memory), on the host (host), or nowhere: then it is all zero. */
struct cache {
	float *memory; /* [cache_floats] in device memory */
	float *host;   /* the same in page-locked memory */
	int parity;    /* which of each layer's two conv states is current */
	uint64_t round; /* of slots_bring that named it last */
	struct cache *older, *newer; /* among those with a slot */
};

struct slots;

/* As many slots as fit in bytes, at least one.  All that happens on the device is ordered by stream. */
int slots_new(const struct layout *layout, size_t bytes, cudaStream_t stream, struct slots **ret_slots,
	     struct error *err);
void slots_free(struct slots *slots); /* after its caches; NULL is fine */

size_t slots_count(const struct slots *slots);

void slots_counts(struct slots *slots, struct cache_counts *ret_counts);

int slots_cache_new(struct slots *slots, struct cache **ret_cache, struct error *err);
void slots_cache_free(struct slots *slots, struct cache *cache);

/*
 * Give every cache of the batch, at most slots_count of them, a slot with its contents.  The copies are enqueued, not
 * waited for.  A failure leaves every cache whole, wherever it then is.
 */
int slots_bring(struct slots *slots, const struct batch *batch, struct error *err);

/* Copy a cache to and from the canonical layout of shape.h; waits for the stream.  A failed import changes nothing. */
int slots_export(struct slots *slots, const struct cache *cache, float *state, struct error *err);
int slots_import(struct slots *slots, struct cache *cache, const float *state, struct error *err);

#endif
