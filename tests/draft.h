/*
 * A checkpoint being made up by a test: a golden case to change and write out again.
 */
#ifndef TESTS_DRAFT_H
#define TESTS_DRAFT_H

#include <stddef.h>

#include "model/safetensors.h"

#define DRAFT_TENSORS 64

struct draft {
	char folder[64];              /* a temporary one */
	struct safetensors *source;   /* of the golden case */
	struct safetensors_entry entries[DRAFT_TENSORS];
	const void *data[DRAFT_TENSORS];
	size_t n;
	char names[DRAFT_TENSORS][64]; /* of renamed ones */
};

/* Begin with the golden case, which has one model.safetensors; draft_end removes the folder and all in it. */
void draft_begin(struct draft *draft, const char *golden_case);
void draft_end(struct draft *draft);

/* The entry with this name. */
struct safetensors_entry *draft_entry(struct draft *draft, const char *name);
void draft_remove(struct draft *draft, const char *name);
void draft_add(struct draft *draft, const struct safetensors_entry *entry, const void *data);

/* Put prefix before every name. */
void draft_prefix(struct draft *draft, const char *prefix);

/* Write entries first to end - 1 to a file in the folder, with misalign spaces more in the header. */
void draft_write(const struct draft *draft, const char *file, size_t first, size_t end, size_t misalign);

/* Write part-1 (entries 0 to 4), part-2 (entry 5) and part-3 (the rest), and model.safetensors.index.json. */
void draft_write_shards(const struct draft *draft);

/* Write text to a file in the folder. */
void draft_write_text(const struct draft *draft, const char *file, const char *text);

/* Copy the golden case's file, with the first occurrence of from (if not NULL) replaced by to. */
void draft_copy_text(const struct draft *draft, const char *golden_case, const char *file, const char *from,
		     const char *to);

#endif
