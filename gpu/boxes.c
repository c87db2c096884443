/*
 * Tensor maps.  The function that makes them is the driver's: it is asked for, so that the program starts without one.
 */
#include "gpu/boxes.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <string.h>

#include "gpu/check.h"

#define SINCE 12000 /* the version of CUDA that brought it */

static int encode_boxes(const void *matrix, unsigned dimensions, const cuuint64_t *sizes, const cuuint64_t *pitch,
			const cuuint32_t *box, CUtensorMapSwizzle swizzle, CUtensorMap *ret_boxes, struct error *err)
{
	const cuuint32_t strides[] = { 1, 1, 1 };
	enum cudaDriverEntryPointQueryResult found;
	PFN_cuTensorMapEncodeTiled_v12000 encode;
	void *function = NULL;
	int rc = cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, SINCE,
							     cudaEnableDefault, &found), "asking for tensor maps", err);

	if (rc != 0)
		return rc;
	if (found != cudaDriverEntryPointSuccess)
		return error_set(err, ERR_UNSUPPORTED, "device cuda: the driver has no tensor maps: expected CUDA %d",
				 SINCE / 1000);
	memcpy(&encode, &function, sizeof(encode));
	if (encode(ret_boxes, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, dimensions, (void *)matrix, sizes, pitch, box, strides,
		   CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
		   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
		return error_set(err, ERR_DEVICE, "device cuda: no tensor map for rows of %zu bytes",
				 (size_t)pitch[0]);
	return 0;
}

int boxes_of(const void *matrix, size_t rows, size_t cols, unsigned height, unsigned width, CUtensorMap *ret_boxes,
	     struct error *err)
{
	const cuuint64_t sizes[] = { cols, rows }, pitch[] = { cols * 2 };
	const cuuint32_t box[] = { width, height };

	return encode_boxes(matrix, 2, sizes, pitch, box, CU_TENSOR_MAP_SWIZZLE_NONE, ret_boxes, err);
}

int boxes_of_operand(const void *matrix, size_t rows, size_t cols, unsigned height, unsigned pieces,
		     CUtensorMap *ret_boxes, struct error *err)
{
	const cuuint64_t sizes[] = { 64, rows, cols / 64 }, pitch[] = { cols * 2, 128 };
	const cuuint32_t box[] = { 64, height, pieces };

	return encode_boxes(matrix, 3, sizes, pitch, box, CU_TENSOR_MAP_SWIZZLE_128B, ret_boxes, err);
}
