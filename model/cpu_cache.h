/*
 * A stream's cache as the CPU kernels want it: for each layer the conv state [blocks of x, B, C; taps - 1; CPU_BLOCK],
 * then the SSM state [num_heads, state_size, head_dim], padded; float32.  It is converted to and from the canonical
 * layout of shape.h.
 */
#ifndef MODEL_CPU_CACHE_H
#define MODEL_CPU_CACHE_H

#include <stddef.h>

#include "model/cpu_weights.h"
#include "model/shape.h"

/* In floats, from the start of a cache. */
size_t cpu_cache_history(const struct cpu_weights *weights, const struct shape *shape, size_t layer);
size_t cpu_cache_state(const struct cpu_weights *weights, const struct shape *shape, size_t layer);
size_t cpu_cache_floats(const struct cpu_weights *weights, const struct shape *shape);

/* canonical is [shape_cache_floats].  Importing expects zero padding and leaves it alone. */
void cpu_cache_export(const struct cpu_weights *weights, const struct shape *shape, const float *cache,
		      float *canonical);
void cpu_cache_import(const struct cpu_weights *weights, const struct shape *shape, const float *canonical,
		      float *cache);

#endif
