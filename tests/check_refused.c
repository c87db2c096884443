/*
 * Checkpoints that are refused: whatever is missing, misshapen, contradictory or unknown is named, with what was
 * expected.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model/model.h"
#include "tests/draft.h"
#include "tests/suite.h"

#define CASE "seed-46032" /* the golden case that drafts are made of: it has biases */

static struct draft draft;

static void begin(void)
{
	draft_begin(&draft, CASE);
}

static void end(void)
{
	draft_end(&draft);
}

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
	draft_write_shards(&draft);
	draft_write_text(&draft, "model.safetensors.index.json", bad_indexes[_i].index);
	REFUSED(bad_indexes[_i].code, bad_indexes[_i].word);
}
END_TEST

START_TEST(tensor_in_two_shards)
{
	draft_copy_text(&draft, CASE, "config.json", NULL, NULL);
	draft_write_shards(&draft);
	draft_write(&draft, "part-2", 4, 6, 0);
	REFUSED(ERR_FORMAT, "is in two files", draft.entries[4].name);
}
END_TEST

/* Mistral's own files and names are looked for. */
START_TEST(mistral_names)
{
	static const struct safetensors_entry norm_f = { "model.backbone.norm_f.weight", DTYPE_FLOAT32, 1, { 32 } };
	static const float data[32];

	draft_write_text(&draft, "params.json", "{\"dim\": 32, \"n_layers\": 1, \"n_groups\": 1, \"vocab_size\": 1}");
	draft.n = 0;
	draft_add(&draft, &norm_f, data);
	draft_write(&draft, "consolidated.safetensors", 0, 1, 0);
	REFUSED(ERR_FORMAT, "tensor model.backbone.layers.0.norm.weight is missing: expected one of shape [32]");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("refused");
	TCase *tensors = tcase_create("tensors"), *files = tcase_create("files");

	tcase_add_checked_fixture(tensors, begin, end);
	tcase_add_test(tensors, missing_tensor);
	tcase_add_test(tensors, misshapen_tensor);
	tcase_add_test(tensors, swapped_dimensions);
	tcase_add_test(tensors, wrong_dtype);
	tcase_add_loop_test(tensors, unknown_tensor_in_a_layer, 0, sizeof unknown / sizeof *unknown);
	tcase_add_test(tensors, bias_against_the_config);
	tcase_add_test(tensors, no_backbone);
	tcase_add_test(tensors, mistral_names);
	tcase_add_checked_fixture(files, begin, end);
	tcase_add_test(files, truncated_file);
	tcase_add_test(files, missing_files);
	tcase_add_test(files, path_too_long);
	tcase_add_loop_test(files, bad_index, 0, sizeof bad_indexes / sizeof *bad_indexes);
	tcase_add_test(files, tensor_in_two_shards);
	suite_add_tcase(suite, tensors);
	suite_add_tcase(suite, files);
	return suite_run(suite);
}
