/*
 * The safetensors files of a checkpoint folder, mapped, as one set of tensors.
 */
#ifndef MODEL_CHECKPOINT_H
#define MODEL_CHECKPOINT_H

#include <stddef.h>

#include "model/error.h"
#include "model/safetensors.h"

struct checkpoint;

/*
 * Open model.safetensors in folder, or else the shards that model.safetensors.index.json lists, or else
 * consolidated.safetensors.  A name that is in two shards, or not in the shard that the index says, is an error.
 */
int checkpoint_open(const char *folder, struct checkpoint **ret_checkpoint, struct error *err);
void checkpoint_close(struct checkpoint *checkpoint); /* NULL is fine */

/* The tensor of this name; NULL if there is none. */
const struct safetensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);

/* Tensors in the order of their names: i from 0 to checkpoint_count - 1. */
size_t checkpoint_count(const struct checkpoint *checkpoint);
const struct safetensor *checkpoint_at(const struct checkpoint *checkpoint, size_t i);

#endif
