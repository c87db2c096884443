/*
 * Blocks of one size, cut from slabs of the device's host memory (page-locked where that helps) and reused: what rows
 * and hidden states of a window lie in.  Nothing goes back to the system before pool_free.
 */
#ifndef DAEMON_POOL_H
#define DAEMON_POOL_H

#include <stdbool.h>
#include <stddef.h>

#include "model/device.h"

struct pool;

/* Bytes of a block's part, up to where the next part may begin: at a cache line. */
static inline size_t pool_part(size_t bytes)
{
	return (bytes + 63) / 64 * 64;
}

/* A pool of blocks of block_bytes.  Errors: ERR_MEMORY. */
int pool_new(struct device *device, size_t block_bytes, struct pool **ret_pool, struct error *err);
void pool_free(struct pool *pool); /* all blocks must be back; NULL is fine */

/* Take a block, uninitialised; NULL when out of memory.  Any thread. */
void *pool_take(struct pool *pool);
void pool_give(struct pool *pool, void *block); /* any thread */

/* Bytes held from the system. */
size_t pool_bytes(struct pool *pool);

/*
 * Would a few MiB be left for everybody else?  To be asked before taking much for a stream: it can be refused, whereas
 * ZeroMQ ends the process when it gets no memory for a message.
 */
bool pool_leaves_enough(void);

#endif
