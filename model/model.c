/*
 * A model once it is there: freeing it, giving back its pages, reading tensors and looking up tokens.
 */
#include "model/model.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/model_storage.h"
#include "model/weights.h"

int model_new(const struct shape *shape, struct model **ret_model, struct error *err)
{
	struct model *model = calloc(1, sizeof *model);

	if (!model)
		return error_memory(err, "a model");
	model->shape = *shape;
	model->layers = calloc(shape->num_layers, sizeof *model->layers);
	model->storage = calloc(1, sizeof *model->storage);
	if (!model->layers || !model->storage) {
		model_free(model);
		return error_memory(err, "a model");
	}
	*ret_model = model;
	return 0;
}

void model_free(struct model *model)
{
	if (!model)
		return;
	if (model->storage) {
		checkpoint_close(model->storage->checkpoint);
		if (model->storage->memory)
			munmap(model->storage->memory, model->storage->size);
	}
	free(model->storage);
	free(model->layers);
	free(model);
}

/* Pages that the tensor shares with its neighbours stay. */
static void release_tensor(const struct tensor *tensor, uintptr_t page)
{
	uintptr_t begin = (uintptr_t)tensor->data, end = begin + tensor->n * dtype_size(tensor->dtype);

	begin = (begin + page - 1) / page * page;
	end = end / page * page;
	if (tensor->data && begin < end)
		madvise((void *)begin, end - begin, MADV_DONTNEED);
}

void model_release_pages(const struct model *model)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	struct weight weights[LAYER_WEIGHTS];

	if (!model->storage->checkpoint) /* random weights could not come back */
		return;
	weights_of_layer(&model->shape, weights);
	for (size_t i = 0; i < model->shape.num_layers; i++) {
		for (size_t j = 0; j < LAYER_WEIGHTS; j++)
			release_tensor(weight_tensor(&model->layers[i], &weights[j]), page);
	}
	release_tensor(&model->norm_f, page);
}

void tensor_widen(const struct tensor *tensor, float *dst, size_t n)
{
	if (tensor->data)
		dtype_widen(tensor->dtype, tensor->data, n, dst);
	else
		memset(dst, 0, n * sizeof *dst);
}

int model_embed(const struct model *model, enum dtype dtype, const void *tokens, size_t n, float *dst,
		struct error *err)
{
	const struct tensor *table = &model->embeddings;
	size_t columns = model->shape.hidden_size;
	size_t row_bytes = columns * dtype_size(table->dtype);

	if (!model->shape.vocab_size)
		return error_set(err, ERR_UNSUPPORTED, "token ids: the checkpoint has no embeddings");
	for (size_t i = 0; i < n; i++) {
		int64_t id = dtype_token(dtype, tokens, i);

		if ((uint64_t)id >= model->shape.vocab_size) /* negative ids too */
			return error_set(err, ERR_FORMAT, "token %zu is %lld: expected 0 to %zu", i, (long long)id,
					 model->shape.vocab_size - 1);
		if (!dtype_widen(table->dtype, (const char *)table->data + (size_t)id * row_bytes, columns,
				 dst + i * columns))
			return error_set(err, ERR_FORMAT, "token %zu is %lld: its embedding is not finite", i,
					 (long long)id);
	}
	return 0;
}
