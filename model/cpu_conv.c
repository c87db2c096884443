/* The causal convolution of one layer, a block of columns at a time, and the conv state that continues it. */
#include "model/cpu_scan.h"

/* The run's rows of one block of the columns x, B, C. */
static const float *run_column(const struct cpu_scan *scan, const struct cpu_run *run, size_t block)
{
	const size_t per_head = scan->head_dim / BLOCK, x_blocks = scan->heads * per_head;
	const size_t in = block < x_blocks ? cpu_scan_x(scan, block / per_head) + block % per_head :
					     cpu_scan_bc(scan) + block - x_blocks;

	return scan->in.data + in * scan->in.block_stride + run->first * BLOCK;
}

static float *history_of(const struct cpu_scan *scan, const struct cpu_run *run, size_t block)
{
	return run->cache + scan->history + block * (scan->taps - 1) * BLOCK;
}

/* bias + sum over k of weight[k] x[row - past + k], where rows before the first one are the history's. */
INLINE vec convolve_row(const size_t taps, const float *weight, vec bias, const float *history, const float *in,
			size_t row, const bool early)
{
	const size_t past = taps - 1;
	vec sum = bias;

#pragma GCC unroll 4
	for (size_t k = 0; k < taps; k++) {
		const bool before = early && row + k < past;
		const float *x = before ? history + (row + k) * BLOCK : in + (row + k - past) * BLOCK;

		sum = vec_fma(vec_load(weight + k * BLOCK), vec_load(x), sum);
	}
	return sum;
}

INLINE void convolve_rows(const size_t taps, const float *weight, vec bias, const float *history, const float *in,
			  size_t row, size_t end, float *out, size_t out_stride)
{
	for (; row < end && row < taps - 1; row++, out += out_stride)
		vec_store(out, vec_silu(convolve_row(taps, weight, bias, history, in, row, true)));
	for (; row < end; row++, out += out_stride)
		vec_store(out, vec_silu(convolve_row(taps, weight, bias, history, in, row, false)));
}

void CPU_NAME(cpu_convolve)(const struct cpu_scan *scan, const struct cpu_run *run, size_t block, size_t first,
			    size_t rows, float *out, size_t out_stride)
{
	const float *in = run_column(scan, run, block), *history = history_of(scan, run, block);
	const float *weight = scan->conv + block * scan->taps * BLOCK;

	for (size_t v = 0; v < BLOCK; v += LANES) {
		const vec bias = vec_load(scan->conv_bias + block * BLOCK + v);

		if (scan->taps == 4) /* as all published models have */
			convolve_rows(4, weight + v, bias, history + v, in + v, first, first + rows, out + v,
				      out_stride);
		else
			convolve_rows(scan->taps, weight + v, bias, history + v, in + v, first, first + rows, out + v,
				      out_stride);
	}
}

void CPU_NAME(cpu_convolve_advance)(const struct cpu_scan *scan, const struct cpu_run *run, size_t block, size_t rows)
{
	const size_t past = scan->taps - 1;
	const float *in = run_column(scan, run, block);
	float *history = history_of(scan, run, block);

	for (size_t i = 0; i < past; i++) {
		const float *x = i + rows < past ? history + (i + rows) * BLOCK : in + (i + rows - past) * BLOCK;

		memmove(history + i * BLOCK, x, BLOCK * sizeof *x);
	}
}
