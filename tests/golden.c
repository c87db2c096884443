/* Loading golden cases: see golden.h. */
#include "tests/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"

const char *const golden_cases[GOLDEN_CASES] = {
	"seed-46032", "one-layer-long", "odd-shapes", "eight-groups", "causal-lm-sharded", "float16", "bfloat16",
};

static _Noreturn void fail(const char *name, const char *what)
{
	fprintf(stderr, "golden case %s: %s\n", name, what);
	exit(1);
}

char *golden_path(const char *name, const char *file)
{
	size_t size = strlen(TESTS_DIR) + strlen(name) + strlen(file) + 16;
	char *path = malloc(size);

	if (!path)
		fail(name, "out of memory");
	snprintf(path, size, "%s/golden/%s/%s", TESTS_DIR, name, file);
	return path;
}

static const struct safetensor *find(const struct safetensors *file, const char *name, const char *tensor, size_t n)
{
	const struct safetensor *found = safetensors_find(file, tensor);

	if (!found || (n && found->n != n))
		fail(name, tensor);
	return found;
}

/* A copy of a float32 tensor of n numbers. */
static float *copy(const struct safetensors *file, const char *name, const char *tensor, size_t n)
{
	const struct safetensor *found = find(file, name, tensor, n);
	float *floats = malloc(n * sizeof *floats);

	if (!floats || !found->has_dtype || found->dtype != DTYPE_FLOAT32)
		fail(name, tensor);
	memcpy(floats, found->data, n * sizeof *floats);
	return floats;
}

/* The files' conv_state has conv_kernel columns, of which a stream needs the newest conv_kernel - 1. */
static void load_cache(const struct safetensors *file, const char *name, struct golden *golden)
{
	const struct shape *shape = &golden->model->shape;
	size_t n_conv = shape_conv_state_floats(shape), n_ssm = shape_ssm_state_floats(shape);
	size_t kept = shape->conv_kernel - 1;
	float *to = golden->cache = malloc(shape_cache_floats(shape) * sizeof *to);

	if (!to)
		fail(name, "out of memory");
	for (size_t i = 0; i < shape->num_layers; i++) {
		char tensor[64];
		float *conv, *ssm;

		snprintf(tensor, sizeof tensor, "layers.%zu.conv_state", i);
		conv = copy(file, name, tensor, shape->conv_dim * shape->conv_kernel);
		for (size_t row = 0; row < shape->conv_dim; row++)
			memcpy(to + row * kept, conv + row * shape->conv_kernel + 1, kept * sizeof *to);
		snprintf(tensor, sizeof tensor, "layers.%zu.ssm_state", i);
		ssm = copy(file, name, tensor, n_ssm);
		memcpy(to + n_conv, ssm, n_ssm * sizeof *to);
		to += n_conv + n_ssm;
		free(conv);
		free(ssm);
	}
}

static void load_hidden_states(const struct safetensors *file, const char *name, struct golden *golden)
{
	size_t n = golden->rows * golden->model->shape.hidden_size, num_layers = golden->model->shape.num_layers;

	golden->hidden_states = malloc(num_layers * n * sizeof *golden->hidden_states);
	if (!golden->hidden_states)
		fail(name, "out of memory");
	for (size_t i = 0; i < num_layers; i++) {
		char tensor[64];
		float *layer;

		snprintf(tensor, sizeof tensor, "layers.%zu.hidden_state", i);
		layer = copy(file, name, tensor, n);
		memcpy(golden->hidden_states + i * n, layer, n * sizeof *layer);
		free(layer);
	}
}

static void load_input_ids(const struct safetensors *file, const char *name, struct golden *golden)
{
	const struct safetensor *found = safetensors_find(file, "input_ids");

	if (!found)
		return;
	if (found->n != golden->rows || !found->has_dtype || dtype_is_float(found->dtype))
		fail(name, "input_ids");
	golden->input_ids = malloc(golden->rows * sizeof *golden->input_ids);
	if (!golden->input_ids)
		fail(name, "out of memory");
	for (size_t i = 0; i < golden->rows; i++)
		golden->input_ids[i] = (int32_t)dtype_token(found->dtype, found->data, i);
}

void golden_load(const char *name, struct golden *ret_golden)
{
	char *folder = golden_path(name, ""), *path = golden_path(name, "golden.safetensors");
	struct golden golden = { .rows = 0 };
	struct safetensors *file;
	struct error err;
	size_t n;

	if (model_open(folder, &golden.model, &err))
		fail(name, err.text);
	if (safetensors_open(path, &file, &err))
		fail(name, err.text);
	golden.rows = find(file, name, "inputs_embeds", 0)->shape[0];
	n = golden.rows * golden.model->shape.hidden_size;
	golden.inputs_embeds = copy(file, name, "inputs_embeds", n);
	golden.last_hidden_state = copy(file, name, "last_hidden_state", n);
	load_hidden_states(file, name, &golden);
	load_cache(file, name, &golden);
	load_input_ids(file, name, &golden);
	safetensors_close(file);
	free(path);
	free(folder);
	*ret_golden = golden;
}

void golden_free(struct golden *golden)
{
	model_free(golden->model);
	free(golden->inputs_embeds);
	free(golden->last_hidden_state);
	free(golden->hidden_states);
	free(golden->cache);
	free(golden->input_ids);
	*golden = (struct golden){ .rows = 0 };
}

double relative_error(const float *got, const float *want, size_t n)
{
	double difference = 0, norm = 0;

	for (size_t i = 0; i < n; i++) {
		double d = (double)got[i] - (double)want[i];

		difference += d * d;
		norm += (double)want[i] * (double)want[i];
	}
	return isnan(difference) ? INFINITY : sqrt(difference / norm);
}
