/*
 * config.json: the shape of a backbone and which biases it has, in the dialects that checkpoints come in.
 */
#ifndef MODEL_MODEL_CONFIG_H
#define MODEL_MODEL_CONFIG_H

#include <stdbool.h>

#include "model/error.h"
#include "model/jsondoc.h"
#include "model/shape.h"

struct model_config {
	struct shape shape; /* derived */
	bool use_bias;      /* in_proj and out_proj have biases */
	bool use_conv_bias; /* conv1d has one */
};

/*
 * Read config.json, or else params.json, in folder: transformers' Mamba2Config, mamba_ssm's MambaConfig with Mamba2
 * layers, or Mistral's params.json.  Absent keys have the defaults of their dialect.  What would change the hidden
 * states and is not implemented is refused by name (ERR_UNSUPPORTED); a bad value is ERR_FORMAT and names the key.
 */
int model_config_read(const char *folder, struct model_config *ret_config, struct error *err);

/* The same for a parsed document. */
int model_config_parse(const struct jsondoc *root, struct model_config *ret_config, struct error *err);

#endif
