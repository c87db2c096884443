/* The cuda back end of a build without CUDA: it can be found by name and says why it cannot be opened. */
#include "model/device.h"

static int stub_open(const struct model *model, const struct device_options *options, struct device **ret_device,
		     struct error *err)
{
	(void)model;
	(void)options;
	(void)ret_device;
	return error_set(err, ERR_UNSUPPORTED, "device cuda: this build has no CUDA back end");
}

const struct backend backend_cuda = { .name = "cuda", .open = stub_open };
