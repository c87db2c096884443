/*
 * Device code: tensor core products of bfloat16 tiles, and the loads that feed them (compute capability 8.0 on).
 *
 * Lane l of a warp holds of a 16 x 8 accumulator: row l / 4, columns 2 * (l % 4) and the next; the same of row
 * l / 4 + 8.
 */
#ifndef GPU_TILE_CUH
#define GPU_TILE_CUH

#include <stdint.h>

#include "gpu/number.cuh"

/* d [16, 8] += a [16, 16] b [16, 8] */
static __device__ inline void tile_product(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
	    "{%0, %1, %2, %3};"
	    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 matrices from shared memory; lane l gives the address of row l % 8 of matrix l / 8. */
static __device__ inline void tile_load(uint32_t r[4], const bfloat16 *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
		     : "r"((uint32_t)__cvta_generic_to_shared(row))
		     : "memory");
}

/* The same, each matrix transposed. */
static __device__ inline void tile_load_transposed(uint32_t r[4], const bfloat16 *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
		     : "r"((uint32_t)__cvta_generic_to_shared(row))
		     : "memory");
}

static __device__ inline uint32_t shared_address(const void *at)
{
	return (uint32_t)__cvta_generic_to_shared(at);
}

/* An address that the compiler computes here, and not anew, in pieces, for each of several uses that differ a little. */
static __device__ inline uint32_t once(uint32_t address)
{
	asm volatile("" : "+r"(address));
	return address;
}

template <typename T> static __device__ inline const T *once(const T *address)
{
	asm volatile("" : "+l"(address));
	return address;
}

/* Copy 16 bytes from global to shared memory in the background. */
static __device__ inline void copy16_to(uint32_t to, const void *from)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

static __device__ inline void copy16(void *to, const void *from)
{
	copy16_to(shared_address(to), from);
}

static __device__ inline void copy4(void *to, const void *from)
{
	asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
		     : "memory");
}

/* Close a group of copies; wait until at most n groups are still under way (this thread's). */
static __device__ inline void copies_close(void)
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> static __device__ inline void copies_wait(void)
{
	asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif
