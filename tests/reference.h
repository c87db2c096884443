/*
 * The backbone in double precision, one row at a time: for shapes of which there is no golden case.  For tests: out of
 * memory ends the program.
 */
#ifndef TESTS_REFERENCE_H
#define TESTS_REFERENCE_H

#include <stddef.h>

#include "model/model.h"

/*
 * Run n rows [n, hidden_size] from a zero cache: hidden [n, hidden_size] after the final norm, and the cache after the
 * last row in the canonical layout of model/shape.h.
 */
void reference_run(const struct model *model, const float *rows, size_t n, float *hidden, float *cache);

#endif
