/*
 * config.json in its dialects: what is read from it, what it may leave out, and what it is refused for.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/model_config.h"
#include "tests/assert_shape.h"
#include "tests/suite.h"

static int parse(const char *text, struct model_config *ret_config, struct error *err)
{
	struct jsondoc *root;
	int rc = jsondoc_parse(text, strlen(text), true, &root, err);

	if (rc)
		return rc;
	rc = model_config_parse(root, ret_config, err);
	jsondoc_free(root);
	return rc;
}

static struct model_config parsed(const char *text)
{
	struct model_config config;
	struct error err;

	ck_assert_msg(!parse(text, &config, &err), "%s", err.text);
	return config;
}

START_TEST(absent_keys_have_the_defaults_of_transformers)
{
	struct model_config config = parsed("{\"model_type\": \"mamba2\", \"num_heads\": null}");
	const struct shape *shape = &config.shape;

	ck_assert_uint_eq(shape->num_layers, 64);
	ck_assert_uint_eq(shape->hidden_size, 4096);
	ck_assert_uint_eq(shape->d_inner, 8192);
	ck_assert_uint_eq(shape->num_heads, 128);
	ck_assert_uint_eq(shape->head_dim, 64);
	ck_assert_uint_eq(shape->n_groups, 8);
	ck_assert_uint_eq(shape->state_size, 128);
	ck_assert_uint_eq(shape->conv_kernel, 4);
	ck_assert_uint_eq(shape->vocab_size, 32768);
	ck_assert_uint_eq(shape->gated_norm_groups, 1);
	ck_assert(shape->norm_epsilon == 1e-5f && shape->dt_min == 0 && isinf(shape->dt_max));
	ck_assert_uint_eq(shape->conv_dim, 8192 + 2 * 8 * 128);
	ck_assert_uint_eq(shape->in_proj_rows, 8192 + 8192 + 2 * 8 * 128 + 128);
	ck_assert(!config.use_bias && config.use_conv_bias);
}
END_TEST

/* A small valid config, and keys to add to it. */
#define SMALL "{\"model_type\": \"mamba2\", \"hidden_size\": 40, \"num_heads\": 6, \"head_dim\": 20, " \
	      "\"n_groups\": 2, \"num_hidden_layers\": 3, \"expand\": 3"
#define WITH(text) SMALL ", " text "}"

START_TEST(keys_are_honoured)
{
	struct model_config config = parsed(WITH("\"state_size\": 24, \"conv_kernel\": 3, \"vocab_size\": 9, "
		"\"layer_norm_epsilon\": 1e-6, \"use_bias\": true, \"use_conv_bias\": false, "
		"\"hidden_act\": \"swish\", \"time_step_limit\": [0.01, 0.2], \"rms_norm\": true, "
		"\"norm_before_gate\": true, \"chunk_size\": 7, \"intermediate_size\": 1, \"quantization_config\": {}, "
		"\"unheard_of\": [[]]"));
	const struct shape *shape = &config.shape;

	ck_assert_uint_eq(shape->num_layers, 3);
	ck_assert_uint_eq(shape->hidden_size, 40);
	ck_assert_uint_eq(shape->d_inner, 120);
	ck_assert_uint_eq(shape->n_groups, 2);
	ck_assert_uint_eq(shape->state_size, 24);
	ck_assert_uint_eq(shape->conv_kernel, 3);
	ck_assert_uint_eq(shape->vocab_size, 9);
	ck_assert(shape->norm_epsilon == 1e-6f && shape->dt_min == 0.01f && shape->dt_max == 0.2f);
	ck_assert(config.use_bias && !config.use_conv_bias);
}
END_TEST

START_TEST(expand_may_be_a_fraction)
{
	struct model_config config = parsed("{\"model_type\": \"mamba2\", \"hidden_size\": 40, \"num_heads\": 3, "
					    "\"head_dim\": 20, \"n_groups\": 1, \"expand\": 1.5}");

	ck_assert_uint_eq(config.shape.d_inner, 60);
}
END_TEST

static const char *const infinities[] = {
	"[0.0, Infinity]", "[0.0, {\"__float__\": \"Infinity\"}]", "[0, \"inf\"]", "[0,Infinity]",
	"[0.0, \"Infinity\"]",
};

START_TEST(infinity_is_read_in_every_spelling)
{
	char text[400];
	struct model_config config;

	snprintf(text, sizeof text, WITH("\"architectures\": [\"Infinity \\\" NaN\"], \"time_step_limit\": %s"),
		 infinities[_i]);
	config = parsed(text);
	ck_assert(config.shape.dt_min == 0);
	ck_assert(isinf(config.shape.dt_max) && config.shape.dt_max > 0);
}
END_TEST

static const struct {
	const char *text;
	int code;
	const char *words[2];
} refused[] = {
	{ "{\"hidden_size\": 8}", ERR_FORMAT, { "model_type", "mamba2" } },
	{ "{\"model_type\": \"mamba\"}", ERR_UNSUPPORTED, { "model_type is \"mamba\"", "expected \"mamba2\"" } },
	{ "{\"model_type\": \"distilbert\", \"dim\": 768}", ERR_UNSUPPORTED, { "model_type is \"distilbert\"" } },
	{ "{\"model_type\": 2}", ERR_FORMAT, { "model_type", "string" } },
	{ WITH("\"hidden_act\": \"gelu\""), ERR_UNSUPPORTED, { "hidden_act is \"gelu\"", "silu" } },
	{ WITH("\"hidden_act\": 1"), ERR_FORMAT, { "hidden_act", "string" } },
	{ WITH("\"rms_norm\": false"), ERR_UNSUPPORTED, { "rms_norm" } },
	{ WITH("\"quantization_config\": {\"bits\": 4}"), ERR_UNSUPPORTED, { "quantization_config" } },
	{ WITH("\"use_bias\": 1"), ERR_FORMAT, { "use_bias", "true or false" } },
	{ WITH("\"use_conv_bias\": \"yes\""), ERR_FORMAT, { "use_conv_bias", "true or false" } },
	{ WITH("\"state_size\": 0"), ERR_FORMAT, { "state_size is 0" } },
	{ WITH("\"state_size\": -1"), ERR_FORMAT, { "state_size", "integer" } },
	{ WITH("\"state_size\": 16.0"), ERR_FORMAT, { "state_size", "integer" } },
	{ WITH("\"state_size\": 4294967312"), ERR_FORMAT, { "state_size", "integer" } },
	{ WITH("\"state_size\": \"16\""), ERR_FORMAT, { "state_size", "integer" } },
	{ WITH("\"conv_kernel\": 1"), ERR_FORMAT, { "conv_kernel is 1", "2 to 64" } },
	{ WITH("\"conv_kernel\": 65"), ERR_FORMAT, { "conv_kernel is 65", "2 to 64" } },
	{ WITH("\"layer_norm_epsilon\": 0"), ERR_FORMAT, { "layer_norm_epsilon is 0" } },
	{ WITH("\"layer_norm_epsilon\": NaN"), ERR_FORMAT, { "layer_norm_epsilon" } },
	{ WITH("\"layer_norm_epsilon\": Infinity"), ERR_FORMAT, { "layer_norm_epsilon" } },
	{ WITH("\"layer_norm_epsilon\": \"tiny\""), ERR_FORMAT, { "layer_norm_epsilon", "number" } },
	{ WITH("\"time_step_limit\": [0.2, 0.1]"), ERR_FORMAT, { "time_step_limit", "low <= high" } },
	{ WITH("\"time_step_limit\": [-1, 1]"), ERR_FORMAT, { "time_step_limit" } },
	{ WITH("\"time_step_limit\": [0, NaN]"), ERR_FORMAT, { "time_step_limit" } },
	{ WITH("\"time_step_limit\": [Infinity, Infinity]"), ERR_FORMAT, { "time_step_limit" } },
	{ WITH("\"time_step_limit\": [0]"), ERR_FORMAT, { "time_step_limit", "two numbers" } },
	{ WITH("\"time_step_limit\": 0.1"), ERR_FORMAT, { "time_step_limit", "two numbers" } },
	{ WITH("\"time_step_limit\": [0, {}]"), ERR_FORMAT, { "time_step_limit", "two numbers" } },
	{ "{\"model_type\": \"mamba2\", \"num_hidden_layers\": 1000000000}", ERR_FORMAT,
	  { "num_hidden_layers is 1000000000" } },
	{ "{\"model_type\": \"mamba2\", \"num_hidden_layers\": 0}", ERR_FORMAT, { "num_hidden_layers is 0" } },
	{ "{\"model_type\": \"mamba2\", \"hidden_size\": 2000000000}", ERR_FORMAT, { "hidden_size is 2000000000" } },
	{ "{\"model_type\": \"mamba2\", \"expand\": 1e300}", ERR_FORMAT, { "expand" } },
	{ "{\"model_type\": \"mamba2\", \"expand\": NaN}", ERR_FORMAT, { "expand" } },
	{ "{\"model_type\": \"mamba2\", \"expand\": -2}", ERR_FORMAT, { "expand" } },
	{ "{\"model_type\": \"mamba2\", \"num_heads\": 64}", ERR_FORMAT,
	  { "num_heads * head_dim is 64 * 64", "8192" } },
	{ "{\"model_type\": \"mamba2\", \"n_groups\": 3}", ERR_FORMAT, { "n_groups is 3", "128" } },
	{ "{\"model_type\": \"mamba2\", \"n_groups\": 0}", ERR_FORMAT, { "n_groups is 0" } },
	{ "{\"model_type\": \"mamba2\", \"vocab_size\": 2147483647}", ERR_FORMAT, { "vocab_size" } },
	{ "{\"model_type\": \"mamba2\"", ERR_FORMAT, { "line 1" } },
	{ "{\"model_type\": \"mamba2\", \"model_type\": \"mamba2\"}", ERR_FORMAT, { "duplicate" } },
	{ WITH("\"time_step_limit\": [0, {\"__float__\": \"big\"}]"), ERR_FORMAT,
	  { "time_step_limit", "two numbers" } },
	{ "{\"model_type\": \"mamba2\", \"a\": 1e999}", ERR_FORMAT, { "line 1" } },
	{ "{\"model_type\": \"mamba2\", \"a\": Infinite}", ERR_FORMAT, { "line 1" } },
	{ "[1]", ERR_FORMAT, { "object" } },
	{ "{\"d_model\": 64}", ERR_UNSUPPORTED, { "layer is \"Mamba1\"", "Mamba2" } },
	{ "{\"d_model\": 64, \"ssm_cfg\": {\"layer\": \"Mamba2\", \"rmsnorm\": false}}", ERR_UNSUPPORTED,
	  { "rmsnorm" } },
	{ "{\"d_model\": 64, \"ssm_cfg\": {\"layer\": \"Mamba2\", \"D_has_hdim\": true}}", ERR_UNSUPPORTED,
	  { "D_has_hdim" } },
	{ "{\"d_model\": 64, \"ssm_cfg\": {\"layer\": \"Mamba2\", \"norm_before_gate\": true}}", ERR_UNSUPPORTED,
	  { "norm_before_gate" } },
	{ "{\"d_model\": 64, \"ssm_cfg\": {\"layer\": \"Mamba2\", \"d_ssm\": 32}}", ERR_UNSUPPORTED, { "d_ssm" } },
	{ "{\"d_model\": 64, \"ssm_cfg\": {\"layer\": \"Mamba2\", \"headdim\": 0}}", ERR_FORMAT, { "num_heads" } },
	{ "{\"d_model\": 64, \"rms_norm\": false, \"ssm_cfg\": {\"layer\": \"Mamba2\"}}", ERR_UNSUPPORTED,
	  { "rms_norm" } },
	{ "{\"d_model\": 64, \"attn_layer_idx\": [1], \"ssm_cfg\": {\"layer\": \"Mamba2\"}}", ERR_UNSUPPORTED,
	  { "attn_layer_idx" } },
	{ "{\"d_model\": 64, \"d_intermediate\": 8, \"ssm_cfg\": {\"layer\": \"Mamba2\"}}", ERR_UNSUPPORTED,
	  { "d_intermediate" } },
	{ "{\"dim\": 64}", ERR_FORMAT, { "num_hidden_layers is 0" } },
};

START_TEST(bad_configs_are_refused)
{
	struct model_config config = { .use_bias = true };
	struct error err;

	ck_assert_msg(parse(refused[_i].text, &config, &err) == refused[_i].code, "%s", refused[_i].text);
	ck_assert_int_eq(err.code, refused[_i].code);
	for (size_t i = 0; i < 2 && refused[_i].words[i]; i++)
		ck_assert_msg(strstr(err.text, refused[_i].words[i]), "\"%s\" is not in: %s", refused[_i].words[i],
			      err.text);
	ck_assert(config.use_bias && !config.shape.num_layers); /* untouched */
}
END_TEST

/* state-spaces/mamba2-130m as published. */
START_TEST(mamba_ssm_is_read)
{
	struct model_config config = parsed("{\"d_model\": 768, \"d_intermediate\": 0, \"n_layer\": 24, "
		"\"vocab_size\": 50277, \"ssm_cfg\": {\"layer\": \"Mamba2\"}, \"attn_layer_idx\": [], "
		"\"attn_cfg\": {}, \"rms_norm\": true, \"residual_in_fp32\": true, \"fused_add_norm\": true, "
		"\"pad_vocab_size_multiple\": 16, \"tie_embeddings\": true}");
	struct shape named;
	struct error err;

	ck_assert_int_eq(shape_named("130m", &named, &err), 0);
	assert_shapes_equal(&config.shape, &named);
	ck_assert(!config.use_bias && config.use_conv_bias);
}
END_TEST

START_TEST(mamba_ssm_arguments_are_honoured)
{
	struct model_config config = parsed("{\"d_model\": 64, \"n_layer\": 2, \"vocab_size\": 10, \"ssm_cfg\": {"
		"\"layer\": \"Mamba2\", \"d_state\": 16, \"d_conv\": 3, \"expand\": 3, \"headdim\": 32, "
		"\"ngroups\": 2, \"bias\": true, \"conv_bias\": false, "
		"\"dt_limit\": [0.5, Infinity], \"chunk_size\": 64}}");
	const struct shape *shape = &config.shape;

	ck_assert_uint_eq(shape->d_inner, 192);
	ck_assert_uint_eq(shape->num_heads, 6);
	ck_assert_uint_eq(shape->head_dim, 32);
	ck_assert_uint_eq(shape->state_size, 16);
	ck_assert_uint_eq(shape->conv_kernel, 3);
	ck_assert_uint_eq(shape->n_groups, 2);
	ck_assert_uint_eq(shape->gated_norm_groups, 2);
	ck_assert_uint_eq(shape->vocab_size, 16);
	ck_assert(shape->dt_min == 0.5f && isinf(shape->dt_max));
	ck_assert(config.use_bias && !config.use_conv_bias);
}
END_TEST

START_TEST(mistral_is_read)
{
	struct model_config config = parsed("{\"dim\": 4096, \"n_layers\": 64, \"vocab_size\": 32768, \"n_groups\": 8, "
		"\"tie_embeddings\": false, \"residual_in_fp32\": true, \"model_type\": \"mamba\"}");
	struct shape named;
	struct error err;

	ck_assert_int_eq(shape_named("codestral-7b", &named, &err), 0);
	assert_shapes_equal(&config.shape, &named);
}
END_TEST

static const struct {
	const char *name;
	size_t num_layers, hidden_size, num_heads, vocab_size;
} published[] = {
	{ "130m", 24, 768, 24, 50288 }, { "370m", 48, 1024, 32, 50288 }, { "780m", 48, 1536, 48, 50288 },
	{ "1.3b", 48, 2048, 64, 50288 }, { "2.7b", 64, 2560, 80, 50288 }, { "codestral-7b", 64, 4096, 128, 32768 },
};

START_TEST(published_shapes_are_known)
{
	struct shape shape;
	struct error err;

	ck_assert_int_eq(shape_named(published[_i].name, &shape, &err), 0);
	ck_assert_uint_eq(shape.num_layers, published[_i].num_layers);
	ck_assert_uint_eq(shape.hidden_size, published[_i].hidden_size);
	ck_assert_uint_eq(shape.num_heads, published[_i].num_heads);
	ck_assert_uint_eq(shape.vocab_size, published[_i].vocab_size);
	ck_assert_uint_eq(shape.d_inner, 2 * shape.hidden_size);
	ck_assert_uint_eq(shape.in_proj_rows, 2 * shape.d_inner + 2 * shape.n_groups * 128 + shape.num_heads);
}
END_TEST

START_TEST(norm_groups_divide_d_inner)
{
	struct shape shape;
	struct error err;

	ck_assert_int_eq(shape_named("130m", &shape, &err), 0);
	shape.gated_norm_groups = 3;
	ck_assert_int_eq(shape_derive(&shape, &err), 0);
	shape.gated_norm_groups = 5;
	ck_assert_int_eq(shape_derive(&shape, &err), ERR_FORMAT);
	ck_assert_msg(strstr(err.text, "gated_norm_groups is 5"), "%s", err.text);
}
END_TEST

START_TEST(cache_sizes)
{
	struct shape shape;
	struct error err;

	ck_assert_int_eq(shape_named("130m", &shape, &err), 0);
	ck_assert_uint_eq(shape_conv_state_floats(&shape), 1792 * 3);
	ck_assert_uint_eq(shape_ssm_state_floats(&shape), 24 * 64 * 128);
	ck_assert_uint_eq(shape_cache_floats(&shape), 24 * (1792 * 3 + 24 * 64 * 128));
	ck_assert_int_eq(shape_named("131m", &shape, &err), ERR_ARGUMENT);
	ck_assert_msg(strstr(err.text, "131m") && strstr(err.text, "codestral-7b"), "%s", err.text);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("config");
	TCase *transformers = tcase_create("transformers"), *others = tcase_create("others");
	TCase *shapes = tcase_create("shapes");

	tcase_add_test(transformers, absent_keys_have_the_defaults_of_transformers);
	tcase_add_test(transformers, keys_are_honoured);
	tcase_add_test(transformers, expand_may_be_a_fraction);
	tcase_add_loop_test(transformers, infinity_is_read_in_every_spelling, 0,
			    sizeof infinities / sizeof *infinities);
	tcase_add_loop_test(transformers, bad_configs_are_refused, 0, sizeof refused / sizeof *refused);
	tcase_add_test(others, mamba_ssm_is_read);
	tcase_add_test(others, mamba_ssm_arguments_are_honoured);
	tcase_add_test(others, mistral_is_read);
	tcase_add_loop_test(shapes, published_shapes_are_known, 0, sizeof published / sizeof *published);
	tcase_add_test(shapes, norm_groups_divide_d_inner);
	tcase_add_test(shapes, cache_sizes);
	suite_add_tcase(suite, transformers);
	suite_add_tcase(suite, others);
	suite_add_tcase(suite, shapes);
	return suite_run(suite);
}
