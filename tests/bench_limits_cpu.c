/*
 * Limits of the cpu, on the device's own threads: fused multiply-adds or bfloat16 dot products on registers alone;
 * reading memory far larger than the caches; the matrix products of all layers, from the device's packed weights.
 */
#include <stdlib.h>

#if defined(CPU_X86)
#include <immintrin.h>
#endif

#include "model/cpu.h"
#include "model/cpu_memory.h"
#include "model/cpu_multiply.h"
#include "tests/bench_limits.h"

#define STEPS 300000                  /* of a register loop */
#define SUMS 12                       /* independent ones, to hide the latency of an operation, in 16 registers */
#define WIDE_SUMS 24                  /* in 32 registers */
#define READ_BYTES ((size_t)512 << 20)
#define SLICE_ROWS 256                /* as in the forward pass */

/* A register loop: STEPS times each sum's operation.  Returns something that depends on all of them. */
typedef float register_loop(void);

struct bench_meter {
	struct device *device;
	struct cpu_parts parts;
	register_loop *loop;
	double operations; /* of one register loop */
	size_t rows;
	float *x, *out;    /* [SLICE_ROWS, the widest k or columns] */
	float scale[SLICE_ROWS];
	float *memory;     /* [READ_BYTES] */
	volatile float sink;
};

typedef float vec4 __attribute__((vector_size(16)));

static float multiply_add_plain(void)
{
	const vec4 x = { 0.5f, 0.5f, 0.5f, 0.5f };
	vec4 sum[SUMS] = { { 0 } };

	for (int n = 0; n < STEPS; n++)
#pragma GCC unroll 12
		for (int i = 0; i < SUMS; i++) {
			sum[i] = sum[i] * x + x;
			__asm__ volatile("" : "+x"(sum[i])); /* or the compiler would work it out itself */
		}
#pragma GCC unroll 12
	for (int i = 1; i < SUMS; i++)
		sum[0] += sum[i];
	return sum[0][0];
}

#if defined(CPU_X86)

__attribute__((target("avx2,fma"))) static float multiply_add_avx2(void)
{
	const __m256 x = _mm256_set1_ps(0.5f);
	__m256 sum[SUMS];

#pragma GCC unroll 12
	for (int i = 0; i < SUMS; i++)
		sum[i] = _mm256_setzero_ps();
	for (int n = 0; n < STEPS; n++)
#pragma GCC unroll 12
		for (int i = 0; i < SUMS; i++) {
			sum[i] = _mm256_fmadd_ps(sum[i], x, x);
			__asm__ volatile("" : "+x"(sum[i]));
		}
#pragma GCC unroll 12
	for (int i = 1; i < SUMS; i++)
		sum[0] += sum[i];
	return sum[0][0];
}

__attribute__((target("avx512f"))) static float multiply_add_avx512(void)
{
	const __m512 x = _mm512_set1_ps(0.5f);
	__m512 sum[WIDE_SUMS];

#pragma GCC unroll 24
	for (int i = 0; i < WIDE_SUMS; i++)
		sum[i] = _mm512_setzero_ps();
	for (int n = 0; n < STEPS; n++)
#pragma GCC unroll 24
		for (int i = 0; i < WIDE_SUMS; i++) {
			sum[i] = _mm512_fmadd_ps(sum[i], x, x);
			__asm__ volatile("" : "+v"(sum[i]));
		}
#pragma GCC unroll 24
	for (int i = 1; i < WIDE_SUMS; i++)
		sum[0] += sum[i];
	return sum[0][0];
}

__attribute__((target("avx512f,avx512bf16"))) static float dot_avx512bf16(void)
{
	const __m512bh x = (__m512bh)_mm512_set1_epi32(0x3c003c00);
	__m512 sum[WIDE_SUMS];

#pragma GCC unroll 24
	for (int i = 0; i < WIDE_SUMS; i++)
		sum[i] = _mm512_setzero_ps();
	for (int n = 0; n < STEPS; n++)
#pragma GCC unroll 24
		for (int i = 0; i < WIDE_SUMS; i++) {
			sum[i] = _mm512_dpbf16_ps(sum[i], x, x);
			__asm__ volatile("" : "+v"(sum[i]));
		}
#pragma GCC unroll 24
	for (int i = 1; i < WIDE_SUMS; i++)
		sum[0] += sum[i];
	return sum[0][0];
}

#endif

/* The loop for the device's instruction set and number format, and how many operations it is. */
static void choose_loop(struct bench_meter *meter)
{
	const size_t lanes = meter->parts.kernels->panel / CPU_PANEL_VECTORS;
	const bool dot = meter->parts.weights->bfloat16 && meter->parts.kernels->has_bfloat16;

	meter->loop = multiply_add_plain;
#if defined(CPU_X86)
	if (dot)
		meter->loop = dot_avx512bf16;
	else if (lanes == 16)
		meter->loop = multiply_add_avx512;
	else if (lanes == 8)
		meter->loop = multiply_add_avx2;
#endif
	meter->operations = 2.0 * (double)lanes * (dot ? 2 : 1) * (lanes == 16 ? WIDE_SUMS : SUMS) * STEPS;
}

static void run_loop(void *arg, size_t task, size_t thread)
{
	struct bench_meter *meter = arg;

	(void)task;
	(void)thread;
	meter->sink = meter->loop();
}

/* Each thread reads a part of its own, as four streams: more of them keep more of the memory system busy. */
static void read_memory(void *arg, size_t task, size_t thread)
{
	struct bench_meter *meter = arg;
	const size_t n = READ_BYTES / sizeof(vec4) / cpu_threads_count(meter->parts.threads) / 16 * 4;
	const vec4 *at = (const vec4 *)(const void *)meter->memory + 4 * n * task;
	vec4 sum[8] = { { 0 } };

	(void)thread;
	for (size_t i = 0; i < n; i += 4)
#pragma GCC unroll 4
		for (size_t stream = 0; stream < 4; stream++)
#pragma GCC unroll 4
			for (size_t j = 0; j < 4; j++)
				sum[stream % 2 * 4 + j] += at[stream * n + i + j];
#pragma GCC unroll 8
	for (size_t j = 1; j < 8; j++)
		sum[0] += sum[j];
	meter->sink = sum[0][0] + sum[0][1] + sum[0][2] + sum[0][3];
}

static void multiply(struct bench_meter *meter, const void *weights, const float *bias, size_t k, size_t columns,
		     size_t rows)
{
	const struct cpu_operand x = {
		.data = meter->x, .stride = k + CPU_BLOCK, .bfloat16 = meter->parts.weights->bfloat16
	};
	const struct cpu_product product = {
		.x = &x, .scale = meter->scale, .groups = 1, .weights = weights, .bias = bias, .k = k,
		.columns = columns,
		.out = { meter->out, .row_stride = CPU_BLOCK, .block_stride = (SLICE_ROWS + 1) * CPU_BLOCK },
	};

	cpu_multiply(meter->parts.kernels, meter->parts.threads, &product, rows);
}

static void multiply_all(struct bench_meter *meter)
{
	const struct cpu_weights *weights = meter->parts.weights;

	for (size_t done = 0; done < meter->rows; done += SLICE_ROWS) {
		const size_t rows = meter->rows - done < SLICE_ROWS ? meter->rows - done : SLICE_ROWS;

		for (size_t i = 0; i < meter->device->model->shape.num_layers; i++) {
			const struct cpu_layer *layer = &weights->layers[i];

			multiply(meter, layer->in_proj, layer->in_proj_bias, weights->hidden, weights->in_columns,
				 rows);
			multiply(meter, layer->out_proj, layer->out_proj_bias, weights->inner, weights->hidden, rows);
		}
	}
}

static int meter_run(struct bench_meter *meter, struct bench_limits *ret_limits, struct error *err)
{
	struct cpu_threads *threads = meter->parts.threads;
	double start = bench_now();

	(void)err;
	cpu_threads_run(threads, run_loop, meter, 8 * cpu_threads_count(threads));
	ret_limits->matmul_gflops = 8e-9 * (double)cpu_threads_count(threads) * meter->operations /
				    (bench_now() - start);
	start = bench_now();
	cpu_threads_run(threads, read_memory, meter, cpu_threads_count(threads));
	ret_limits->bytes_per_s = (double)READ_BYTES / (bench_now() - start);
	start = bench_now();
	multiply_all(meter);
	ret_limits->matmul_only_ms = 1e3 * (bench_now() - start);
	ret_limits->model_widths_ms = ret_limits->mixer_ms = 0;
	ret_limits->weight_bytes = meter->parts.weights->bytes;
	ret_limits->threads = cpu_threads_count(threads);
	return 0;
}

static void meter_close(struct bench_meter *meter)
{
	free(meter->x);
	free(meter->out);
	free(meter->memory);
	free(meter);
}

static int meter_open(struct device *device, size_t rows, struct bench_meter **ret_meter, struct error *err)
{
	struct bench_meter *meter = calloc(1, sizeof *meter);
	size_t widest;

	if (!meter)
		return error_memory(err, "benchmark");
	meter->device = device;
	meter->parts = cpu_parts_of(device);
	meter->rows = rows;
	choose_loop(meter);
	widest = meter->parts.weights->in_columns + CPU_BLOCK; /* more than hidden and inner */
	meter->x = cpu_memory_zeroed(SLICE_ROWS * widest * sizeof(float));
	meter->out = cpu_memory_zeroed((SLICE_ROWS + 1) * widest * sizeof(float));
	meter->memory = cpu_memory_zeroed(READ_BYTES);
	if (!meter->x || !meter->out || !meter->memory) {
		meter_close(meter);
		return error_memory(err, "benchmark");
	}
	*ret_meter = meter;
	return 0;
}

const struct bench_meter_type bench_meter_cpu = {
	.backend = "cpu", .open = meter_open, .run = meter_run, .close = meter_close
};
