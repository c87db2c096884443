/*
 * Comparing shapes in libcheck programs, member by member.
 */
#ifndef TESTS_ASSERT_SHAPE_H
#define TESTS_ASSERT_SHAPE_H

#include <check.h>

#include "model/shape.h"

static inline void assert_shapes_equal(const struct shape *got, const struct shape *want)
{
	ck_assert_uint_eq(got->num_layers, want->num_layers);
	ck_assert_uint_eq(got->hidden_size, want->hidden_size);
	ck_assert_uint_eq(got->d_inner, want->d_inner);
	ck_assert_uint_eq(got->num_heads, want->num_heads);
	ck_assert_uint_eq(got->head_dim, want->head_dim);
	ck_assert_uint_eq(got->n_groups, want->n_groups);
	ck_assert_uint_eq(got->state_size, want->state_size);
	ck_assert_uint_eq(got->conv_kernel, want->conv_kernel);
	ck_assert_uint_eq(got->vocab_size, want->vocab_size);
	ck_assert_uint_eq(got->gated_norm_groups, want->gated_norm_groups);
	ck_assert(got->norm_epsilon == want->norm_epsilon);
	ck_assert(got->dt_min == want->dt_min);
	ck_assert(got->dt_max == want->dt_max);
	ck_assert_uint_eq(got->conv_dim, want->conv_dim);
	ck_assert_uint_eq(got->in_proj_rows, want->in_proj_rows);
}

#endif
