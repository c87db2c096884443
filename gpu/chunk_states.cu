extern "C" {
#include "gpu/chunk.h"
}
#include "gpu/tile.cuh"

/*
 * h = 2^{l_last} h + sum_j 2^{l_last - l_j} dt_j x_j B_j^T, chunk after chunk; the state before each is kept as bfloat16.
 *
 * For a long segment, whose chunks depend on each other only here.  A block of four warps takes a slice and 64 columns
 * n of its state; a warp 16 places p and 32 n.  STAGES chunks of x and B are on their way at any time.  The arithmetic
 * is that of ssd_segments, bit for bit.
 */
#define WARPS 4
#define STAGES 4
#define X_COLS (SLICE + 8)
#define COLUMNS 64 /* n of a block */
#define B_COLS (COLUMNS + 8)

struct states_params {
	struct layout layout;
	struct chunk_buffers buffers;
	int layer;
	const struct batch_view *batch;
};

struct states_stage {
	bfloat16 x[CHUNK_ROWS][X_COLS];
	bfloat16 b[CHUNK_ROWS][B_COLS];
	float2 steps[CHUNK_ROWS];
};

/* Copy rows of a stage in the background, 16 bytes each time; up to a whole tile, zeros. */
template <int COLS, int PITCH>
static __device__ void fetch_rows(bfloat16 (*to)[PITCH], const bfloat16 *from, size_t stride, int rows)
{
	for (int i = threadIdx.x; i < (rows + 15) / 16 * 16 * (COLS / 8); i += 32 * WARPS) {
		int r = i / (COLS / 8), c = i % (COLS / 8) * 8;
		bool none = r >= rows;

		copy16(&to[r][c], from + (none ? 0 : r * stride + c), none);
	}
}

static __device__ void fetch_stage(const struct states_params &a, const struct chunk_view &k, int slice, int group,
				   int part, struct states_stage *stage)
{
	const struct layout &l = a.layout;
	size_t bc = 2 * (size_t)l.groups * l.state;
	int head = slice * SLICE / l.head_dim, r = threadIdx.x;

	fetch_rows<SLICE>(stage->x, (const bfloat16 *)a.buffers.x + (size_t)k.row * l.inner_cols + slice * SLICE,
			  l.inner_cols, k.rows);
	fetch_rows<COLUMNS>(stage->b, (const bfloat16 *)a.buffers.bc + k.row * bc + group * l.state + part * COLUMNS,
			    bc, k.rows);
	if (r < CHUNK_ROWS) {
		bool none = r >= k.rows;
		const float2 *from = a.buffers.steps + (size_t)k.row * l.heads + head * k.rows + (none ? 0 : r);

		copy8(&stage->steps[r], from, none);
	}
}

/* 2^{l_last - l_j} dt_j for the lane's rows of x: j = 16 i + q, q + 1, 8 + q, 9 + q. */
static __device__ float4 weights_of(const float2 *steps, int i, float last)
{
	const float2 *at = steps + 16 * i + threadIdx.x % 4 * 2;

	return make_float4(fast_exp2(last - at[0].x) * at[0].y, fast_exp2(last - at[1].x) * at[1].y,
			   fast_exp2(last - at[8].x) * at[8].y, fast_exp2(last - at[9].x) * at[9].y);
}

/* The warp's part of the state: h[u] is the accumulator of 16 p and n 8 u to 8 u + 7. */
static __device__ void advance(const struct states_stage *stage, int rows, int m, int column, float h[4][4])
{
	int lane = threadIdx.x % 32;
	float last = stage->steps[rows - 1].x, decay = fast_exp2(last), sum[4][4] = { { 0.0f } };

#pragma unroll
	for (int i = 0; i < CHUNK_ROWS / 16; i++) {
		uint32_t r[4], left[4];

		if (16 * i >= rows)
			break;
		float4 weight = weights_of(stage->steps, i, last);

		tile_load_transposed(r, &stage->x[16 * i + lane % 16][16 * m + lane / 16 * 8]);
		left[0] = pack2(first_of(r[0]) * weight.x, second_of(r[0]) * weight.y);
		left[1] = pack2(first_of(r[2]) * weight.x, second_of(r[2]) * weight.y);
		left[2] = pack2(first_of(r[1]) * weight.z, second_of(r[1]) * weight.w);
		left[3] = pack2(first_of(r[3]) * weight.z, second_of(r[3]) * weight.w);
#pragma unroll
		for (int v = 0; v < 2; v++) {
			tile_load_transposed(r, &stage->b[16 * i + lane % 16][column + 16 * v + lane / 16 * 8]);
			tile_product(sum[2 * v], left, r[0], r[1]);
			tile_product(sum[2 * v + 1], left, r[2], r[3]);
		}
	}
#pragma unroll
	for (int u = 0; u < 4; u++)
		for (int e = 0; e < 4; e++)
			h[u][e] = fmaf(decay, h[u][e], sum[u][e]);
}

static __device__ float *place_of(float *state, int n_columns, int m, int half, int v)
{
	int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

	return state + (g / 2 * 8 + 2 * (2 * m + half) + g % 2) * n_columns + 16 * v + 4 * q;
}

static __device__ void run_segment(const struct states_params &a, const struct segment_view &s, int slice, int part,
				   struct states_stage *stages)
{
	const struct layout &l = a.layout;
	int group = slice / (l.inner / l.groups / SLICE), lane = threadIdx.x % 32, m = threadIdx.x / 64;
	int column = threadIdx.x / 32 % 2 * 32, first = (part * COLUMNS + column) / 16;
	float *state = s.cache + a.layer * l.layer_floats + 2 * l.conv_floats + (size_t)slice * SLICE * l.state;
	uint4 *kept = (uint4 *)a.buffers.states +
		      (((size_t)s.chunk * (l.inner / SLICE) + slice) * 2 + m) * (l.state / 16) * 32;
	const struct chunk_view *chunks = a.batch->chunks + s.chunk;
	float h[4][4];

	for (int n = 0; n < STAGES - 1; n++) {
		if (n < s.chunks)
			fetch_stage(a, chunks[n], slice, group, part, &stages[n]);
		copies_close();
	}
#pragma unroll
	for (int i = 0; i < 4; i++) {
		float4 n = *(const float4 *)place_of(state, l.state, m, i % 2, first + i / 2);

		h[i / 2 * 2][i % 2 * 2] = n.x, h[i / 2 * 2][i % 2 * 2 + 1] = n.y;
		h[i / 2 * 2 + 1][i % 2 * 2] = n.z, h[i / 2 * 2 + 1][i % 2 * 2 + 1] = n.w;
	}
	for (int n = 0; n < s.chunks; n++) {
		int ahead = n + STAGES - 1;

#pragma unroll
		for (int v = 0; v < 2; v++)
			kept[(first + v) * 32 + lane] = make_uint4(
				pack2(h[2 * v][0], h[2 * v][1]), pack2(h[2 * v + 1][0], h[2 * v + 1][1]),
				pack2(h[2 * v][2], h[2 * v][3]), pack2(h[2 * v + 1][2], h[2 * v + 1][3]));
		kept += (size_t)(l.inner / SLICE) * 2 * (l.state / 16) * 32;
		copies_wait<STAGES - 2>();
		__syncthreads();
		if (ahead < s.chunks)
			fetch_stage(a, chunks[ahead], slice, group, part, &stages[ahead % STAGES]);
		copies_close();
		advance(&stages[n % STAGES], chunks[n].rows, m, column, h);
		if (n + 1 != s.kept_chunks)
			continue;
#pragma unroll
		for (int i = 0; i < 4; i++)
			*(float4 *)place_of(state, l.state, m, i % 2, first + i / 2) =
				make_float4(h[i / 2 * 2][i % 2 * 2], h[i / 2 * 2][i % 2 * 2 + 1],
					    h[i / 2 * 2 + 1][i % 2 * 2], h[i / 2 * 2 + 1][i % 2 * 2 + 1]);
	}
}

static __global__ void __launch_bounds__(32 * WARPS) ssd_states(const struct states_params a)
{
	extern __shared__ __align__(16) char memory[];
	int parts = a.layout.state / COLUMNS, slices = a.layout.inner / SLICE;

	for (int item = blockIdx.x; item < a.batch->n_segments * slices * parts; item += gridDim.x) {
		run_segment(a, a.batch->segments[item / (slices * parts)], item / parts % slices, item % parts,
			    (struct states_stage *)memory);
		copies_wait<0>();
		__syncthreads();
	}
}

cudaError_t chunk_states(const struct layout *layout, int layer, const struct chunk_buffers *buffers,
			 const struct batch_view *batch, size_t segments, cudaStream_t stream)
{
	struct states_params a = { *layout, *buffers, layer, batch };
	size_t items = segments * (size_t)(layout->inner / SLICE * (layout->state / COLUMNS)), most = 1 << 14;

	ssd_states<<<(unsigned)(items < most ? items : most), 32 * WARPS, STAGES * sizeof(struct states_stage), stream>>>(a);
	return cudaGetLastError();
}

cudaError_t chunk_states_setup(void)
{
	return cudaFuncSetAttribute(ssd_states, cudaFuncAttributeMaxDynamicSharedMemorySize,
				    STAGES * sizeof(struct states_stage));
}
