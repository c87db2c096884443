/*
 * Opening a checkpoint: config.json says which weights there must be and of what shape, the safetensors files must have
 * just those.  Weights stay where the files are mapped; back ends copy them.
 */
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint.h"
#include "model/model_config.h"
#include "model/model_storage.h"
#include "model/weights.h"

#define NAME_MAX_BYTES 128 /* of the names that we look for */

/* What loading a checkpoint needs at hand. */
struct loader {
	const char *folder;
	const char *prefix; /* of all names of the backbone */
	struct model_config config;
	struct checkpoint *checkpoint;
};

/* Names begin with nothing (Mamba2Model), "backbone." (Mamba2ForCausalLM, mamba_ssm) or "model.backbone." (Mistral). */
static int find_prefix(struct loader *loader, struct error *err)
{
	static const char *const prefixes[] = { "", "backbone.", "model.backbone." };
	char name[NAME_MAX_BYTES];

	for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
		snprintf(name, sizeof name, "%snorm_f.weight", prefixes[i]);
		if (checkpoint_find(loader->checkpoint, name)) {
			loader->prefix = prefixes[i];
			return 0;
		}
	}
	return error_set(err, ERR_FORMAT, "%.200s: tensor norm_f.weight (or backbone.norm_f.weight) is missing: "
			 "expected a Mamba-2 backbone", loader->folder);
}

static bool weight_expected(const struct model_config *config, const struct weight *weight)
{
	return weight->presence == WEIGHT_ALWAYS ||
	       (weight->presence == WEIGHT_WITH_BIAS && config->use_bias) ||
	       (weight->presence == WEIGHT_WITH_CONV_BIAS && config->use_conv_bias);
}

/* "[768, 1, 4]" */
static const char *format_shape(const size_t *shape, size_t rank, char *text, size_t room)
{
	size_t used = (size_t)snprintf(text, room, "[");

	for (size_t i = 0; i < rank && used < room; i++)
		used += (size_t)snprintf(text + used, room - used, i ? ", %zu" : "%zu", shape[i]);
	if (used < room)
		snprintf(text + used, room - used, "]");
	return text;
}

/* Check the tensor found under name against the list, and take it. */
static int take_tensor(const struct loader *loader, const char *name, const struct safetensor *found,
		       const struct weight *weight, struct tensor *ret_tensor, struct error *err)
{
	char got[200], expected[80];

	if (!found)
		return error_set(err, ERR_FORMAT, "%.160s: tensor %s is missing: expected one of shape %s",
				 loader->folder, name,
				 format_shape(weight->shape, weight->rank, expected, sizeof expected));
	if (!found->has_dtype || !dtype_is_float(found->dtype))
		return error_set(err, ERR_UNSUPPORTED, "%.160s: tensor %s has dtype %.20s: expected F32, F16 or BF16",
				 loader->folder, name, found->format);
	if (found->rank != weight->rank || memcmp(found->shape, weight->shape, weight->rank * sizeof *weight->shape))
		return error_set(err, ERR_FORMAT, "%.120s: tensor %s has shape %.70s: expected %s", loader->folder,
				 name, format_shape(found->shape, found->rank, got, sizeof got),
				 format_shape(weight->shape, weight->rank, expected, sizeof expected));
	*ret_tensor = (struct tensor){ .data = found->data, .n = found->n, .dtype = found->dtype };
	return 0;
}

static int load_layer(const struct loader *loader, size_t index, struct layer *layer, struct error *err)
{
	struct weight weights[LAYER_WEIGHTS];
	int rc = 0;

	weights_of_layer(&loader->config.shape, weights);
	for (size_t i = 0; i < LAYER_WEIGHTS && !rc; i++) {
		char name[NAME_MAX_BYTES];

		if (!weight_expected(&loader->config, &weights[i]))
			continue;
		snprintf(name, sizeof name, "%slayers.%zu.%s", loader->prefix, index, weights[i].name);
		rc = take_tensor(loader, name, checkpoint_find(loader->checkpoint, name), &weights[i],
				 weight_tensor(layer, &weights[i]), err);
	}
	return rc;
}

/* mamba_ssm and older transformers call the embeddings "embedding". */
static int load_embeddings(const struct loader *loader, const struct weight *weight, struct model *model,
			   struct error *err)
{
	static const char *const names[] = { "embeddings.weight", "embedding.weight" };

	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		const struct safetensor *found;
		char name[NAME_MAX_BYTES];

		snprintf(name, sizeof name, "%s%s", loader->prefix, names[i]);
		found = checkpoint_find(loader->checkpoint, name);
		if (found)
			return take_tensor(loader, name, found, weight, &model->embeddings, err);
	}
	model->shape.vocab_size = 0;
	return 0;
}

static int load_weights(const struct loader *loader, struct model *model, struct error *err)
{
	struct weight weights[MODEL_WEIGHTS];
	char name[NAME_MAX_BYTES];
	int rc = 0;

	for (size_t i = 0; i < model->shape.num_layers && !rc; i++)
		rc = load_layer(loader, i, &model->layers[i], err);
	if (rc)
		return rc;
	weights_of_model(&model->shape, weights);
	snprintf(name, sizeof name, "%s%s", loader->prefix, weights[0].name);
	rc = take_tensor(loader, name, checkpoint_find(loader->checkpoint, name), &weights[0], &model->norm_f, err);
	return rc ? rc : load_embeddings(loader, &weights[1], model, err);
}

/* Whether name, behind "layers.", is a weight of a layer that the model has. */
static bool layer_weight_known(const struct model_config *config, const struct weight *weights, const char *name)
{
	char *rest;
	unsigned long long index = strtoull(name, &rest, 10);

	if (*name < '0' || *name > '9' || index >= config->shape.num_layers || *rest++ != '.')
		return false;
	for (size_t i = 0; i < LAYER_WEIGHTS; i++) {
		if (weight_expected(config, &weights[i]) && !strcmp(rest, weights[i].name))
			return true;
	}
	return false;
}

/*
 * Tensors outside the layers (lm_head and other heads) change no hidden state and are ignored.  One inside the layers
 * that the list does not have means that the model computes something that we would not.
 */
static int refuse_unknown(const struct loader *loader, struct error *err)
{
	struct weight weights[LAYER_WEIGHTS];
	char prefix[NAME_MAX_BYTES];
	size_t length = (size_t)snprintf(prefix, sizeof prefix, "%slayers.", loader->prefix);

	weights_of_layer(&loader->config.shape, weights);
	for (size_t i = 0; i < checkpoint_count(loader->checkpoint); i++) {
		const char *name = checkpoint_at(loader->checkpoint, i)->name;

		if (!strncmp(name, prefix, length) && !layer_weight_known(&loader->config, weights, name + length))
			return error_set(err, ERR_UNSUPPORTED, "%.160s: tensor %.80s is no weight of the model of %zu "
					 "layers that config.json describes", loader->folder, name,
					 loader->config.shape.num_layers);
	}
	return 0;
}

static int load(struct loader *loader, struct model *model, struct error *err)
{
	int rc = checkpoint_open(loader->folder, &loader->checkpoint, err);

	if (rc)
		return rc;
	model->storage->checkpoint = loader->checkpoint;
	rc = find_prefix(loader, err);
	if (!rc)
		rc = load_weights(loader, model, err);
	if (!rc)
		rc = refuse_unknown(loader, err);
	return rc ? rc : weights_fingerprint(model, err);
}

int model_open(const char *folder, struct model **ret_model, struct error *err)
{
	struct loader loader = { .folder = folder };
	struct model *model;
	int rc = model_config_read(folder, &loader.config, err);

	if (!rc)
		rc = model_new(&loader.config.shape, &model, err);
	if (rc)
		return rc;
	rc = load(&loader, model, err);
	if (rc) {
		model_free(model);
		return rc;
	}
	*ret_model = model;
	return 0;
}
