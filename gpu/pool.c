/*
 * The pool of cache slots.  A slot is zeroed, or filled from the host, when a batch first needs it, never before: so
 * no cache can see what another one left.  Every copy goes through the one stream on which the batches run, which
 * orders it after the batches that wrote the cache and before the ones that read it.
 */
#include "gpu/pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/check.h"

struct pool {
	struct layout layout;
	size_t bytes; /* of a cache */
	cudaStream_t stream;
	float *memory; /* [slots, cache_floats] on the device */
	float *layer;  /* [layer_floats] page-locked: one layer on its way out */
	size_t slots;

	pthread_mutex_t lock; /* of everything below */
	float **free_slots;   /* [n_free] */
	size_t n_free;
	float **spares;       /* [n_spares], room for n_hosts: page-locked memory that no cache lies in */
	size_t n_spares, n_hosts;
	struct cache *oldest, *newest; /* of those with a slot */
	uint64_t round;
};

/* layer [layer_floats] of the device -> its part of the canonical layout; returns the floats written. */
static size_t layer_export(const struct layout *l, int parity, const float *layer, float *state)
{
	const float *conv = layer + (size_t)parity * l->conv_floats, *ssm = layer + 2 * l->conv_floats;
	size_t columns = layout_conv_dim(l), taps = (size_t)l->taps - 1, n = (size_t)l->state;
	size_t rows = (size_t)l->heads * (size_t)l->head_dim;
	float *to = state;

	for (size_t c = 0; c < columns; c++)
		for (size_t k = 0; k < taps; k++)
			*to++ = conv[k * (size_t)l->conv_cols + layout_conv_column(l, c)];
	for (size_t r = 0; r < rows; r++, to += n)
		memcpy(to, ssm + r * (size_t)l->state_cols, n * sizeof(float));
	return (size_t)(to - state);
}

/* The reverse; conv state 0 becomes the current one.  layer is zero where there is padding. */
static size_t layer_import(const struct layout *l, const float *state, float *layer)
{
	float *ssm = layer + 2 * l->conv_floats;
	size_t columns = layout_conv_dim(l), taps = (size_t)l->taps - 1, n = (size_t)l->state;
	size_t rows = (size_t)l->heads * (size_t)l->head_dim;
	const float *from = state;

	for (size_t c = 0; c < columns; c++)
		for (size_t k = 0; k < taps; k++)
			layer[k * (size_t)l->conv_cols + layout_conv_column(l, c)] = *from++;
	for (size_t r = 0; r < rows; r++, from += n)
		memcpy(ssm + r * (size_t)l->state_cols, from, n * sizeof(float));
	return (size_t)(from - state);
}

int pool_new(const struct layout *layout, size_t bytes, cudaStream_t stream, struct pool **ret_pool,
	     struct error *err)
{
	struct pool *pool = calloc(1, sizeof(*pool));
	int rc;

	if (!pool)
		return error_memory(err, "the pool of caches");
	pthread_mutex_init(&pool->lock, NULL);
	pool->layout = *layout;
	pool->stream = stream;
	pool->bytes = layout->cache_floats * sizeof(float);
	pool->slots = bytes / pool->bytes;
	if (pool->slots == 0) {
		pool_free(pool);
		return error_set(err, ERR_DEVICE, "device cuda: one cache takes %zu bytes, there are %zu for all",
				 layout->cache_floats * sizeof(float), bytes);
	}
	rc = cuda_check(cudaMalloc((void **)&pool->memory, pool->slots * pool->bytes), "allocating the caches", err);
	if (rc == 0) {
		pool->free_slots = malloc(pool->slots * sizeof(*pool->free_slots));
		rc = pool->free_slots ? 0 : error_memory(err, "the pool of caches");
	}
	if (rc == 0)
		rc = cuda_check(cudaMallocHost((void **)&pool->layer, layout->layer_floats * sizeof(float)),
				"allocating page-locked memory", err);
	if (rc != 0) {
		pool_free(pool);
		return rc;
	}
	for (size_t i = pool->slots; i > 0; i--)
		pool->free_slots[pool->n_free++] = pool->memory + (i - 1) * layout->cache_floats;
	*ret_pool = pool;
	return 0;
}

void pool_free(struct pool *pool)
{
	if (!pool)
		return;
	for (size_t i = 0; i < pool->n_spares; i++)
		cudaFreeHost(pool->spares[i]);
	free(pool->spares);
	cudaFreeHost(pool->layer);
	cudaFree(pool->memory);
	free(pool->free_slots);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

size_t pool_slots(const struct pool *pool)
{
	return pool->slots;
}

int pool_cache_new(struct pool *pool, struct cache **ret_cache, struct error *err)
{
	(void)pool;
	struct cache *cache = calloc(1, sizeof(*cache));

	if (!cache)
		return error_memory(err, "a cache");
	*ret_cache = cache;
	return 0;
}

/* Take cache, which has a slot, out of the list of those. */
static void list_remove(struct pool *pool, struct cache *cache)
{
	*(cache->older ? &cache->older->newer : &pool->oldest) = cache->newer;
	*(cache->newer ? &cache->newer->older : &pool->newest) = cache->older;
	cache->older = cache->newer = NULL;
}

static void list_append(struct pool *pool, struct cache *cache)
{
	cache->older = pool->newest;
	cache->newer = NULL;
	*(pool->newest ? &pool->newest->newer : &pool->oldest) = cache;
	pool->newest = cache;
}

void pool_cache_free(struct pool *pool, struct cache *cache)
{
	if (!cache)
		return;
	pthread_mutex_lock(&pool->lock);
	if (cache->memory) {
		list_remove(pool, cache);
		pool->free_slots[pool->n_free++] = cache->memory;
	}
	if (cache->host)
		pool->spares[pool->n_spares++] = cache->host;
	pthread_mutex_unlock(&pool->lock);
	free(cache);
}

/* Page-locked memory for one cache: a spare, or new. */
static int take_host(struct pool *pool, float **ret_host, struct error *err)
{
	float **spares, *host;
	int rc;

	if (pool->n_spares > 0) {
		*ret_host = pool->spares[--pool->n_spares];
		return 0;
	}
	spares = realloc(pool->spares, (pool->n_hosts + 1) * sizeof(*spares));
	if (!spares)
		return error_memory(err, "idle caches");
	pool->spares = spares;
	rc = cuda_check(cudaMallocHost((void **)&host, pool->bytes), "page-locked memory for an idle cache", err);
	if (rc != 0)
		return rc;
	pool->n_hosts++;
	*ret_host = host;
	return 0;
}

/* Move the cache that was longest idle, and is not of this round, to the host.  Its slot is then free. */
static int evict(struct pool *pool, struct error *err)
{
	struct cache *cache = pool->oldest;
	float *host;
	int rc;

	while (cache && cache->round == pool->round)
		cache = cache->newer;
	if (!cache)
		return error_set(err, ERR_DEVICE, "device cuda: the batch has more caches than the %zu slots",
				 pool->slots);
	rc = take_host(pool, &host, err);
	if (rc != 0)
		return rc;
	rc = cuda_check(cudaMemcpyAsync(host, cache->memory, pool->bytes, cudaMemcpyDeviceToHost, pool->stream),
			"moving an idle cache to the host", err);
	if (rc != 0) {
		pool->spares[pool->n_spares++] = host;
		return rc;
	}
	list_remove(pool, cache);
	pool->free_slots[pool->n_free++] = cache->memory;
	cache->memory = NULL;
	cache->host = host;
	return 0;
}

/* Give cache, which has none, a slot with its contents. */
static int bring(struct pool *pool, struct cache *cache, struct error *err)
{
	cudaError_t status;
	float *memory;
	int rc;

	if (pool->n_free == 0) {
		rc = evict(pool, err);
		if (rc != 0)
			return rc;
	}
	memory = pool->free_slots[pool->n_free - 1];
	if (cache->host)
		status = cudaMemcpyAsync(memory, cache->host, pool->bytes, cudaMemcpyHostToDevice, pool->stream);
	else
		status = cudaMemsetAsync(memory, 0, pool->bytes, pool->stream);
	rc = cuda_check(status, "filling a cache", err);
	if (rc != 0)
		return rc;
	pool->n_free--;
	if (cache->host)
		pool->spares[pool->n_spares++] = cache->host; /* what is copied there next waits for this copy */
	cache->host = NULL;
	cache->memory = memory;
	list_append(pool, cache);
	return 0;
}

int pool_bring(struct pool *pool, const struct batch *batch, struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&pool->lock);
	pool->round++;
	for (size_t i = 0; i < batch->n_segments; i++) {
		struct cache *cache = batch->segments[i].cache;

		cache->round = pool->round;
		if (cache->memory) {
			list_remove(pool, cache);
			list_append(pool, cache);
		}
	}
	for (size_t i = 0; i < batch->n_segments && rc == 0; i++)
		if (!batch->segments[i].cache->memory)
			rc = bring(pool, batch->segments[i].cache, err);
	pthread_mutex_unlock(&pool->lock);
	return rc;
}

int pool_export(struct pool *pool, const struct cache *cache, float *state, struct error *err)
{
	const struct layout *l = &pool->layout;
	int rc = 0;

	if (!cache->memory)
		rc = cuda_check(cudaStreamSynchronize(pool->stream), "waiting for the device", err);
	for (int i = 0; i < l->layers && rc == 0; i++) {
		size_t at = (size_t)i * l->layer_floats, bytes = l->layer_floats * sizeof(float);

		if (cache->memory) {
			rc = cuda_check(cudaMemcpyAsync(pool->layer, cache->memory + at, bytes, cudaMemcpyDeviceToHost,
							pool->stream), "copying a cache out", err);
			if (rc == 0)
				rc = cuda_check(cudaStreamSynchronize(pool->stream), "copying a cache out", err);
		} else if (cache->host) {
			memcpy(pool->layer, cache->host + at, bytes);
		} else {
			memset(pool->layer, 0, bytes);
		}
		if (rc == 0)
			state += layer_export(l, cache->parity, pool->layer, state);
	}
	return rc;
}

/* Copy host to the slot of cache, or to a free one, if there is either. */
static int fill_slot(struct pool *pool, struct cache *cache, const float *host, struct error *err)
{
	float *memory = cache->memory ? cache->memory : pool->n_free > 0 ? pool->free_slots[pool->n_free - 1] : NULL;
	int rc;

	if (!memory)
		return 0;
	rc = cuda_check(cudaMemcpyAsync(memory, host, pool->bytes, cudaMemcpyHostToDevice, pool->stream),
			"copying a cache in", err);
	if (rc == 0)
		rc = cuda_check(cudaStreamSynchronize(pool->stream), "copying a cache in", err);
	if (rc == 0 && !cache->memory) {
		pool->n_free--;
		cache->memory = memory;
		list_append(pool, cache);
	}
	return rc;
}

int pool_import(struct pool *pool, struct cache *cache, const float *state, struct error *err)
{
	const struct layout *l = &pool->layout;
	float *host;
	int rc;

	pthread_mutex_lock(&pool->lock);
	rc = take_host(pool, &host, err);
	if (rc != 0)
		goto out;
	rc = cuda_check(cudaStreamSynchronize(pool->stream), "waiting for the device", err);
	if (rc == 0) {
		memset(host, 0, pool->bytes);
		for (int i = 0; i < l->layers; i++)
			state += layer_import(l, state, host + (size_t)i * l->layer_floats);
		rc = fill_slot(pool, cache, host, err);
	}
	if (rc == 0)
		cache->parity = 0;
	if (rc != 0 || cache->memory) {
		pool->spares[pool->n_spares++] = host;
		host = NULL;
	}
	if (rc == 0) {
		if (cache->host)
			pool->spares[pool->n_spares++] = cache->host;
		cache->host = host;
	}
out:
	pthread_mutex_unlock(&pool->lock);
	return rc;
}
