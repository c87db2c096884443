/*
 * Reading safetensors files.  The header is hostile until checked: lengths are compared with what is left before they
 * are used, products are checked for overflow, and the tensors must cover the data exactly, without gap or overlap.
 */
#include "model/safetensors.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/file.h"
#include "model/jsondoc.h"

#define HEADER_MAX 100000000 /* bytes; the limit of the reference implementation */
#define METADATA_KEY "__metadata__"

struct safetensors {
	char *name; /* the path, for errors */
	const unsigned char *bytes;
	size_t size;
	bool mapped;
	struct jsondoc *header; /* owns all names */
	struct safetensor *tensors; /* [count], by name */
	size_t count;
};

/* Bytes of one number of the formats that exist beside those of enum dtype. */
static size_t format_size(const char *format)
{
	static const struct {
		const char *format;
		size_t size;
	} others[] = {
		{ "BOOL", 1 }, { "I8", 1 }, { "F8_E4M3", 1 }, { "F8_E5M2", 1 }, { "F8_E8M0", 1 }, { "I16", 2 },
		{ "I64", 8 }, { "U64", 8 }, { "F64", 8 }, { "C64", 8 },
	};

	for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
		if (!strcmp(format, others[i].format))
			return others[i].size;
	}
	return 0;
}

/* Names come from the file and may be long: errors show their beginning. */
static int bad_tensor(const struct safetensors *file, const struct safetensor *tensor, struct error *err,
		      const char *what)
{
	return error_set(err, ERR_FORMAT, "%.200s: tensor %.80s: %s", file->name, tensor->name, what);
}

static int parse_format(const struct safetensors *file, const struct jsondoc *info, struct safetensor *tensor,
			size_t *ret_itemsize, struct error *err)
{
	if (!jsondoc_string(jsondoc_get(info, "dtype"), &tensor->format))
		return bad_tensor(file, tensor, err, "dtype is missing or no string");
	tensor->has_dtype = dtype_find(tensor->format, strlen(tensor->format), &tensor->dtype) &&
			    !strcmp(tensor->format, dtype_safetensors_name(tensor->dtype));
	*ret_itemsize = tensor->has_dtype ? dtype_size(tensor->dtype) : format_size(tensor->format);
	if (!*ret_itemsize)
		return error_set(err, ERR_FORMAT, "%.200s: tensor %.80s: unknown dtype %.20s", file->name,
				 tensor->name, tensor->format);
	return 0;
}

static int parse_shape(const struct safetensors *file, const struct jsondoc *info, struct safetensor *tensor,
		       struct error *err)
{
	const struct jsondoc *shape = jsondoc_get(info, "shape");

	if (!jsondoc_is_array(shape))
		return bad_tensor(file, tensor, err, "shape is missing or no array");
	tensor->rank = jsondoc_length(shape);
	if (tensor->rank > SAFETENSORS_RANK_MAX)
		return error_set(err, ERR_FORMAT, "%.200s: tensor %.80s has %zu dimensions: expected at most %d",
				 file->name, tensor->name, tensor->rank, SAFETENSORS_RANK_MAX);
	tensor->n = 1;
	for (size_t i = 0; i < tensor->rank; i++) {
		if (!jsondoc_size(jsondoc_element(shape, i), &tensor->shape[i]))
			return bad_tensor(file, tensor, err, "shape: expected integers >= 0");
		if (__builtin_mul_overflow(tensor->n, tensor->shape[i], &tensor->n))
			return bad_tensor(file, tensor, err, "shape: the number of elements overflows");
	}
	return 0;
}

static int parse_offsets(const struct safetensors *file, const struct jsondoc *info, size_t itemsize,
			 const unsigned char *data, size_t data_size, struct safetensor *tensor, struct error *err)
{
	const struct jsondoc *offsets = jsondoc_get(info, "data_offsets");
	size_t begin, end, expected;

	if (jsondoc_length(offsets) != 2 || !jsondoc_size(jsondoc_element(offsets, 0), &begin) ||
	    !jsondoc_size(jsondoc_element(offsets, 1), &end))
		return bad_tensor(file, tensor, err, "data_offsets: expected two integers >= 0");
	if (begin > end)
		return error_set(err, ERR_FORMAT, "%.200s: tensor %.80s: data_offsets [%zu, %zu] end before they begin",
				 file->name, tensor->name, begin, end);
	if (end > data_size)
		return error_set(err, ERR_FORMAT, "%.200s: tensor %.80s is truncated: it ends at byte %zu of the data, "
				 "the file has %zu", file->name, tensor->name, end, data_size);
	if (__builtin_mul_overflow(tensor->n, itemsize, &expected) || end - begin != expected)
		return error_set(err, ERR_FORMAT, "%.200s: tensor %.80s has %zu bytes: "
				 "expected %zu numbers of %zu bytes as its shape says",
				 file->name, tensor->name, end - begin, tensor->n, itemsize);
	tensor->data = data + begin;
	tensor->size = end - begin;
	return 0;
}

static int parse_tensors(struct safetensors *file, size_t data_offset, struct error *err)
{
	const unsigned char *data = file->bytes + data_offset;

	for (void *at = jsondoc_first(file->header); at; at = jsondoc_next(file->header, at)) {
		struct safetensor *tensor = &file->tensors[file->count];
		const struct jsondoc *info = jsondoc_value(at);
		size_t itemsize;
		int rc;

		tensor->name = jsondoc_key(at);
		if (!strcmp(tensor->name, METADATA_KEY))
			continue;
		if (!jsondoc_is_object(info))
			return bad_tensor(file, tensor, err, "expected an object with dtype, shape and data_offsets");
		rc = parse_format(file, info, tensor, &itemsize, err);
		if (!rc)
			rc = parse_shape(file, info, tensor, err);
		if (!rc)
			rc = parse_offsets(file, info, itemsize, data, file->size - data_offset, tensor, err);
		if (rc)
			return rc;
		file->count++;
	}
	return 0;
}

static int by_offset(const void *left, const void *right)
{
	const struct safetensor *a = left, *b = right;
	uintptr_t begin_a = (uintptr_t)a->data, begin_b = (uintptr_t)b->data;

	if (begin_a != begin_b)
		return begin_a < begin_b ? -1 : 1;
	return (a->size > b->size) - (a->size < b->size); /* empty ones first */
}

static int by_name(const void *left, const void *right)
{
	const struct safetensor *a = left, *b = right;

	return strcmp(a->name, b->name);
}

/* The tensors must follow each other without gap or overlap, from the first byte of the data to the last. */
static int check_cover(struct safetensors *file, size_t data_offset, struct error *err)
{
	const unsigned char *data = file->bytes + data_offset;
	size_t covered = 0;

	qsort(file->tensors, file->count, sizeof *file->tensors, by_offset);
	for (size_t i = 0; i < file->count; i++) {
		const struct safetensor *tensor = &file->tensors[i];
		size_t begin = (size_t)((const unsigned char *)tensor->data - data);

		if (begin < covered)
			return error_set(err, ERR_FORMAT, "%.200s: tensors %.60s and %.60s overlap", file->name,
					 tensor[-1].name, tensor->name);
		if (begin > covered)
			return error_set(err, ERR_FORMAT, "%.200s: %zu bytes before tensor %.80s belong to no tensor",
					 file->name, begin - covered, tensor->name);
		covered = begin + tensor->size;
	}
	if (covered != file->size - data_offset)
		return error_set(err, ERR_FORMAT, "%.200s: %zu bytes after the last tensor belong to no tensor",
				 file->name, file->size - data_offset - covered);
	return 0;
}

static int check_metadata(const struct safetensors *file, struct error *err)
{
	const struct jsondoc *metadata = jsondoc_get(file->header, METADATA_KEY);
	const char *string;

	if (metadata && !jsondoc_is_object(metadata))
		return error_set(err, ERR_FORMAT, "%.200s: %s: expected an object", file->name, METADATA_KEY);
	for (void *at = metadata ? jsondoc_first(metadata) : NULL; at; at = jsondoc_next(metadata, at)) {
		if (!jsondoc_string(jsondoc_value(at), &string))
			return error_set(err, ERR_FORMAT, "%.200s: %s: %.80s: expected a string", file->name,
					 METADATA_KEY, jsondoc_key(at));
	}
	return 0;
}

/* Find the header's length and check it against the file's. */
static int header_length(const struct safetensors *file, size_t *ret_length, struct error *err)
{
	uint64_t length = 0;

	if (file->size < 8)
		return error_set(err, ERR_FORMAT, "%.200s has %zu bytes: too short for a safetensors file", file->name,
				 file->size);
	for (int i = 7; i >= 0; i--)
		length = length << 8 | file->bytes[i];
	if (length > HEADER_MAX)
		return error_set(err, ERR_FORMAT, "%.200s: a header of %llu bytes: expected at most %d; "
				 "this is no safetensors file", file->name, (unsigned long long)length, HEADER_MAX);
	if (length > file->size - 8)
		return error_set(err, ERR_FORMAT, "%.200s is truncated: its header has %llu bytes, the file %zu",
				 file->name, (unsigned long long)length, file->size);
	*ret_length = (size_t)length;
	return 0;
}

static int parse_header(struct safetensors *file, struct error *err)
{
	struct error why;
	size_t length = 0;
	int rc = header_length(file, &length, err);

	if (rc)
		return rc;
	rc = jsondoc_parse((const char *)file->bytes + 8, length, false, &file->header, &why);
	if (rc)
		return error_set(err, rc, "%.200s: header: %.160s", file->name, why.text);
	file->tensors = calloc(jsondoc_members(file->header) + 1, sizeof *file->tensors);
	if (!file->tensors)
		return error_memory(err, "a list of tensors");
	rc = check_metadata(file, err);
	if (!rc)
		rc = parse_tensors(file, 8 + length, err);
	if (!rc)
		rc = check_cover(file, 8 + length, err);
	if (!rc)
		qsort(file->tensors, file->count, sizeof *file->tensors, by_name);
	return rc;
}

static int parse(const void *bytes, size_t size, bool mapped, const char *name, struct safetensors **ret_file,
		 struct error *err)
{
	struct safetensors *file = calloc(1, sizeof *file);
	int rc;

	if (!file || !(file->name = strdup(name))) {
		free(file);
		return error_memory(err, "a safetensors file");
	}
	file->bytes = bytes;
	file->size = size;
	rc = parse_header(file, err);
	if (rc) {
		safetensors_close(file);
		return rc;
	}
	file->mapped = mapped;
	*ret_file = file;
	return 0;
}

int safetensors_parse(const void *bytes, size_t size, const char *name, struct safetensors **ret_file,
		      struct error *err)
{
	return parse(bytes, size, false, name, ret_file, err);
}

int safetensors_open(const char *path, struct safetensors **ret_file, struct error *err)
{
	const void *bytes = NULL;
	size_t size = 0;
	int rc = file_map(path, &bytes, &size, err);

	if (rc)
		return rc;
	rc = parse(bytes, size, true, path, ret_file, err);
	if (rc)
		file_unmap(bytes, size);
	return rc;
}

void safetensors_close(struct safetensors *file)
{
	if (!file)
		return;
	if (file->mapped)
		file_unmap(file->bytes, file->size);
	jsondoc_free(file->header);
	free(file->tensors);
	free(file->name);
	free(file);
}

const struct safetensor *safetensors_find(const struct safetensors *file, const char *name)
{
	struct safetensor key = { .name = name };

	return bsearch(&key, file->tensors, file->count, sizeof *file->tensors, by_name);
}

size_t safetensors_count(const struct safetensors *file)
{
	return file->count;
}

const struct safetensor *safetensors_at(const struct safetensors *file, size_t i)
{
	return &file->tensors[i];
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
	const char *value = NULL;

	jsondoc_string(jsondoc_get(jsondoc_get(file->header, METADATA_KEY), key), &value);
	return value;
}

const void *safetensors_bytes(const struct safetensors *file, size_t *ret_size)
{
	*ret_size = file->size;
	return file->bytes;
}
