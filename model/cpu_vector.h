/*
 * Vectors of float32 in one vocabulary for every instruction set that the CPU kernels are compiled for: the compiler's
 * flags choose.  LANES floats a vector; TILE_ROWS x 3 accumulators fill the registers.
 *
 * bfloat16 operands of a product lie in pairs: a pair is two numbers that follow each other along the summed
 * dimension, in one 32-bit lane.
 */
#ifndef MODEL_CPU_VECTOR_H
#define MODEL_CPU_VECTOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)

#define LANES 16
#define TILE_ROWS 8
typedef __m512 vec;
typedef int32_t veci __attribute__((vector_size(64)));

static inline vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vec_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
static inline vec vec_set(float a) { return _mm512_set1_ps(a); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec vec_sqrt(vec a) { return _mm512_sqrt_ps(a); }
static inline vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }

#elif defined(__AVX2__)

#define LANES 8
#define TILE_ROWS 4
typedef __m256 vec;
typedef int32_t veci __attribute__((vector_size(32)));

static inline vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store(float *p, vec a) { _mm256_storeu_ps(p, a); }
static inline vec vec_set(float a) { return _mm256_set1_ps(a); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec vec_sqrt(vec a) { return _mm256_sqrt_ps(a); }
static inline vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }

#else

#define LANES 4
#define TILE_ROWS 4
typedef float vec __attribute__((vector_size(16)));
typedef int32_t veci __attribute__((vector_size(16)));

static inline vec vec_set(float a) { return (vec){ a, a, a, a }; }
static inline vec vec_fma(vec a, vec b, vec c) { return a * b + c; }

static inline vec vec_load(const float *p)
{
	vec a;

	memcpy(&a, p, sizeof a);
	return a;
}

static inline void vec_store(float *p, vec a)
{
	memcpy(p, &a, sizeof a);
}

static inline vec vec_sqrt(vec a)
{
	for (int i = 0; i < LANES; i++)
		a[i] = sqrtf(a[i]);
	return a;
}

static inline vec vec_select(veci mask, vec a, vec b)
{
	return (vec)((mask & (veci)a) | (~mask & (veci)b));
}

static inline vec vec_max(vec a, vec b) { return vec_select(a > b, a, b); }
static inline vec vec_min(vec a, vec b) { return vec_select(a < b, a, b); }

#endif

/* For functions whose constant arguments decide how many registers they take. */
#define INLINE static inline __attribute__((always_inline))

/* Sum of the lanes, in a fixed order. */
static inline float vec_sum(vec a)
{
#if defined(__AVX512F__)
	return _mm512_reduce_add_ps(a);
#else
	float lane[LANES];

	vec_store(lane, a);
	for (size_t width = LANES / 2; width > 0; width /= 2)
		for (size_t i = 0; i < width; i++)
			lane[i] += lane[i + width];
	return lane[0];
#endif
}

/* acc + a.first * b.first + a.second * b.second, in every lane; a and b are bfloat16 pairs. */
static inline vec vec_dot_pairs(veci a, veci b, vec acc)
{
#if defined(__AVX512BF16__)
	return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#else
	const veci second = (veci)((veci){ 0 } - 65536); /* 0xffff0000 */

	acc = vec_fma((vec)(a << 16), (vec)(b << 16), acc);
	return vec_fma((vec)(a & second), (vec)(b & second), acc);
#endif
}

static inline veci veci_load(const void *p)
{
	return (veci)vec_load(p);
}

static inline veci veci_set(uint32_t a)
{
	return (veci){ 0 } + (int32_t)a;
}

/* Round to bfloat16, to nearest even, in the lower halves of the lanes; NaN becomes a quiet NaN. */
static inline veci vec_round_bfloat16(vec a)
{
#if defined(__AVX512BF16__)
	return (veci)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
#else
	const veci bits = (veci)a, quiet = (veci){ 0 } + 0x7fc0;
	const veci odd = (bits >> 16) & 1, rounded = ((bits + 0x7fff + odd) >> 16) & 0xffff;
	const veci is_nan = (bits & 0x7fffffff) > 0x7f800000;

	return (rounded & ~is_nan) | (quiet & is_nan);
#endif
}

/* Pairs of the two numbers in each lane. */
static inline void vec_store_pairs(uint32_t *dst, vec first, vec second)
{
	const veci pairs = vec_round_bfloat16(first) | vec_round_bfloat16(second) << 16;

	memcpy(dst, &pairs, sizeof pairs);
}

/* Numbers that follow each other in memory: dst [LANES]. */
static inline void vec_store_bfloat16(uint16_t *dst, vec a)
{
#if defined(__AVX512F__)
	const __m256i narrow = _mm512_cvtepi32_epi16((__m512i)vec_round_bfloat16(a));

	memcpy(dst, &narrow, sizeof narrow);
#else
	const veci rounded = vec_round_bfloat16(a);

	for (size_t i = 0; i < LANES; i++)
		dst[i] = (uint16_t)rounded[i];
#endif
}

/*
 * e^x to 2 ulp for -87 <= x <= 88; beyond, the value at the bound.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q a minimax polynomial; 2^n is added to the exponent.
 */
static inline vec vec_exp(vec x)
{
	const vec shift = vec_set(12582912.0f); /* 1.5 * 2^23: adding it leaves an integer in the low bits */
	vec n, r, q;
	veci exponent;

	x = vec_min(vec_max(x, vec_set(-87.0f)), vec_set(88.0f));
	n = vec_fma(x, vec_set(0x1.715476p+0f), shift);
	exponent = ((veci)n - (veci)shift) << 23;
	n = n - shift;
	r = vec_fma(n, vec_set(-0x1.62e400p-1f), x);
	r = vec_fma(n, vec_set(-0x1.7f7d1cp-20f), r);
	q = vec_set(0x1.6dbc66p-10f);
	q = vec_fma(q, r, vec_set(0x1.124148p-7f));
	q = vec_fma(q, r, vec_set(0x1.555454p-5f));
	q = vec_fma(q, r, vec_set(0x1.555486p-3f));
	q = vec_fma(q, r, vec_set(0.5f));
	q = vec_fma(q, r * r, r) + vec_set(1.0f);
	return (vec)((veci)q + exponent);
}

/* a / b to 2 ulp, 1 <= b <= 2^127: an approximate reciprocal and a Newton step cost less than a division. */
static inline vec vec_divide(vec a, vec b)
{
#if defined(__AVX512F__)
	const vec r = _mm512_rcp14_ps(b);

	return a * vec_fma(r, _mm512_fnmadd_ps(b, r, vec_set(1.0f)), r);
#else
	return a / b;
#endif
}

/* x / (1 + e^-x) */
static inline vec vec_silu(vec x)
{
	return vec_divide(x, vec_set(1.0f) + vec_exp(-x));
}

/*
 * log(1 + e^x) = max(x, 0) + log(1 + u), u = e^-|x|;
 * log(1 + u) = 2 atanh(s) = 2 s (1 + s^2 q(s^2)), s = u / (2 + u) <= 1/3, q a minimax polynomial.
 */
static inline vec vec_softplus(vec x)
{
	const vec u = vec_exp(vec_min(x, -x));
	const vec s = u / (vec_set(2.0f) + u);
	const vec s2 = s * s;
	vec q = vec_set(0.14012231f);

	q = vec_fma(q, s2, vec_set(0.1399957f));
	q = vec_fma(q, s2, vec_set(0.2001085f));
	q = vec_fma(q, s2, vec_set(0.33333207f));
	q = vec_fma(q, s2, vec_set(1.0f));
	return vec_fma(s + s, q, vec_max(x, vec_set(0.0f)));
}

#endif
