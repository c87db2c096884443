/* A pool of equal blocks: see pool.h.  ZeroMQ's I/O threads give blocks back, hence the lock. */
#include "daemon/pool.h"

#include <pthread.h>
#include <stdlib.h>

#define SLAB_BYTES ((size_t)1 << 20)
#define LEFT_BYTES ((size_t)8 << 20)

struct free_block {
	struct free_block *next;
};

struct slab {
	struct slab *next;
	void *memory;
};

struct pool {
	pthread_mutex_t lock;
	struct device *device;
	struct free_block *free;
	struct slab *slabs;
	size_t block_bytes, blocks_per_slab, bytes;
};

int pool_new(struct device *device, size_t block_bytes, struct pool **ret_pool, struct error *err)
{
	struct pool *pool = calloc(1, sizeof *pool);

	if (!pool)
		return error_memory(err, "pool of blocks");
	pool->device = device;
	pool->block_bytes = pool_part(block_bytes);
	pool->blocks_per_slab = pool->block_bytes < SLAB_BYTES ? SLAB_BYTES / pool->block_bytes : 1;
	pthread_mutex_init(&pool->lock, NULL);
	*ret_pool = pool;
	return 0;
}

void pool_free(struct pool *pool)
{
	if (!pool)
		return;
	while (pool->slabs) {
		struct slab *slab = pool->slabs;

		pool->slabs = slab->next;
		pool->device->backend->host_free(pool->device, slab->memory);
		free(slab);
	}
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

bool pool_leaves_enough(void)
{
	void *volatile memory = malloc(LEFT_BYTES); /* volatile: not to be optimized away */
	const bool enough = memory != NULL;

	free(memory);
	return enough;
}

/* Add a slab's blocks to the free list; the lock is held. */
static void pool_grow(struct pool *pool)
{
	size_t bytes = pool->block_bytes * pool->blocks_per_slab;
	struct slab *slab = pool_leaves_enough() ? malloc(sizeof *slab) : NULL;

	if (!slab)
		return;
	slab->memory = pool->device->backend->host_alloc(pool->device, bytes);
	if (!slab->memory) {
		free(slab);
		return;
	}
	slab->next = pool->slabs;
	pool->slabs = slab;
	pool->bytes += bytes;
	for (size_t i = pool->blocks_per_slab; i-- > 0;) {
		struct free_block *block = (struct free_block *)(void *)((char *)slab->memory + i * pool->block_bytes);

		block->next = pool->free;
		pool->free = block;
	}
}

void *pool_take(struct pool *pool)
{
	struct free_block *block;

	pthread_mutex_lock(&pool->lock);
	if (!pool->free)
		pool_grow(pool);
	block = pool->free;
	if (block)
		pool->free = block->next;
	pthread_mutex_unlock(&pool->lock);
	return block;
}

void pool_give(struct pool *pool, void *memory)
{
	struct free_block *block = memory;

	pthread_mutex_lock(&pool->lock);
	block->next = pool->free;
	pool->free = block;
	pthread_mutex_unlock(&pool->lock);
}

size_t pool_bytes(struct pool *pool)
{
	size_t bytes;

	pthread_mutex_lock(&pool->lock);
	bytes = pool->bytes;
	pthread_mutex_unlock(&pool->lock);
	return bytes;
}
