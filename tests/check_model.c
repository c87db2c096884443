/* Checkpoints as wholes: the golden cases open with the right shape. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/golden.h"

/* In the order of golden_cases. */
static const struct shape golden_shapes[GOLDEN_CASES] = {
	{ 2, 64, 128, 8, 16, 1, 16, 4, 32, 1, 1e-5f, 0, INFINITY, 160, 296 },
	{ 1, 32, 64, 4, 16, 1, 16, 4, 32, 1, 1e-5f, 0, INFINITY, 96, 164 },
	{ 2, 40, 120, 6, 20, 2, 24, 3, 32, 1, 1e-6f, 0.01f, 0.2f, 216, 342 },
	{ 3, 128, 256, 16, 16, 8, 32, 4, 32, 1, 1e-5f, 0, INFINITY, 768, 1040 },
	{ 3, 64, 128, 8, 16, 1, 16, 4, 50, 1, 1e-5f, 0, INFINITY, 160, 296 },
	{ 2, 64, 128, 8, 16, 1, 16, 4, 32, 1, 1e-5f, 0, INFINITY, 160, 296 },
	{ 4, 96, 192, 6, 32, 1, 64, 4, 32, 1, 1e-5f, 0, INFINITY, 320, 518 },
};

static void assert_shapes_equal(const struct shape *got, const struct shape *want)
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

START_TEST(golden_case_opens)
{
	struct golden golden;

	golden_load(golden_cases[_i], &golden);
	assert_shapes_equal(&golden.model->shape, &golden_shapes[_i]);
	ck_assert_uint_eq(strlen(golden.model->fingerprint), 32);
	golden_free(&golden);
}
END_TEST

START_TEST(tokens_become_embeddings)
{
	struct golden golden;
	struct error err;
	float *embedded;
	size_t n;

	golden_load("causal-lm-sharded", &golden);
	n = golden.rows * golden.model->shape.hidden_size;
	embedded = malloc(n * sizeof *embedded);
	ck_assert_int_eq(model_embed(golden.model, DTYPE_INT32, golden.input_ids, golden.rows, embedded, &err), 0);
	ck_assert_mem_eq(embedded, golden.inputs_embeds, n * sizeof *embedded);
	free(embedded);
	golden_free(&golden);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("model");
	TCase *golden = tcase_create("golden");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(golden, golden_case_opens, 0, GOLDEN_CASES);
	tcase_add_test(golden, tokens_become_embeddings);
	suite_add_tcase(suite, golden);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
