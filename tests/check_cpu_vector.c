/* The vector functions of one instruction set, for which this file is compiled, against double precision. */
#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "model/cpu_vector.h"
#include "tests/suite.h"

#define SKIPPED 77 /* what automake takes for a test that cannot be run here */

/* The worst error of got over n steps from low to high, in units of the last place of the expected value. */
static double worst_ulp(vec (*got)(vec), double (*want)(double), float low, float high, int n)
{
	double worst = 0;

	for (int i = 0; i <= n; i++) {
		const float x = low + (high - low) * (float)i / (float)n;
		const double expected = want((double)x);
		const float result = got(vec_set(x))[i % LANES];
		const double ulp = fmax(fabs(expected), (double)FLT_MIN) * (double)FLT_EPSILON;

		worst = fmax(worst, fabs((double)result - expected) / ulp);
	}
	return worst;
}

static double silu(double x)
{
	return x / (1 + exp(-x));
}

static double softplus(double x)
{
	return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

START_TEST(functions_are_accurate)
{
	ck_assert_double_le(worst_ulp(vec_exp, exp, -87, 88, 1000003), 2);
	ck_assert_double_le(worst_ulp(vec_exp, exp, -1, 0, 1000003), 2);
	ck_assert_double_le(worst_ulp(vec_silu, silu, -60, 60, 1000003), 4);
	ck_assert_double_le(worst_ulp(vec_silu, silu, -1, 1, 1000003), 4);
	ck_assert_double_le(worst_ulp(vec_softplus, softplus, -60, 60, 1000003), 4);
	ck_assert_double_le(worst_ulp(vec_softplus, softplus, -1, 1, 1000003), 4);
}
END_TEST

START_TEST(functions_have_limits)
{
	ck_assert_float_ge(vec_exp(vec_set(-1e30f))[0], 0);
	ck_assert_float_lt(vec_exp(vec_set(-1e30f))[0], 1e-37f);
	ck_assert(isfinite(vec_exp(vec_set(1e30f))[0]));
	ck_assert_float_eq(vec_exp(vec_set(0))[0], 1);
	ck_assert_float_eq(vec_silu(vec_set(1000))[0], 1000);
	ck_assert_float_eq(vec_silu(vec_set(0))[0], 0);
	ck_assert_float_lt(fabsf(vec_silu(vec_set(-1000))[0]), 1e-30f);
	ck_assert_float_eq(vec_softplus(vec_set(1000))[0], 1000);
	ck_assert_float_ge(vec_softplus(vec_set(-1000))[0], 0);
	ck_assert_float_lt(vec_softplus(vec_set(-1000))[0], 1e-37f);
	ck_assert(isnan(vec_silu(vec_set(NAN))[0]));
}
END_TEST

START_TEST(lanes_are_summed)
{
	float lanes[LANES];

	for (int i = 0; i < LANES; i++)
		lanes[i] = (float)(1 << i);
	ck_assert_float_eq(vec_sum(vec_load(lanes)), (float)((1 << LANES) - 1));
}
END_TEST

START_TEST(bfloat16_rounds_to_nearest_even)
{
	static const struct {
		float from;
		uint16_t to;
	} cases[] = {
		{ 1.0f, 0x3f80 }, { -2.0f, 0xc000 }, { 0x1.01p0f, 0x3f80 }, { 0x1.03p0f, 0x3f82 },
		{ 0x1.010002p0f, 0x3f81 }, { 0x1.ffp0f, 0x4000 }, { FLT_MAX, 0x7f80 }, { INFINITY, 0x7f80 },
		{ -INFINITY, 0xff80 }, { 0.0f, 0 },
	};
	uint16_t numbers[LANES];
	uint32_t pairs[LANES];

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		vec_store_bfloat16(numbers, vec_set(cases[i].from));
		vec_store_pairs(pairs, vec_set(1), vec_set(cases[i].from));
		for (int lane = 0; lane < LANES; lane++) {
			ck_assert_uint_eq(numbers[lane], cases[i].to);
			ck_assert_uint_eq(pairs[lane], 0x3f80u | (uint32_t)cases[i].to << 16);
		}
	}
	vec_store_bfloat16(numbers, vec_set(NAN));
	ck_assert_uint_gt(numbers[0] & 0x7fffu, 0x7f80u);
}
END_TEST

START_TEST(pairs_are_multiplied)
{
	uint32_t left[LANES], right[LANES];
	vec got;

	vec_store_pairs(left, vec_set(2), vec_set(-3));
	vec_store_pairs(right, vec_set(0.5f), vec_set(8));
	got = vec_dot_pairs(veci_load(left), veci_load(right), vec_set(100));
	for (int i = 0; i < LANES; i++)
		ck_assert_float_eq(got[i], 100 + 1 - 24);
	got = vec_dot_pairs(veci_set(left[0]), veci_load(right), vec_set(0));
	ck_assert_float_eq(got[LANES - 1], -23);
}
END_TEST

static bool machine_has_this(void)
{
#if defined(__AVX512BF16__)
	return __builtin_cpu_supports("avx512bf16");
#elif defined(__AVX512F__)
	return __builtin_cpu_supports("avx512f");
#elif defined(__AVX2__)
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
	return true;
#endif
}

int main(void)
{
	Suite *suite;
	TCase *accuracy, *functions;

	if (!machine_has_this())
		return SKIPPED;
	suite = suite_create("cpu_vector");
	accuracy = tcase_create("accuracy");
	tcase_set_timeout(accuracy, 120);
	tcase_add_test(accuracy, functions_are_accurate);
	suite_add_tcase(suite, accuracy);
	functions = tcase_create("functions");
	tcase_add_test(functions, functions_have_limits);
	tcase_add_test(functions, lanes_are_summed);
	tcase_add_test(functions, bfloat16_rounds_to_nearest_even);
	tcase_add_test(functions, pairs_are_multiplied);
	suite_add_tcase(suite, functions);
	return suite_run(suite);
}
