/*
 * Slots for caches.  A slot is zeroed, or filled from the host, when a batch first needs it, never before: so
 * no cache can see what another one left.  Every copy goes through the one stream on which the batches run, which
 * orders it after the batches that wrote the cache and before the ones that read it.
 */
#include "gpu/slots.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/check.h"

struct slots {
	struct layout layout;
	size_t bytes; /* of a cache */
	cudaStream_t stream;
	float *memory; /* [slots, cache_floats] on the device */
	float *layer;  /* [layer_floats] page-locked: one layer on its way out */
	size_t count;

	pthread_mutex_t lock; /* of everything below */
	float **free_slots;   /* [n_free] */
	size_t n_free;
	float **spares;       /* [n_spares], room for n_hosts: page-locked memory that no cache lies in */
	size_t n_spares, n_hosts;
	struct cache *oldest, *newest; /* of those with a slot */
	uint64_t round, moved_out, moved_in;
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

int slots_new(const struct layout *layout, size_t bytes, cudaStream_t stream, struct slots **ret_slots,
	     struct error *err)
{
	struct slots *slots = calloc(1, sizeof(*slots));
	int rc;

	if (!slots)
		return error_memory(err, "slots for caches");
	pthread_mutex_init(&slots->lock, NULL);
	slots->layout = *layout;
	slots->stream = stream;
	slots->bytes = layout->cache_floats * sizeof(float);
	slots->count = bytes / slots->bytes;
	if (slots->count == 0) {
		slots_free(slots);
		return error_set(err, ERR_DEVICE, "device cuda: one cache takes %zu bytes, there are %zu for all",
				 layout->cache_floats * sizeof(float), bytes);
	}
	rc = cuda_check(cudaMalloc((void **)&slots->memory, slots->count * slots->bytes), "allocating the caches", err);
	if (rc == 0) {
		slots->free_slots = malloc(slots->count * sizeof(*slots->free_slots));
		rc = slots->free_slots ? 0 : error_memory(err, "slots for caches");
	}
	if (rc == 0)
		rc = cuda_check(cudaMallocHost((void **)&slots->layer, layout->layer_floats * sizeof(float)),
				"allocating page-locked memory", err);
	if (rc != 0) {
		slots_free(slots);
		return rc;
	}
	for (size_t i = slots->count; i > 0; i--)
		slots->free_slots[slots->n_free++] = slots->memory + (i - 1) * layout->cache_floats;
	*ret_slots = slots;
	return 0;
}

void slots_free(struct slots *slots)
{
	if (!slots)
		return;
	for (size_t i = 0; i < slots->n_spares; i++)
		cudaFreeHost(slots->spares[i]);
	free(slots->spares);
	cudaFreeHost(slots->layer);
	cudaFree(slots->memory);
	free(slots->free_slots);
	pthread_mutex_destroy(&slots->lock);
	free(slots);
}

size_t slots_count(const struct slots *slots)
{
	return slots->count;
}

void slots_counts(struct slots *slots, struct cache_counts *ret_counts)
{
	pthread_mutex_lock(&slots->lock);
	*ret_counts = (struct cache_counts){
		.slots = slots->count,
		.device = slots->count - slots->n_free,
		.host = slots->n_hosts - slots->n_spares,
		.moved_out = slots->moved_out,
		.moved_in = slots->moved_in,
	};
	pthread_mutex_unlock(&slots->lock);
}

int slots_cache_new(struct slots *slots, struct cache **ret_cache, struct error *err)
{
	(void)slots;
	struct cache *cache = calloc(1, sizeof(*cache));

	if (!cache)
		return error_memory(err, "a cache");
	*ret_cache = cache;
	return 0;
}

/* Take cache, which has a slot, out of the list of those. */
static void list_remove(struct slots *slots, struct cache *cache)
{
	*(cache->older ? &cache->older->newer : &slots->oldest) = cache->newer;
	*(cache->newer ? &cache->newer->older : &slots->newest) = cache->older;
	cache->older = cache->newer = NULL;
}

static void list_append(struct slots *slots, struct cache *cache)
{
	cache->older = slots->newest;
	cache->newer = NULL;
	*(slots->newest ? &slots->newest->newer : &slots->oldest) = cache;
	slots->newest = cache;
}

void slots_cache_free(struct slots *slots, struct cache *cache)
{
	if (!cache)
		return;
	pthread_mutex_lock(&slots->lock);
	if (cache->memory) {
		list_remove(slots, cache);
		slots->free_slots[slots->n_free++] = cache->memory;
	}
	if (cache->host)
		slots->spares[slots->n_spares++] = cache->host;
	pthread_mutex_unlock(&slots->lock);
	free(cache);
}

/* Page-locked memory for one cache: a spare, or new. */
static int take_host(struct slots *slots, float **ret_host, struct error *err)
{
	float **spares, *host;
	int rc;

	if (slots->n_spares > 0) {
		*ret_host = slots->spares[--slots->n_spares];
		return 0;
	}
	spares = realloc(slots->spares, (slots->n_hosts + 1) * sizeof(*spares));
	if (!spares)
		return error_memory(err, "idle caches");
	slots->spares = spares;
	rc = cuda_check(cudaMallocHost((void **)&host, slots->bytes), "page-locked memory for an idle cache", err);
	if (rc != 0)
		return rc;
	slots->n_hosts++;
	*ret_host = host;
	return 0;
}

/* Move the cache that was longest idle, and is not of this round, to the host.  Its slot is then free. */
static int evict(struct slots *slots, struct error *err)
{
	struct cache *cache = slots->oldest;
	float *host;
	int rc;

	while (cache && cache->round == slots->round)
		cache = cache->newer;
	if (!cache)
		return error_set(err, ERR_DEVICE, "device cuda: the batch has more caches than the %zu slots",
				 slots->count);
	rc = take_host(slots, &host, err);
	if (rc != 0)
		return rc;
	rc = cuda_check(cudaMemcpyAsync(host, cache->memory, slots->bytes, cudaMemcpyDeviceToHost, slots->stream),
			"moving an idle cache to the host", err);
	if (rc != 0) {
		slots->spares[slots->n_spares++] = host;
		return rc;
	}
	list_remove(slots, cache);
	slots->free_slots[slots->n_free++] = cache->memory;
	cache->memory = NULL;
	cache->host = host;
	slots->moved_out++;
	return 0;
}

/* Give cache, which has none, a slot with its contents. */
static int bring(struct slots *slots, struct cache *cache, struct error *err)
{
	cudaError_t status;
	float *memory;
	int rc;

	if (slots->n_free == 0) {
		rc = evict(slots, err);
		if (rc != 0)
			return rc;
	}
	memory = slots->free_slots[slots->n_free - 1];
	if (cache->host)
		status = cudaMemcpyAsync(memory, cache->host, slots->bytes, cudaMemcpyHostToDevice, slots->stream);
	else
		status = cudaMemsetAsync(memory, 0, slots->bytes, slots->stream);
	rc = cuda_check(status, "filling a cache", err);
	if (rc != 0)
		return rc;
	slots->n_free--;
	if (cache->host) {
		slots->spares[slots->n_spares++] = cache->host; /* what is copied there next waits for this copy */
		slots->moved_in++;
	}
	cache->host = NULL;
	cache->memory = memory;
	list_append(slots, cache);
	return 0;
}

int slots_bring(struct slots *slots, const struct batch *batch, struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&slots->lock);
	slots->round++;
	for (size_t i = 0; i < batch->n_segments; i++) {
		struct cache *cache = batch->segments[i].cache;

		cache->round = slots->round;
		if (cache->memory) {
			list_remove(slots, cache);
			list_append(slots, cache);
		}
	}
	for (size_t i = 0; i < batch->n_segments && rc == 0; i++)
		if (!batch->segments[i].cache->memory)
			rc = bring(slots, batch->segments[i].cache, err);
	pthread_mutex_unlock(&slots->lock);
	return rc;
}

int slots_export(struct slots *slots, const struct cache *cache, float *state, struct error *err)
{
	const struct layout *l = &slots->layout;
	int rc = 0;

	if (!cache->memory)
		rc = cuda_check(cudaStreamSynchronize(slots->stream), "waiting for the device", err);
	for (int i = 0; i < l->layers && rc == 0; i++) {
		size_t at = (size_t)i * l->layer_floats, bytes = l->layer_floats * sizeof(float);

		if (cache->memory) {
			rc = cuda_check(cudaMemcpyAsync(slots->layer, cache->memory + at, bytes, cudaMemcpyDeviceToHost,
							slots->stream), "copying a cache out", err);
			if (rc == 0)
				rc = cuda_check(cudaStreamSynchronize(slots->stream), "copying a cache out", err);
		} else if (cache->host) {
			memcpy(slots->layer, cache->host + at, bytes);
		} else {
			memset(slots->layer, 0, bytes);
		}
		if (rc == 0)
			state += layer_export(l, cache->parity, slots->layer, state);
	}
	return rc;
}

/* Copy host to the slot of cache, or to a free one, if there is either. */
static int fill_slot(struct slots *slots, struct cache *cache, const float *host, struct error *err)
{
	float *memory = cache->memory ? cache->memory : slots->n_free > 0 ? slots->free_slots[slots->n_free - 1] : NULL;
	int rc;

	if (!memory)
		return 0;
	rc = cuda_check(cudaMemcpyAsync(memory, host, slots->bytes, cudaMemcpyHostToDevice, slots->stream),
			"copying a cache in", err);
	if (rc == 0)
		rc = cuda_check(cudaStreamSynchronize(slots->stream), "copying a cache in", err);
	if (rc == 0 && !cache->memory) {
		slots->n_free--;
		cache->memory = memory;
		list_append(slots, cache);
	}
	return rc;
}

int slots_import(struct slots *slots, struct cache *cache, const float *state, struct error *err)
{
	const struct layout *l = &slots->layout;
	float *host;
	int rc;

	pthread_mutex_lock(&slots->lock);
	rc = take_host(slots, &host, err);
	if (rc != 0)
		goto out;
	rc = cuda_check(cudaStreamSynchronize(slots->stream), "waiting for the device", err);
	if (rc == 0) {
		memset(host, 0, slots->bytes);
		for (int i = 0; i < l->layers; i++)
			state += layer_import(l, state, host + (size_t)i * l->layer_floats);
		rc = fill_slot(slots, cache, host, err);
	}
	if (rc == 0)
		cache->parity = 0;
	if (rc != 0 || cache->memory) {
		slots->spares[slots->n_spares++] = host;
		host = NULL;
	}
	if (rc == 0) {
		if (cache->host)
			slots->spares[slots->n_spares++] = cache->host;
		cache->host = host;
	}
out:
	pthread_mutex_unlock(&slots->lock);
	return rc;
}
