/*
 * Device code: eight numbers at a time between memory and registers, and the functions of the model.
 *
 * nvcc runs with -fmad=false: products and sums are contracted only where fmaf is written, so that one formula gives
 * the same bits in every kernel that it is compiled into.
 */
#ifndef GPU_NUMBER_CUH
#define GPU_NUMBER_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

typedef __nv_bfloat16 bfloat16;

static __device__ inline void load8(const float *from, float v[8])
{
	float4 a = *(const float4 *)from, b = *(const float4 *)(from + 4);

	v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
	v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

static __device__ inline void store8(float *to, const float v[8])
{
	*(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
	*(float4 *)(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

/* Store 16 bytes at once; left to itself the compiler may take results one by one. */
static __device__ inline void store_whole(void *to, uint4 v)
{
	asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
		     : "memory");
}

static __device__ inline void store_whole(void *to, float4 v)
{
	store_whole(to, make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
				   __float_as_uint(v.w)));
}

/* Two bfloat16 in a word; the lower half is the first. */
static __device__ inline uint32_t pack2(float first, float second)
{
	__nv_bfloat162 v = __floats2bfloat162_rn(first, second);

	return *(uint32_t *)&v;
}

static __device__ inline float first_of(uint32_t pair)
{
	return __uint_as_float(pair << 16);
}

static __device__ inline float second_of(uint32_t pair)
{
	return __uint_as_float(pair & 0xffff0000);
}

/* Half of each: exact. */
static __device__ inline uint32_t half_of(uint32_t pair)
{
	__nv_bfloat162 v = __hmul2(*(__nv_bfloat162 *)&pair, __floats2bfloat162_rn(0.5f, 0.5f));

	return *(uint32_t *)&v;
}

static __device__ inline void unpack8(uint4 from, float v[8])
{
	v[0] = first_of(from.x), v[1] = second_of(from.x), v[2] = first_of(from.y), v[3] = second_of(from.y);
	v[4] = first_of(from.z), v[5] = second_of(from.z), v[6] = first_of(from.w), v[7] = second_of(from.w);
}

static __device__ inline uint4 pack8(const float v[8])
{
	return make_uint4(pack2(v[0], v[1]), pack2(v[2], v[3]), pack2(v[4], v[5]), pack2(v[6], v[7]));
}

static __device__ inline void load8(const bfloat16 *from, float v[8])
{
	unpack8(*(const uint4 *)from, v);
}

static __device__ inline void store8(bfloat16 *to, const float v[8])
{
	*(uint4 *)to = pack8(v);
}

/* Eight numbers as they are. */
static __device__ inline void copy8(const float *from, float v[8])
{
	load8(from, v);
}

static __device__ inline void copy8(const bfloat16 *from, bfloat16 v[8])
{
	*(uint4 *)v = *(const uint4 *)from;
}

static __device__ inline float widen(float v)
{
	return v;
}

static __device__ inline float widen(bfloat16 v)
{
	return __bfloat162float(v);
}

static __device__ inline float widen(__half v)
{
	return __half2float(v);
}

static __device__ inline void narrow(float v, float *to)
{
	*to = v;
}

static __device__ inline void narrow(float v, bfloat16 *to)
{
	*to = __float2bfloat16_rn(v);
}

#define LOG2_E 1.44269504f

/* 2^x and log2(x), to about 2^-22. */
static __device__ inline float fast_exp2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

static __device__ inline float fast_log2(float x)
{
	float y;

	asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* silu(x) = x / (1 + exp(-x)) = x / 2 (1 + tanh(x / 2)); the quick one, to about 2^-11 of x, takes x / 2. */
static __device__ inline float fast_silu(float half)
{
	float t;

	asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(half));
	return fmaf(half, t, half);
}

static __device__ inline float exact_silu(float x)
{
	return x / (1.0f + expf(-x));
}

/* log(1 + exp(x)) */
static __device__ inline float softplus(float x)
{
	return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}

/* The step of a head in a row: softplus(raw + bias), within time_step_limit. */
static __device__ inline float time_step(float raw, float bias, float low, float high)
{
	return fminf(fmaxf(softplus(raw + bias), low), high);
}

/* The sum over a warp, in every lane; the order is fixed. */
static __device__ inline float warp_sum(float v)
{
	for (int mask = 16; mask > 0; mask /= 2)
		v += __shfl_xor_sync(0xffffffff, v, mask);
	return v;
}

#endif
