#include "gpu/chunk.cuh"
#include "gpu/launch.cuh"
#include "gpu/mbarrier.cuh"

/*
 * h = 2^{l_last} h + sum_j 2^{l_last - l_j} dt_j x_j B_j^T, chunk after chunk; the state before each is left as
 * bfloat16.
 *
 * For long segments, whose chunks depend on each other only here.  A block takes two slices and 64 columns n of their
 * states: four warps multiply, a slice and 32 n each, and four keep a few chunks of weighted x and of B on their way,
 * each every fourth chunk.  How long a chunk takes is how long one of the former is busy with it: they do nothing else,
 * and chunk_prepare has weighted x.  The arithmetic is that of chunk_segments, bit for bit.
 */
#define WARPS 4 /* of each kind */
#define THREADS (32 * WARPS)
#define STAGES 8
#define SLICES 2
#define COLUMNS 64 /* n of a block */

struct __align__(16) stage {
	uint4 x[SLICES][CHUNK_ROWS / 16][32]; /* weighted: left operands */
	bfloat16 b[CHUNK_ROWS * COLUMNS];
	float decay; /* over the chunk */
	int edge;
	uint64_t full, empty;
};

/* What a block works on. */
struct states_place {
	int slice, group, head; /* the first slice */
	int part;               /* which 64 columns n */
};

/* Where a stage lies in a segment's sequence of chunks, counted from the block's first. */
static __device__ struct stage *stage_of(struct stage *stages, int turn)
{
	return &stages[turn % STAGES];
}

static __device__ int parity_of(int turn)
{
	return turn / STAGES % 2;
}

/* By a warp: x of both slices, one piece, whole whatever the chunk's rows; B's columns; the head's decay. */
static __device__ void fetch_stage(const struct chunk_params &a, const struct chunk_view &k, int chunk,
				   const struct states_place &p, struct stage *stage)
{
	int lane = threadIdx.x % 32, edge = edge_of(k), eight_rows = a.layout.state * 8;
	const uint4 *x = weighted_of(a, chunk, p.slice) + lane;
	const bfloat16 *b = bc_of(a, k, p.group, 0) + p.part * COLUMNS * 8 + lane * 8;

#pragma unroll
	for (int i = 0; i < SLICES * CHUNK_ROWS / 16; i++)
		copy16(stage->x[0][0] + i * 32 + lane, x + i * 32);
#pragma unroll
	for (int i = 0; i < CHUNK_ROWS / 8; i++)
		if (i < 2 * edge) {
			copy16(stage->b + (i * 64 + lane) * 8, b + i * eight_rows);
			copy16(stage->b + (i * 64 + 32 + lane) * 8, b + i * eight_rows + 32 * 8);
		}
	if (lane == 0) {
		copy4(&stage->decay, step_plane(steps_of(a, k, p.head), 0, 16 * edge, STEP_REACH) + k.rows - 1);
		stage->edge = edge;
		mbarrier_arrive(&stage->full);
	}
	mbarrier_arrive_behind_copies(&stage->full);
}

/* Every fourth chunk of a segment, as stages become empty, by a warp; turn: of the segment's first chunk. */
static __device__ void fetch_segment(const struct chunk_params &a, const struct segment_view &s,
				     const struct states_place &p, struct stage *stages, int turn)
{
	const struct chunk_view *chunks = a.batch->chunks + s.chunk;
	int n = ((int)threadIdx.x / 32 - turn) & (WARPS - 1);
	struct chunk_view next = chunks[min(n, s.chunks - 1)];

	previous_ended();
	for (; n < s.chunks; n += WARPS) {
		const struct chunk_view k = next;
		struct stage *stage = stage_of(stages, turn + n);

		next = chunks[min(n + WARPS, s.chunks - 1)];
		mbarrier_wait(&stage->empty, !parity_of(turn + n));
		fetch_stage(a, k, s.chunk + n, p, stage);
	}
}

/* h += sum_j (weight_j x_j) B_j^T over EDGE tiles of 16 rows; all loads come first, so that they wait together. */
template <int EDGE>
static __device__ void add_tiles(const struct stage *stage, int slice, int column, float (&h)[4][4])
{
	int lane = threadIdx.x % 32;
	uint32_t left[EDGE][4], b[EDGE][2][4];

#pragma unroll
	for (int j = 0; j < EDGE; j++) {
		*(uint4 *)left[j] = stage->x[slice][j][lane];
#pragma unroll
		for (int v = 0; v < 2; v++)
			tile_load_transposed(b[j][v], stage->b + core_place(16 * j + lane % 16,
									    column + 16 * v + lane / 16 * 8, COLUMNS));
	}
#pragma unroll
	for (int j = 0; j < EDGE; j++)
#pragma unroll
		for (int v = 0; v < 2; v++) {
			tile_product(h[2 * v], left[j], b[j][v][0], b[j][v][1]);
			tile_product(h[2 * v + 1], left[j], b[j][v][2], b[j][v][3]);
		}
}

/* The warp's part of the state, n from column on: h[u] is the accumulator of 16 p and n 8 u to 8 u + 7. */
static __device__ void advance(const struct stage *stage, int slice, int column, float (&h)[4][4])
{
	float decay = stage->decay;

#pragma unroll
	for (int u = 0; u < 4; u++)
#pragma unroll
		for (int e = 0; e < 4; e++)
			h[u][e] *= decay;
	switch (stage->edge) {
	case 1: add_tiles<1>(stage, slice, column, h); break;
	case 2: add_tiles<2>(stage, slice, column, h); break;
	case 3: add_tiles<3>(stage, slice, column, h); break;
	default: add_tiles<4>(stage, slice, column, h); break;
	}
}

/* Four numbers of the slice's state [SLICE, n_columns]: the lane's of one half of the places, n from 16 v on. */
static __device__ float *four_of(float *state, int n_columns, int half, int v)
{
	int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

	return state + slice_column(g, half) * n_columns + 16 * v + 4 * q;
}

/* All chunks of a segment, as stages become full; turn: of its first. */
static __device__ void multiply_segment(const struct chunk_params &a, const struct segment_view &s,
					const struct states_place &p, struct stage *stages, int turn)
{
	const int lane = threadIdx.x % 32, slice = threadIdx.x / 64, column = threadIdx.x / 32 % 2 * 32;
	const int first = (p.part * COLUMNS + column) / 16, n_columns = a.layout.state;
	const int chunks = s.chunks, kept = s.kept_chunks;
	const size_t stride = (size_t)(a.layout.inner / SLICE) * (n_columns / 16) * 32;
	float *state = state_of(a, s, p.slice + slice), h[4][4];
	uint4 *left = states_of(a, s.chunk, p.slice + slice) + first * 32 + lane;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		float4 n = *(const float4 *)four_of(state, n_columns, i % 2, first + i / 2);

		h[i / 2 * 2][i % 2 * 2] = n.x, h[i / 2 * 2][i % 2 * 2 + 1] = n.y;
		h[i / 2 * 2 + 1][i % 2 * 2] = n.z, h[i / 2 * 2 + 1][i % 2 * 2 + 1] = n.w;
	}
	for (int n = 0; n < chunks; n++, turn++, left += stride) {
		struct stage *stage = stage_of(stages, turn);

#pragma unroll
		for (int v = 0; v < 2; v++) {
			const float *low = h[2 * v], *high = h[2 * v + 1];

			left[v * 32] = make_uint4(pack2(low[0], low[1]), pack2(high[0], high[1]), pack2(low[2], low[3]),
						  pack2(high[2], high[3]));
		}
		mbarrier_wait(&stage->full, parity_of(turn));
		advance(stage, slice, column, h);
		mbarrier_arrive(&stage->empty);
		if (n + 1 != kept)
			continue;
#pragma unroll
		for (int i = 0; i < 4; i++)
			*(float4 *)four_of(state, n_columns, i % 2, first + i / 2) =
				make_float4(h[i / 2 * 2][i % 2 * 2], h[i / 2 * 2][i % 2 * 2 + 1],
					    h[i / 2 * 2 + 1][i % 2 * 2], h[i / 2 * 2 + 1][i % 2 * 2 + 1]);
	}
}

static __global__ void __launch_bounds__(2 * THREADS) ssd_states(const struct chunk_params a)
{
	extern __shared__ __align__(16) char shared[];
	struct stage *stages = (struct stage *)shared;
	const struct layout &l = a.layout;
	int parts = l.state / COLUMNS, pairs = l.inner / SLICE / SLICES, turn = 0;

	if (threadIdx.x < STAGES) {
		mbarrier_init(&stages[threadIdx.x].full, 32 + 1);
		mbarrier_init(&stages[threadIdx.x].empty, THREADS);
	}
	__syncthreads();
	next_may_begin();
	for (int item = blockIdx.x; item < a.batch->n_segments * pairs * parts; item += gridDim.x) {
		const struct segment_view s = a.batch->segments[item / (pairs * parts)];
		struct states_place p = { .slice = item / parts % pairs * SLICES };

		p.group = p.slice / (l.inner / l.groups / SLICE);
		p.head = p.slice * SLICE / l.head_dim;
		p.part = item % parts;
		if (threadIdx.x < THREADS)
			multiply_segment(a, s, p, stages, turn);
		else
			fetch_segment(a, s, p, stages, turn);
		turn += s.chunks;
	}
}

cudaError_t chunk_states(const struct layout *layout, int layer, const struct chunk_buffers *buffers,
			 const struct batch_view *batch, size_t segments, bool early, cudaStream_t stream)
{
	struct chunk_params a = { *layout, {}, *buffers, layer, batch };
	size_t items = segments * (size_t)(layout->inner / SLICE / SLICES * (layout->state / COLUMNS));
	unsigned blocks = (unsigned)(items < 1 << 14 ? items : 1 << 14);

	return launch_early(early, ssd_states, blocks, 2 * THREADS, STAGES * sizeof(struct stage), stream, a);
}

cudaError_t chunk_states_setup(void)
{
	return cudaFuncSetAttribute(ssd_states, cudaFuncAttributeMaxDynamicSharedMemorySize,
				    STAGES * sizeof(struct stage));
}
