/*
 * The weights of Mamba-2 by their names in checkpoints, and the fingerprint over them.
 */
#include "model/weights.h"

#include <string.h>

#include "model/hash.h"

void weights_of_layer(const struct shape *s, struct weight ret_weights[LAYER_WEIGHTS])
{
	const struct weight weights[LAYER_WEIGHTS] = {
		{ "norm.weight", offsetof(struct layer, norm), WEIGHT_ALWAYS, 1, { s->hidden_size } },
		{ "mixer.in_proj.weight", offsetof(struct layer, in_proj), WEIGHT_ALWAYS, 2,
		  { s->in_proj_rows, s->hidden_size } },
		{ "mixer.in_proj.bias", offsetof(struct layer, in_proj_bias), WEIGHT_WITH_BIAS, 1,
		  { s->in_proj_rows } },
		{ "mixer.conv1d.weight", offsetof(struct layer, conv), WEIGHT_ALWAYS, 3,
		  { s->conv_dim, 1, s->conv_kernel } },
		{ "mixer.conv1d.bias", offsetof(struct layer, conv_bias), WEIGHT_WITH_CONV_BIAS, 1, { s->conv_dim } },
		{ "mixer.dt_bias", offsetof(struct layer, dt_bias), WEIGHT_ALWAYS, 1, { s->num_heads } },
		{ "mixer.A_log", offsetof(struct layer, a_log), WEIGHT_ALWAYS, 1, { s->num_heads } },
		{ "mixer.D", offsetof(struct layer, d), WEIGHT_ALWAYS, 1, { s->num_heads } },
		{ "mixer.norm.weight", offsetof(struct layer, gated_norm), WEIGHT_ALWAYS, 1, { s->d_inner } },
		{ "mixer.out_proj.weight", offsetof(struct layer, out_proj), WEIGHT_ALWAYS, 2,
		  { s->hidden_size, s->d_inner } },
		{ "mixer.out_proj.bias", offsetof(struct layer, out_proj_bias), WEIGHT_WITH_BIAS, 1,
		  { s->hidden_size } },
	};

	memcpy(ret_weights, weights, sizeof weights);
}

void weights_of_model(const struct shape *s, struct weight ret_weights[MODEL_WEIGHTS])
{
	const struct weight weights[MODEL_WEIGHTS] = {
		{ "norm_f.weight", offsetof(struct model, norm_f), WEIGHT_ALWAYS, 1, { s->hidden_size } },
		{ "embeddings.weight", offsetof(struct model, embeddings), WEIGHT_OPTIONAL, 2,
		  { s->vocab_size, s->hidden_size } },
	};

	memcpy(ret_weights, weights, sizeof weights);
}

struct tensor *weight_tensor(void *owner, const struct weight *weight)
{
	return (struct tensor *)((char *)owner + weight->place);
}

size_t weight_numbers(const struct weight *weight)
{
	size_t n = 1;

	for (size_t i = 0; i < weight->rank; i++)
		n *= weight->shape[i];
	return n;
}

static void hash_shape(struct hash *hash, const struct shape *s)
{
	const uint64_t sizes[] = {
		s->num_layers, s->hidden_size, s->d_inner, s->num_heads, s->head_dim, s->n_groups, s->state_size,
		s->conv_kernel, s->vocab_size, s->gated_norm_groups,
	};
	const float numbers[] = { s->norm_epsilon, s->dt_min, s->dt_max };

	hash_update(hash, sizes, sizeof sizes);
	hash_update(hash, numbers, sizeof numbers);
}

static void hash_tensor(struct hash *hash, const struct tensor *tensor)
{
	const uint64_t head[] = { tensor->data ? 1 + (uint64_t)tensor->dtype : 0, tensor->n };

	hash_update(hash, head, sizeof head);
	if (tensor->data)
		hash_update(hash, tensor->data, tensor->n * dtype_size(tensor->dtype));
}

static void hash_weights(struct hash *hash, struct model *model)
{
	struct weight of_layer[LAYER_WEIGHTS], of_model[MODEL_WEIGHTS];

	weights_of_layer(&model->shape, of_layer);
	weights_of_model(&model->shape, of_model);
	for (size_t i = 0; i < model->shape.num_layers; i++) {
		for (size_t j = 0; j < LAYER_WEIGHTS; j++)
			hash_tensor(hash, weight_tensor(&model->layers[i], &of_layer[j]));
	}
	for (size_t j = 0; j < MODEL_WEIGHTS; j++)
		hash_tensor(hash, weight_tensor(model, &of_model[j]));
}

int weights_fingerprint(struct model *model, struct error *err)
{
	struct hash *hash;
	int rc = hash_new(&hash, err);

	if (rc)
		return rc;
	hash_shape(hash, &model->shape);
	hash_weights(hash, model);
	hash_text(hash, model->fingerprint);
	hash_free(hash);
	return 0;
}

int weights_fingerprint_seed(struct model *model, uint64_t seed, struct error *err)
{
	struct hash *hash;
	int rc = hash_new(&hash, err);

	if (rc)
		return rc;
	hash_shape(hash, &model->shape);
	hash_update(hash, &seed, sizeof seed);
	hash_text(hash, model->fingerprint);
	hash_free(hash);
	return 0;
}
