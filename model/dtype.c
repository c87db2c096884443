/*
 * Conversion between number formats.  This is on the hot path of every message, so the loops are branch-free integer
 * arithmetic over blocks of constant length, which compilers turn into vector code at any optimisation level from -O2
 * on; finiteness is found out in the same pass.  Numbers are moved with memcpy because sources in files and messages
 * are not aligned.
 */
#include "model/dtype.h"

#include <string.h>

#define BLOCK 64 /* numbers */

static const struct {
	const char *name;
	const char *safetensors_name;
	size_t size;
	bool is_float;
} dtypes[DTYPE_COUNT] = {
	[DTYPE_FLOAT32] = { "float32", "F32", 4, true },
	[DTYPE_FLOAT16] = { "float16", "F16", 2, true },
	[DTYPE_BFLOAT16] = { "bfloat16", "BF16", 2, true },
	[DTYPE_UINT8] = { "uint8", "U8", 1, false },
	[DTYPE_UINT16] = { "uint16", "U16", 2, false },
	[DTYPE_INT32] = { "int32", "I32", 4, false },
	[DTYPE_UINT32] = { "uint32", "U32", 4, false },
};

size_t dtype_size(enum dtype dtype)
{
	return dtypes[dtype].size;
}

const char *dtype_name(enum dtype dtype)
{
	return dtypes[dtype].name;
}

const char *dtype_safetensors_name(enum dtype dtype)
{
	return dtypes[dtype].safetensors_name;
}

static bool equals(const char *name, size_t length, const char *string)
{
	return strlen(string) == length && !memcmp(name, string, length);
}

bool dtype_find(const char *name, size_t length, enum dtype *ret_dtype)
{
	for (int i = 0; i < DTYPE_COUNT; i++) {
		if (equals(name, length, dtypes[i].name) || equals(name, length, dtypes[i].safetensors_name)) {
			*ret_dtype = (enum dtype)i;
			return true;
		}
	}
	return false;
}

bool dtype_is_float(enum dtype dtype)
{
	return dtypes[dtype].is_float;
}

static inline uint32_t float_bits(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof bits);
	return bits;
}

static inline float bits_float(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof value);
	return value;
}

/* The sign bit of the result is set just where a float32 is infinite or not a number. */
static inline uint32_t non_finite(uint32_t bits)
{
	return (bits & 0x7fffffff) + 0x00800000;
}

/* float32 bits of a float16: rebias the exponent; a subnormal is an integer multiple of 2^-24. */
static inline uint32_t half_to_float(uint32_t half)
{
	uint32_t magnitude = half & 0x7fff;
	uint32_t rebias = magnitude >= 0x7c00 ? 0x70000000 : 0x38000000;
	uint32_t normal = (magnitude << 13) + rebias;
	uint32_t subnormal = float_bits((float)(int32_t)magnitude * 0x1p-24f);

	return (half & 0x8000) << 16 | (magnitude < 0x0400 ? subnormal : normal);
}

/* Adding 0.5, whose last place is 2^-24, rounds what becomes a subnormal float16 to nearest even. */
static inline uint32_t float_to_half(uint32_t bits)
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

static inline uint32_t float_to_bfloat(uint32_t bits)
{
	uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
	uint32_t nan = bits >> 16 | 0x0040;

	return (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
}

static inline uint32_t widen_float_block(const char *restrict src, size_t n, char *restrict dst)
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

static inline uint32_t widen_half_block(const char *restrict src, size_t n, char *restrict dst)
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

static inline uint32_t widen_bfloat_block(const char *restrict src, size_t n, char *restrict dst)
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

bool dtype_widen(enum dtype dtype, const void *src, size_t n, float *dst)
{
	size_t whole = n - n % BLOCK;
	const char *from = src;
	char *to = (char *)dst;
	uint32_t seen = 0;

	switch (dtype) {
	case DTYPE_FLOAT32:
		for (size_t i = 0; i < whole; i += BLOCK)
			seen |= widen_float_block(from + 4 * i, BLOCK, to + 4 * i);
		seen |= widen_float_block(from + 4 * whole, n - whole, to + 4 * whole);
		break;
	case DTYPE_FLOAT16:
		for (size_t i = 0; i < whole; i += BLOCK)
			seen |= widen_half_block(from + 2 * i, BLOCK, to + 4 * i);
		seen |= widen_half_block(from + 2 * whole, n - whole, to + 4 * whole);
		break;
	default:
		for (size_t i = 0; i < whole; i += BLOCK)
			seen |= widen_bfloat_block(from + 2 * i, BLOCK, to + 4 * i);
		seen |= widen_bfloat_block(from + 2 * whole, n - whole, to + 4 * whole);
		break;
	}
	return !(seen >> 31);
}

static inline void narrow_half_block(const char *restrict src, size_t n, char *restrict dst)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t bits;
		uint16_t half;

		memcpy(&bits, src + 4 * i, sizeof bits);
		half = (uint16_t)float_to_half(bits);
		memcpy(dst + 2 * i, &half, sizeof half);
	}
}

static inline void narrow_bfloat_block(const char *restrict src, size_t n, char *restrict dst)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t bits;
		uint16_t bfloat;

		memcpy(&bits, src + 4 * i, sizeof bits);
		bfloat = (uint16_t)float_to_bfloat(bits);
		memcpy(dst + 2 * i, &bfloat, sizeof bfloat);
	}
}

void dtype_narrow(enum dtype dtype, const float *src, size_t n, void *dst)
{
	size_t whole = n - n % BLOCK;
	const char *from = (const char *)src;
	char *to = dst;

	switch (dtype) {
	case DTYPE_FLOAT32:
		if (n)
			memcpy(to, from, 4 * n);
		break;
	case DTYPE_FLOAT16:
		for (size_t i = 0; i < whole; i += BLOCK)
			narrow_half_block(from + 4 * i, BLOCK, to + 2 * i);
		narrow_half_block(from + 4 * whole, n - whole, to + 2 * whole);
		break;
	default:
		for (size_t i = 0; i < whole; i += BLOCK)
			narrow_bfloat_block(from + 4 * i, BLOCK, to + 2 * i);
		narrow_bfloat_block(from + 4 * whole, n - whole, to + 2 * whole);
		break;
	}
}

int64_t dtype_token(enum dtype dtype, const void *src, size_t i)
{
	const char *at = (const char *)src + i * dtype_size(dtype);
	uint8_t u8;
	uint16_t u16;
	uint32_t u32;
	int32_t i32;

	switch (dtype) {
	case DTYPE_UINT8:
		memcpy(&u8, at, sizeof u8);
		return u8;
	case DTYPE_UINT16:
		memcpy(&u16, at, sizeof u16);
		return u16;
	case DTYPE_INT32:
		memcpy(&i32, at, sizeof i32);
		return i32;
	default:
		memcpy(&u32, at, sizeof u32);
		return u32;
	}
}
