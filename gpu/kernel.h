/*
 * What every kernel's header needs: streams, the layout and the batch.  A launcher only enqueues and returns the
 * launch's status; sizes that it is given (rows, segments, chunks) bound the grid, and the kernel reads how many there
 * really are from the batch, so that a launch can be recorded in a graph and serve every batch within its bounds.
 */
#ifndef GPU_KERNEL_H
#define GPU_KERNEL_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#include "gpu/batch.h"
#include "gpu/layout.h"

#endif
