#include "gpu/chunk.cuh"
#include "gpu/launch.cuh"

/*
 * y of chunks on their own, from the states before them:
 *   y_i = 2^{l_i} h C_i + sum_{j <= i} (C_i B_j) 2^{l_i - l_j} dt_j x_j + D x_i,    gated = y * silu(z)
 *
 * A block takes a chunk and eight neighbouring slices of one group, which share C and the scores.  A slice is that of
 * PARTS warps, which take its tiles of 16 rows in turns: of one, or of two where there is so little work that no two
 * blocks share a processor.
 */
#define Z_PITCH (BLOCK_COLUMNS + 8) /* numbers from a row of z to the next */

template <int N> struct outputs_memory {
	bfloat16 c[CHUNK_ROWS * N];
	float scores[CHUNK_TILES * SCORE_TILE];
	uint4 masked[CHUNK_HEADS(N)][CHUNK_TILES][32]; /* scores with decay, as left operands */
	bfloat16 x[BLOCK_SLICES][CHUNK_ROWS * SLICE];
	__align__(16) bfloat16 z[CHUNK_ROWS][Z_PITCH];
	float steps[CHUNK_HEADS(N) * STEP_PLANES * CHUNK_ROWS]; /* packed for the rows that the chunk has */
	float squares[CHUNK_ROWS][BLOCK_SLICES];
	float norm[BLOCK_SLICES][SLICE]; /* gated_norm */
};

/* What a block and a warp of it work on. */
struct outputs_place {
	int group, first; /* of B and C; the block's first slice */
	int own, slice;   /* the warp's, counted from first, and its number */
	int slices;       /* of the block: a group's last one may have warps to spare */
	int head, heads;  /* the block's */
	int warp_head;    /* the warp's head, counted from head */
};

static __device__ struct outputs_place place_of(const struct layout &l, int block)
{
	int slices = l.inner / l.groups / SLICE, blocks = (slices + BLOCK_SLICES - 1) / BLOCK_SLICES;
	struct outputs_place p;

	p.group = block / blocks;
	p.slices = min(BLOCK_SLICES, slices - block % blocks * BLOCK_SLICES);
	p.first = p.group * slices + block % blocks * BLOCK_SLICES;
	p.own = threadIdx.x / 32 % BLOCK_SLICES;
	p.slice = p.first + min(p.own, p.slices - 1);
	p.head = p.first * SLICE / l.head_dim;
	p.warp_head = p.slice * SLICE / l.head_dim - p.head;
	p.heads = (p.first + p.slices - 1) * SLICE / l.head_dim - p.head + 1;
	return p;
}

/* Copy n times 16 bytes in the background, by the whole block. */
template <int PARTS>
static __device__ void fetch(void *to, const void *from, int n)
{
	for (int i = threadIdx.x; i < n; i += PARTS * BLOCK_THREADS)
		copy16((char *)to + 16 * i, (const char *)from + 16 * i);
}

/* z of the block's columns, and the weights of their norm; likewise. */
template <int N, int PARTS>
static __device__ void fetch_gates(const struct chunk_params &a, struct outputs_memory<N> &s,
				   const struct outputs_place &p, const struct chunk_view &k)
{
	int pieces = p.slices * SLICE / 8;
	const bfloat16 *z = (const bfloat16 *)a.buffers.proj + (size_t)k.row * a.layout.proj_cols + p.first * SLICE;

	for (int i = threadIdx.x; i < k.rows * pieces; i += PARTS * BLOCK_THREADS)
		copy16(&s.z[i / pieces][i % pieces * 8],
		       z + (size_t)(i / pieces) * a.layout.proj_cols + i % pieces * 8);
	fetch<PARTS>(s.norm, a.weights.gated_norm + p.first * SLICE, p.slices * SLICE / 4);
}

/* The masked scores of the block's heads, each warp some of the tiles. */
template <int N, int PARTS>
static __device__ void mask_scores(const struct chunk_params &a, struct outputs_memory<N> &s,
				   const struct outputs_place &p, int edge)
{
	int tiles = tiles_of(edge);

	for (int n = threadIdx.x / 32; n < p.heads * tiles; n += PARTS * BLOCK_SLICES) {
		int head = n / tiles, t = n % tiles, i = t >= 6 ? 3 : t >= 3 ? 2 : t >= 1 ? 1 : 0;

		s.masked[head][t][threadIdx.x % 32] =
			masked_tile(s.scores, step_plane(s.steps, head, 16 * edge, STEP_SINCE),
				    step_plane(s.steps, head, 16 * edge, STEP_SOURCE), a.weights.d[p.head + head], i,
				    t - tiles_of(i));
	}
}

/* y in rows 16 i to 16 i + 15: sum[t] is the accumulator of places p 8 t to 8 t + 7. */
template <int N>
static __device__ void output_tile(const bfloat16 *c, const bfloat16 *x, const uint4 (*masked)[32], const float *reach,
				   const uint4 (&h)[N / 16], int i, float (&sum)[2][4])
{
	int lane = threadIdx.x % 32, g = lane / 4;
	float low = reach[16 * i + g], high = reach[16 * i + 8 + g];
	uint32_t left[4], right[4];

#pragma unroll
	for (int v = 0; v < N / 16; v++) {
		tile_load(left, c + core_place(16 * i + lane % 16, 16 * v + lane / 16 * 8, N));
		tile_product(sum[0], left, h[v].x, h[v].y);
		tile_product(sum[1], left, h[v].z, h[v].w);
	}
#pragma unroll
	for (int t = 0; t < 2; t++) {
		sum[t][0] *= low;
		sum[t][1] *= low;
		sum[t][2] *= high;
		sum[t][3] *= high;
	}
	for (int j = 0; j <= i; j++) {
		uint4 m = masked[tiles_of(i) + j][lane];

		left[0] = m.x, left[1] = m.y, left[2] = m.z, left[3] = m.w;
		load_x(x, j, right);
		tile_product(sum[0], left, right[0], right[1]);
		tile_product(sum[1], left, right[2], right[3]);
	}
}

/* The warp's rows of the chunk, for its slice. */
template <int N, int PARTS>
static __device__ void output_chunk(const struct chunk_params &a, struct outputs_memory<N> &s,
				    const struct outputs_place &p, const struct chunk_view &k, const uint4 (&h)[N / 16])
{
	const struct layout &l = a.layout;
	int g = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 4, edge = edge_of(k);
	const float *reach = step_plane(s.steps, p.warp_head, 16 * edge, STEP_REACH);
	bfloat16 *to = (bfloat16 *)a.buffers.gated + (size_t)(k.row + g) * l.inner_cols + p.slice * SLICE + column;
	float4 weight = *(const float4 *)&s.norm[p.own][column];

#pragma unroll 1
	for (int i = threadIdx.x / 32 / BLOCK_SLICES; i < edge; i += PARTS) {
		float sum[2][4] = { { 0.0f } };

		output_tile<N>(s.c, s.x[p.own], s.masked[p.warp_head], reach, h, i, sum);
#pragma unroll
		for (int half = 0; half < 2; half++) {
			float y[4] = { sum[0][2 * half], sum[0][2 * half + 1], sum[1][2 * half], sum[1][2 * half + 1] };
			int row = 16 * i + 8 * half + g;
			uint2 z = *(const uint2 *)&s.z[row][p.own * SLICE + column];
			float gated[4], squares = gate4(y, z, gated);

			squares += __shfl_xor_sync(0xffffffff, squares, 1);
			squares += __shfl_xor_sync(0xffffffff, squares, 2);
			if (threadIdx.x % 4 == 0)
				s.squares[row][p.own] = squares;
			if (row < k.rows)
				*(uint2 *)(to + (size_t)(16 * i + 8 * half) * l.inner_cols) = weighted4(gated, weight);
		}
	}
}

/* The sums of squares of four slices, in the order of two shuffles among four lanes. */
template <int N>
static __device__ void add_squares(const struct chunk_params &a, const struct outputs_memory<N> &s,
				   const struct outputs_place &p, const struct chunk_view &k)
{
	int per_group = GROUP_COLUMNS / SLICE, r = threadIdx.x / 2, half = threadIdx.x % 2 * per_group;
	const float *from = &s.squares[r % CHUNK_ROWS][half];

	if (r < k.rows && half < p.slices)
		a.buffers.squares[(size_t)(k.row + r) * (a.layout.inner / GROUP_COLUMNS) +
				  (p.first + half) / per_group] = (from[0] + from[1]) + (from[2] + from[3]);
}

template <int N, int PARTS>
static __global__ void __launch_bounds__(PARTS *BLOCK_THREADS, PARTS == 1 ? 3 : 1)
ssd_outputs(const struct chunk_params a)
{
	extern __shared__ __align__(16) char shared[];
	struct outputs_memory<N> &s = *(struct outputs_memory<N> *)shared;
	int blocks = chunk_blocks(&a.layout), lane = threadIdx.x % 32;

	for (int item = blockIdx.x; item < a.batch->n_chunks * blocks; item += gridDim.x) {
		const struct outputs_place p = place_of(a.layout, item % blocks);
		const struct chunk_view k = a.batch->chunks[item / blocks];
		const uint4 *states = states_of(a, item / blocks, p.slice) + lane;
		int edge = edge_of(k);
		uint4 h[N / 16];

		previous_ended();
		fetch<PARTS>(s.c, bc_of(a, k, p.group, 1), edge * 16 * N / 8);
		fetch<PARTS>(s.scores, scores_of(a, k, p.group), tiles_of(edge) * SCORE_TILE / 4);
		fetch<PARTS>(s.steps, steps_of(a, k, p.head), p.heads * edge * 16 * STEP_PLANES / 4);
		fetch<PARTS>(s.x, x_of(a, item / blocks, p.first), p.slices * CHUNK_ROWS * SLICE / 8);
		fetch_gates<N, PARTS>(a, s, p, k);
		copies_close();
#pragma unroll
		for (int v = 0; v < N / 16; v++)
			h[v] = states[v * 32];
		copies_wait<0>();
		__syncthreads();
		mask_scores<N, PARTS>(a, s, p, edge);
		__syncthreads();
		if (p.own < p.slices)
			output_chunk<N, PARTS>(a, s, p, k, h);
		__syncthreads();
		add_squares<N>(a, s, p, k);
		__syncthreads();
	}
}

template <int N>
static cudaError_t launch(const struct chunk_params &a, unsigned blocks, bool early, int processors,
			  cudaStream_t stream)
{
	const size_t bytes = sizeof(struct outputs_memory<N>);

	if (blocks <= (unsigned)processors)
		return launch_early(early, ssd_outputs<N, 2>, blocks, 2 * BLOCK_THREADS, bytes, stream, a);
	return launch_early(early, ssd_outputs<N, 1>, blocks, BLOCK_THREADS, bytes, stream, a);
}

cudaError_t chunk_outputs(const struct layout *layout, const struct layer_weights *weights, int layer,
			  const struct chunk_buffers *buffers, const struct batch_view *batch, size_t chunks,
			  bool early, int processors, cudaStream_t stream)
{
	struct chunk_params a = { *layout, *weights, *buffers, layer, batch };
	size_t items = chunks * (size_t)chunk_blocks(layout);
	unsigned blocks = (unsigned)(items < 1 << 16 ? items : 1 << 16);

	return layout->state == 64 ? launch<64>(a, blocks, early, processors, stream) :
				     launch<128>(a, blocks, early, processors, stream);
}

template <int N> static cudaError_t setup(void)
{
	const int bytes = sizeof(struct outputs_memory<N>);
	const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
	cudaError_t status = cudaFuncSetAttribute(ssd_outputs<N, 1>, most, bytes);

	return status != cudaSuccess ? status : cudaFuncSetAttribute(ssd_outputs<N, 2>, most, bytes);
}

cudaError_t chunk_outputs_setup(void)
{
	cudaError_t status = setup<64>();

	return status != cudaSuccess ? status : setup<128>();
}
