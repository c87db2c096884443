/*
 * A device for tests of what is around it, linked in the place of the real ones: a row's hidden state is a number that
 * follows from all rows of the stream up to it, and the cache is that number at the last whole window.
 */
#ifndef TESTS_FAKE_DEVICE_H
#define TESTS_FAKE_DEVICE_H

#include <stdint.h>

/* What the first column of the hidden state is after a row whose first column is given; 0 before any. */
static inline uint32_t fake_step(uint32_t state, float row)
{
	return (state * 31 + (uint32_t)row + 7) & 0xffffff; /* a whole number that a float can be */
}

#endif
