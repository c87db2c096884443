/*
 * What lies behind a struct model: where its weights' memory comes from.
 */
#ifndef MODEL_MODEL_STORAGE_H
#define MODEL_MODEL_STORAGE_H

#include <stddef.h>

#include "model/checkpoint.h"
#include "model/model.h"

struct model_storage {
	struct checkpoint *checkpoint; /* weights in mapped files; NULL for random ones */
	void *memory;                  /* random weights: an anonymous mapping of size bytes; NULL for files */
	size_t size;
};

/* A model of this shape (derived) whose tensors are all absent.  Free it with model_free. */
int model_new(const struct shape *shape, struct model **ret_model, struct error *err);

#endif
