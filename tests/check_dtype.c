/*
 * Number formats against an oracle in double arithmetic: every float16 and bfloat16, and what lies around and between
 * them.  The conversion is included as source, so that the code of every kind of CPU that this one can run is tested.
 */
#include "model/dtype_convert.c" /* NOLINT: see above */

#include <math.h>

#include "tests/suite.h"

static const struct path *const paths[] = {
	&path_any,
#ifdef __x86_64__
	&path_avx2,
	&path_avx512,
#endif
};
#define N_PATHS ((int)(sizeof paths / sizeof *paths))

static bool path_runs(int i)
{
#ifdef __x86_64__
	if (paths[i] == &path_avx2)
		return __builtin_cpu_supports("avx2");
	if (paths[i] == &path_avx512)
		return best_path() == &path_avx512;
#endif
	return paths[i] == &path_any;
}

/* Of a float format with this many bits of mantissa and exponent: what a pattern means. */
static double oracle_value(uint32_t pattern, int mantissa_bits, int exponent_bits)
{
	uint32_t mantissa = pattern & ((1u << mantissa_bits) - 1);
	uint32_t exponent = pattern >> mantissa_bits & ((1u << exponent_bits) - 1);
	int bias = (1 << (exponent_bits - 1)) - 1;
	double magnitude;

	if (exponent == (1u << exponent_bits) - 1)
		magnitude = mantissa ? (double)NAN : (double)INFINITY;
	else if (!exponent)
		magnitude = ldexp(mantissa, 1 - bias - mantissa_bits);
	else
		magnitude = ldexp(mantissa + (1u << mantissa_bits), (int)exponent - bias - mantissa_bits);
	return pattern >> (mantissa_bits + exponent_bits) & 1 ? -magnitude : magnitude;
}

/* The number of that format nearest to x, ties to even; the rounding is that of rint. */
static double oracle_round(double x, int mantissa_bits, int exponent_bits)
{
	int bias = (1 << (exponent_bits - 1)) - 1;
	int exponent = x != 0 && isfinite(x) ? ilogb(x) : 0;
	double rounded;

	if (!isfinite(x) || x == 0)
		return x;
	if (exponent < 1 - bias)
		exponent = 1 - bias;
	rounded = ldexp(rint(ldexp(x, mantissa_bits - exponent)), exponent - mantissa_bits);
	return fabs(rounded) >= ldexp(1, bias + 1) ? copysign((double)INFINITY, x) : rounded;
}

static int mantissa_of(enum dtype dtype)
{
	return dtype == DTYPE_FLOAT16 ? 10 : 7;
}

static int exponent_of(enum dtype dtype)
{
	return dtype == DTYPE_FLOAT16 ? 5 : 8;
}

static bool same(double a, double b)
{
	return isnan(a) ? isnan(b) : a == b && signbit(a) == signbit(b);
}

static void assert_widens_all(const struct path *path, enum dtype dtype)
{
	static uint16_t patterns[65536];
	static float widened[65536];

	for (uint32_t i = 0; i < 65536; i++)
		patterns[i] = (uint16_t)i;
	ck_assert(!path->widen(dtype, 2, (const char *)patterns, 65536, (char *)widened));
	for (uint32_t i = 0; i < 65536; i++) {
		double want = oracle_value(i, mantissa_of(dtype), exponent_of(dtype));
		bool finite = path->widen(dtype, 2, (const char *)&patterns[i], 1, (char *)widened + 4 * i);

		if (!same((double)widened[i], want) || finite != !!isfinite(want))
			ck_abort_msg("%s %04x became %g, %s, not %g", dtype_name(dtype), i, (double)widened[i],
				     finite ? "finite" : "not finite", want);
	}
}

START_TEST(every_pattern_widens)
{
	if (!path_runs(_i))
		return;
	assert_widens_all(paths[_i], DTYPE_FLOAT16);
	assert_widens_all(paths[_i], DTYPE_BFLOAT16);
}
END_TEST

/* Each path's copy is the same bytes, and finds those that are not finite. */
START_TEST(every_pattern_is_copied)
{
	static uint16_t patterns[65536], copied[65536];

	if (!path_runs(_i))
		return;
	for (uint32_t i = 0; i < 65536; i++)
		patterns[i] = (uint16_t)i;
	for (enum dtype dtype = DTYPE_FLOAT16; dtype <= DTYPE_BFLOAT16; dtype++) {
		memset(copied, 0, sizeof copied);
		ck_assert_uint_eq(paths[_i]->copy_rows(dtype, 2, (const char *)patterns, 1, 65536, (char *)copied, 0),
				  0);
		ck_assert(!memcmp(copied, patterns, sizeof copied));
		for (uint32_t i = 0; i < 65536; i++)
			ck_assert(paths[_i]->copy_rows(dtype, 2, (const char *)&patterns[i], 1, 1, (char *)copied, 2) ==
				  !!isfinite(oracle_value(i, mantissa_of(dtype), exponent_of(dtype))));
	}
}
END_TEST

/* Narrow floats [n], in one call, and compare each with the oracle. */
static void assert_narrows(const struct path *path, enum dtype dtype, const float *floats, size_t n)
{
	static uint16_t narrowed[1 << 16];

	ck_assert_uint_le(n, 1 << 16);
	path->narrow(dtype, 2, (const char *)floats, n, (char *)narrowed);
	for (size_t i = 0; i < n; i++) {
		double want = oracle_round((double)floats[i], mantissa_of(dtype), exponent_of(dtype));
		double got = oracle_value(narrowed[i], mantissa_of(dtype), exponent_of(dtype));

		if (!same(got, want))
			ck_abort_msg("%a became %s %04x = %a, not %a", (double)floats[i], dtype_name(dtype),
				     narrowed[i], got, want);
	}
}

/* Around each number of the format: itself, the middle to the next one, and the floats beside those. */
static void assert_narrows_around_all(const struct path *path, enum dtype dtype)
{
	static float floats[1 << 16];
	int mantissa = mantissa_of(dtype), exponent = exponent_of(dtype);

	for (uint32_t base = 0; base < 65536; base += 8192) {
		size_t n = 0;

		for (uint32_t i = base; i < base + 8192; i++) {
			float at = (float)oracle_value(i, mantissa, exponent);
			float next = (float)oracle_value((i & 0x7fff) == 0x7fff ? i : i + 1, mantissa, exponent);
			float middle = isfinite(next) ? at + (next - at) / 2 : at * (1 + ldexpf(1, -mantissa - 1));

			floats[n++] = at;
			floats[n++] = nextafterf(at, INFINITY);
			floats[n++] = nextafterf(at, -INFINITY);
			floats[n++] = middle;
			floats[n++] = nextafterf(middle, INFINITY);
			floats[n++] = nextafterf(middle, -INFINITY);
		}
		assert_narrows(path, dtype, floats, n);
	}
}

START_TEST(narrowing_rounds_to_nearest_even)
{
	if (!path_runs(_i))
		return;
	assert_narrows_around_all(paths[_i], DTYPE_FLOAT16);
	assert_narrows_around_all(paths[_i], DTYPE_BFLOAT16);
}
END_TEST

/* Bit patterns spread over all floats. */
START_TEST(narrowing_random_floats)
{
	static float floats[1 << 16];

	if (!path_runs(_i))
		return;
	for (uint32_t i = 0; i < 1 << 16; i++)
		floats[i] = bits_float(i * 65521u);
	assert_narrows(paths[_i], DTYPE_FLOAT16, floats, 1 << 16);
	assert_narrows(paths[_i], DTYPE_BFLOAT16, floats, 1 << 16);
}
END_TEST

START_TEST(nan_keeps_its_payload)
{
	float nan = bits_float(0xffd56789), signalling = bits_float(0x7f800001), back;
	uint16_t narrow16;

	if (!path_runs(_i))
		return;
	paths[_i]->narrow(DTYPE_BFLOAT16, 2, (const char *)&nan, 1, (char *)&narrow16);
	ck_assert_uint_eq(narrow16, 0xffd5);
	paths[_i]->narrow(DTYPE_FLOAT16, 2, (const char *)&nan, 1, (char *)&narrow16);
	ck_assert_uint_eq(narrow16, 0xfeab);
	paths[_i]->narrow(DTYPE_FLOAT16, 2, (const char *)&signalling, 1, (char *)&narrow16);
	ck_assert_uint_eq(narrow16, 0x7e00); /* not infinity */
	paths[_i]->narrow(DTYPE_BFLOAT16, 2, (const char *)&signalling, 1, (char *)&narrow16);
	ck_assert_uint_eq(narrow16, 0x7fc0);
	ck_assert(!paths[_i]->widen(DTYPE_FLOAT32, 4, (const char *)&nan, 1, (char *)&back));
	ck_assert_uint_eq(float_bits(back), 0xffd56789);
}
END_TEST

/* An infinity or NaN is noticed wherever it stands, and only there. */
START_TEST(one_non_finite_number_is_found)
{
	static const uint16_t bad16[] = { 0x7c00, 0x7f80 };
	char buffer[4 * 300];
	float widened[300];

	if (!path_runs(_i))
		return;
	for (size_t n = 1; n < 300; n = n < 5 ? n + 1 : n * 5 / 4) {
		for (size_t at = 0; at < n; at++) {
			for (enum dtype dtype = DTYPE_FLOAT32; dtype <= DTYPE_BFLOAT16; dtype++) {
				size_t size = dtype_size(dtype);
				float infinity = -INFINITY;

				memset(buffer, 0, sizeof buffer);
				ck_assert(paths[_i]->widen(dtype, size, buffer, n, (char *)widened));
				ck_assert_uint_eq(dtype_finite(widened, n), n);
				ck_assert_uint_eq(paths[_i]->copy_rows(dtype, size, buffer, 1, n, (char *)widened, 0),
						  1);
				memcpy(buffer + size * at, size == 4 ? (void *)&infinity :
				       (const void *)&bad16[dtype == DTYPE_BFLOAT16], size);
				ck_assert(!paths[_i]->widen(dtype, size, buffer, n, (char *)widened));
				ck_assert(isinf(widened[at]));
				ck_assert_uint_eq(dtype_finite(widened, n), at);
				ck_assert_uint_eq(paths[_i]->copy_rows(dtype, size, buffer, 1, n, (char *)widened, 0),
						  0);
				ck_assert(!memcmp(widened, buffer, size * n));
				ck_assert_uint_eq(paths[_i]->copy_rows(dtype, size, buffer, n, 1, (char *)widened, 4),
						  at);
			}
		}
	}
}
END_TEST

/* Odd addresses, all lengths around the blocks; nothing beside the numbers is written. */
START_TEST(misaligned_and_of_any_length)
{
	static char wide[4 * 400], narrowed[4 * 400], back[4 * 400];

	if (!path_runs(_i))
		return;
	for (size_t n = 0; n < 390; n++) {
		for (enum dtype dtype = DTYPE_FLOAT32; dtype <= DTYPE_BFLOAT16; dtype++) {
			size_t size = dtype_size(dtype);

			for (size_t i = 0; i < n; i++) {
				float value = (float)(i + 1) / 2; /* exact in all formats up to 128 */

				memcpy(wide + 1 + 4 * i, &value, 4);
			}
			memset(narrowed, 0x55, sizeof narrowed);
			memset(back, 0x55, sizeof back);
			paths[_i]->narrow(dtype, size, wide + 1, n, narrowed + 3);
			ck_assert_int_eq(narrowed[2], 0x55);
			ck_assert_int_eq(narrowed[3 + size * n], 0x55);
			ck_assert(paths[_i]->widen(dtype, size, narrowed + 3, n, back + 1));
			ck_assert_int_eq(back[0], 0x55);
			ck_assert_int_eq(back[1 + 4 * n], 0x55);
			ck_assert(!n || !memcmp(back + 1, wide + 1, 4 * (n < 256 ? n : 256)));
			memset(back, 0x55, sizeof back);
			ck_assert_uint_eq(paths[_i]->copy_rows(dtype, size, narrowed + 3, 1, n, back + 1, 0), 1);
			ck_assert_int_eq(back[0], 0x55);
			ck_assert_int_eq(back[1 + size * n], 0x55);
			ck_assert(!memcmp(back + 1, narrowed + 3, size * n));
		}
	}
}
END_TEST

/* Rows come one after another and go to places further apart; what lies between those is left alone. */
START_TEST(rows_are_copied_to_their_places)
{
	enum { ROWS = 5, COLUMNS = 200, PITCH = 4 * COLUMNS };
	static char src[ROWS * PITCH], dst[ROWS * PITCH + 16];
	char *const aligned = dst + (16 - (uintptr_t)dst % 16) % 16;

	if (!path_runs(_i))
		return;
	for (size_t i = 0; i < sizeof src; i++)
		src[i] = (char)(i * 7 % 63); /* finite in all formats */
	for (enum dtype dtype = DTYPE_FLOAT32; dtype <= DTYPE_BFLOAT16; dtype++) {
		const size_t size = dtype_size(dtype), row = size * COLUMNS;

		memset(dst, 0x55, sizeof dst);
		ck_assert_uint_eq(paths[_i]->copy_rows(dtype, size, src, ROWS, COLUMNS, aligned, PITCH), ROWS);
		for (size_t r = 0; r < ROWS; r++) {
			ck_assert(!memcmp(aligned + r * PITCH, src + r * row, row));
			for (size_t i = row; i < PITCH; i++)
				ck_assert_int_eq(aligned[r * PITCH + i], 0x55);
		}
	}
}
END_TEST

START_TEST(best_path_is_used)
{
	uint16_t half = 0x3c01, narrowed;
	float value;

	ck_assert(dtype_widen(DTYPE_FLOAT16, &half, 1, &value));
	ck_assert(value == 0x1.004p0f);
	dtype_narrow(DTYPE_FLOAT16, &value, 1, &narrowed);
	ck_assert_uint_eq(narrowed, half);
	ck_assert_uint_eq(dtype_copy_rows(DTYPE_FLOAT16, &half, 1, 1, &narrowed, 2), 1);
	half = 0x7c00;
	ck_assert(!dtype_widen(DTYPE_FLOAT16, &half, 1, &value));
	ck_assert_uint_eq(dtype_copy_rows(DTYPE_FLOAT16, &half, 1, 1, &narrowed, 2), 0);
}
END_TEST

START_TEST(names_are_found)
{
	static const struct {
		const char *name, *safetensors_name;
		size_t size;
		bool is_float;
	} want[DTYPE_COUNT] = {
		{ "float32", "F32", 4, true }, { "float16", "F16", 2, true }, { "bfloat16", "BF16", 2, true },
		{ "uint8", "U8", 1, false }, { "uint16", "U16", 2, false }, { "int32", "I32", 4, false },
		{ "uint32", "U32", 4, false },
	};
	enum dtype dtype;

	for (size_t i = 0; i < DTYPE_COUNT; i++) {
		ck_assert(dtype_find(want[i].name, strlen(want[i].name), &dtype) && dtype == i);
		ck_assert(dtype_find(want[i].safetensors_name, strlen(want[i].safetensors_name), &dtype) && dtype == i);
		ck_assert_str_eq(dtype_name(dtype), want[i].name);
		ck_assert_str_eq(dtype_safetensors_name(dtype), want[i].safetensors_name);
		ck_assert_uint_eq(dtype_size(dtype), want[i].size);
		ck_assert(dtype_is_float(dtype) == want[i].is_float);
	}
	ck_assert(dtype_find("float32, and more", 7, &dtype) && dtype == DTYPE_FLOAT32);
	ck_assert(!dtype_find("float3", 6, &dtype));
	ck_assert(!dtype_find("float321", 8, &dtype));
	ck_assert(!dtype_find("", 0, &dtype));
	ck_assert(!dtype_find("FLOAT32", 7, &dtype));
}
END_TEST

START_TEST(tokens_are_read)
{
	static const unsigned char bytes[] = { 0xaa, 0xfe, 0xff, 0xff, 0xff, 0x01, 0x00, 0x00, 0x80 };

	ck_assert_int_eq(dtype_token(DTYPE_UINT8, bytes, 1), 0xfe);
	ck_assert_int_eq(dtype_token(DTYPE_UINT16, bytes + 1, 1), 0xffff);
	ck_assert_int_eq(dtype_token(DTYPE_INT32, bytes + 1, 0), -2);
	ck_assert_int_eq(dtype_token(DTYPE_INT32, bytes + 1, 1), INT32_MIN + 1);
	ck_assert_int_eq(dtype_token(DTYPE_UINT32, bytes + 1, 0), 0xfffffffe);
	ck_assert_int_eq(dtype_token(DTYPE_UINT32, bytes + 1, 1), 0x80000001);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("dtype");
	TCase *convert = tcase_create("convert"), *describe = tcase_create("describe");

	tcase_set_timeout(convert, 120); /* valgrind is slow */
	tcase_add_loop_test(convert, every_pattern_widens, 0, N_PATHS);
	tcase_add_loop_test(convert, every_pattern_is_copied, 0, N_PATHS);
	tcase_add_loop_test(convert, narrowing_rounds_to_nearest_even, 0, N_PATHS);
	tcase_add_loop_test(convert, narrowing_random_floats, 0, N_PATHS);
	tcase_add_loop_test(convert, nan_keeps_its_payload, 0, N_PATHS);
	tcase_add_loop_test(convert, one_non_finite_number_is_found, 0, N_PATHS);
	tcase_add_loop_test(convert, misaligned_and_of_any_length, 0, N_PATHS);
	tcase_add_loop_test(convert, rows_are_copied_to_their_places, 0, N_PATHS);
	tcase_add_test(convert, best_path_is_used);
	tcase_add_test(describe, names_are_found);
	tcase_add_test(describe, tokens_are_read);
	suite_add_tcase(suite, convert);
	suite_add_tcase(suite, describe);
	return suite_run(suite);
}
