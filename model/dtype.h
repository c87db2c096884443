/*
 * Number formats, as they stand in checkpoints, state files and messages, and their conversion to and from float32.
 */
#ifndef MODEL_DTYPE_H
#define MODEL_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
	DTYPE_FLOAT32,
	DTYPE_FLOAT16,
	DTYPE_BFLOAT16,
	DTYPE_UINT8,
	DTYPE_UINT16,
	DTYPE_INT32,
	DTYPE_UINT32,
	DTYPE_COUNT
};

/* Bytes of one number. */
size_t dtype_size(enum dtype dtype);

/* The NumPy name ("float32"), used on the wire and in configuration. */
const char *dtype_name(enum dtype dtype);

/* The safetensors name ("F32"). */
const char *dtype_safetensors_name(enum dtype dtype);

/* Find a dtype by either name (length bytes, not NUL-terminated).  Returns false if there is none. */
bool dtype_find(const char *name, size_t length, enum dtype *ret_dtype);

/* float32, float16 or bfloat16: numbers a row may consist of.  The others are token ids. */
bool dtype_is_float(enum dtype dtype);

/*
 * Copy n rows of so many columns of a float dtype as they are, to rows that begin pitch bytes apart, until one of them
 * has a number that is not finite; returns how many come before that one, n if all are finite.  The copy goes past the
 * caches where it can: a device that reads memory by itself leaves it in a state in which writing to it through them
 * takes several times as long.  src and dst need no alignment and must not overlap.
 */
size_t dtype_copy_rows(enum dtype dtype, const void *src, size_t n, size_t columns, void *dst, size_t pitch);

/*
 * Widen n numbers of a float dtype to float32 (exact), and say whether all of them are finite.
 * src and dst need no alignment and must not overlap.
 */
bool dtype_widen(enum dtype dtype, const void *src, size_t n, float *dst);

/* How many of the n numbers stand before the first that is not finite. */
size_t dtype_finite(const float *values, size_t n);

/* Round n float32 to a float dtype, to nearest even.  dst needs no alignment and must not overlap src. */
void dtype_narrow(enum dtype dtype, const float *src, size_t n, void *dst);

/* Read token id i of an integer dtype array; negative int32 ids come back negative. */
int64_t dtype_token(enum dtype dtype, const void *src, size_t i);

#endif
