/*
 * A device for tests of what is around it, linked in the place of the real ones: a row's hidden state is a number that
 * follows from all rows of the stream up to it, and the cache is that number at the last whole window.  There is one in
 * the place of the CPU, and another kind of it in the place of a GPU.
 */
#ifndef TESTS_FAKE_DEVICE_H
#define TESTS_FAKE_DEVICE_H

#include <stdatomic.h>
#include <stdint.h>

#include "model/dtype.h"

/* Set by a test: the next batch fails, unless the one before it did, and nothing is set any more. */
extern atomic_bool fake_failure;

/* Set by a test, for as long as it is so: */
extern atomic_int fake_broken; /* batches and copies fail with this code */
extern atomic_uint fake_stuck; /* they are not done by devices whose bit is set: the first one's is 1 */
extern atomic_bool fake_full;  /* there is no memory for caches, nor on the host */

/* A number from anywhere as one that the device may have: a whole one that a float can be. */
static inline uint32_t fake_number(float number)
{
	return number >= 0 && number < 0x1p24f ? (uint32_t)number : 0;
}

/* The dtype of a message's rows from pos on: each in turn, so that several meet in a window. */
static inline enum dtype fake_dtype(uint64_t pos)
{
	static const enum dtype dtypes[] = { DTYPE_FLOAT32, DTYPE_FLOAT16, DTYPE_BFLOAT16 };

	return dtypes[pos % 3];
}

/* What the first column of the hidden state is after a row whose first column is given; 0 before any. */
static inline uint32_t fake_step(uint32_t state, float row)
{
	return (state * 31 + fake_number(row) + 7) & 0xffffff;
}

#endif
