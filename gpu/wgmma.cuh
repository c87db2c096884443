/*
 * Device code of Hopper (sm_90a): products of a warpgroup, 128 threads, whose operands lie in shared memory, and bulk
 * copies that report to an mbarrier.
 *
 * Operands in shared memory are made of cores: 8 x 8 bfloat16, rows of 16 bytes one after another.  A descriptor says
 * where the first core lies, and how far apart cores are along the product's inner dimension and along the other.
 */
#ifndef GPU_WGMMA_CUH
#define GPU_WGMMA_CUH

#include <cuda.h>

#include "gpu/mbarrier.cuh"

/* An operand whose rows run along the inner dimension (K-major): bytes between cores along it, and across. */
static __device__ inline uint64_t operand_along(const void *at, int inner, int outer)
{
	return (uint64_t)(shared_address(at) >> 4) | (uint64_t)(inner >> 4) << 16 | (uint64_t)(outer >> 4) << 32;
}

/* The operand that lies so many bytes further. */
static __device__ inline uint64_t operand_behind(uint64_t operand, int bytes)
{
	return operand & 0xffffffff00000000 | (uint32_t)operand + (bytes >> 4);
}

/* An operand whose rows run across the inner dimension (MN-major): the descriptor's fields mean the same. */
static __device__ inline uint64_t operand_across(const void *at, int inner, int outer)
{
	return operand_along(at, inner, outer);
}

/* A number that all lanes of the warp have, known to the compiler as such. */
static __device__ inline int uniform(int n)
{
	return __shfl_sync(0xffffffff, n, 0);
}

/* Between other uses of registers and products that read or write them. */
static __device__ inline void warpgroup_fence(void)
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/*
 * The compiler has all of d before this, and uses of it behind.  Beside a fence or a wait: it moves arithmetic across those,
 * and then fences each product by itself.
 */
template <int N> static __device__ inline void settle(float (&d)[N])
{
#pragma unroll
	for (int i = 0; i < N; i++)
		asm volatile("" : "+f"(d[i])::"memory");
}

static __device__ inline void warpgroup_commit(void)
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N committed groups are under way. */
template <int N> static __device__ inline void warpgroup_wait(void)
{
	asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* A barrier of one warpgroup; ids from 1. */
static __device__ inline void warpgroup_barrier(int id)
{
	asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory");
}

/*
 * Make the thread's writes to shared memory visible to products and bulk copies; and let reads that the thread knows to
 * be done, its own or behind a barrier, come before the writes of copies that it starts.
 */
static __device__ inline void publish_to_async(void)
{
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#define ACC_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ACC_8(d, i) ACC_4(d, i), ACC_4(d, i + 4)
#define ACC_12 ACC_8(d, 0), ACC_4(d, 8)
#define ACC_16 ACC_8(d, 0), ACC_8(d, 8)
#define ACC_24 ACC_16, ACC_8(d, 16)
#define ACC_32(d, i) ACC_8(d, i), ACC_8(d, i + 8), ACC_8(d, i + 16), ACC_8(d, i + 24)
#define ACC_48 ACC_32(d, 0), ACC_8(d, 32), ACC_8(d, 40)
#define NAMES_4 "%0, %1, %2, %3"
#define NAMES_8 NAMES_4 ", %4, %5, %6, %7"
#define NAMES_12 NAMES_8 ", %8, %9, %10, %11"
#define NAMES_16 NAMES_12 ", %12, %13, %14, %15"
#define NAMES_24 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define NAMES_32 NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_48 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 \
	NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* d [64, 64] (+)= a [64, 16] b [16, 64]^T: both from shared memory, K-major; ADD false: d starts from zero. */
template <bool ADD>
static __device__ inline void product_along(float (&d)[32], uint64_t a, uint64_t b)
{
	asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, %32, %33, %34, 1, 1, 0, 0;"
		     : ACC_32(d, 0)
		     : "l"(a), "l"(b), "n"(ADD));
}

/* d [64, 64] += a [64, 16] b [16, 64]: a from registers, laid out as for mma.sync, b MN-major. */
static __device__ inline void product_across(float (&d)[32], const uint32_t (&a)[4], uint64_t b)
{
	asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, {%32, %33, %34, %35}, %36, "
		     "1, 1, 1, 1;"
		     : ACC_32(d, 0)
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* The same, a [16, 64] MN-major in shared memory. */
static __device__ inline void product_across(float (&d)[32], uint64_t a, uint64_t b)
{
	asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, %32, %33, 1, 1, 1, 1, 1;"
		     : ACC_32(d, 0)
		     : "l"(a), "l"(b));
}

/* The first with 128 columns. */
static __device__ inline void product_across(float (&d)[64], const uint32_t (&a)[4], uint64_t b)
{
	asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, {%64, %65, %66, %67}, "
		     "%68, 1, 1, 1, 1;"
		     : ACC_32(d, 0), ACC_32(d, 32)
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* An operand whose rows run along the inner dimension, 128 bytes each, swizzled by eights. */
static __device__ inline uint64_t operand_swizzled(const void *at)
{
	return operand_along(at, 16, 8 * 128) | (uint64_t)1 << 62;
}

/* d [64, columns] = a [64, 16] b [columns, 16]^T, both from shared memory; where add, d is added to. */
#define PRODUCT_SWIZZLED(columns, names, outputs, a_, b_, add_)                                                      \
	static __device__ inline void product_swizzled(float (&d)[columns / 2], uint64_t a, uint64_t b, bool add)    \
	{                                                                                                            \
		asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_ ", 0;\n"                                   \
			     "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" names "}, " a_       \
			     ", " b_ ", add, 1, 1, 0, 0;\n}"                                                         \
			     : outputs                                                                               \
			     : "l"(a), "l"(b), "r"((int)add));                                                       \
	}

PRODUCT_SWIZZLED(8, NAMES_4, ACC_4(d, 0), "%4", "%5", "%6")
PRODUCT_SWIZZLED(16, NAMES_8, ACC_8(d, 0), "%8", "%9", "%10")
PRODUCT_SWIZZLED(24, NAMES_12, ACC_12, "%12", "%13", "%14")
PRODUCT_SWIZZLED(32, NAMES_16, ACC_16, "%16", "%17", "%18")
PRODUCT_SWIZZLED(48, NAMES_24, ACC_24, "%24", "%25", "%26")
PRODUCT_SWIZZLED(64, NAMES_32, ACC_32(d, 0), "%32", "%33", "%34")
PRODUCT_SWIZZLED(96, NAMES_48, ACC_48, "%48", "%49", "%50")

/* Four cores from registers to shared memory; lane l gives the address of row l % 8 of core l / 8. */
static __device__ inline void store_cores(void *row, const uint32_t (&r)[4])
{
	asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
		     "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
		     : "memory");
}

/* Arrive, and let the phase end only when so many bytes have been copied. */
static __device__ inline void mbarrier_expect(uint64_t *barrier, int bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
		     : "memory");
}

/* Copy the box of a tensor map that begins at this column and row; barrier hears of it. */
static __device__ inline void box_copy(void *to, const CUtensorMap *map, int column, int row, uint64_t *barrier)
{
	asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
		     "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
		     "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
		     : "memory");
}

/* The same of a map of operands: pieces of 64 columns from `piece` on. */
static __device__ inline void operand_copy(void *to, const CUtensorMap *map, int piece, int row, uint64_t *barrier)
{
	asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
		     "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(to)),
		     "l"(map), "r"(0), "r"(row), "r"(piece), "r"(shared_address(barrier))
		     : "memory");
}

/* Begin to bring such a box into the L2 cache. */
static __device__ inline void box_expect(const CUtensorMap *map, int column, int row)
{
	asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(column), "r"(row)
		     : "memory");
}

/* Copy bytes, a multiple of 16, from global to shared memory; barrier hears of it. */
static __device__ inline void bulk_copy(void *to, const void *from, int bytes, uint64_t *barrier)
{
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
			     shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier))
		     : "memory");
}

#endif
