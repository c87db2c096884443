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

/* The index of a checkpoint in three shards of the draft's tensors, in the order of the entries. */
static void write_shards(void)
{
	static const size_t ends[] = { 0, 5, 6, DRAFT_TENSORS };
	char text[8192];
	size_t used = (size_t)snprintf(text, sizeof text, "{\"metadata\": {}, \"weight_map\": {");

	for (size_t i = 1; i < 4; i++) {
		size_t last = ends[i] < draft.n ? ends[i] : draft.n;
		char name[16];

		snprintf(name, sizeof name, "part-%zu", i);
		draft_write(&draft, name, ends[i - 1], last, 0);
		for (size_t j = ends[i - 1]; j < last; j++)
			used += (size_t)snprintf(text + used, sizeof text - used, "%s\"%s\": \"%s\"", j ? ", " : "",
						 draft.entries[j].name, name);
	}
	snprintf(text + used, sizeof text - used, "}}");
	draft_write_text(&draft, "model.safetensors.index.json", text);
}

START_TEST(sharded)
{
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	write_shards();
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

START_TEST(mistral_checkpoint)
{
	static const struct safetensors_entry entries[] = {
		{ "model.backbone.norm_f.weight", DTYPE_FLOAT32, 1, { 32 } },
	};
	static const float data[32];
	struct model *model;
	struct error err;

	draft_write_text(&draft, "params.json", "{\"dim\": 32, \"n_layers\": 1, \"n_groups\": 1, \"vocab_size\": 1}");
	draft.n = 0;
	draft_add(&draft, entries, data);
	draft_write(&draft, "consolidated.safetensors", 0, 1, 0);
	ck_assert_int_eq(model_open(draft.folder, &model, &err), ERR_FORMAT);
	ck_assert_msg(strstr(err.text, "tensor model.backbone.layers.0.norm.weight is missing: expected one of shape [32]"),
		      "%s", err.text);
}
END_TEST

static void assert_refused(int code, const char *const *words)
{
	struct model *model = NULL;
	struct error err;

	ck_assert_int_eq(model_open(draft.folder, &model, &err), code);
	ck_assert_ptr_null(model);
	ck_assert_int_eq(err.code, code);
	for (; *words; words++)
		ck_assert_msg(strstr(err.text, *words), "\"%s\" is not in: %s", *words, err.text);
}

#define REFUSED(code, ...) assert_refused(code, (const char *const[]){ draft.folder, __VA_ARGS__, NULL })

/* Every weight in turn is left out. */
START_TEST(missing_tensor)
{
	char missing[80];

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	for (size_t i = 0; i < draft.n; i++) {
		struct draft whole = draft;

		snprintf(missing, sizeof missing, "tensor %s", draft.entries[i].name);
		if (strcmp(draft.entries[i].name, "embeddings.weight")) {
			draft_remove(&draft, draft.entries[i].name);
			draft_write(&draft, "model.safetensors", 0, draft.n, 0);
			REFUSED(ERR_FORMAT, missing, "missing", "expected");
		}
		draft = whole;
	}
}
END_TEST

/* Every weight in turn has a dimension more. */
START_TEST(misshapen_tensor)
{
	char name[80];

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	for (size_t i = 0; i < draft.n; i++) {
		struct draft whole = draft;

		snprintf(name, sizeof name, "tensor %s has shape [", draft.entries[i].name);
		draft.entries[i].shape[draft.entries[i].rank++] = 1;
		draft_write(&draft, "model.safetensors", 0, draft.n, 0);
		REFUSED(ERR_FORMAT, name, ", 1]: expected [");
		draft = whole;
	}
}
END_TEST

START_TEST(swapped_dimensions)
{
	struct safetensors_entry *in_proj = draft_entry(&draft, "layers.1.mixer.in_proj.weight");

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	in_proj->shape[0] = 64;
	in_proj->shape[1] = 296;
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	REFUSED(ERR_FORMAT, "tensor layers.1.mixer.in_proj.weight has shape [64, 296]: expected [296, 64]");
}
END_TEST

START_TEST(wrong_dtype)
{
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_entry(&draft, "layers.0.mixer.D")->dtype = DTYPE_INT32;
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	REFUSED(ERR_UNSUPPORTED, "tensor layers.0.mixer.D has dtype I32: expected F32, F16 or BF16");
}
END_TEST

static const struct safetensors_entry unknown[] = {
	{ "layers.2.norm.weight", DTYPE_FLOAT32, 1, { 64 } },      /* a layer too many */
	{ "layers.0.mlp.fc1.weight", DTYPE_FLOAT32, 1, { 64 } },   /* another kind of layer */
	{ "layers.0.mixer.in_proj.weight_scale", DTYPE_FLOAT32, 1, { 64 } }, /* quantised */
	{ "layers.x.norm.weight", DTYPE_FLOAT32, 1, { 64 } },
	{ "layers.-0.norm.weight", DTYPE_FLOAT32, 1, { 64 } },
	{ "layers.18446744073709551616.norm.weight", DTYPE_FLOAT32, 1, { 64 } },
};

START_TEST(unknown_tensor_in_a_layer)
{
	static const float data[64];

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_add(&draft, &unknown[_i], data);
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	REFUSED(ERR_UNSUPPORTED, unknown[_i].name, "no weight of the model of 2 layers");
}
END_TEST

/* A bias that config.json does not have would be left out silently. */
START_TEST(bias_against_the_config)
{
	draft_copy_text(&draft, CASE, "config.json", "\"use_bias\": true", "\"use_bias\": false");
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	REFUSED(ERR_UNSUPPORTED, "tensor layers.0.mixer.in_proj.bias is no weight");
}
END_TEST

START_TEST(truncated_file)
{
	char path[100];

	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	snprintf(path, sizeof path, "%s/model.safetensors", draft.folder);
	ck_assert_int_eq(truncate(path, 200000), 0);
	REFUSED(ERR_FORMAT, "model.safetensors: tensor ", "is truncated");
}
END_TEST

START_TEST(no_backbone)
{
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_prefix(&draft, "encoder.");
	draft_write(&draft, "model.safetensors", 0, draft.n, 0);
	REFUSED(ERR_FORMAT, "norm_f.weight", "missing", "expected a Mamba-2 backbone");
}
END_TEST

START_TEST(missing_files)
{
	struct model *model;
	struct error err;

	REFUSED(ERR_SYSTEM, "/config.json: No such file");
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	REFUSED(ERR_FORMAT, "no weights: expected model.safetensors or model.safetensors.index.json");
	ck_assert_int_eq(model_open("/nonexistent", &model, &err), ERR_SYSTEM);
	ck_assert_msg(strstr(err.text, "/nonexistent/config.json"), "%s", err.text);
	draft_write_text(&draft, "config.json", "{\"model_type\": \"llama\"}");
	REFUSED(ERR_UNSUPPORTED, "/config.json: model_type is \"llama\": expected \"mamba2\"");
	draft_write_text(&draft, "config.json", "{\"model_type\": \"mamba2\",\n }");
	REFUSED(ERR_FORMAT, "/config.json: line 2");
}
END_TEST

START_TEST(path_too_long)
{
	static char folder[5000];
	struct model *model;
	struct error err;

	memset(folder, 'a', sizeof folder - 1);
	ck_assert_int_eq(model_open(folder, &model, &err), ERR_ARGUMENT);
	ck_assert_msg(strstr(err.text, "too long"), "%s", err.text);
}
END_TEST

static const struct {
	const char *index;
	int code;
	const char *word;
} bad_indexes[] = {
	{ "{}", ERR_FORMAT, "weight_map: expected an object" },
	{ "{\"weight_map\": []}", ERR_FORMAT, "weight_map: expected an object" },
	{ "{\"weight_map\": {}}", ERR_FORMAT, "weight_map: expected an object" },
	{ "{\"weight_map\": {\"a\": 1}}", ERR_FORMAT, "weight_map: a: expected the name of a file" },
	{ "{\"weight_map\": {\"a\": \"\"}}", ERR_FORMAT, "weight_map: a: expected the name of a file" },
	{ "{\"weight_map\": {\"a\": \"../part-1\"}}", ERR_FORMAT, "weight_map: a: expected the name of a file" },
	{ "{\"weight_map\": {\"a\": \"part-9\"}}", ERR_SYSTEM, "part-9: No such file" },
	{ "{\"weight_map\": {\"a\": \".\"}}", ERR_FORMAT, "no regular file" },
	{ "{\"weight_map\": {\"a\": \"part-1\"}}", ERR_FORMAT, "tensor a is missing: expected in part-1" },
	{ "{\"weight_map\": {\"layers.0.mixer.A_log\": \"part-3\"}}", ERR_FORMAT,
	  "tensor layers.0.mixer.A_log is missing: expected in part-3" },
	{ "{\"weight_map\": {\"embeddings.weight\": \"part-1\"}}", ERR_FORMAT, "norm_f.weight" },
	{ "nonsense", ERR_FORMAT, "line 1" },
};

START_TEST(bad_index)
{
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	write_shards();
	draft_write_text(&draft, "model.safetensors.index.json", bad_indexes[_i].index);
	REFUSED(bad_indexes[_i].code, bad_indexes[_i].word);
}
END_TEST

START_TEST(tensor_in_two_shards)
{
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	write_shards();
	draft_write(&draft, "part-2", 4, 6, 0);
	REFUSED(ERR_FORMAT, "is in two files", draft.entries[4].name);
}
END_TEST

/* Random weights have the magnitudes of a fresh Mamba-2, and are a function of shape and seed. */
START_TEST(random_models)
{
	struct shape shape;
	struct model *a, *b, *c;
	struct error err;
	const struct layer *layer;
	const float *in_proj, *a_log, *dt_bias;

	ck_assert_int_eq(shape_named("130m", &shape, &err), 0);
	shape.num_layers = 2;
	ck_assert_int_eq(model_random(&shape, 1, &a, &err), 0);
	ck_assert_int_eq(model_random(&shape, 1, &b, &err), 0);
	ck_assert_int_eq(model_random(&shape, 2, &c, &err), 0);
	ck_assert_str_eq(a->fingerprint, b->fingerprint);
	ck_assert_str_ne(a->fingerprint, c->fingerprint);
	ck_assert_mem_eq(a->layers[1].in_proj.data, b->layers[1].in_proj.data, a->layers[1].in_proj.n * 4);
	ck_assert_mem_ne(a->layers[1].in_proj.data, c->layers[1].in_proj.data, 4096);
	ck_assert_mem_ne(a->layers[1].in_proj.data, a->layers[0].in_proj.data, 4096);
	ck_assert_mem_ne(a->layers[0].in_proj.data, a->layers[0].out_proj.data, 4096);
	ck_assert_ptr_null(a->embeddings.data);
	ck_assert_uint_eq(a->shape.vocab_size, 0);
	model_release_pages(a); /* must not lose them */
	layer = &a->layers[0];
	ck_assert_ptr_null(layer->in_proj_bias.data);
	in_proj = layer->in_proj.data;
	a_log = layer->a_log.data;
	dt_bias = layer->dt_bias.data;
	double sum = 0, squares = 0;
	for (size_t i = 0; i < layer->in_proj.n; i++) {
		ck_assert(fabsf(in_proj[i]) <= 1 / sqrtf(768));
		sum += (double)in_proj[i];
		squares += (double)in_proj[i] * (double)in_proj[i];
	}
	ck_assert(fabs(sum / (double)layer->in_proj.n) < 1e-4);
	ck_assert(fabs(squares / (double)layer->in_proj.n * 3 * 768 - 1) < 0.01); /* variance of a uniform */
	for (size_t i = 0; i < shape.num_heads; i++) {
		double dt = log1p(exp((double)dt_bias[i]));

		ck_assert(a_log[i] >= 0 && a_log[i] <= logf(16) + 1e-6f);
		ck_assert(dt >= 0.000999 && dt <= 0.1001);
	}
	model_free(a);
	model_free(b);
	model_free(c);
	model_free(NULL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("model");
	TCase *golden = tcase_create("golden"), *same = tcase_create("same"), *other = tcase_create("other");
	TCase *refused = tcase_create("refused");

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
	tcase_add_test(other, mistral_checkpoint);
	tcase_add_test(other, random_models);
	tcase_add_checked_fixture(refused, begin, end);
	tcase_add_test(refused, missing_tensor);
	tcase_add_test(refused, misshapen_tensor);
	tcase_add_test(refused, swapped_dimensions);
	tcase_add_test(refused, wrong_dtype);
	tcase_add_loop_test(refused, unknown_tensor_in_a_layer, 0, sizeof unknown / sizeof *unknown);
	tcase_add_test(refused, bias_against_the_config);
	tcase_add_test(refused, truncated_file);
	tcase_add_test(refused, no_backbone);
	tcase_add_test(refused, missing_files);
	tcase_add_test(refused, path_too_long);
	tcase_add_loop_test(refused, bad_index, 0, sizeof bad_indexes / sizeof *bad_indexes);
	tcase_add_test(refused, tensor_in_two_shards);
	suite_add_tcase(suite, golden);
	suite_add_tcase(suite, same);
	suite_add_tcase(suite, other);
	suite_add_tcase(suite, refused);
	return suite_run(suite);
}
