/*
 * The golden cases: small checkpoints with their inputs, hidden states and final caches, computed elsewhere
 * (tests/golden/README.md).  For tests: what cannot be loaded ends the program with a message.
 */
#ifndef TESTS_GOLDEN_H
#define TESTS_GOLDEN_H

#include <stddef.h>
#include <stdint.h>

#include "model/model.h"

#define GOLDEN_CASES 7
extern const char *const golden_cases[GOLDEN_CASES]; /* names of folders */

struct golden {
	struct model *model;
	size_t rows;
	float *inputs_embeds;     /* [rows, hidden_size] */
	float *last_hidden_state; /* [rows, hidden_size], after the final norm */
	float *hidden_states;     /* [num_layers, rows, hidden_size], residual stream after each layer */
	float *cache;             /* [shape_cache_floats], after the last row, in the layout of shape.h */
	int32_t *input_ids;       /* [rows]; NULL where the case has no tokens */
};

/* Load a case by its name.  Free with golden_free. */
void golden_load(const char *name, struct golden *ret_golden);
void golden_free(struct golden *golden);

/* Path of a file in the case's folder, or of the folder itself with file "".  Free with free. */
char *golden_path(const char *name, const char *file);

/* |got - want| / |want|, in double.  Infinite where got has a NaN. */
double relative_error(const float *got, const float *want, size_t n);

#endif
