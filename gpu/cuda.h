/*
 * The insides of an open cuda device, for benchmarks that measure its parts.  What they point to belongs to the device.
 */
#ifndef GPU_CUDA_H
#define GPU_CUDA_H

#include "gpu/forward.h"
#include "model/device.h"

/* device is one that backend_cuda opened. */
const struct forward *cuda_forward_of(struct device *device);

#endif
