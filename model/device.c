/*
 * Finding a back end by name.  This table is the only place that knows which there are, best first.
 */
#include "model/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct backend *const backends[] = { &backend_cuda, &backend_cpu };
#define N_BACKENDS (sizeof backends / sizeof *backends)

static const char *const precisions[] = {
	[PRECISION_AUTO] = "auto",
	[PRECISION_FLOAT32] = "float32",
	[PRECISION_BFLOAT16] = "bfloat16",
};

/* Split "cuda:1" into the back end and the index; "cuda" alone is index 0, and "cpu" has no others. */
static int parse_name(const char *name, const struct backend **ret_backend, int *ret_index, struct error *err)
{
	size_t length = strcspn(name, ":");
	const char *digits = name[length] ? name + length + 1 : "0";
	size_t n_digits = strspn(digits, "0123456789");
	bool indexed = n_digits >= 1 && n_digits <= 4 && !digits[n_digits];

	for (size_t i = 0; i < N_BACKENDS; i++) {
		if (strlen(backends[i]->name) != length || memcmp(backends[i]->name, name, length))
			continue;
		if (!indexed || (backends[i] == &backend_cpu && name[length]))
			break;
		*ret_backend = backends[i];
		*ret_index = atoi(digits);
		return 0;
	}
	return error_set(err, ERR_ARGUMENT, "device %.60s: expected auto, cpu, cuda or cuda:N", name);
}

/* Open the first that can serve the model; err gathers why the others cannot, even where one is found. */
static int open_first(const struct model *model, const struct device_options *options, struct device **ret_device,
		      struct error *err)
{
	char reasons[sizeof err->text] = "";
	size_t used = 0;
	int rc = ERR_UNSUPPORTED;

	for (size_t i = 0; i < N_BACKENDS; i++) {
		struct error why;

		rc = backends[i]->open(model, options, ret_device, &why);
		if (!rc)
			return error_set(err, 0, "%s", reasons);
		used += (size_t)snprintf(reasons + used, sizeof reasons - used, "%s%.160s", used ? "; " : "",
					 why.text);
	}
	return error_set(err, rc, "no device can serve the model: %.350s", reasons);
}

int device_open(const char *name, const struct model *model, const struct device_options *options,
		struct device **ret_device, struct error *err)
{
	struct device_options indexed = *options;
	const struct backend *backend = NULL;
	int rc;

	if (!strcmp(name, "auto")) {
		indexed.index = 0;
		return open_first(model, &indexed, ret_device, err);
	}
	rc = parse_name(name, &backend, &indexed.index, err);
	return rc ? rc : backend->open(model, &indexed, ret_device, err);
}

bool device_known(const char *name)
{
	const struct backend *backend;
	struct error error;
	int index;

	return !strcmp(name, "auto") || !parse_name(name, &backend, &index, &error);
}

void device_close(struct device *device)
{
	if (device)
		device->backend->close(device);
}

bool precision_find(const char *name, enum precision *ret_precision)
{
	for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++) {
		if (!strcmp(name, precisions[i])) {
			*ret_precision = (enum precision)i;
			return true;
		}
	}
	return false;
}

const char *precision_name(enum precision precision)
{
	return precisions[precision];
}
