/*
 * Conversion between number formats.  This is on the hot path of every message, so the loops are branch-free integer
 * arithmetic over blocks of constant length, which compilers turn into vector code from -O2 on; finiteness is found
 * out in the same pass.  Numbers are moved with memcpy because those in files and messages are not aligned.  The same
 * loops are compiled for AVX-512, AVX2 and any CPU, and give the same bits.
 */
#include "model/dtype.h"

#include <assert.h>
#include <math.h>
#ifdef __x86_64__
#include <emmintrin.h>
#endif
#include <string.h>

#define BLOCK 128 /* numbers */
#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t float_bits(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof bits);
	return bits;
}

INLINE float bits_float(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof value);
	return value;
}

/* The sign bit of the result is set just where a float32 is infinite or not a number. */
INLINE uint32_t non_finite(uint32_t bits)
{
	return (bits & 0x7fffffff) + 0x00800000;
}

/* float32 bits of a float16: rebias the exponent; a subnormal is an integer multiple of 2^-24. */
INLINE uint32_t half_to_float(uint32_t half)
{
	uint32_t magnitude = half & 0x7fff;
	uint32_t rebias = magnitude >= 0x7c00 ? 0x70000000 : 0x38000000;
	uint32_t normal = (magnitude << 13) + rebias;
	uint32_t subnormal = float_bits((float)(int32_t)magnitude * 0x1p-24f);

	return (half & 0x8000) << 16 | (magnitude < 0x0400 ? subnormal : normal);
}

/* Adding 0.5, whose last place is 2^-24, rounds what becomes a subnormal float16 to nearest even. */
INLINE uint32_t float_to_half(uint32_t bits)
{
	uint32_t magnitude = bits & 0x7fffffff;
	uint32_t clamped = magnitude < 0x47800000 ? magnitude : 0x47800000; /* 65536, which becomes infinite */
	uint32_t rebiased = clamped - 0x38000000;
	uint32_t normal = (rebiased + 0x0fff + (rebiased >> 13 & 1)) >> 13;
	uint32_t subnormal = float_bits(bits_float(clamped) + 0.5f) - 0x3f000000;
	uint32_t number = magnitude < 0x38800000 ? subnormal : normal;
	uint32_t nan = 0x7e00 | (magnitude >> 13 & 0x03ff);

	return (bits >> 16 & 0x8000) | (magnitude > 0x7f800000 ? nan : number);
}

INLINE uint32_t float_to_bfloat(uint32_t bits)
{
	uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
	uint32_t nan = bits >> 16 | 0x0040;

	return (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
}

/* Each widen_ function returns a word whose sign bit is set if one of the numbers is not finite. */

INLINE uint32_t widen_float(const char *restrict src, size_t n, char *restrict dst)
{
	uint32_t seen = 0;

	for (size_t i = 0; i < n; i++) {
		uint32_t bits;

		memcpy(&bits, src + 4 * i, sizeof bits);
		seen |= non_finite(bits);
		memcpy(dst + 4 * i, &bits, sizeof bits);
	}
	return seen;
}

INLINE uint32_t widen_half(const char *restrict src, size_t n, char *restrict dst)
{
	uint32_t seen = 0;

	for (size_t i = 0; i < n; i++) {
		uint16_t half;
		uint32_t bits;

		memcpy(&half, src + 2 * i, sizeof half);
		bits = half_to_float(half);
		seen |= non_finite(bits);
		memcpy(dst + 4 * i, &bits, sizeof bits);
	}
	return seen;
}

INLINE uint32_t widen_bfloat(const char *restrict src, size_t n, char *restrict dst)
{
	uint32_t seen = 0;

	for (size_t i = 0; i < n; i++) {
		uint16_t bfloat;
		uint32_t bits;

		memcpy(&bfloat, src + 2 * i, sizeof bfloat);
		bits = (uint32_t)bfloat << 16;
		seen |= non_finite(bits);
		memcpy(dst + 4 * i, &bits, sizeof bits);
	}
	return seen;
}

/* Each check_ function returns such a word as well. */

INLINE uint32_t check_floats(const char *src, size_t n)
{
	uint32_t seen = 0;

	for (size_t i = 0; i < n; i++) {
		uint32_t bits;

		memcpy(&bits, src + 4 * i, sizeof bits);
		seen |= non_finite(bits);
	}
	return seen;
}

/* one: the lowest bit of the exponent, of which all are set where a number is not finite. */
INLINE uint32_t check_halves(uint16_t one, const char *src, size_t n)
{
	uint16_t seen = 0;

	for (size_t i = 0; i < n; i++) {
		uint16_t half;

		memcpy(&half, src + 2 * i, sizeof half);
		seen |= (uint16_t)((half & 0x7fff) + one);
	}
	return (uint32_t)seen << 16;
}

INLINE uint32_t check_block(enum dtype dtype, const char *src, size_t n)
{
	switch (dtype) {
	case DTYPE_FLOAT32:
		return check_floats(src, n);
	case DTYPE_FLOAT16:
		return check_halves(0x0400, src, n);
	default:
		return check_halves(0x0080, src, n);
	}
}

/* Copy past the caches where dst is aligned for it; stores_end must follow before others look. */
INLINE void store_past_caches(const char *restrict src, size_t bytes, char *restrict dst)
{
	size_t at = 0;

#ifdef __x86_64__
	for (; (uintptr_t)dst % 16 == 0 && at + 16 <= bytes; at += 16)
		_mm_stream_si128((__m128i *)(void *)(dst + at),
				 _mm_loadu_si128((const __m128i *)(const void *)(src + at)));
#endif
	memcpy(dst + at, src + at, bytes - at);
}

INLINE void stores_end(void)
{
#ifdef __x86_64__
	_mm_sfence();
#endif
}

INLINE bool copy_row(enum dtype dtype, size_t size, const char *src, size_t n, char *dst)
{
	size_t whole = n - n % BLOCK;
	uint32_t seen = 0;

	for (size_t i = 0; i < whole; i += BLOCK) {
		seen |= check_block(dtype, src + size * i, BLOCK);
		store_past_caches(src + size * i, size * BLOCK, dst + size * i);
	}
	seen |= check_block(dtype, src + size * whole, n - whole);
	store_past_caches(src + size * whole, size * (n - whole), dst + size * whole);
	return !(seen >> 31);
}

INLINE size_t copy_rows(enum dtype dtype, size_t size, const char *src, size_t n, size_t columns, char *dst,
			size_t pitch)
{
	size_t row = 0;

	while (row < n && copy_row(dtype, size, src + row * columns * size, columns, dst + row * pitch))
		row++;
	stores_end();
	return row;
}

INLINE uint32_t widen_block(enum dtype dtype, const char *src, size_t n, char *dst)
{
	switch (dtype) {
	case DTYPE_FLOAT32:
		return widen_float(src, n, dst);
	case DTYPE_FLOAT16:
		return widen_half(src, n, dst);
	default:
		return widen_bfloat(src, n, dst);
	}
}

/* The loop over blocks; size is that of one number of src. */
INLINE bool widen(enum dtype dtype, size_t size, const char *src, size_t n, char *dst)
{
	size_t whole = n - n % BLOCK;
	uint32_t seen = 0;

	for (size_t i = 0; i < whole; i += BLOCK)
		seen |= widen_block(dtype, src + size * i, BLOCK, dst + 4 * i);
	seen |= widen_block(dtype, src + size * whole, n - whole, dst + 4 * whole);
	return !(seen >> 31);
}

INLINE void narrow_half(const char *restrict src, size_t n, char *restrict dst)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t bits;
		uint16_t half;

		memcpy(&bits, src + 4 * i, sizeof bits);
		half = (uint16_t)float_to_half(bits);
		memcpy(dst + 2 * i, &half, sizeof half);
	}
}

INLINE void narrow_bfloat(const char *restrict src, size_t n, char *restrict dst)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t bits;
		uint16_t bfloat;

		memcpy(&bits, src + 4 * i, sizeof bits);
		bfloat = (uint16_t)float_to_bfloat(bits);
		memcpy(dst + 2 * i, &bfloat, sizeof bfloat);
	}
}

INLINE void narrow_block(enum dtype dtype, const char *src, size_t n, char *dst)
{
	switch (dtype) {
	case DTYPE_FLOAT32:
		memcpy(dst, src, 4 * n);
		break;
	case DTYPE_FLOAT16:
		narrow_half(src, n, dst);
		break;
	default:
		narrow_bfloat(src, n, dst);
		break;
	}
}

INLINE void narrow(enum dtype dtype, size_t size, const char *src, size_t n, char *dst)
{
	size_t whole = n - n % BLOCK;

	for (size_t i = 0; i < whole; i += BLOCK)
		narrow_block(dtype, src + 4 * i, BLOCK, dst + size * i);
	narrow_block(dtype, src + 4 * whole, n - whole, dst + size * whole);
}

/* The loops compiled for one kind of CPU. */
struct path {
	size_t (*copy_rows)(enum dtype dtype, size_t size, const char *src, size_t n, size_t columns, char *dst,
			    size_t pitch);
	bool (*widen)(enum dtype dtype, size_t size, const char *src, size_t n, char *dst);
	void (*narrow)(enum dtype dtype, size_t size, const char *src, size_t n, char *dst);
};

static size_t copy_rows_any(enum dtype dtype, size_t size, const char *src, size_t n, size_t columns,
			    char *dst, size_t pitch)
{
	return copy_rows(dtype, size, src, n, columns, dst, pitch);
}

static bool widen_any(enum dtype dtype, size_t size, const char *src, size_t n, char *dst)
{
	return widen(dtype, size, src, n, dst);
}

static void narrow_any(enum dtype dtype, size_t size, const char *src, size_t n, char *dst)
{
	narrow(dtype, size, src, n, dst);
}

static const struct path path_any = { copy_rows_any, widen_any, narrow_any };

#ifdef __x86_64__
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

AVX2 static size_t copy_rows_avx2(enum dtype dtype, size_t size, const char *src, size_t n, size_t columns,
				  char *dst, size_t pitch)
{
	return copy_rows(dtype, size, src, n, columns, dst, pitch);
}

AVX2 static bool widen_avx2(enum dtype dtype, size_t size, const char *src, size_t n, char *dst)
{
	return widen(dtype, size, src, n, dst);
}

AVX2 static void narrow_avx2(enum dtype dtype, size_t size, const char *src, size_t n, char *dst)
{
	narrow(dtype, size, src, n, dst);
}

AVX512 static size_t copy_rows_avx512(enum dtype dtype, size_t size, const char *src, size_t n, size_t columns,
				      char *dst, size_t pitch)
{
	return copy_rows(dtype, size, src, n, columns, dst, pitch);
}

AVX512 static bool widen_avx512(enum dtype dtype, size_t size, const char *src, size_t n, char *dst)
{
	return widen(dtype, size, src, n, dst);
}

AVX512 static void narrow_avx512(enum dtype dtype, size_t size, const char *src, size_t n, char *dst)
{
	narrow(dtype, size, src, n, dst);
}

static const struct path path_avx2 = { copy_rows_avx2, widen_avx2, narrow_avx2 };
static const struct path path_avx512 = { copy_rows_avx512, widen_avx512, narrow_avx512 };

static const struct path *best_path(void)
{
	if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
		return &path_avx512;
	return __builtin_cpu_supports("avx2") ? &path_avx2 : &path_any;
}
#else
static const struct path *best_path(void)
{
	return &path_any;
}
#endif

size_t dtype_copy_rows(enum dtype dtype, const void *src, size_t n, size_t columns, void *dst, size_t pitch)
{
	assert(dtype_is_float(dtype));
	return best_path()->copy_rows(dtype, dtype_size(dtype), src, n, columns, dst, pitch);
}

bool dtype_widen(enum dtype dtype, const void *src, size_t n, float *dst)
{
	assert(dtype_is_float(dtype));
	return best_path()->widen(dtype, dtype_size(dtype), src, n, (char *)dst);
}

size_t dtype_finite(const float *values, size_t n)
{
	size_t i = 0;

	while (i < n && isfinite(values[i]))
		i++;
	return i;
}

void dtype_narrow(enum dtype dtype, const float *src, size_t n, void *dst)
{
	assert(dtype_is_float(dtype));
	best_path()->narrow(dtype, dtype_size(dtype), (const char *)src, n, dst);
}
