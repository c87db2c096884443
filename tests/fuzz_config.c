/* A checkpoint's config.json from anywhere: no crash, and a shape that was accepted holds together. */
#include "model/jsondoc.h"
#include "model/model_config.h"
#include "tests/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct model_config config;
	struct jsondoc *root = NULL;
	struct error err = { 0 };
	int rc = jsondoc_parse((const char *)data, size, true, &root, &err);

	if (!rc)
		rc = model_config_parse(root, &config, &err);
	jsondoc_free(root);
	if (rc) {
		must_explain(rc, &err);
		return 0;
	}
	must(config.shape.num_layers > 0 && config.shape.hidden_size > 0 && config.shape.conv_kernel > 1);
	must(config.shape.num_heads * config.shape.head_dim == config.shape.d_inner);
	must(config.shape.num_heads % config.shape.n_groups == 0);
	must(shape_cache_floats(&config.shape) / config.shape.num_layers >= config.shape.d_inner);
	return 0;
}
