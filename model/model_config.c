/*
 * From config.json to struct shape.  Each dialect has one function that lists the keys it reads, in the terms of that
 * dialect; the first bad key's error stays (struct fields), so that these lists read from top to bottom.
 */
#include "model/model_config.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "model/file.h"

/* An object whose keys are being read, and the first error. */
struct fields {
	const struct jsondoc *object;
	struct error *err;
	int rc;
};

static void bad_field(struct fields *fields, const char *key, const char *expected)
{
	if (!fields->rc)
		fields->rc = error_set(fields->err, ERR_FORMAT, "%s: expected %s", key, expected);
}

static void refuse_field(struct fields *fields, const char *key, const char *what)
{
	if (!fields->rc)
		fields->rc = error_set(fields->err, ERR_UNSUPPORTED, "%s: %s is not supported", key, what);
}

static size_t field_size(struct fields *fields, const char *key, size_t absent)
{
	const struct jsondoc *value = jsondoc_get(fields->object, key);

	if (value && (!jsondoc_size(value, &absent) || absent > INT32_MAX))
		bad_field(fields, key, "an integer from 0 to 2147483647");
	return absent;
}

static bool field_boolean(struct fields *fields, const char *key, bool absent)
{
	const struct jsondoc *value = jsondoc_get(fields->object, key);

	if (value && !jsondoc_boolean(value, &absent))
		bad_field(fields, key, "true or false");
	return absent;
}

static double field_number(struct fields *fields, const char *key, double absent)
{
	const struct jsondoc *value = jsondoc_get(fields->object, key);

	if (value && !jsondoc_number(value, &absent))
		bad_field(fields, key, "a number");
	return absent;
}

static const char *field_string(struct fields *fields, const char *key, const char *absent)
{
	const struct jsondoc *value = jsondoc_get(fields->object, key);

	if (value && !jsondoc_string(value, &absent))
		bad_field(fields, key, "a string");
	return absent;
}

/* time_step_limit: [low, high]; absent: [0, infinity]. */
static void field_limit(struct fields *fields, const char *key, float *ret_low, float *ret_high)
{
	const struct jsondoc *value = jsondoc_get(fields->object, key);
	double low = 0, high = INFINITY;

	if (value && (jsondoc_length(value) != 2 || !jsondoc_number(jsondoc_element(value, 0), &low) ||
		      !jsondoc_number(jsondoc_element(value, 1), &high)))
		bad_field(fields, key, "two numbers");
	*ret_low = (float)low;
	*ret_high = (float)high;
}

/* d_inner is the integer part of expand * hidden_size; 0, which shape_derive refuses, where that is out of range. */
static size_t expand_hidden(struct fields *fields, size_t hidden_size)
{
	double d_inner = field_number(fields, "expand", 2) * (double)hidden_size;

	return d_inner >= 1 && d_inner <= INT32_MAX ? (size_t)d_inner : 0;
}

/* Whether a key is there and is not null, false, 0 or empty. */
static bool is_set(const struct jsondoc *value)
{
	bool boolean = true;
	size_t number = 1;

	if (jsondoc_is_array(value))
		return jsondoc_length(value);
	if (jsondoc_is_object(value))
		return jsondoc_members(value);
	if (jsondoc_boolean(value, &boolean) || jsondoc_size(value, &number))
		return boolean && number;
	return value;
}

/* Keys that belong to a model of another kind where they are set. */
static void refuse_set(struct fields *fields, const char *const *keys, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (is_set(jsondoc_get(fields->object, keys[i])))
			refuse_field(fields, keys[i], "a model with this");
	}
}

/*
 * transformers' Mamba2Config.  Its norm_before_gate and intermediate_size are read by no version of the model and are
 * ignored here too.
 */
static int parse_transformers(const struct jsondoc *root, struct model_config *config, struct error *err)
{
	static const char *const foreign[] = { "quantization_config" };
	struct fields fields = { .object = root, .err = err };
	struct shape *shape = &config->shape;
	const char *type = field_string(&fields, "model_type", "");
	const char *activation = field_string(&fields, "hidden_act", "silu");

	if (!fields.rc && strcmp(type, "mamba2"))
		return error_set(err, ERR_UNSUPPORTED, "model_type is \"%.60s\": expected \"mamba2\"", type);
	if (!fields.rc && strcmp(activation, "silu") && strcmp(activation, "swish"))
		return error_set(err, ERR_UNSUPPORTED, "hidden_act is \"%.60s\": expected \"silu\"", activation);
	if (!field_boolean(&fields, "rms_norm", true))
		refuse_field(&fields, "rms_norm", "false");
	refuse_set(&fields, foreign, sizeof foreign / sizeof *foreign);
	shape->num_layers = field_size(&fields, "num_hidden_layers", 64);
	shape->hidden_size = field_size(&fields, "hidden_size", 4096);
	shape->d_inner = expand_hidden(&fields, shape->hidden_size);
	shape->num_heads = field_size(&fields, "num_heads", 128);
	shape->head_dim = field_size(&fields, "head_dim", 64);
	shape->n_groups = field_size(&fields, "n_groups", 8);
	shape->state_size = field_size(&fields, "state_size", 128);
	shape->conv_kernel = field_size(&fields, "conv_kernel", 4);
	shape->vocab_size = field_size(&fields, "vocab_size", 32768);
	shape->gated_norm_groups = 1;
	shape->norm_epsilon = (float)field_number(&fields, "layer_norm_epsilon", 1e-5);
	field_limit(&fields, "time_step_limit", &shape->dt_min, &shape->dt_max);
	config->use_bias = field_boolean(&fields, "use_bias", false);
	config->use_conv_bias = field_boolean(&fields, "use_conv_bias", true);
	return fields.rc;
}

/* mamba_ssm pads the vocabulary to a multiple. */
static size_t padded_vocab(struct fields *fields, size_t absent, size_t absent_multiple)
{
	size_t vocab = field_size(fields, "vocab_size", absent);
	size_t multiple = field_size(fields, "pad_vocab_size_multiple", absent_multiple);

	return multiple && vocab % multiple ? vocab + multiple - vocab % multiple : vocab;
}

/* mamba_ssm's ssm_cfg: the arguments of its Mamba2 module, which keeps norm groups of d_inner / ngroups. */
static int parse_ssm_cfg(const struct jsondoc *ssm_cfg, struct model_config *config, struct error *err)
{
	static const char *const foreign[] = { "D_has_hdim", "norm_before_gate", "d_ssm", "process_group" };
	struct fields fields = { .object = ssm_cfg, .err = err };
	struct shape *shape = &config->shape;
	const char *layer = field_string(&fields, "layer", "Mamba1");

	if (!fields.rc && strcmp(layer, "Mamba2"))
		return error_set(err, ERR_UNSUPPORTED, "ssm_cfg: layer is \"%.60s\": expected \"Mamba2\"", layer);
	if (!field_boolean(&fields, "rmsnorm", true))
		refuse_field(&fields, "rmsnorm", "false");
	refuse_set(&fields, foreign, sizeof foreign / sizeof *foreign);
	shape->d_inner = expand_hidden(&fields, shape->hidden_size);
	shape->head_dim = field_size(&fields, "headdim", 64);
	shape->num_heads = shape->head_dim ? shape->d_inner / shape->head_dim : 0;
	shape->n_groups = field_size(&fields, "ngroups", 1);
	shape->gated_norm_groups = shape->n_groups;
	shape->state_size = field_size(&fields, "d_state", 128);
	shape->conv_kernel = field_size(&fields, "d_conv", 4);
	field_limit(&fields, "dt_limit", &shape->dt_min, &shape->dt_max);
	config->use_bias = field_boolean(&fields, "bias", false);
	config->use_conv_bias = field_boolean(&fields, "conv_bias", true);
	return fields.rc;
}

/* mamba_ssm's MambaConfig. */
static int parse_mamba_ssm(const struct jsondoc *root, struct model_config *config, struct error *err)
{
	static const char *const foreign[] = { "attn_layer_idx", "d_intermediate" };
	struct fields fields = { .object = root, .err = err };
	struct shape *shape = &config->shape;

	if (!field_boolean(&fields, "rms_norm", true))
		refuse_field(&fields, "rms_norm", "false");
	refuse_set(&fields, foreign, sizeof foreign / sizeof *foreign);
	shape->num_layers = field_size(&fields, "n_layer", 64);
	shape->hidden_size = field_size(&fields, "d_model", 2560);
	shape->vocab_size = padded_vocab(&fields, 50277, 8);
	shape->norm_epsilon = 1e-5f;
	return fields.rc ? fields.rc : parse_ssm_cfg(jsondoc_get(root, "ssm_cfg"), config, err);
}

/* Mistral's params.json: mamba_ssm's model with the default Mamba2 module and n_groups. */
static int parse_mistral(const struct jsondoc *root, struct model_config *config, struct error *err)
{
	struct fields fields = { .object = root, .err = err };
	struct shape *shape = &config->shape;

	if (!field_boolean(&fields, "rms_norm", true))
		refuse_field(&fields, "rms_norm", "false");
	shape->num_layers = field_size(&fields, "n_layers", 0);
	shape->hidden_size = field_size(&fields, "dim", 0);
	shape->d_inner = 2 * shape->hidden_size;
	shape->head_dim = 64;
	shape->num_heads = shape->d_inner / shape->head_dim;
	shape->n_groups = field_size(&fields, "n_groups", 1);
	shape->gated_norm_groups = shape->n_groups;
	shape->state_size = 128;
	shape->conv_kernel = 4;
	shape->vocab_size = padded_vocab(&fields, 0, 1);
	shape->norm_epsilon = 1e-5f;
	shape->dt_max = INFINITY;
	config->use_conv_bias = true;
	return fields.rc;
}

int model_config_parse(const struct jsondoc *root, struct model_config *ret_config, struct error *err)
{
	struct model_config config = { .use_bias = false };
	const struct jsondoc *type = jsondoc_get(root, "model_type");
	const char *name = "mamba";
	int rc;

	jsondoc_string(type, &name);
	if (jsondoc_get(root, "dim") && !strcmp(name, "mamba"))
		rc = parse_mistral(root, &config, err);
	else if (type)
		rc = parse_transformers(root, &config, err);
	else if (jsondoc_get(root, "d_model"))
		rc = parse_mamba_ssm(root, &config, err);
	else
		rc = error_set(err, ERR_FORMAT, "model_type is missing: expected \"mamba2\"");
	if (!rc)
		rc = shape_derive(&config.shape, err);
	if (!rc)
		*ret_config = config;
	return rc;
}

int model_config_read(const char *folder, struct model_config *ret_config, struct error *err)
{
	char config[FILE_PATH], mistral[FILE_PATH];
	struct jsondoc *root;
	const char *path;
	struct error why;
	int rc = file_path(folder, "config.json", config, err);

	if (!rc)
		rc = file_path(folder, "params.json", mistral, err);
	if (rc)
		return rc;
	path = file_exists(config) || !file_exists(mistral) ? config : mistral;
	rc = jsondoc_read(path, &root, err);
	if (rc)
		return rc;
	rc = model_config_parse(root, ret_config, &why);
	if (rc)
		error_set(err, rc, "%.200s: %.160s", path, why.text);
	jsondoc_free(root);
	return rc;
}
