/*
 * The list of a backbone's weights: what each is called in a checkpoint, where it goes, and its shape.  Loading,
 * fingerprints and random models all walk over this list.
 */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include <stddef.h>

#include "model/model.h"
#include "model/shape.h"

enum weight_presence {
	WEIGHT_ALWAYS,
	WEIGHT_WITH_BIAS,      /* where config.json has use_bias */
	WEIGHT_WITH_CONV_BIAS, /* where it has use_conv_bias */
	WEIGHT_OPTIONAL        /* where the file has it */
};

struct weight {
	const char *name; /* after "layers.N." in a layer */
	size_t place;     /* offset of its struct tensor in struct layer, or in struct model */
	enum weight_presence presence;
	size_t rank;
	size_t shape[3];
};

#define LAYER_WEIGHTS 11 /* the members of struct layer */
#define MODEL_WEIGHTS 2  /* norm_f and embeddings */

/* Fill in the weights of each layer, and those of the model outside its layers. */
void weights_of_layer(const struct shape *shape, struct weight ret_weights[LAYER_WEIGHTS]);
void weights_of_model(const struct shape *shape, struct weight ret_weights[MODEL_WEIGHTS]);

/* The struct tensor at weight->place of a struct layer or struct model. */
struct tensor *weight_tensor(void *owner, const struct weight *weight);

/* How many numbers it has. */
size_t weight_numbers(const struct weight *weight);

/* Hash shape and weights, in the order of the list, into model->fingerprint. */
int weights_fingerprint(struct model *model, struct error *err);

/* The same for random weights, for which their seed stands: hashing gigabytes takes time. */
int weights_fingerprint_seed(struct model *model, uint64_t seed, struct error *err);

#endif
