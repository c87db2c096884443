/*
 * Boxes of a matrix that the copy engines of Hopper's processors bring to shared memory.
 */
#ifndef GPU_BOXES_H
#define GPU_BOXES_H

#include <cuda.h>
#include <stddef.h>

#include "model/error.h"

/*
 * Describe boxes of height by width in matrix [rows, cols] bfloat16, cols a multiple of 8.  A box lies row by row in
 * shared memory; what reaches beyond the matrix is zero.  ERR_UNSUPPORTED: the driver has no such thing.
 */
int boxes_of(const void *matrix, size_t rows, size_t cols, unsigned height, unsigned width, CUtensorMap *ret_boxes,
	     struct error *err);

/*
 * Describe boxes of height by 64 * pieces, cols a multiple of 64, as operands of wgmma: pieces of 64 columns lie one
 * after another, the rows of each, of 128 bytes, swizzled.
 */
int boxes_of_operand(const void *matrix, size_t rows, size_t cols, unsigned height, unsigned pieces,
		     CUtensorMap *ret_boxes, struct error *err);

#endif
