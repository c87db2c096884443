/*
 * The files of a checkpoint: one, or the shards of an index.  The index is only a list of files: every tensor is found
 * by looking into them, and the index is held to what they contain.
 */
#include "model/checkpoint.h"

#include <stdlib.h>
#include <string.h>

#include "model/file.h"
#include "model/jsondoc.h"

#define SHARDS_MAX 4096
#define WHOLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define MISTRAL "consolidated.safetensors"

struct shard {
	char *name; /* within the folder */
	struct safetensors *file;
};

struct checkpoint {
	struct shard *shards; /* [n_shards] */
	size_t n_shards;
	const struct safetensor **tensors; /* [count], by name */
	size_t count;
};

static int add_shard(struct checkpoint *checkpoint, const char *folder, const char *name, struct error *err)
{
	struct shard *grown, *shard;
	char path[FILE_PATH];
	int rc = file_path(folder, name, path, err);

	if (rc)
		return rc;
	if (checkpoint->n_shards == SHARDS_MAX)
		return error_set(err, ERR_FORMAT, "%.200s: more than %d shards", folder, SHARDS_MAX);
	grown = realloc(checkpoint->shards, (checkpoint->n_shards + 1) * sizeof *grown);
	if (!grown)
		return error_memory(err, "a list of shards");
	checkpoint->shards = grown;
	shard = &grown[checkpoint->n_shards++];
	*shard = (struct shard){ .name = strdup(name) };
	if (!shard->name)
		return error_memory(err, "a list of shards");
	return safetensors_open(path, &shard->file, err);
}

static struct shard *find_shard(const struct checkpoint *checkpoint, const char *name)
{
	for (size_t i = 0; i < checkpoint->n_shards; i++) {
		if (!strcmp(checkpoint->shards[i].name, name))
			return &checkpoint->shards[i];
	}
	return NULL;
}

/* One entry of the index: tensor is in the file called name. */
static int add_index_entry(struct checkpoint *checkpoint, const char *folder, const char *tensor,
			   const struct jsondoc *value, struct error *err)
{
	const char *name;
	struct shard *shard;

	if (!jsondoc_string(value, &name) || !*name || strchr(name, '/'))
		return error_set(err, ERR_FORMAT, "weight_map: %.80s: expected the name of a file in the same folder",
				 tensor);
	if (!find_shard(checkpoint, name)) {
		int rc = add_shard(checkpoint, folder, name, err);

		if (rc)
			return rc;
	}
	shard = find_shard(checkpoint, name);
	if (!safetensors_find(shard->file, tensor))
		return error_set(err, ERR_FORMAT, "tensor %.80s is missing: expected in %.80s as the index says",
				 tensor, name);
	return 0;
}

static int add_index(struct checkpoint *checkpoint, const char *folder, const char *path, struct error *err)
{
	const struct jsondoc *map;
	struct jsondoc *root;
	struct error why;
	int rc = jsondoc_read(path, &root, err);

	if (rc)
		return rc;
	map = jsondoc_get(root, "weight_map");
	if (!jsondoc_members(map))
		rc = error_set(&why, ERR_FORMAT, "weight_map: expected an object from tensors to files");
	for (void *at = jsondoc_first(map); at && !rc; at = jsondoc_next(map, at))
		rc = add_index_entry(checkpoint, folder, jsondoc_key(at), jsondoc_value(at), &why);
	if (rc)
		error_set(err, rc, "%.180s: %.200s", path, why.text);
	jsondoc_free(root);
	return rc;
}

static int add_files(struct checkpoint *checkpoint, const char *folder, struct error *err)
{
	char whole[FILE_PATH], index[FILE_PATH], mistral[FILE_PATH];
	int rc = file_path(folder, WHOLE, whole, err);

	if (!rc)
		rc = file_path(folder, INDEX, index, err);
	if (!rc)
		rc = file_path(folder, MISTRAL, mistral, err);
	if (rc)
		return rc;
	if (file_exists(whole))
		return add_shard(checkpoint, folder, WHOLE, err);
	if (file_exists(index))
		return add_index(checkpoint, folder, index, err);
	if (file_exists(mistral))
		return add_shard(checkpoint, folder, MISTRAL, err);
	return error_set(err, ERR_FORMAT, "%.200s: no weights: expected " WHOLE " or " INDEX, folder);
}

static int by_name(const void *left, const void *right)
{
	const struct safetensor *const *a = left, *const *b = right;

	return strcmp((*a)->name, (*b)->name);
}

static int list_tensors(struct checkpoint *checkpoint, const char *folder, struct error *err)
{
	size_t count = 0;

	for (size_t i = 0; i < checkpoint->n_shards; i++)
		count += safetensors_count(checkpoint->shards[i].file);
	checkpoint->tensors = calloc(count + 1, sizeof *checkpoint->tensors);
	if (!checkpoint->tensors)
		return error_memory(err, "a list of tensors");
	for (size_t i = 0; i < checkpoint->n_shards; i++) {
		for (size_t j = 0; j < safetensors_count(checkpoint->shards[i].file); j++)
			checkpoint->tensors[checkpoint->count++] = safetensors_at(checkpoint->shards[i].file, j);
	}
	qsort(checkpoint->tensors, count, sizeof *checkpoint->tensors, by_name);
	for (size_t i = 1; i < count; i++) {
		if (!strcmp(checkpoint->tensors[i - 1]->name, checkpoint->tensors[i]->name))
			return error_set(err, ERR_FORMAT, "%.200s: tensor %.80s is in two files", folder,
					 checkpoint->tensors[i]->name);
	}
	return 0;
}

int checkpoint_open(const char *folder, struct checkpoint **ret_checkpoint, struct error *err)
{
	struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
	int rc;

	if (!checkpoint)
		return error_memory(err, "a checkpoint");
	rc = add_files(checkpoint, folder, err);
	if (!rc)
		rc = list_tensors(checkpoint, folder, err);
	if (rc) {
		checkpoint_close(checkpoint);
		return rc;
	}
	*ret_checkpoint = checkpoint;
	return 0;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
	if (!checkpoint)
		return;
	for (size_t i = 0; i < checkpoint->n_shards; i++) {
		safetensors_close(checkpoint->shards[i].file);
		free(checkpoint->shards[i].name);
	}
	free(checkpoint->shards);
	free(checkpoint->tensors);
	free(checkpoint);
}

const struct safetensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name)
{
	const struct safetensor key = { .name = name }, *const at = &key;
	const struct safetensor **found = bsearch(&at, checkpoint->tensors, checkpoint->count,
						  sizeof *checkpoint->tensors, by_name);

	return found ? *found : NULL;
}

size_t checkpoint_count(const struct checkpoint *checkpoint)
{
	return checkpoint->count;
}

const struct safetensor *checkpoint_at(const struct checkpoint *checkpoint, size_t i)
{
	return checkpoint->tensors[i];
}
