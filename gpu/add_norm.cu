extern "C" {
#include "gpu/add_norm.h"
}
#include "gpu/launch.cuh"
#include "gpu/number.cuh"

/*
 * residual = residual + scale * mixer + bias         scale = 1 / sqrt(mean(gated^2) + eps), or 1
 * normed = weight * residual / sqrt(mean(residual^2) + eps)
 *
 * A block takes a row; a thread keeps its columns, VECTORS times eight, in registers between the two lines.  The gated
 * norm's scale is one number a row, so it may as well be applied behind out_proj: here.
 */
#define MAX_THREADS 512
#define MAX_VECTORS 4

static __device__ void output8(char *plane, enum dtype dtype, size_t row, int hidden, int c, const float v[8])
{
	size_t at = row * hidden + c;
	int n = hidden - c < 8 ? hidden - c : 8;

	if (dtype == DTYPE_FLOAT32) {
		if (hidden % 8 == 0) {
			store8((float *)plane + at, v);
			return;
		}
		for (int i = 0; i < n; i++)
			((float *)plane)[at + i] = v[i];
		return;
	}
	uint16_t half[8];
	for (int i = 0; i < 8; i++)
		half[i] = dtype == DTYPE_FLOAT16 ? __half_as_ushort(__float2half_rn(v[i]))
						 : __bfloat16_as_ushort(__float2bfloat16_rn(v[i]));
	if (hidden % 8 == 0) {
		*(uint4 *)((uint16_t *)plane + at) =
			make_uint4(half[0] | (uint32_t)half[1] << 16, half[2] | (uint32_t)half[3] << 16,
				   half[4] | (uint32_t)half[5] << 16, half[6] | (uint32_t)half[7] << 16);
		return;
	}
	for (int i = 0; i < n; i++)
		((uint16_t *)plane)[at + i] = half[i];
}

static __device__ char *plane_of(const struct add_norm &a, const struct layout &l, char *output, int plane)
{
	return output + (size_t)plane * a.max_rows * l.hidden * (a.output_dtype == DTYPE_FLOAT32 ? 4 : 2);
}

/* Sum over the block, the same in every thread. */
static __device__ float block_sum(float v, float *shared)
{
	v = warp_sum(v);
	if (threadIdx.x % 32 == 0)
		shared[threadIdx.x / 32] = v;
	__syncthreads();
	v = 0.0f;
	for (int i = 0; i < (int)blockDim.x / 32; i++)
		v += shared[i];
	return v;
}

static __device__ float gated_scale(const struct add_norm &a, const struct layout &l, size_t row)
{
	float sum = 0.0f;

	for (int i = threadIdx.x % 32; i < a.parts; i += 32)
		sum += a.squares[row * a.parts + i];
	return rsqrtf(warp_sum(sum) / l.inner + l.norm_epsilon);
}

/* A thread's columns of a row: the residual stream so far, and the mixer's output. */
template <typename T, int VECTORS> struct row_columns {
	float stream[VECTORS][8];
	__align__(16) T mixer[VECTORS][8];
};

template <typename T, int VECTORS>
static __device__ void load_row(const struct add_norm &a, const struct layout &l, const float *from, size_t row,
				struct row_columns<T, VECTORS> &v)
{
#pragma unroll
	for (int k = 0; k < VECTORS; k++) {
		size_t c = 8 * (threadIdx.x + k * blockDim.x), at = row * l.hidden_cols + c;

		if (c >= l.hidden_cols)
			continue;
		load8(from + at, v.stream[k]);
		if (a.mixer)
			copy8((const T *)a.mixer + at, v.mixer[k]);
	}
}

template <typename T, int VECTORS>
static __global__ void __launch_bounds__(MAX_THREADS)
add_norm_rows(const struct layout l, const struct add_norm a, const struct batch_view *batch)
{
	__shared__ float shared[2][MAX_THREADS / 32];
	const float *from = a.from_input ? batch->input : a.residual;
	struct row_columns<T, VECTORS> ahead;
	int rows = batch->rows, turn = 0;
	float weight[VECTORS][8];

	next_may_begin();

#pragma unroll
	for (int k = 0; k < VECTORS; k++) {
		int c = 8 * (threadIdx.x + k * blockDim.x);

		if (c < l.hidden_cols)
			load8(a.weight + c, weight[k]);
	}
	previous_ended();
	if (blockIdx.x < rows)
		load_row<T, VECTORS>(a, l, from, blockIdx.x, ahead);
	for (int row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
		float v[VECTORS][8], other[8], scale = a.squares ? gated_scale(a, l, row) : 1.0f, sum = 0.0f;

#pragma unroll
		for (int k = 0; k < VECTORS; k++) {
			int c = 8 * (threadIdx.x + k * blockDim.x);

			if (c >= l.hidden_cols)
				continue;
			for (int i = 0; i < 8; i++)
				v[k][i] = ahead.stream[k][i];
			if (a.mixer) {
				load8(ahead.mixer[k], other);
				for (int i = 0; i < 8; i++)
					v[k][i] = fmaf(other[i], scale, v[k][i]);
				if (a.bias) {
					load8(a.bias + c, other);
					for (int i = 0; i < 8; i++)
						v[k][i] += other[i];
				}
				store8(a.residual + (size_t)row * l.hidden_cols + c, v[k]);
			}
			for (int i = 0; i < 8; i++)
				sum = fmaf(v[k][i], v[k][i], sum);
			if (a.stream_plane >= 0)
				output8(plane_of(a, l, batch->output, a.stream_plane), a.output_dtype, row, l.hidden,
					c, v[k]);
		}
		if (row + gridDim.x < rows)
			load_row<T, VECTORS>(a, l, from, row + gridDim.x, ahead);
		scale = rsqrtf(block_sum(sum, shared[turn]) / l.hidden + l.norm_epsilon);
#pragma unroll
		for (int k = 0; k < VECTORS; k++) {
			int c = 8 * (threadIdx.x + k * blockDim.x);

			if (c >= l.hidden_cols)
				continue;
			for (int i = 0; i < 8; i++)
				v[k][i] = v[k][i] * scale * weight[k][i];
			if (a.normed)
				store8((T *)a.normed + (size_t)row * l.hidden_cols + c, v[k]);
			if (a.normed_plane >= 0)
				output8(plane_of(a, l, batch->output, a.normed_plane), a.output_dtype, row, l.hidden,
					c, v[k]);
		}
	}
}

template <typename T>
static cudaError_t launch(const struct layout *l, const struct add_norm *a, const struct batch_view *batch, size_t rows,
		   int processors, cudaStream_t stream)
{
	int eights = l->hidden_cols / 8, warps = (eights + 31) / 32;
	int threads = warps * 32 < MAX_THREADS ? warps * 32 : MAX_THREADS;
	int vectors = (eights + threads - 1) / threads;
	size_t resident = (size_t)processors * (size_t)(1024 / threads); /* the registers hold no more */
	unsigned blocks = (unsigned)(rows < resident ? rows : resident);
	auto kernel = vectors == 1 ? add_norm_rows<T, 1> :
		      vectors == 2 ? add_norm_rows<T, 2> : add_norm_rows<T, MAX_VECTORS>;

	return launch_early(a->early, kernel, blocks, threads, 0, stream, *l, *a, batch);
}

cudaError_t add_norm(const struct layout *layout, const struct add_norm *args, bool to_bfloat16,
		     const struct batch_view *batch, size_t rows, int processors, cudaStream_t stream)
{
	return to_bfloat16 ? launch<bfloat16>(layout, args, batch, rows, processors, stream) :
			     launch<float>(layout, args, batch, rows, processors, stream);
}
