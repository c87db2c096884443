/*
 * A matrix product on all threads.
 */
#ifndef MODEL_CPU_MULTIPLY_H
#define MODEL_CPU_MULTIPLY_H

#include <stdbool.h>
#include <stddef.h>

#include "model/cpu_kernels.h"
#include "model/cpu_threads.h"

/* Compute a product for its first `rows` rows.  How the work is divided changes no bit of the result. */
void cpu_multiply(const struct cpu_kernels *kernels, struct cpu_threads *threads, const struct cpu_product *product,
		  size_t rows);

#endif
