/*
 * The caches of all streams: slots of one allocation of device memory.  When no slot is free, the cache that was
 * longest idle moves to page-locked host memory, and comes back when a batch names it.
 *
 * pool_bring, pool_export and pool_import are for one thread, which also enqueues what uses the caches on the pool's
 * stream; pool_cache_new and pool_cache_free may be called from another one meanwhile.
 */
#ifndef GPU_POOL_H
#define GPU_POOL_H

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
	uint64_t round; /* of pool_bring that named it last */
	struct cache *older, *newer; /* among those with a slot */
};

struct pool;

/* A pool of as many slots as fit in bytes, at least one.  All that it does on the device is ordered by stream. */
int pool_new(const struct layout *layout, size_t bytes, cudaStream_t stream, struct pool **ret_pool,
	     struct error *err);
void pool_free(struct pool *pool); /* after its caches; NULL is fine */

size_t pool_slots(const struct pool *pool);

int pool_cache_new(struct pool *pool, struct cache **ret_cache, struct error *err);
void pool_cache_free(struct pool *pool, struct cache *cache);

/*
 * Give every cache of the batch, at most pool_slots of them, a slot with its contents.  The copies are enqueued, not
 * waited for.  A failure leaves every cache whole, wherever it then is.
 */
int pool_bring(struct pool *pool, const struct batch *batch, struct error *err);

/* Copy a cache to and from the canonical layout of shape.h.  They wait for the stream.  A failed import changes nothing. */
int pool_export(struct pool *pool, const struct cache *cache, float *state, struct error *err);
int pool_import(struct pool *pool, struct cache *cache, const float *state, struct error *err);

#endif
