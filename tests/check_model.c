/*
 * Checkpoints as wholes: the golden cases open with the right shape, every legal way to write the same weights gives
 * the same model, and what is missing or wrong is named.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/assert_shape.h"
#include "tests/draft.h"
#include "tests/golden.h"
#include "tests/suite.h"

#define CASE "seed-46032" /* the one that drafts are made of: it has biases */

static struct draft draft;

static void begin(void)
{
	draft_begin(&draft, CASE);
}

static void end(void)
{
	draft_end(&draft);
}

/* In the order of golden_cases. */
static const struct shape golden_shapes[GOLDEN_CASES] = {
	{ 2, 64, 128, 8, 16, 1, 16, 4, 32, 1, 1e-5f, 0, INFINITY, 160, 296 },
	{ 1, 32, 64, 4, 16, 1, 16, 4, 32, 1, 1e-5f, 0, INFINITY, 96, 164 },
	{ 2, 40, 120, 6, 20, 2, 24, 3, 32, 1, 1e-6f, 0.01f, 0.2f, 216, 342 },
	{ 3, 128, 256, 16, 16, 8, 32, 4, 32, 1, 1e-5f, 0, INFINITY, 768, 1040 },
	{ 3, 64, 128, 8, 16, 1, 16, 4, 50, 1, 1e-5f, 0, INFINITY, 160, 296 },
	{ 2, 64, 128, 8, 16, 1, 16, 4, 32, 1, 1e-5f, 0, INFINITY, 160, 296 },
	{ 4, 96, 192, 6, 32, 1, 64, 4, 32, 1, 1e-5f, 0, INFINITY, 320, 518 },
};

START_TEST(golden_case_opens)
{
	static const enum dtype dtypes[GOLDEN_CASES] = { [5] = DTYPE_FLOAT16, [6] = DTYPE_BFLOAT16 };
	struct golden golden;
	const struct layer *layer;

	golden_load(golden_cases[_i], &golden);
	assert_shapes_equal(&golden.model->shape, &golden_shapes[_i]);
	ck_assert_uint_eq(strlen(golden.model->fingerprint), 32);
	layer = &golden.model->layers[golden.model->shape.num_layers - 1];
	ck_assert_int_eq(layer->in_proj.dtype, dtypes[_i]);
	ck_assert_uint_eq(layer->in_proj.n, golden_shapes[_i].in_proj_rows * golden_shapes[_i].hidden_size);
	ck_assert_uint_eq(layer->conv.n, golden_shapes[_i].conv_dim * golden_shapes[_i].conv_kernel);
	ck_assert(!layer->in_proj_bias.data == !!strcmp(golden_cases[_i], "seed-46032"));
	ck_assert(!layer->out_proj_bias.data == !!strcmp(golden_cases[_i], "seed-46032"));
	ck_assert(!layer->conv_bias.data == !strcmp(golden_cases[_i], "odd-shapes"));
	golden_free(&golden);
}
END_TEST

START_TEST(tokens_become_embeddings)
{
	static const int32_t too_large[] = { 0, 49, 50 }, negative[] = { -1 };
	struct golden golden;
	struct error err;
	float *embedded;
	size_t n;

	golden_load("causal-lm-sharded", &golden);
	n = golden.rows * golden.model->shape.hidden_size;
	embedded = malloc(n * sizeof *embedded);
	ck_assert_int_eq(model_embed(golden.model, DTYPE_INT32, golden.input_ids, golden.rows, embedded, &err), 0);
	ck_assert_mem_eq(embedded, golden.inputs_embeds, n * sizeof *embedded);
	ck_assert_int_eq(model_embed(golden.model, DTYPE_INT32, too_large, 2, embedded, &err), 0);
	ck_assert_int_eq(model_embed(golden.model, DTYPE_INT32, too_large, 3, embedded, &err), ERR_FORMAT);
	ck_assert_str_eq(err.text, "token 2 is 50: expected 0 to 49");
	ck_assert_int_eq(model_embed(golden.model, DTYPE_INT32, negative, 1, embedded, &err), ERR_FORMAT);
	ck_assert_str_eq(err.text, "token 0 is -1: expected 0 to 49");
	free(embedded);
	golden_free(&golden);
}
END_TEST

START_TEST(absent_tensors_widen_to_zeros)
{
	struct tensor absent = { .data = NULL };
	float numbers[3] = { 1, 2, 3 };

	tensor_widen(&absent, numbers, 2);
	ck_assert(numbers[0] == 0 && numbers[1] == 0 && numbers[2] == 3);
}
END_TEST

/* Releasing pages loses nothing: they come back. */
START_TEST(released_pages_come_back)
{
	struct golden golden;
	float before[4], after[4];
	const struct layer *layer;

	golden_load("eight-groups", &golden);
	layer = &golden.model->layers[1];
	tensor_widen(&layer->out_proj, before, 4);
	model_release_pages(golden.model);
	tensor_widen(&layer->out_proj, after, 4);
	ck_assert_mem_eq(before, after, sizeof before);
	golden_free(&golden);
}
END_TEST

/* Open the draft's folder, which must work, and return the fingerprint, which is static. */
static const char *draft_fingerprint(void)
{
	static char fingerprint[sizeof ((struct model *)0)->fingerprint];
	struct model *model;
	struct error err;

	ck_assert_msg(!model_open(draft.folder, &model, &err), "%s", err.text);
	memcpy(fingerprint, model->fingerprint, sizeof fingerprint);
	model_free(model);
	return fingerprint;
}

static void assert_same_model(void)
{
	struct golden golden;

	golden_load(CASE, &golden);
	ck_assert_str_eq(draft_fingerprint(), golden.model->fingerprint);
	golden_free(&golden);
}

START_TEST(copied)
{
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	assert_same_model();
}
END_TEST

/* Data at odd addresses gives the same model, and can be read. */
START_TEST(misaligned)
{
	struct model *model;
	struct error err;
	float numbers[64];

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_write(&draft, "model.safetensors", 0, draft.n, 1);
	assert_same_model();
	ck_assert_int_eq(model_open(draft.folder, &model, &err), 0);
	ck_assert_uint_eq((uintptr_t)model->norm_f.data % 4, 1);
	tensor_widen(&model->norm_f, numbers, 64);
	ck_assert(fabsf(numbers[63]) < 10 && numbers[63] != 0);
	model_free(model);
}
END_TEST

START_TEST(prefixed)
{
	static const char *const prefixes[] = { "backbone.", "model.backbone." };

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_prefix(&draft, prefixes[_i]);
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	assert_same_model();
}
END_TEST

START_TEST(embedding_in_the_singular)
{
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_entry(&draft, "embeddings.weight")->name = "embedding.weight";
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	assert_same_model();
}
END_TEST

START_TEST(sharded)
{
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_write_shards(&draft);
	assert_same_model();
}
END_TEST

/* Heads and other things beside the backbone do not matter. */
START_TEST(other_tensors_are_ignored)
{
	static const struct safetensors_entry head = { "lm_head.weight", DTYPE_FLOAT32, 2, { 3, 1 } };
	static const struct safetensors_entry classes = { "classifier.layers.0.norm.weight", DTYPE_UINT8, 1, { 2 } };
	static const float data[3];

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_prefix(&draft, "backbone.");
	draft_add(&draft, &head, data);
	draft_add(&draft, &classes, data);
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	assert_same_model();
}
END_TEST

START_TEST(fingerprint_tells_models_apart)
{
	char first[33], second[33];
	unsigned char *changed;

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	strcpy(first, draft_fingerprint());
	changed = malloc(64 * sizeof(float));
	for (size_t i = 0; i < draft.n; i++) {
		if (strcmp(draft.entries[i].name, "norm_f.weight"))
			continue;
		memcpy(changed, draft.data[i], 64 * sizeof(float));
		changed[100] ^= 1;
		draft.data[i] = changed;
	}
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	strcpy(second, draft_fingerprint());
	ck_assert_str_ne(first, second);
	draft_copy_text(&draft, CASE, "config.json", "1e-05", "2e-05");
	ck_assert_str_ne(draft_fingerprint(), first);
	ck_assert_str_ne(draft_fingerprint(), second);
	free(changed);
}
END_TEST

START_TEST(embeddings_are_optional)
{
	static const uint8_t token = 0;
	struct model *model;
	struct error err;
	float row[64];

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_remove(&draft, "embeddings.weight");
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	ck_assert_msg(!model_open(draft.folder, &model, &err), "%s", err.text);
	ck_assert_uint_eq(model->shape.vocab_size, 0);
	ck_assert_ptr_null(model->embeddings.data);
	ck_assert_int_eq(model_embed(model, DTYPE_UINT8, &token, 1, row, &err), ERR_UNSUPPORTED);
	ck_assert_msg(strstr(err.text, "no embeddings"), "%s", err.text);
	model_free(model);
}
END_TEST

START_TEST(embeddings_must_be_finite)
{
	static const uint8_t tokens[] = { 3, 4 };
	static float table[32 * 64];
	struct model *model;
	struct error err;
	float rows[2 * 64];

	table[4 * 64 + 63] = NAN;
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft.data[draft_entry(&draft, "embeddings.weight") - draft.entries] = table;
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	ck_assert_msg(!model_open(draft.folder, &model, &err), "%s", err.text);
	ck_assert_int_eq(model_embed(model, DTYPE_UINT8, tokens, 1, rows, &err), 0);
	ck_assert_int_eq(model_embed(model, DTYPE_UINT8, tokens, 2, rows, &err), ERR_FORMAT);
	ck_assert_str_eq(err.text, "token 1 is 4: its embedding is not finite");
	model_free(model);
}
END_TEST

/* mamba_ssm's own format: other names in config.json, and a gated norm of n_groups groups. */
START_TEST(mamba_ssm_checkpoint)
{
	struct model *model;
	struct error err;

	draft_write_text(&draft, "config.json", "{\"d_model\": 64, \"n_layer\": 2, \"vocab_size\": 31, "
		"\"pad_vocab_size_multiple\": 8, \"ssm_cfg\": {\"layer\": \"Mamba2\", \"headdim\": 16, \"d_state\": 8, "
		"\"ngroups\": 2, \"bias\": true}}");
	draft_entry(&draft, "embeddings.weight")->name = "embedding.weight";
	draft_prefix(&draft, "backbone.");
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	ck_assert_msg(!model_open(draft.folder, &model, &err), "%s", err.text);
	ck_assert_uint_eq(model->shape.gated_norm_groups, 2);
	ck_assert_uint_eq(model->shape.conv_dim, 160);
	ck_assert_uint_eq(model->shape.vocab_size, 32);
	model_free(model);
}
END_TEST

static struct model *random_model(uint64_t seed)
{
	struct shape shape;
	struct model *model;
	struct error err;

	ck_assert_int_eq(shape_named("130m", &shape, &err), 0);
	shape.num_layers = 2;
	ck_assert_msg(!model_random(&shape, seed, &model, &err), "%s", err.text);
	return model;
}

START_TEST(random_models_follow_from_the_seed)
{
	struct model *a = random_model(1), *b = random_model(1), *c = random_model(2);
	size_t size = a->layers[1].in_proj.n * sizeof(float);

	ck_assert_str_eq(a->fingerprint, b->fingerprint);
	ck_assert_str_ne(a->fingerprint, c->fingerprint);
	model_release_pages(a); /* must not lose them */
	ck_assert_mem_eq(a->layers[1].in_proj.data, b->layers[1].in_proj.data, size);
	ck_assert_mem_ne(a->layers[1].in_proj.data, c->layers[1].in_proj.data, 4096);
	ck_assert_mem_ne(a->layers[1].in_proj.data, a->layers[0].in_proj.data, 4096);
	ck_assert_mem_ne(a->layers[0].in_proj.data, a->layers[0].out_proj.data, 4096);
	ck_assert_ptr_null(a->embeddings.data);
	ck_assert_uint_eq(a->shape.vocab_size, 0);
	ck_assert_ptr_null(a->layers[0].in_proj_bias.data);
	model_free(a);
	model_free(b);
	model_free(c);
	model_free(NULL);
}
END_TEST

/* How many of n numbers lie outside [low, high]. */
static size_t outside(const struct tensor *tensor, double low, double high)
{
	const float *numbers = tensor->data;
	size_t n = 0;

	for (size_t i = 0; i < tensor->n; i++)
		n += !((double)numbers[i] >= low && (double)numbers[i] <= high);
	return n;
}

START_TEST(random_weights_are_like_fresh_ones)
{
	struct model *model = random_model(3);
	const struct layer *layer = &model->layers[1];
	const float *in_proj = layer->in_proj.data;
	double bound = 1 / sqrt(768), sum = 0, squares = 0;

	for (size_t i = 0; i < layer->in_proj.n; i++) {
		sum += (double)in_proj[i] / bound;
		squares += (double)in_proj[i] / bound * ((double)in_proj[i] / bound);
	}
	ck_assert(fabs(sum / (double)layer->in_proj.n) < 0.002);
	ck_assert(fabs(squares / (double)layer->in_proj.n - 1. / 3) < 0.002); /* of a uniform in [-1, 1] */
	ck_assert_uint_eq(outside(&layer->in_proj, -bound, bound * 1.0001), 0);
	ck_assert_uint_eq(outside(&layer->conv, -0.5, 0.5), 0);
	ck_assert_uint_eq(outside(&layer->a_log, 0, log(16.001)), 0);
	ck_assert_uint_eq(outside(&layer->dt_bias, log(expm1(0.000999)), log(expm1(0.1001))), 0);
	ck_assert_uint_eq(outside(&layer->norm, 0.9 - 1e-6, 1.1 + 1e-6), 0);
	model_free(model);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("model");
	TCase *golden = tcase_create("golden"), *same = tcase_create("same"), *other = tcase_create("other");

	tcase_add_loop_test(golden, golden_case_opens, 0, GOLDEN_CASES);
	tcase_add_test(golden, tokens_become_embeddings);
	tcase_add_test(golden, absent_tensors_widen_to_zeros);
	tcase_add_test(golden, released_pages_come_back);
	tcase_add_checked_fixture(same, begin, end);
	tcase_add_test(same, copied);
	tcase_add_test(same, misaligned);
	tcase_add_loop_test(same, prefixed, 0, 2);
	tcase_add_test(same, embedding_in_the_singular);
	tcase_add_test(same, sharded);
	tcase_add_test(same, other_tensors_are_ignored);
	tcase_add_checked_fixture(other, begin, end);
	tcase_add_test(other, fingerprint_tells_models_apart);
	tcase_add_test(other, embeddings_are_optional);
	tcase_add_test(other, embeddings_must_be_finite);
	tcase_add_test(other, mamba_ssm_checkpoint);
	tcase_add_test(other, random_models_follow_from_the_seed);
	tcase_add_test(other, random_weights_are_like_fresh_ones);
	suite_add_tcase(suite, golden);
	suite_add_tcase(suite, same);
	suite_add_tcase(suite, other);
	return suite_run(suite);
}
