/*
 * The insides of an open cpu device, for benchmarks that measure its parts.  What they point to belongs to the device.
 */
#ifndef MODEL_CPU_H
#define MODEL_CPU_H

#include "model/cpu_kernels.h"
#include "model/cpu_threads.h"
#include "model/cpu_weights.h"
#include "model/device.h"

struct cpu_parts {
	const struct cpu_kernels *kernels;
	struct cpu_threads *threads;
	const struct cpu_weights *weights;
};

/* device is one that backend_cpu opened. */
struct cpu_parts cpu_parts_of(struct device *device);

#endif
