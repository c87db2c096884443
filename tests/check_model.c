/* Checkpoints as wholes: the golden cases open with the right shape. */
#include <check.h>
#include <stdlib.h>

#include "tests/golden.h"

START_TEST(golden_case_opens)
{
	struct golden golden;
	static const struct { size_t layers, hidden, inner, heads, head_dim, groups, state, kernel, vocab; } want[] = {
		{ 2, 64, 128, 8, 16, 1, 16, 4, 32 }, { 1, 32, 64, 4, 16, 1, 16, 4, 32 }, { 2, 40, 120, 6, 20, 2, 24, 3, 32 },
		{ 3, 128, 256, 16, 16, 8, 32, 4, 32 }, { 3, 64, 128, 8, 16, 1, 16, 4, 50 }, { 2, 64, 128, 8, 16, 1, 16, 4, 32 },
		{ 4, 96, 192, 6, 32, 1, 64, 4, 32 },
	};

	golden_load(golden_cases[_i], &golden);
	ck_assert_uint_eq(golden.model->shape.num_layers, want[_i].layers);
	ck_assert_uint_eq(golden.model->shape.hidden_size, want[_i].hidden);
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
	suite_add_tcase(suite, golden);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
