extern "C" {
#include "gpu/chunk.h"
}
#include "gpu/tile.cuh"

/*
 * Within a chunk, with l the log2 of the decay since its start and h the state before it:
 *   y_i = 2^{l_i} h C_i + sum_{j <= i} (C_i B_j) 2^{l_i - l_j} dt_j x_j + D x_i
 *   h = 2^{l_last} h + sum_j 2^{l_last - l_j} dt_j x_j B_j^T
 *
 * A block of four warps takes four neighbouring slices of one group, which share B, C and the scores; a warp keeps its
 * slice's state, 32 p x N n, in registers, where one product's result is laid out as the next one's operand.  Every sum
 * over rows starts from zero in each chunk, so that the states kernel, which cuts the work otherwise, gets the same bits.
 */
#define WARPS 4
#define X_COLS (SLICE + 8) /* a row of x in shared memory: the rest keeps ldmatrix off one bank */
#define SCORE_FLOATS (CHUNK_TILES * 256)

struct ssd_params {
	struct layout layout;
	struct layer_weights weights;
	struct chunk_buffers buffers;
	int layer;
	const struct batch_view *batch;
};

/* Which slices a block has, and which of them its warps do. */
struct ssd_place {
	int group, slice, head;
	bool active; /* the last block of a group may have warps to spare */
};

template <int N> struct ssd_shared {
	bfloat16 b[CHUNK_ROWS][N + 8], c[CHUNK_ROWS][N + 8];
	float scores[SCORE_FLOATS];
	bfloat16 x[2][WARPS][CHUNK_ROWS][X_COLS];
	float reach[WARPS][CHUNK_ROWS];  /* 2^{l_i} */
	float since[WARPS][CHUNK_ROWS];  /* l_i */
	float source[WARPS][CHUNK_ROWS]; /* l_j - log2(dt_j) */
	float weight[WARPS][CHUNK_ROWS]; /* 2^{l_last - l_j} dt_j */
	float gated_norm[WARPS][SLICE];
};

static __host__ __device__ int blocks_per_group(const struct layout &l)
{
	return (l.inner / l.groups / SLICE + WARPS - 1) / WARPS;
}

static __device__ struct ssd_place place_of(const struct layout &l, int block)
{
	int slices = l.inner / l.groups / SLICE, warp = threadIdx.x / 32;
	struct ssd_place p;

	p.group = block / blocks_per_group(l);
	p.slice = block % blocks_per_group(l) * WARPS + warp;
	p.active = p.slice < slices;
	p.slice = p.group * slices + (p.active ? p.slice : 0);
	p.head = p.slice * SLICE / l.head_dim;
	return p;
}

/* Fetch rows of B (which = 0) or C (1) of the chunk's group; up to a whole tile, zeros. */
template <int N>
static __device__ void fetch_bc(const struct ssd_params &a, const struct chunk_view &k, int group, int which,
				bfloat16 (*to)[N + 8])
{
	const struct layout &l = a.layout;
	const bfloat16 *from = (const bfloat16 *)a.buffers.bc + (size_t)k.row * 2 * l.groups * N +
			       (which * l.groups + group) * N;
	int rows = (k.rows + 15) / 16 * 16;

	for (int i = threadIdx.x; i < rows * (N / 8); i += 32 * WARPS) {
		int r = i / (N / 8), n = i % (N / 8) * 8;
		bool none = r >= k.rows;

		copy16(&to[r][n], from + (none ? 0 : (size_t)r * 2 * l.groups * N + n), none);
	}
}

static __device__ void fetch_scores(const struct ssd_params &a, const struct chunk_view &k, int group, float *to)
{
	int edge = (k.rows + 15) / 16, tiles = edge * (edge + 1) / 2;
	const float *from = a.buffers.scores + ((size_t)k.scores * a.layout.groups + (size_t)group * tiles) * 256;

	for (int i = threadIdx.x; i < tiles * 64; i += 32 * WARPS)
		copy16(to + i * 4, from + i * 4, false);
}

/* The warp's slice of x. */
static __device__ void fetch_x(const struct ssd_params &a, const struct chunk_view &k, int slice,
			       bfloat16 (*to)[X_COLS])
{
	const bfloat16 *from = (const bfloat16 *)a.buffers.x + (size_t)k.row * a.layout.inner_cols + slice * SLICE;
	int rows = (k.rows + 15) / 16 * 16;

	for (int i = threadIdx.x % 32; i < rows * (SLICE / 8); i += 32) {
		int r = i / (SLICE / 8), c = i % (SLICE / 8) * 8;
		bool none = r >= k.rows;

		copy16(&to[r][c], from + (none ? 0 : (size_t)r * a.layout.inner_cols + c), none);
	}
}

/* A lane's two rows of (l, dt); rows that the chunk has not: the decay of the last one, and dt = 0. */
static __device__ void fetch_steps(const struct ssd_params &a, const struct chunk_view &k, int head, float2 step[2],
				   float *last)
{
	const float2 *from = a.buffers.steps + (size_t)k.row * a.layout.heads + head * k.rows;
	float2 end = from[k.rows - 1];

	for (int j = 0; j < 2; j++) {
		int r = threadIdx.x % 32 + 32 * j;

		step[j] = r < k.rows ? from[r] : make_float2(end.x, 0.0f);
	}
	*last = end.x;
}

template <int N>
static __device__ void spread_steps(struct ssd_shared<N> &s, const float2 step[2], float last)
{
	int warp = threadIdx.x / 32;

	for (int j = 0; j < 2; j++) {
		int r = threadIdx.x % 32 + 32 * j;

		s.since[warp][r] = step[j].x;
		s.reach[warp][r] = fast_exp2(step[j].x);
		s.source[warp][r] = step[j].x - fast_log2(step[j].y);
		s.weight[warp][r] = fast_exp2(last - step[j].x) * step[j].y;
	}
	__syncwarp();
}

/*
 * The state in registers: h[m][u] is the accumulator of places p 16 m to 16 m + 15 and n 8 u to 8 u + 7.  As the right
 * operand of a product over n (16 v on) it gives two operands of 8 places p: the halves (x, y) and (z, w).
 */
template <int N> static __device__ uint4 state_operand(const float (&h)[2][N / 8][4], int m, int v)
{
	const float *even = h[m][2 * v], *odd = h[m][2 * v + 1];

	return make_uint4(pack2(even[0], even[1]), pack2(odd[0], odd[1]), pack2(even[2], even[3]),
			  pack2(odd[2], odd[3]));
}

template <int N> static __device__ uint4 state_operand(const uint4 (&h)[2][N / 16], int m, int v)
{
	return h[m][v];
}

/* The column p of a slice at accumulator row g (0 .. 7) of half `half` of m. */
static __device__ int slice_column(int g, int m, int half)
{
	return g / 2 * 8 + 2 * (2 * m + half) + g % 2;
}

/* Scores of tile (i, j) with the decay from each column's row to each row's, and dt: a product's left operand. */
static __device__ void masked_scores(const float *scores, const float *source, const float since[2], int i, int j,
				     uint32_t left[4])
{
	int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4 * 2;
	float v[8];

	*(float4 *)v = *(const float4 *)(scores + (i * (i + 1) / 2 + j) * 256 + lane * 4);
	*(float4 *)(v + 4) = *(const float4 *)(scores + (i * (i + 1) / 2 + j) * 256 + 128 + lane * 4);
#pragma unroll
	for (int half = 0; half < 2; half++) {
		float2 from = *(const float2 *)(source + 16 * j + 8 * half + q);

#pragma unroll
		for (int row = 0; row < 2; row++) {
			float *pair = v + 4 * half + 2 * row;
			int at = g + 8 * row, column = 8 * half + q;

			pair[0] *= fast_exp2(since[row] - from.x);
			pair[1] *= fast_exp2(since[row] - from.y);
			if (i == j && column > at)
				pair[0] = 0.0f;
			if (i == j && column + 1 > at)
				pair[1] = 0.0f;
			left[2 * half + row] = pack2(pair[0], pair[1]);
		}
	}
}

/* Columns of x in rows 16 j on, each row times its weight: a product's left operand [p, j]. */
static __device__ void weighted_columns(const bfloat16 (*x)[X_COLS], const float *weight, int j, int m,
					uint32_t left[4])
{
	int lane = threadIdx.x % 32, q = lane % 4 * 2;
	float2 low = *(const float2 *)(weight + 16 * j + q), high = *(const float2 *)(weight + 16 * j + 8 + q);
	uint32_t r[4];

	tile_load_transposed(r, &x[16 * j + lane % 16][16 * m + lane / 16 * 8]);
	left[0] = pack2(first_of(r[0]) * low.x, second_of(r[0]) * low.y);
	left[1] = pack2(first_of(r[2]) * low.x, second_of(r[2]) * low.y);
	left[2] = pack2(first_of(r[1]) * high.x, second_of(r[1]) * high.y);
	left[3] = pack2(first_of(r[3]) * high.x, second_of(r[3]) * high.y);
}

/* y for rows 16 i to 16 i + 15: sum[t] is the accumulator of places p 8 t to 8 t + 7. */
template <int N, class State>
static __device__ void output_tile(struct ssd_shared<N> &s, const bfloat16 (*x)[X_COLS], const State &h, int i,
				   float sum[4][4])
{
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
	const float *since = s.since[warp] + 16 * i + g, *reach = s.reach[warp] + 16 * i + g;
	float ends[2] = { since[0], since[8] }, reaches[2] = { reach[0], reach[8] };

#pragma unroll
	for (int v = 0; v < N / 16; v++) {
		uint32_t left[4];

		tile_load(left, &s.c[16 * i + lane % 16][16 * v + lane / 16 * 8]);
#pragma unroll
		for (int m = 0; m < 2; m++) {
			uint4 right = state_operand<N>(h, m, v);

			tile_product(sum[2 * m], left, right.x, right.y);
			tile_product(sum[2 * m + 1], left, right.z, right.w);
		}
	}
#pragma unroll
	for (int t = 0; t < 4; t++)
		for (int e = 0; e < 4; e++)
			sum[t][e] *= reaches[e / 2];
#pragma unroll 1
	for (int j = 0; j <= i; j++) {
		uint32_t left[4], right[4];

		masked_scores(s.scores, s.source[warp], ends, i, j, left);
#pragma unroll
		for (int m = 0; m < 2; m++) {
			tile_load_transposed(right, &x[16 * j + lane % 16][16 * m + lane / 16 * 8]);
			tile_product(sum[2 * m], left, right[0], right[1]);
			tile_product(sum[2 * m + 1], left, right[2], right[3]);
		}
	}
}

/* A row of the batch, eight columns of the slice from 8 q: y still lacks D x.  Every lane calls it. */
template <int N>
static __device__ void gate_row(const struct ssd_params &a, struct ssd_shared<N> &s, const struct ssd_place &p,
				size_t row, bool valid, const bfloat16 *x, uint4 gate, float y[8])
{
	int warp = threadIdx.x / 32, q = threadIdx.x % 4;
	float z[8], squares = 0.0f, d = a.weights.d[p.head];

	unpack8(gate, z);
#pragma unroll
	for (int t = 0; t < 4; t++) {
		uint32_t pair = *(const uint32_t *)(x + 8 * t + 2 * q);

		y[2 * t] = fmaf(d, first_of(pair), y[2 * t]) * fast_silu(z[2 * t]);
		y[2 * t + 1] = fmaf(d, second_of(pair), y[2 * t + 1]) * fast_silu(z[2 * t + 1]);
	}
#pragma unroll
	for (int i = 0; i < 8; i++) {
		squares = fmaf(y[i], y[i], squares);
		y[i] *= s.gated_norm[warp][8 * q + i];
	}
	squares += __shfl_xor_sync(0xffffffff, squares, 1);
	squares += __shfl_xor_sync(0xffffffff, squares, 2);
	if (!valid)
		return;
	store8((bfloat16 *)a.buffers.gated + row * a.layout.inner_cols + p.slice * SLICE + 8 * q, y);
	if (q == 0)
		a.buffers.squares[row * (a.layout.inner / SLICE) + p.slice] = squares;
}

/* All rows of the chunk, for the warp's slice. */
template <int N, class State>
static __device__ void output_chunk(const struct ssd_params &a, struct ssd_shared<N> &s, const struct ssd_place &p,
				    const struct chunk_view &k, const bfloat16 (*x)[X_COLS], const State &h)
{
	int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
	const bfloat16 *z = (const bfloat16 *)a.buffers.proj + (size_t)k.row * a.layout.proj_cols + p.slice * SLICE + 8 * q;

#pragma unroll 1
	for (int i = 0; 16 * i < k.rows; i++) {
		float sum[4][4] = { { 0.0f } }, y[8];
		uint4 gate[2] = { { 0 } };

#pragma unroll
		for (int half = 0; half < 2; half++)
			if (16 * i + 8 * half + g < k.rows)
				gate[half] = *(const uint4 *)(z + (size_t)(16 * i + 8 * half + g) * a.layout.proj_cols);
		output_tile<N>(s, x, h, i, sum);
#pragma unroll
		for (int half = 0; half < 2; half++) {
			int r = 16 * i + 8 * half + g;

#pragma unroll
			for (int t = 0; t < 4; t++) {
				y[2 * t] = sum[t][2 * half];
				y[2 * t + 1] = sum[t][2 * half + 1];
			}
			gate_row<N>(a, s, p, (size_t)(k.row + r), r < k.rows, x[r], gate[half], y);
		}
	}
}

/* h = decay h + sum_j weight_j x_j B_j^T */
template <int N>
static __device__ void advance(struct ssd_shared<N> &s, const bfloat16 (*x)[X_COLS], int rows, float decay,
			       float (&h)[2][N / 8][4])
{
	int lane = threadIdx.x % 32, edge = (rows + 15) / 16;
	uint32_t left[4][2][4], right[4];

#pragma unroll
	for (int j = 0; j < 4; j++)
		if (j < edge)
#pragma unroll
			for (int m = 0; m < 2; m++)
				weighted_columns(x, s.weight[threadIdx.x / 32], j, m, left[j][m]);
#pragma unroll
	for (int v = 0; v < N / 16; v++) {
		float sum[2][2][4] = { { { 0.0f } } };

#pragma unroll
		for (int j = 0; j < 4; j++) {
			if (j >= edge)
				break;
			tile_load_transposed(right, &s.b[16 * j + lane % 16][16 * v + lane / 16 * 8]);
#pragma unroll
			for (int m = 0; m < 2; m++) {
				tile_product(sum[m][0], left[j][m], right[0], right[1]);
				tile_product(sum[m][1], left[j][m], right[2], right[3]);
			}
		}
#pragma unroll
		for (int m = 0; m < 2; m++)
			for (int e = 0; e < 4; e++) {
				h[m][2 * v][e] = fmaf(decay, h[m][2 * v][e], sum[m][0][e]);
				h[m][2 * v + 1][e] = fmaf(decay, h[m][2 * v + 1][e], sum[m][1][e]);
			}
	}
}

/* Between the cache's state [.., N] of the slice and registers. */
template <int N> static __device__ void load_state(const float *state, float (&h)[2][N / 8][4])
{
	int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

#pragma unroll
	for (int m = 0; m < 2; m++)
#pragma unroll
		for (int v = 0; v < N / 16; v++)
#pragma unroll
			for (int half = 0; half < 2; half++) {
				float4 n = *(const float4 *)(state + slice_column(g, m, half) * N + 16 * v + 4 * q);

				h[m][2 * v][2 * half] = n.x;
				h[m][2 * v][2 * half + 1] = n.y;
				h[m][2 * v + 1][2 * half] = n.z;
				h[m][2 * v + 1][2 * half + 1] = n.w;
			}
}

template <int N> static __device__ void store_state(float *state, const float (&h)[2][N / 8][4])
{
	int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

#pragma unroll
	for (int m = 0; m < 2; m++)
#pragma unroll
		for (int v = 0; v < N / 16; v++)
#pragma unroll
			for (int half = 0; half < 2; half++)
				*(float4 *)(state + slice_column(g, m, half) * N + 16 * v + 4 * q) = make_float4(
					h[m][2 * v][2 * half], h[m][2 * v][2 * half + 1], h[m][2 * v + 1][2 * half],
					h[m][2 * v + 1][2 * half + 1]);
}

/*
 * One segment.  Copies run behind the arithmetic: B and the next x while y is computed, the next C and scores while the
 * state advances.
 */
template <int N>
static __device__ void run_segment(const struct ssd_params &a, struct ssd_shared<N> &s, const struct ssd_place &p,
				   const struct segment_view &segment)
{
	const struct layout &l = a.layout;
	float *state = segment.cache + a.layer * l.layer_floats + 2 * l.conv_floats + (size_t)p.slice * SLICE * N;
	int warp = threadIdx.x / 32;
	struct chunk_view k = a.batch->chunks[segment.chunk], next = k;
	float2 step[2];
	float h[2][N / 8][4], last;

	fetch_bc<N>(a, k, p.group, 1, s.c);
	fetch_scores(a, k, p.group, s.scores);
	fetch_x(a, k, p.slice, s.x[0][warp]);
	copies_close();
	fetch_steps(a, k, p.head, step, &last);
	load_state<N>(state, h);
	for (int n = 0; n < segment.chunks; n++, k = next) {
		bool more = n + 1 < segment.chunks, moves = more || n + 1 == segment.kept_chunks;
		float decay = fast_exp2(last);

		copies_wait<0>();
		__syncthreads();
		if (more)
			next = a.batch->chunks[segment.chunk + n + 1];
		if (moves)
			fetch_bc<N>(a, k, p.group, 0, s.b);
		copies_close();
		if (more)
			fetch_x(a, next, p.slice, s.x[(n + 1) % 2][warp]);
		copies_close();
		spread_steps<N>(s, step, last);
		if (more)
			fetch_steps(a, next, p.head, step, &last);
		if (p.active)
			output_chunk<N>(a, s, p, k, s.x[n % 2][warp], h);
		copies_wait<1>();
		__syncthreads();
		if (more) {
			fetch_bc<N>(a, next, p.group, 1, s.c);
			fetch_scores(a, next, p.group, s.scores);
		}
		copies_close();
		if (moves)
			advance<N>(s, s.x[n % 2][warp], k.rows, decay, h);
		if (p.active && n + 1 == segment.kept_chunks)
			store_state<N>(state, h);
	}
}

template <int N>
static __global__ void __launch_bounds__(32 * WARPS, 2) ssd_segments(const struct ssd_params a)
{
	extern __shared__ __align__(16) char memory[];
	struct ssd_shared<N> &s = *(struct ssd_shared<N> *)memory;
	int blocks = a.layout.groups * blocks_per_group(a.layout);

	for (int item = blockIdx.x; item < a.batch->n_segments * blocks; item += gridDim.x) {
		struct ssd_place p = place_of(a.layout, item % blocks);

		s.gated_norm[threadIdx.x / 32][threadIdx.x % 32] =
			a.weights.gated_norm[p.slice * SLICE + threadIdx.x % 32];
		run_segment<N>(a, s, p, a.batch->segments[item / blocks]);
		copies_wait<0>();
		__syncthreads();
	}
}

/* Chunks on their own, from the states before them. */
template <int N>
static __global__ void __launch_bounds__(32 * WARPS, 2) ssd_outputs(const struct ssd_params a)
{
	extern __shared__ __align__(16) char memory[];
	struct ssd_shared<N> &s = *(struct ssd_shared<N> *)memory;
	int blocks = a.layout.groups * blocks_per_group(a.layout), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	int slices = a.layout.inner / SLICE;

	for (int item = blockIdx.x; item < a.batch->n_chunks * blocks; item += gridDim.x) {
		struct ssd_place p = place_of(a.layout, item % blocks);
		const struct chunk_view k = a.batch->chunks[item / blocks];
		const uint4 *states = (const uint4 *)a.buffers.states +
				      ((size_t)(item / blocks) * slices + p.slice) * 2 * (N / 16) * 32;
		uint4 h[2][N / 16];
		float2 step[2];
		float last;

		fetch_bc<N>(a, k, p.group, 1, s.c);
		fetch_scores(a, k, p.group, s.scores);
		fetch_x(a, k, p.slice, s.x[0][warp]);
		copies_close();
		s.gated_norm[warp][lane] = a.weights.gated_norm[p.slice * SLICE + lane];
		fetch_steps(a, k, p.head, step, &last);
		spread_steps<N>(s, step, last);
#pragma unroll
		for (int m = 0; m < 2; m++)
#pragma unroll
			for (int v = 0; v < N / 16; v++)
				h[m][v] = states[(m * (N / 16) + v) * 32 + lane];
		copies_wait<0>();
		__syncthreads();
		if (p.active)
			output_chunk<N>(a, s, p, k, s.x[0][warp], h);
		__syncthreads();
	}
}

template <int N>
static cudaError_t launch_segments(const struct ssd_params *a, size_t segments, cudaStream_t stream)
{
	size_t items = segments * (size_t)(a->layout.groups * blocks_per_group(a->layout)), most = 1 << 14;

	ssd_segments<N><<<(unsigned)(items < most ? items : most), 32 * WARPS, sizeof(struct ssd_shared<N>), stream>>>(*a);
	return cudaGetLastError();
}

template <int N>
static cudaError_t launch_outputs(const struct ssd_params *a, size_t chunks, cudaStream_t stream)
{
	size_t items = chunks * (size_t)(a->layout.groups * blocks_per_group(a->layout)), most = 1 << 16;

	ssd_outputs<N><<<(unsigned)(items < most ? items : most), 32 * WARPS, sizeof(struct ssd_shared<N>), stream>>>(*a);
	return cudaGetLastError();
}

cudaError_t chunk_segments(const struct layout *layout, const struct layer_weights *weights, int layer,
			   const struct chunk_buffers *buffers, const struct batch_view *batch, size_t segments,
			   cudaStream_t stream)
{
	struct ssd_params a = { *layout, *weights, *buffers, layer, batch };

	return layout->state == 64 ? launch_segments<64>(&a, segments, stream) :
				     launch_segments<128>(&a, segments, stream);
}

cudaError_t chunk_outputs(const struct layout *layout, const struct layer_weights *weights, int layer,
			  const struct chunk_buffers *buffers, const struct batch_view *batch, size_t chunks,
			  cudaStream_t stream)
{
	struct ssd_params a = { *layout, *weights, *buffers, layer, batch };

	return layout->state == 64 ? launch_outputs<64>(&a, chunks, stream) : launch_outputs<128>(&a, chunks, stream);
}

template <int N> static cudaError_t setup(void)
{
	int bytes = sizeof(struct ssd_shared<N>);
	cudaError_t status = cudaFuncSetAttribute(ssd_segments<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);

	if (status != cudaSuccess)
		return status;
	return cudaFuncSetAttribute(ssd_outputs<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

cudaError_t chunk_ssd_setup(void)
{
	cudaError_t status = setup<64>();

	return status == cudaSuccess ? setup<128>() : status;
}
