/*
 * What the rows and the hidden states of a window lie in: a block is one piece of the device's host memory, its parts
 * one behind the other.
 */
#include "daemon/server.h"

/* Where the parts of a struct block begin, in bytes, and where the last one ends. */
struct block_parts {
	size_t position, dtype, rows, end;
};

static struct block_parts block_parts(const struct server *server)
{
	const size_t window = server->config->window;
	struct block_parts parts = { .position = pool_part(sizeof(struct block)) };

	parts.dtype = parts.position + pool_part(window * sizeof(uint64_t));
	parts.rows = parts.dtype + pool_part(window * sizeof(enum dtype));
	parts.end = parts.rows + window * server->model->shape.hidden_size * sizeof(float);
	return parts;
}

/* The same of a struct hidden. */
struct hidden_parts {
	size_t position, data, end;
};

static struct hidden_parts hidden_parts(const struct server *server)
{
	const size_t window = server->config->window, outputs = server->config->output.n_outputs;
	struct hidden_parts parts = { .position = pool_part(sizeof(struct hidden)) };

	parts.data = parts.position + pool_part(window * sizeof(uint64_t));
	parts.end = parts.data + outputs * window * server->model->shape.hidden_size * server->itemsize;
	return parts;
}

int blocks_open(struct server *server, struct error *err)
{
	struct device *device = server->lanes[0].device; /* its memory serves all that are like it */
	int rc = pool_new(device, block_parts(server).end, &server->blocks, err);

	return rc ? rc : pool_new(device, hidden_parts(server).end, &server->hiddens, err);
}

void blocks_free(struct server *server)
{
	pool_free(server->blocks);
	pool_free(server->hiddens);
}

size_t blocks_bytes(const struct server *server)
{
	return pool_bytes(server->blocks) + pool_bytes(server->hiddens);
}

struct block *block_take(struct server *server)
{
	const struct block_parts parts = block_parts(server);
	struct block *block = pool_take(server->blocks);
	char *memory = (char *)block;

	if (block)
		*block = (struct block){
			.position = (uint64_t *)(void *)(memory + parts.position),
			.dtype = (enum dtype *)(void *)(memory + parts.dtype),
			.rows = (float *)(void *)(memory + parts.rows),
		};
	return block;
}

void block_give(struct server *server, struct block *block)
{
	pool_give(server->blocks, block);
}

struct hidden *hidden_take(struct server *server, uint64_t first, size_t rows)
{
	const struct hidden_parts parts = hidden_parts(server);
	struct hidden *hidden = pool_take(server->hiddens);
	char *memory = (char *)hidden;

	if (!hidden)
		return NULL;
	*hidden = (struct hidden){
		.pool = server->hiddens,
		.first = first,
		.end = rows,
		.position = (uint64_t *)(void *)(memory + parts.position),
		.data = (unsigned char *)memory + parts.data,
	};
	atomic_init(&hidden->refs, 1);
	return hidden;
}

void hidden_release(struct hidden *hidden)
{
	if (atomic_fetch_sub_explicit(&hidden->refs, 1, memory_order_acq_rel) == 1)
		pool_give(hidden->pool, hidden);
}
