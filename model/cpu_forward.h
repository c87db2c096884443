/*
 * The forward pass on the CPU: a batch is cut into slices of whole windows, and each slice goes through all layers in
 * buffers that belong to the device.  Nothing is allocated and nothing can fail.
 */
#ifndef MODEL_CPU_FORWARD_H
#define MODEL_CPU_FORWARD_H

#include "model/cpu_kernels.h"
#include "model/cpu_threads.h"
#include "model/cpu_weights.h"
#include "model/device.h"

struct cpu_forward;

/* Buffers for the device's window and batches; all arguments must outlive the result.  Free with cpu_forward_free. */
int cpu_forward_new(const struct device *device, const int *outputs, const struct cpu_weights *weights,
		    const struct cpu_kernels *kernels, struct cpu_threads *threads, struct cpu_forward **ret_forward,
		    struct error *err);
void cpu_forward_free(struct cpu_forward *forward); /* NULL is fine */

/* Run a batch: writes the hidden states of its windows and advances its caches. */
void cpu_forward_run(struct cpu_forward *forward, const struct batch *batch);

#endif
