/*
 * Models with random weights, for benchmarks and tests.  Their magnitudes are those of a freshly initialised Mamba-2,
 * so that hidden states stay finite for ever; the generator is cheap enough that filling gigabytes costs little more
 * than touching them.
 */
#include "model/model.h"

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "model/model_storage.h"
#include "model/weights.h"

/* Generators side by side, in one vector; tensors take whole vectors. */
#define LANES 16
typedef uint32_t lanes_bits __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef float lanes_floats __attribute__((vector_size(LANES * sizeof(float))));

/* SplitMix64: spreads seeds that are close to each other. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

/*
 * Fill out with n floats in [low, high), and the rest of its last vector: Marsaglia's xorshift in each lane, of which
 * the upper 23 bits become a float in [1, 2).
 */
static void fill_uniform(uint64_t seed, float low, float high, size_t n, float *out)
{
	lanes_bits x;

	for (unsigned int i = 0; i < LANES; i++)
		x[i] = (uint32_t)mix(seed * LANES + i) | 1; /* xorshift must not begin at 0 */
	for (size_t i = 0; i < n; i += LANES) {
		lanes_floats floats;

		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		floats = (lanes_floats)(x >> 9 | 0x3f800000) - 1.0f;
		floats = low + (high - low) * floats;
		memcpy(out + i, &floats, sizeof floats);
	}
}

/* A = -exp(a_log) is between -1 and -16. */
static void fill_a_log(uint64_t seed, size_t n, float *out)
{
	fill_uniform(seed, 1, 16, n, out);
	for (size_t i = 0; i < n; i++)
		out[i] = logf(out[i]);
}

/* softplus(dt_bias) is between 0.001 and 0.1, evenly on a logarithmic scale. */
static void fill_dt_bias(uint64_t seed, size_t n, float *out)
{
	fill_uniform(seed, logf(0.001f), logf(0.1f), n, out);
	for (size_t i = 0; i < n; i++)
		out[i] = logf(expm1f(expf(out[i])));
}

/* Fill the weight at place of a layer.  Matrices and the convolution are uniform within 1 / sqrt(fan-in). */
static void fill_weight(const struct weight *weight, uint64_t seed, size_t n, float *out)
{
	float bound = 1 / sqrtf((float)weight->shape[weight->rank - 1]);

	if (weight->rank > 1)
		fill_uniform(seed, -bound, bound, n, out);
	else if (weight->place == offsetof(struct layer, a_log))
		fill_a_log(seed, n, out);
	else if (weight->place == offsetof(struct layer, dt_bias))
		fill_dt_bias(seed, n, out);
	else if (weight->place == offsetof(struct layer, conv_bias))
		fill_uniform(seed, -0.1f, 0.1f, n, out);
	else /* the norms and D */
		fill_uniform(seed, 0.9f, 1.1f, n, out);
}

static size_t block_bytes(size_t numbers)
{
	return (numbers + LANES - 1) / LANES * LANES * sizeof(float);
}

/* Random models have a bias where most checkpoints have one: in the convolution. */
static bool weight_present(const struct weight *weight)
{
	return weight->presence == WEIGHT_ALWAYS || weight->presence == WEIGHT_WITH_CONV_BIAS;
}

/* One mapping for all weights: large pages where the system has them. */
static int allocate(struct model *model, const struct weight *of_layer, struct error *err)
{
	struct model_storage *storage = model->storage;
	size_t layer_bytes = 0;
	void *memory;

	for (size_t i = 0; i < LAYER_WEIGHTS; i++)
		layer_bytes += weight_present(&of_layer[i]) ? block_bytes(weight_numbers(&of_layer[i])) : 0;
	storage->size = model->shape.num_layers * layer_bytes + block_bytes(model->shape.hidden_size);
	memory = mmap(NULL, storage->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return error_system(err, "%zu bytes of random weights", storage->size);
	madvise(memory, storage->size, MADV_HUGEPAGE);
	storage->memory = memory;
	return 0;
}

/* Make tensor the next n floats at *next, which advances. */
static float *place_tensor(struct tensor *tensor, size_t n, char **next)
{
	float *data = (float *)(void *)*next;

	*tensor = (struct tensor){ .data = data, .n = n, .dtype = DTYPE_FLOAT32 };
	*next += block_bytes(n);
	return data;
}

static void fill_model(struct model *model, const struct weight *of_layer, uint64_t seed)
{
	char *next = model->storage->memory;
	size_t hidden_size = model->shape.hidden_size;

	for (size_t i = 0; i < model->shape.num_layers; i++) {
		for (size_t j = 0; j < LAYER_WEIGHTS; j++) {
			struct tensor *tensor = weight_tensor(&model->layers[i], &of_layer[j]);
			size_t n = weight_numbers(&of_layer[j]);

			if (weight_present(&of_layer[j]))
				fill_weight(&of_layer[j], mix(seed) + i * LAYER_WEIGHTS + j, n,
					    place_tensor(tensor, n, &next));
		}
	}
	fill_uniform(~mix(seed), 0.9f, 1.1f, hidden_size, place_tensor(&model->norm_f, hidden_size, &next));
}

int model_random(const struct shape *shape, uint64_t seed, struct model **ret_model, struct error *err)
{
	struct weight of_layer[LAYER_WEIGHTS];
	struct model *model;
	int rc = model_new(shape, &model, err);

	if (rc)
		return rc;
	model->shape.vocab_size = 0;
	weights_of_layer(shape, of_layer);
	rc = allocate(model, of_layer, err);
	if (!rc)
		rc = weights_fingerprint_seed(model, seed, err);
	if (rc) {
		model_free(model);
		return rc;
	}
	fill_model(model, of_layer, seed);
	*ret_model = model;
	return 0;
}
