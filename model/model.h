/*
 * A Mamba-2 checkpoint: its shape and its weights, as they lie in the memory-mapped safetensors files.
 * Back ends read the weights once at open and keep packed copies of their own.
 */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/dtype.h"
#include "model/error.h"
#include "model/shape.h"

/* A weight, row-major, little-endian, in the checkpoint's own float dtype.  data is NULL where the model has none. */
struct tensor {
	const void *data;
	size_t n; /* numbers */
	enum dtype dtype;
};

struct layer {
	struct tensor norm;          /* [hidden_size] */
	struct tensor in_proj;       /* [in_proj_rows, hidden_size]: z, x, B, C, dt */
	struct tensor in_proj_bias;  /* [in_proj_rows], optional (use_bias) */
	struct tensor conv;          /* [conv_dim, 1, conv_kernel] */
	struct tensor conv_bias;     /* [conv_dim], optional (use_conv_bias) */
	struct tensor dt_bias;       /* [num_heads] */
	struct tensor a_log;         /* [num_heads] */
	struct tensor d;             /* [num_heads] */
	struct tensor gated_norm;    /* [d_inner] */
	struct tensor out_proj;      /* [hidden_size, d_inner] */
	struct tensor out_proj_bias; /* [hidden_size], optional (use_bias) */
};

struct model {
	struct shape shape;
	struct layer *layers;      /* [num_layers] */
	struct tensor norm_f;      /* [hidden_size] */
	struct tensor embeddings;  /* [vocab_size, hidden_size], optional: serves token ids */
	char fingerprint[33];      /* 128 bits of hash over shape and weights, hex: states belong to one model */
	struct model_storage *storage; /* the mapped files, or the memory of random weights */
};

/*
 * Open the checkpoint in folder: config.json and model.safetensors, or shards with model.safetensors.index.json.
 * Errors name the file, and the key or tensor, and say what was expected.  Free with model_free.
 */
int model_open(const char *folder, struct model **ret_model, struct error *err);

/* A model of this shape (derived) with small random float32 weights from seed: for benchmarks and tests. */
int model_random(const struct shape *shape, uint64_t seed, struct model **ret_model, struct error *err);

/* Free the model.  NULL is fine.  No device that was opened with it may be used for token lookups afterwards. */
void model_free(struct model *model);

/*
 * Give the weights' pages back to the system; they come back from the file when touched.  Called once the device has
 * packed its copies.  The embeddings are left alone.
 */
void model_release_pages(const struct model *model);

/* Widen a tensor to float32: dst [tensor->n].  Without data (an absent bias) dst becomes n zeros. */
void tensor_widen(const struct tensor *tensor, float *dst, size_t n);

/*
 * Look up n token ids: dst [n, hidden_size] float32.  ERR_FORMAT names the first id outside the vocabulary;
 * ERR_UNSUPPORTED if the checkpoint has no embeddings.  A failure leaves dst undefined.
 */
int model_embed(const struct model *model, enum dtype dtype, const void *tokens, size_t n, float *dst,
		struct error *err);

#endif
