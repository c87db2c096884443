extern "C" {
#include "gpu/product.h"
}
#include "gpu/launch.cuh"
#include "gpu/number.cuh"
#include "gpu/wgmma.cuh"

/*
 * A block takes COLUMNS of y.  One warp keeps stages of x and of w on their way, some pieces of 64 numbers of each row;
 * a warpgroup multiplies them, 64 rows whatever there are: the products of the others are of what lies there, and go
 * nowhere.  k is walked through in one order, 16 at a time: the bits are those of the library's products.
 */
#define GROUP_THREADS 128
#define PIECE 64 /* columns */
#define PIECE_BYTES (2 * PIECE) /* of a row, as is the next */
#define STAGE_BYTES (PRODUCT_PIECES * PIECE_BYTES)
#define MAX_STAGES 16
#define SHARED_BYTES (220 * 1024)

struct product_params {
	CUtensorMap x, w;
	bfloat16 *y;
	int rows, n, k;
	int box_rows; /* of x */
	int stages;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* Where the boxes of a stage lie, w before x. */
template <int COLUMNS> struct stages_view {
	char *memory;
	int box_rows;

	__device__ int bytes() const { return (COLUMNS + box_rows) * STAGE_BYTES; }
	__device__ char *w(int stage) const { return memory + stage * bytes(); }
	__device__ char *x(int stage) const { return w(stage) + COLUMNS * STAGE_BYTES; }
};

static __device__ int steps_of(const struct product_params &a)
{
	return (a.k / PIECE + PRODUCT_PIECES - 1) / PRODUCT_PIECES;
}

/* By one thread: all stages in turn; the weights of the first ones before the kernel ahead has ended. */
template <int COLUMNS>
static __device__ void fetch_all(const struct product_params &a, const struct stages_view<COLUMNS> &stages,
				 uint64_t *full, uint64_t *empty)
{
	int column = blockIdx.x * COLUMNS, steps = steps_of(a), ahead = min(steps, a.stages);

	for (int i = 0; i < ahead; i++) {
		mbarrier_expect(&full[i], stages.bytes());
		operand_copy(stages.w(i), &a.w, i * PRODUCT_PIECES, column, &full[i]);
	}
	previous_ended();
	for (int i = 0; i < steps; i++) {
		int at = i % a.stages;

		if (i >= ahead) {
			mbarrier_wait(&empty[at], (i / a.stages + 1) % 2);
			mbarrier_expect(&full[at], stages.bytes());
			operand_copy(stages.w(at), &a.w, i * PRODUCT_PIECES, column, &full[at]);
		}
		operand_copy(stages.x(at), &a.x, i * PRODUCT_PIECES, 0, &full[at]);
	}
}

/* By the warpgroup: d [64, COLUMNS]. */
template <int COLUMNS>
static __device__ void multiply_all(const struct product_params &a, const struct stages_view<COLUMNS> &stages,
				    uint64_t *full, uint64_t *empty, float (&d)[COLUMNS / 2])
{
	int x_piece = a.box_rows * PIECE_BYTES, w_piece = COLUMNS * PIECE_BYTES;

	for (int i = 0; i < steps_of(a); i++) {
		int at = i % a.stages;
		uint64_t x = operand_swizzled(stages.x(at)), w = operand_swizzled(stages.w(at));

		mbarrier_wait(&full[at], i / a.stages % 2);
		warpgroup_fence();
#pragma unroll
		for (int k = 0; k < PRODUCT_PIECES * PIECE; k += 16) {
			int behind = k % PIECE * 2;

			product_swizzled(d, operand_behind(x, k / PIECE * x_piece + behind),
					 operand_behind(w, k / PIECE * w_piece + behind), i + k > 0);
		}
		warpgroup_commit();
		warpgroup_wait<1>();
		if (i > 0 && threadIdx.x == 0)
			mbarrier_arrive(&empty[(i - 1) % a.stages]);
	}
	warpgroup_wait<0>();
}

template <int COLUMNS> static __device__ void store_all(const struct product_params &a, const float (&d)[COLUMNS / 2])
{
	int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
	int column = blockIdx.x * COLUMNS + lane % 4 * 2;

#pragma unroll
	for (int i = 0; i < COLUMNS / 8; i++)
#pragma unroll
		for (int half = 0; half < 2; half++) {
			int r = row + 8 * half, c = column + 8 * i;

			if (r < a.rows && c < a.n)
				*(uint32_t *)(a.y + (size_t)r * a.n + c) =
					pack2(d[4 * i + 2 * half], d[4 * i + 2 * half + 1]);
		}
}

#endif

template <int COLUMNS>
static __global__ void __launch_bounds__(GROUP_THREADS + 32)
product_few(const __grid_constant__ struct product_params a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) char shared[];
	__shared__ uint64_t full[MAX_STAGES], empty[MAX_STAGES];
	const struct stages_view<COLUMNS> stages = { shared, a.box_rows };
	float d[COLUMNS / 2];

	next_may_begin();
	if (threadIdx.x < a.stages) {
		mbarrier_init(&full[threadIdx.x], 1);
		mbarrier_init(&empty[threadIdx.x], 1);
		publish_to_async();
	}
	__syncthreads();
	if (threadIdx.x == GROUP_THREADS)
		fetch_all<COLUMNS>(a, stages, full, empty);
	if (threadIdx.x >= GROUP_THREADS)
		return;
	multiply_all<COLUMNS>(a, stages, full, empty, d);
	previous_ended();
	store_all<COLUMNS>(a, d);
#endif
}

extern "C" const int product_cuts[PRODUCT_CUTS] = { 8, 16, 24, 32, 48, 64, 96 };

static void (*kernel_of(int cut))(struct product_params)
{
	switch (cut) {
	case 8: return product_few<8>;
	case 16: return product_few<16>;
	case 24: return product_few<24>;
	case 32: return product_few<32>;
	case 48: return product_few<48>;
	case 64: return product_few<64>;
	default: return product_few<96>;
	}
}

cudaError_t product_setup(void)
{
	cudaError_t status = cudaSuccess;

	for (int i = 0; i < PRODUCT_CUTS && status == cudaSuccess; i++)
		status = cudaFuncSetAttribute(kernel_of(product_cuts[i]), cudaFuncAttributeMaxDynamicSharedMemorySize,
					      SHARED_BYTES);
	return status;
}

cudaError_t product(int cut, const CUtensorMap *x, const CUtensorMap *w, void *y, size_t rows, size_t n, size_t k,
		    cudaStream_t stream)
{
	int box_rows = (int)product_box_rows(rows), stage = (cut + box_rows) * STAGE_BYTES;
	int beyond = PRODUCT_ROWS * PIECE_BYTES; /* rows that there are not may lie behind the last stage */
	int steps = (int)(k / PIECE + PRODUCT_PIECES - 1) / PRODUCT_PIECES;
	int stages = min(min(steps, MAX_STAGES), (SHARED_BYTES - beyond) / stage);
	struct product_params a = { *x, *w, (bfloat16 *)y, (int)rows, (int)n, (int)k, box_rows, stages };

	if (stages < 2 && stages < steps) /* one that is let go of only behind the next */
		return cudaErrorInvalidValue;

	return launch_early(true, kernel_of(cut), (unsigned)((n + cut - 1) / cut), GROUP_THREADS + 32,
			    (size_t)(stages * stage + beyond), stream, a);
}
