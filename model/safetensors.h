/*
 * Safetensors files: eight bytes of header length, a JSON header that lists the tensors, then their bytes.
 * https://huggingface.co/docs/safetensors - checkpoints and state files are of this format.
 *
 * A file is read by mapping it into memory and checking all of its header at once: what safetensors_find returns can
 * be relied on.  A file that shrinks while it is mapped raises SIGBUS, as every mapped file does.
 */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>

#include "model/dtype.h"
#include "model/error.h"

#define SAFETENSORS_RANK_MAX 8

struct safetensors;

struct safetensor {
	const char *name;
	const char *format;  /* as the file spells it: "F32" */
	bool has_dtype;      /* false: a format that is not in enum dtype ("I64", "F8_E4M3", ...) */
	enum dtype dtype;
	size_t rank;
	size_t shape[SAFETENSORS_RANK_MAX];
	size_t n;            /* numbers: the product of shape */
	const void *data;    /* of any alignment */
	size_t size;         /* bytes */
};

/* Map and check the file at path.  Errors name the path and the tensor.  Close with safetensors_close. */
int safetensors_open(const char *path, struct safetensors **ret_file, struct error *err);

/* The same for bytes [size] in memory, which must outlive the result; name stands for the path in errors. */
int safetensors_parse(const void *bytes, size_t size, const char *name, struct safetensors **ret_file,
		      struct error *err);

void safetensors_close(struct safetensors *file); /* NULL is fine */

/* The tensor of this name; NULL if there is none. */
const struct safetensor *safetensors_find(const struct safetensors *file, const char *name);

/* Tensors in the order of their names: i from 0 to safetensors_count - 1. */
size_t safetensors_count(const struct safetensors *file);
const struct safetensor *safetensors_at(const struct safetensors *file, size_t i);

/* A string of the header's metadata; NULL if there is none. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);

/* The file's bytes: header and tensors. */
const void *safetensors_bytes(const struct safetensors *file, size_t *ret_size);

/* What to write: the tensors follow the header in this order, without gaps; their data is not needed for it. */
struct safetensors_entry {
	const char *name; /* UTF-8 */
	enum dtype dtype;
	size_t rank;
	size_t shape[SAFETENSORS_RANK_MAX];
};

struct safetensors_string {
	const char *key, *value; /* UTF-8 */
};

#define SAFETENSORS_BLOCK 4096

/*
 * Make the header of a file of these tensors and metadata, its length included; padded with spaces to a whole number
 * of blocks, so that the data can be written past the page cache and mapped.  Free it with free.  ERR_ARGUMENT for a
 * name that is not UTF-8.
 */
int safetensors_header(const struct safetensors_entry *entries, size_t n_entries,
		       const struct safetensors_string *metadata, size_t n_metadata,
		       void **ret_header, size_t *ret_size, struct error *err);

#endif
