extern "C" {
#include "gpu/chunk.h"
}
#include "gpu/tile.cuh"

/*
 * x, B, C = silu(bias + sum_k weight_k row_{r - 3 + k});  dt = clamp(softplus(raw + dt_bias));  scores = C B^T
 *
 * A block of four warps takes a chunk and one of three kinds of work: 256 columns of x; B and C of a group, and their
 * scores; or the steps of 32 heads.  In the first two a warp takes 16 rows, a lane 8 columns, three rows of which it
 * carries along.
 */
#define WARPS 4
#define TAPS 4
#define WARP_ROWS (CHUNK_ROWS / WARPS)
#define X_COLUMNS 256
#define STEP_HEADS 32
#define MAX_STATE 128
#define TILE_COLS (MAX_STATE + 8) /* a row of B or C in shared memory; the rest keeps ldmatrix off one bank */

struct conv_params {
	struct layout layout;
	struct layer_weights weights;
	struct chunk_buffers buffers;
	int layer;
	const struct batch_view *batch;
};

struct conv_lane {
	int column; /* of the convolution: the first of 8 */
	bfloat16 *to;   /* where row 0 of the chunk goes, at the beginning of the columns' group of 32 or 16 */
	int stride;     /* between rows there */
	bfloat16 *tile; /* the same in shared memory, or NULL */
	int places[4];  /* where pairs of columns go in their group */
};

/* Row r of the segment, 8 columns from c, as in_proj left it; rows before the segment come from the cache. */
static __device__ void conv_input(const struct conv_params &a, const struct segment_view &s, int r, int c, float v[8])
{
	const struct layout &l = a.layout;

	if (r < 0)
		load8(s.cache + a.layer * l.layer_floats + s.parity * l.conv_floats +
			      (size_t)(TAPS - 1 + r) * l.conv_cols + c,
		      v);
	else
		load8((const bfloat16 *)a.buffers.proj + (size_t)(s.row + r) * l.proj_cols + l.inner_cols + c, v);
}

static __device__ void put(const struct conv_lane &lane, int r, const float v[8])
{
#pragma unroll
	for (int t = 0; t < 4; t++) {
		uint32_t pair = pack2(v[2 * t], v[2 * t + 1]);

		*(uint32_t *)(lane.to + (size_t)r * lane.stride + lane.places[t]) = pair;
		if (lane.tile)
			*(uint32_t *)(lane.tile + r * TILE_COLS + lane.places[t]) = pair;
	}
}

/* Rows [from, to) of the chunk, 8 columns. */
static __device__ void convolve(const struct conv_params &a, const struct segment_view &s, const struct chunk_view &k,
				const struct conv_lane &lane, int from, int to)
{
	float v[TAPS][8], weight[TAPS][8], bias[8], sum[8];
	int c = lane.column;

	load8(a.weights.conv_bias + c, bias);
#pragma unroll
	for (int i = 0; i < TAPS; i++)
		load8(a.weights.conv + (size_t)i * a.layout.conv_cols + c, weight[i]);
#pragma unroll
	for (int i = 0; i < TAPS - 1; i++)
		conv_input(a, s, k.first + from + i - (TAPS - 1), c, v[i]);
#pragma unroll 4
	for (int r = from; r < to; r++) {
		conv_input(a, s, k.first + r, c, v[TAPS - 1]);
#pragma unroll
		for (int i = 0; i < 8; i++) {
			sum[i] = bias[i];
#pragma unroll
			for (int tap = 0; tap < TAPS; tap++)
				sum[i] = fmaf(weight[tap][i], v[tap][i], sum[i]);
			sum[i] = fast_silu(sum[i]);
#pragma unroll
			for (int tap = 0; tap < TAPS - 1; tap++)
				v[tap][i] = v[tap + 1][i];
		}
		put(lane, r, sum);
	}
}

/* The conv state behind the kept rows, 8 columns; by the block with the last kept chunk. */
static __device__ void keep_conv(const struct conv_params &a, const struct segment_view &s, int chunk, int c)
{
	const struct layout &l = a.layout;
	float v[8];

	if (threadIdx.x >= 32 || chunk != s.chunk + s.kept_chunks - 1)
		return;
	for (int i = 0; i < TAPS - 1; i++) {
		conv_input(a, s, s.kept - (TAPS - 1) + i, c, v);
		store8(s.cache + a.layer * l.layer_floats + (1 - s.parity) * l.conv_floats + (size_t)i * l.conv_cols + c,
		       v);
	}
}

static __device__ void convolve_x(const struct conv_params &a, const struct segment_view &s,
				  const struct chunk_view &k, int chunk, int part)
{
	int c = part * X_COLUMNS + threadIdx.x % 32 * 8, from = threadIdx.x / 32 * WARP_ROWS;
	int to = k.rows < from + WARP_ROWS ? k.rows : from + WARP_ROWS;
	struct conv_lane lane = { .column = c, .stride = a.layout.inner_cols, .tile = NULL };

	if (c >= a.layout.inner)
		return;
	lane.to = (bfloat16 *)a.buffers.x + (size_t)k.row * a.layout.inner_cols + c / SLICE * SLICE;
#pragma unroll
	for (int t = 0; t < 4; t++)
		lane.places[t] = 8 * t + c % SLICE / 4;
	if (from < to)
		convolve(a, s, k, lane, from, to);
	keep_conv(a, s, chunk, c);
}

/* Tiles of 16 x 16 of C B^T: a warp takes a row of them.  A lane leaves its 8 numbers as it holds them. */
static __device__ void score(const bfloat16 *b, const bfloat16 *c, int state, int edge, float *scores)
{
	int lane = threadIdx.x % 32, i = threadIdx.x / 32;

	for (int j = 0; i < edge && j <= i; j++) {
		float sum[2][4] = { { 0.0f } };

		for (int n = 0; n < state; n += 16) {
			uint32_t left[4], right[4];

			tile_load(left, c + (16 * i + lane % 16) * TILE_COLS + n + lane / 16 * 8);
			tile_load(right, b + (16 * j + lane % 8 + lane / 16 * 8) * TILE_COLS + n + lane / 8 % 2 * 8);
			tile_product(sum[0], left, right[0], right[1]);
			tile_product(sum[1], left, right[2], right[3]);
		}
		float *to = scores + (i * (i + 1) / 2 + j) * 256 + lane * 4;
		*(float4 *)to = make_float4(sum[0][0], sum[0][1], sum[0][2], sum[0][3]);
		*(float4 *)(to + 128) = make_float4(sum[1][0], sum[1][1], sum[1][2], sum[1][3]);
	}
}

static __device__ void convolve_bc(const struct conv_params &a, const struct segment_view &s,
				   const struct chunk_view &k, int chunk, int group)
{
	__shared__ __align__(16) bfloat16 tiles[2][CHUNK_ROWS * TILE_COLS];
	const struct layout &l = a.layout;
	int edge = (k.rows + 15) / 16, from = threadIdx.x / 32 * WARP_ROWS;
	int n = threadIdx.x % 32 * 8 % l.state, which = threadIdx.x % 32 * 8 / l.state; /* 0: B, 1: C */
	int to = k.rows < from + WARP_ROWS ? k.rows : from + WARP_ROWS, place = (which * l.groups + group) * l.state + n;
	struct conv_lane lane = { .column = l.inner_cols + place, .stride = 2 * l.groups * l.state };

	if (which < 2) {
		lane.to = (bfloat16 *)a.buffers.bc + (size_t)k.row * lane.stride + place / 16 * 16;
		lane.tile = tiles[which] + n / 16 * 16;
#pragma unroll
		for (int t = 0; t < 4; t++)
			lane.places[t] = t % 2 * 8 + n % 16 / 2 + t / 2 * 2;
		if (from < to)
			convolve(a, s, k, lane, from, to);
		for (int r = to > from ? to : from; r < 16 * edge && r < from + WARP_ROWS; r++)
#pragma unroll
			for (int t = 0; t < 4; t++)
				*(uint32_t *)(lane.tile + r * TILE_COLS + lane.places[t]) = 0;
		keep_conv(a, s, chunk, lane.column);
	}
	__syncthreads();
	size_t at = (size_t)k.scores * l.groups + (size_t)group * (edge * (edge + 1) / 2);
	score(tiles[0], tiles[1], l.state, edge, a.buffers.scores + at * 256);
	__syncthreads();
}

/* dt and the decay since the chunk's start, in log2: a warp takes a head, a lane two rows. */
static __device__ void steps(const struct conv_params &a, const struct chunk_view &k, int part)
{
	const struct layout &l = a.layout;
	int r = threadIdx.x % 32 * 2;

	for (int i = threadIdx.x / 32; i < STEP_HEADS && part * STEP_HEADS + i < l.heads; i += WARPS) {
		int head = part * STEP_HEADS + i;
		float slope = a.weights.a[head] * LOG2_E, dt[2] = { 0.0f, 0.0f }, sum, below;
		const bfloat16 *raw = (const bfloat16 *)a.buffers.proj + (size_t)(k.row + r) * l.proj_cols + l.dt_col +
				      head;
		float2 *to = a.buffers.steps + (size_t)k.row * l.heads + head * k.rows + r;

		for (int j = 0; j < 2; j++)
			if (r + j < k.rows)
				dt[j] = time_step(widen(raw[j * l.proj_cols]), a.weights.dt_bias[head], l.dt_min,
						  l.dt_max);
		sum = dt[0] * slope + dt[1] * slope;
		for (int step = 1; step < 32; step *= 2) {
			float other = __shfl_up_sync(0xffffffff, sum, step);

			if (threadIdx.x % 32 >= step)
				sum += other;
		}
		below = __shfl_up_sync(0xffffffff, sum, 1);
		if (threadIdx.x % 32 == 0)
			below = 0.0f;
		if (r < k.rows)
			to[0] = make_float2(below + dt[0] * slope, dt[0]);
		if (r + 1 < k.rows)
			to[1] = make_float2(sum, dt[1]);
	}
}

static __global__ void __launch_bounds__(32 * WARPS) conv_chunks(const struct conv_params a)
{
	int x_parts = (a.layout.inner + X_COLUMNS - 1) / X_COLUMNS;
	int step_parts = (a.layout.heads + STEP_HEADS - 1) / STEP_HEADS;
	int parts = a.layout.groups + x_parts + step_parts;

	for (int item = blockIdx.x; item < a.batch->n_chunks * parts; item += gridDim.x) {
		int chunk = item / parts, part = item % parts;
		const struct chunk_view k = a.batch->chunks[chunk];
		const struct segment_view s = a.batch->segments[k.segment];

		if (part < a.layout.groups)
			convolve_bc(a, s, k, chunk, part);
		else if (part < a.layout.groups + x_parts)
			convolve_x(a, s, k, chunk, part - a.layout.groups);
		else
			steps(a, k, part - a.layout.groups - x_parts);
	}
}

cudaError_t chunk_conv(const struct layout *layout, const struct layer_weights *weights, int layer,
		       const struct chunk_buffers *buffers, const struct batch_view *batch, size_t chunks,
		       cudaStream_t stream)
{
	struct conv_params a = { *layout, *weights, *buffers, layer, batch };
	size_t parts = (size_t)layout->groups + (size_t)(layout->inner + X_COLUMNS - 1) / X_COLUMNS +
		       (size_t)(layout->heads + STEP_HEADS - 1) / STEP_HEADS;
	size_t items = chunks * parts, most = 1 << 16;

	conv_chunks<<<(unsigned)(items < most ? items : most), 32 * WARPS, 0, stream>>>(a);
	return cudaGetLastError();
}
