/*
 * Writing the header of a safetensors file.  The caller writes the tensors' bytes behind it in the same order.
 */
#include "model/safetensors.h"

#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>

#include "model/jsondoc.h"

static int write_quoted(FILE *out, const char *string, struct error *err)
{
	char *quoted = jsondoc_quote(string);

	if (!quoted)
		return error_set(err, ERR_ARGUMENT, "safetensors header: %.80s is not UTF-8", string);
	fputs(quoted, out);
	free(quoted);
	return 0;
}

static int write_metadata(FILE *out, const struct safetensors_string *metadata, size_t n, struct error *err)
{
	fputs("{\"__metadata__\":{", out);
	for (size_t i = 0; i < n; i++) {
		int rc;

		fputs(i ? "," : "", out);
		rc = write_quoted(out, metadata[i].key, err);
		fputc(':', out);
		if (!rc)
			rc = write_quoted(out, metadata[i].value, err);
		if (rc)
			return rc;
	}
	fputc('}', out);
	return 0;
}

static int write_entries(FILE *out, const struct safetensors_entry *entries, size_t n, struct error *err)
{
	size_t offset = 0;

	for (size_t i = 0; i < n; i++) {
		size_t begin = offset, size = dtype_size(entries[i].dtype);
		int rc;

		fputc(',', out);
		rc = write_quoted(out, entries[i].name, err);
		if (rc)
			return rc;
		fprintf(out, ":{\"dtype\":\"%s\",\"shape\":[", dtype_safetensors_name(entries[i].dtype));
		for (size_t j = 0; j < entries[i].rank; j++) {
			fprintf(out, j ? ",%zu" : "%zu", entries[i].shape[j]);
			size *= entries[i].shape[j];
		}
		offset += size;
		fprintf(out, "],\"data_offsets\":[%zu,%zu]}", begin, offset);
	}
	fputc('}', out);
	return 0;
}

/* Close the stream, whose text begins with eight bytes of room for the header's length, and fill that in. */
static int finish(FILE *out, char **text, const size_t *size, struct error *err)
{
	long used = ftell(out);
	bool failed;

	fprintf(out, "%*s", (int)((SAFETENSORS_BLOCK - used % SAFETENSORS_BLOCK) % SAFETENSORS_BLOCK), "");
	failed = ferror(out);
	if (fclose(out) || failed)
		return error_memory(err, "a safetensors header");
	for (int i = 0; i < 8; i++)
		(*text)[i] = (char)((uint64_t)(*size - 8) >> 8 * i);
	return 0;
}

int safetensors_header(const struct safetensors_entry *entries, size_t n_entries,
		       const struct safetensors_string *metadata, size_t n_metadata,
		       void **ret_header, size_t *ret_size, struct error *err)
{
	static const char length[8];
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);
	int rc, rc_finish;

	if (!out)
		return error_memory(err, "a safetensors header");
	fwrite(length, 1, sizeof length, out);
	rc = write_metadata(out, metadata, n_metadata, err);
	if (!rc)
		rc = write_entries(out, entries, n_entries, err);
	rc_finish = finish(out, &text, &size, rc ? NULL : err);
	if (rc || rc_finish) {
		free(text);
		return rc ? rc : rc_finish;
	}
	*ret_header = text;
	*ret_size = size;
	return 0;
}
