/* A safetensors file from anywhere: no crash, and every tensor of one that was accepted lies within its bytes. */
#include <string.h>

#include "model/safetensors.h"
#include "tests/fuzz.h"

static void look_at(const struct safetensors *file, const struct safetensor *tensor, const uint8_t *data, size_t size)
{
	const uint8_t *first = tensor->data;
	size_t n = 1;

	must(safetensors_find(file, tensor->name) == tensor);
	must(tensor->rank <= SAFETENSORS_RANK_MAX);
	for (size_t i = 0; i < tensor->rank; i++)
		n *= tensor->shape[i];
	must(n == tensor->n);
	must(!tensor->has_dtype || tensor->size == n * dtype_size(tensor->dtype));
	must(tensor->size <= size && first >= data && first <= data + size - tensor->size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct safetensors *file = NULL;
	struct error err = { 0 };
	int rc = safetensors_parse(data, size, "fuzz", &file, &err);
	size_t total = 0;

	if (rc) {
		must_explain(rc, &err);
		return 0;
	}
	for (size_t i = 0; i < safetensors_count(file); i++) {
		look_at(file, safetensors_at(file, i), data, size);
		must(!i || strcmp(safetensors_at(file, i - 1)->name, safetensors_at(file, i)->name) < 0);
		total += safetensors_at(file, i)->size;
	}
	must(total < size);
	must(!safetensors_metadata(file, "format") || strlen(safetensors_metadata(file, "format")) < size);
	safetensors_close(file);
	return 0;
}
