/*
 * Number formats: their names and sizes, and reading token ids.  Conversion is in dtype_convert.c.
 */
#include "model/dtype.h"

#include <string.h>

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
