/*
 * What is wrong with a configuration although each of its keys may have the value that it has: several of them
 * together, or with the model.
 */
#include "daemon/config.h"

#include <inttypes.h>
#include <stdlib.h>

#include "daemon/config_key.h"
#include "daemon/http.h"
#include "daemon/security.h"

int config_check(const struct config *config, struct error *err)
{
	if (!config->model[0])
		return error_set(err, ERR_ARGUMENT, "model: expected the folder of a checkpoint (-s model=DIR)");
	if (!config->device.n)
		return error_set(err, ERR_ARGUMENT, "device: expected auto, cpu, cuda or cuda:N, or several of them");
	if (!config->sockets.ingest.n && !config->sockets.subscribe.n)
		return error_set(err, ERR_ARGUMENT,
				 "sockets.ingest and sockets.subscribe: expected an address for one of them");
	if (config->limits.batch_rows && config->limits.batch_rows < config->window)
		return error_set(err, ERR_ARGUMENT, "limits.batch_rows: %" PRIu64 " is less than a window of %" PRIu64,
				 config->limits.batch_rows, config->window);
	if (config->limits.credit_rows < config->window)
		return error_set(err, ERR_ARGUMENT, "limits.credit_rows: %" PRIu64 " is less than a window of %" PRIu64,
				 config->limits.credit_rows, config->window);
	if (!config->output.layers.n)
		return error_set(err, ERR_ARGUMENT, "output.layers: expected at least one of final and layer numbers");
	if (config->metrics.listen[0] && http_check(config->metrics.listen, err))
		return err->code;
	return security_check(config, err);
}

int config_finish(struct config *config, struct error *err)
{
	struct string_list *layers = &config->output.layers;

	if (config_check(config, err))
		return err->code;
	free(config->output.outputs);
	config->output.outputs = calloc(layers->n, sizeof *config->output.outputs);
	if (!config->output.outputs)
		return error_memory(err, "configuration");
	config->output.n_outputs = layers->n;
	for (size_t i = 0; i < layers->n; i++) {
		config->output.outputs[i] = config_layer(layers->item[i]);
		for (size_t j = 0; j < i; j++)
			if (config->output.outputs[i] == config->output.outputs[j])
				return error_set(err, ERR_ARGUMENT, "output.layers: %s stands there twice",
						 layers->item[i]);
	}
	return 0;
}

int config_suits(const struct config *config, const struct model *model, struct error *err)
{
	for (size_t i = 0; i < config->output.n_outputs; i++)
		if (config->output.outputs[i] >= (int)model->shape.num_layers)
			return error_set(err, ERR_ARGUMENT,
					 "output.layers: %d, expected final or 0 to %zu: the model has %zu layers",
					 config->output.outputs[i], model->shape.num_layers - 1,
					 model->shape.num_layers);
	return 0;
}

int config_open_model(const struct config *config, struct model **ret_model, struct error *err)
{
	struct error why;
	int rc = model_open(config->model, ret_model, &why);

	if (rc)
		return error_set(err, rc, "model: %s", why.text);
	rc = config_suits(config, *ret_model, err);
	if (rc) {
		model_free(*ret_model);
		*ret_model = NULL;
	}
	return rc;
}
