/* Made-up checkpoints: see draft.h. */
#include "tests/draft.h"

#include <check.h>
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/file.h"
#include "tests/golden.h"

void draft_begin(struct draft *draft, const char *golden_case)
{
	char *path = golden_path(golden_case, "model.safetensors");
	struct error err;

	*draft = (struct draft){ .folder = "/tmp/mamba2d-draft.XXXXXX" };
	ck_assert_ptr_nonnull(mkdtemp(draft->folder));
	ck_assert_msg(!safetensors_open(path, &draft->source, &err), "%s", err.text);
	free(path);
	for (size_t i = 0; i < safetensors_count(draft->source); i++) {
		const struct safetensor *tensor = safetensors_at(draft->source, i);
		struct safetensors_entry entry = { .name = tensor->name, .dtype = tensor->dtype,
						   .rank = tensor->rank };

		memcpy(entry.shape, tensor->shape, sizeof entry.shape);
		draft_add(draft, &entry, tensor->data);
	}
}

void draft_end(struct draft *draft)
{
	DIR *folder = opendir(draft->folder);
	struct dirent *entry;

	ck_assert_ptr_nonnull(folder);
	while ((entry = readdir(folder)))
		unlinkat(dirfd(folder), entry->d_name, 0);
	closedir(folder);
	rmdir(draft->folder);
	safetensors_close(draft->source);
}

struct safetensors_entry *draft_entry(struct draft *draft, const char *name)
{
	for (size_t i = 0; i < draft->n; i++) {
		if (!strcmp(draft->entries[i].name, name))
			return &draft->entries[i];
	}
	ck_abort_msg("no tensor %s", name);
}

void draft_remove(struct draft *draft, const char *name)
{
	size_t at = (size_t)(draft_entry(draft, name) - draft->entries);

	draft->n--;
	memmove(&draft->entries[at], &draft->entries[at + 1], (draft->n - at) * sizeof *draft->entries);
	memmove(&draft->data[at], &draft->data[at + 1], (draft->n - at) * sizeof *draft->data);
}

void draft_add(struct draft *draft, const struct safetensors_entry *entry, const void *data)
{
	ck_assert_uint_lt(draft->n, DRAFT_TENSORS);
	draft->entries[draft->n] = *entry;
	draft->data[draft->n++] = data;
}

void draft_prefix(struct draft *draft, const char *prefix)
{
	for (size_t i = 0; i < draft->n; i++) {
		snprintf(draft->names[i], sizeof draft->names[i], "%s%s", prefix, draft->entries[i].name);
		draft->entries[i].name = draft->names[i];
	}
}

static FILE *create(const struct draft *draft, const char *file)
{
	char path[200];
	FILE *out;

	snprintf(path, sizeof path, "%s/%s", draft->folder, file);
	out = fopen(path, "w");
	ck_assert_ptr_nonnull(out);
	return out;
}

static size_t entry_bytes(const struct safetensors_entry *entry)
{
	size_t size = dtype_size(entry->dtype);

	for (size_t i = 0; i < entry->rank; i++)
		size *= entry->shape[i];
	return size;
}

void draft_write(const struct draft *draft, const char *file, size_t first, size_t end, size_t misalign)
{
	FILE *out = create(draft, file);
	struct error err;
	uint64_t length;
	void *header;
	size_t size;

	ck_assert_msg(!safetensors_header(draft->entries + first, end - first, NULL, 0, &header, &size, &err), "%s",
		      err.text);
	length = size - 8 + misalign;
	fwrite(&length, sizeof length, 1, out);
	fwrite((char *)header + 8, 1, size - 8, out);
	fprintf(out, "%*s", (int)misalign, "");
	for (size_t i = first; i < end; i++)
		fwrite(draft->data[i], 1, entry_bytes(&draft->entries[i]), out);
	ck_assert_int_eq(fclose(out), 0);
	free(header);
}

void draft_write_shards(const struct draft *draft)
{
	const size_t ends[] = { 0, 5, 6, draft->n };
	FILE *index = create(draft, "model.safetensors.index.json");

	fprintf(index, "{\"metadata\": {}, \"weight_map\": {");
	for (size_t i = 1; i < 4; i++) {
		char name[16];

		snprintf(name, sizeof name, "part-%zu", i);
		draft_write(draft, name, ends[i - 1], ends[i], 0);
		for (size_t j = ends[i - 1]; j < ends[i]; j++)
			fprintf(index, "%s\"%s\": \"%s\"", j ? ", " : "", draft->entries[j].name, name);
	}
	fprintf(index, "}}");
	ck_assert_int_eq(fclose(index), 0);
}

void draft_write_text(const struct draft *draft, const char *file, const char *text)
{
	FILE *out = create(draft, file);

	fputs(text, out);
	ck_assert_int_eq(fclose(out), 0);
}

void draft_copy_text(const struct draft *draft, const char *golden_case, const char *file, const char *from,
		     const char *to)
{
	char *path = golden_path(golden_case, file), *text, *at;
	FILE *out = create(draft, file);
	struct error err;
	size_t length;

	ck_assert_msg(!file_read(path, 1 << 20, &text, &length, &err), "%s", err.text);
	text[length] = 0;
	at = from ? strstr(text, from) : text;
	ck_assert_ptr_nonnull(at);
	fprintf(out, "%.*s%s%s", (int)(at - text), text, from ? to : "", at + (from ? strlen(from) : 0));
	ck_assert_int_eq(fclose(out), 0);
	free(text);
	free(path);
}
