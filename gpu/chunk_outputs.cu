#include "gpu/chunk.cuh"
#include "gpu/follow.cuh"
#include "gpu/launch.cuh"

/*
 * y of chunks on their own, from the states before them:
 *   y_i = 2^{l_i} h C_i + sum_{j <= i} (C_i B_j) 2^{l_i - l_j} dt_j x_j + D x_i,    gated = y * silu(z)
 *
 * apart: it runs beside chunk_heads, and a block waits for the states before its chunk (follow.cuh).
 *
 * A block takes a chunk and eight neighbouring slices of one group, which share C and the scores.  A slice is that of
 * PARTS warps, which take its tiles of 16 rows in turns, two at a time: of one, or of two where there is so little work
 * that no two blocks share a processor.
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
	float d[CHUNK_HEADS(N)];
};

/* What a block and a warp of it work on. */
struct outputs_place {
	int group, first; /* of B and C; the block's first slice */
	int own, slice;   /* the warp's, counted from first, and its number */
	int slices;       /* of the block: a group's last one may have warps to spare */
	int head, heads;  /* the block's */
	int warp_head;    /* the warp's head, counted from head */
};

/* The block's head, counted from its first, to which `columns` columns of that one's belong and then so many more. */
template <int N>
static __device__ int head_behind(int columns, int head_dim)
{
	int head = 0;

#pragma unroll
	for (int i = 1; i < CHUNK_HEADS(N); i++)
		head += columns >= i * head_dim;
	return head;
}

/* slices: of a group. */
template <int N>
static __device__ struct outputs_place place_of(const struct layout &l, int slices)
{
	struct outputs_place p;
	int before;

	p.group = blockIdx.y;
	p.slices = min(BLOCK_SLICES, slices - (int)blockIdx.x * BLOCK_SLICES);
	p.first = p.group * slices + (int)blockIdx.x * BLOCK_SLICES;
	p.own = threadIdx.x / 32 % BLOCK_SLICES;
	p.slice = p.first + min(p.own, p.slices - 1);
	p.head = (unsigned)(p.first * SLICE) / (unsigned)l.head_dim;
	before = p.first * SLICE - p.head * l.head_dim;
	p.warp_head = head_behind<N>(before + (p.slice - p.first) * SLICE, l.head_dim);
	p.heads = head_behind<N>(before + (p.slices - 1) * SLICE, l.head_dim) + 1;
	return p;
}

/* Copy n times 16 bytes, n <= MOST, in the background, by the whole block. */
template <int PARTS, int MOST>
static __device__ void fetch(void *to, const void *from, int n)
{
	const int threads = PARTS * BLOCK_THREADS;
	uint32_t thread_to = once(shared_address(to) + 16 * threadIdx.x);
	const char *thread_from = once((const char *)from + 16 * threadIdx.x);

#pragma unroll
	for (int i = 0; i < MOST; i += threads)
		if (i + (int)threadIdx.x < n)
			copy16_to(thread_to + 16 * i, thread_from + 16 * i);
}

/* z of the block's columns, and the weights of their norm and D; likewise. */
template <int N, int PARTS>
static __device__ void fetch_gates(const struct chunk_params &a, struct outputs_memory<N> &s,
				   const struct outputs_place &p, const struct chunk_view &k)
{
	const int pieces = BLOCK_COLUMNS / 8, rows = PARTS * BLOCK_THREADS / pieces; /* at a time */
	int piece = threadIdx.x % pieces, row = threadIdx.x / pieces;
	const bfloat16 *z = (const bfloat16 *)a.buffers.proj + (size_t)(k.row + row) * a.layout.proj_cols +
			    p.first * SLICE + piece * 8;
	uint32_t to = once(shared_address(&s.z[row][piece * 8]));

	if (piece < p.slices * SLICE / 8)
#pragma unroll
		for (int i = 0; i < CHUNK_ROWS; i += rows, z = once(z + (size_t)rows * a.layout.proj_cols))
			if (i + row < k.rows)
				copy16_to(to + i * (int)sizeof(s.z[0]), z);
	fetch<PARTS, BLOCK_COLUMNS / 4>(s.norm, a.weights.gated_norm + p.first * SLICE, p.slices * SLICE / 4);
	if (threadIdx.x < p.heads)
		copy4(&s.d[threadIdx.x], a.weights.d + p.head + threadIdx.x);
}

/* The masked scores of the block's heads, each warp some of the tiles. */
template <int N, int PARTS>
static __device__ void mask_scores(struct outputs_memory<N> &s, const struct outputs_place &p, int edge)
{
	int tiles = tiles_of(edge), head = 0, t = threadIdx.x / 32;

	for (;; t += PARTS * BLOCK_SLICES) {
		for (; t >= tiles; t -= tiles)
			head++;
		if (head >= p.heads)
			break;
		int i = t >= 6 ? 3 : t >= 3 ? 2 : t >= 1 ? 1 : 0;

		s.masked[head][t][threadIdx.x % 32] =
			masked_tile(s.scores, step_plane(s.steps, head, 16 * edge, STEP_SINCE),
				    step_plane(s.steps, head, 16 * edge, STEP_SOURCE), s.d[head], i, t - tiles_of(i));
	}
}

/* What a warp needs for two tiles of 16 rows: pointers to its lane's share of the first, which go on to later ones. */
struct outputs_rows {
	const bfloat16 *c, *z;
	const float *reach;
	const uint4 *masked[2];
	float *squares;
	bfloat16 *to;
	int row; /* the lane's first, of two that are eight apart */
};

/*
 * y in two tiles of 16 rows and the warp's slice, tile i of the chunk and the PARTS_th behind it: sum[which][t] is the
 * accumulator of places 8 t to 8 t + 7.  What comes of a tile behind the chunk's last is nothing to look at.
 */
template <int N, int PARTS>
static __device__ void output_tiles(const struct outputs_rows &r, const bfloat16 *x, const uint4 (&h)[N / 16], int i,
				    float (&sum)[2][2][4])
{
	uint32_t left[2][4], right[4];

#pragma unroll
	for (int v = 0; v < N / 16; v++)
#pragma unroll
		for (int which = 0; which < 2; which++) {
			tile_load(left[which], r.c + core_place(16 * PARTS * which, 16 * v, N));
			tile_product(sum[which][0], left[which], h[v].x, h[v].y);
			tile_product(sum[which][1], left[which], h[v].z, h[v].w);
		}
#pragma unroll
	for (int which = 0; which < 2; which++)
#pragma unroll
		for (int e = 0; e < 8; e++)
			sum[which][e / 4][e % 4] *= r.reach[16 * PARTS * which + 8 * (e / 2 % 2)];
#pragma unroll
	for (int j = 0; j < CHUNK_ROWS / 16; j++) {
		if (j > i + PARTS)
			break;
		tile_load_transposed(right, x + core_place(16 * j, 0, SLICE));
#pragma unroll
		for (int which = 0; which < 2; which++)
			if (which || j <= i) {
				uint4 m = r.masked[which][j * 32];

				left[which][0] = m.x, left[which][1] = m.y, left[which][2] = m.z, left[which][3] = m.w;
				tile_product(sum[which][0], left[which], right[0], right[1]);
				tile_product(sum[which][1], left[which], right[2], right[3]);
			}
	}
}

/* The warp's rows of the chunk, for its slice. */
template <int N, int PARTS>
static __device__ void output_chunk(const struct chunk_params &a, struct outputs_memory<N> &s,
				    const struct outputs_place &p, const struct chunk_view &k, const uint4 (&h)[N / 16])
{
	const struct layout &l = a.layout;
	const int lane = threadIdx.x % 32, g = lane / 4, column = lane % 4 * 4, edge = edge_of(k);
	const int begin = threadIdx.x / 32 / BLOCK_SLICES, row = 16 * begin + g;
	const bfloat16 *x = s.x[p.own] + lane_place(SLICE);
	const float4 weight = *(const float4 *)&s.norm[p.own][column];
	const size_t eight_rows = (size_t)8 * l.inner_cols;
	struct outputs_rows r = {
		.c = s.c + core_place(16 * begin, 0, N) + lane_place(N),
		.z = &s.z[row][p.own * SLICE + column],
		.reach = step_plane(s.steps, p.warp_head, 16 * edge, STEP_REACH) + row,
		.masked = { s.masked[p.warp_head][tiles_of(begin)] + lane,
			    s.masked[p.warp_head][tiles_of(begin + PARTS)] + lane },
		.squares = &s.squares[row][p.own],
		.to = (bfloat16 *)a.buffers.gated + (size_t)(k.row + row) * l.inner_cols + p.slice * SLICE + column,
		.row = row
	};

#pragma unroll 1
	for (int i = begin; i < edge; i += 2 * PARTS) {
		float sum[2][2][4] = { { { 0.0f } } };

		output_tiles<N, PARTS>(r, x, h, i, sum);
#pragma unroll
		for (int half = 0; half < 4; half++) {
			const int behind = half / 2 * 16 * PARTS + half % 2 * 8, e = half % 2 * 2; /* rows */
			const float(&v)[2][4] = sum[half / 2];
			float y[4] = { v[0][e], v[0][e + 1], v[1][e], v[1][e + 1] };
			uint2 z = *(const uint2 *)(r.z + behind * Z_PITCH);
			float gated[4], squares = gate4(y, z, gated);

			squares += __shfl_xor_sync(0xffffffff, squares, 1);
			squares += __shfl_xor_sync(0xffffffff, squares, 2);
			if (lane % 4 == 0)
				r.squares[behind * BLOCK_SLICES] = squares;
			if (r.row + behind < k.rows)
				*(uint2 *)(r.to + behind / 8 * eight_rows) = weighted4(gated, weight);
		}
		r.c += core_place(32 * PARTS, 0, N);
		r.z += 32 * PARTS * Z_PITCH;
		r.reach += 32 * PARTS;
		/* tiles_of(i + 2 PARTS) - tiles_of(i) of them */
		r.masked[0] += (2 * PARTS * i + tiles_of(2 * PARTS)) * 32;
		r.masked[1] += (2 * PARTS * (i + PARTS) + tiles_of(2 * PARTS)) * 32;
		r.squares += 32 * PARTS * BLOCK_SLICES;
		r.to += 4 * PARTS * eight_rows;
		r.row += 32 * PARTS;
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
ssd_outputs(const struct chunk_params a, int slices, bool apart)
{
	extern __shared__ __align__(16) char shared[];
	struct outputs_memory<N> &s = *(struct outputs_memory<N> *)shared;
	const struct outputs_place p = place_of<N>(a.layout, slices);
	const int chunks = a.batch->n_chunks, known = a.layout.heads * (N / 64), hearers = gridDim.x * gridDim.y;

	for (int chunk = blockIdx.z; chunk < chunks; chunk += gridDim.z) {
		const struct chunk_view k = a.batch->chunks[chunk];
		const uint4 *states = states_of(a, chunk, p.slice) + threadIdx.x % 32;
		const int edge = edge_of(k);
		uint4 h[N / 16];

		if (!apart)
			previous_ended();
		else if (threadIdx.x == 0)
			hear(&a.buffers.known[chunk], known);
		fetch_gates<N, PARTS>(a, s, p, k);
		__syncthreads();
		fetch<PARTS, CHUNK_ROWS * N / 8>(s.c, bc_of(a, k, p.group, 1), edge * 16 * N / 8);
		fetch<PARTS, CHUNK_TILES * SCORE_TILE / 4>(s.scores, scores_of(a, k, p.group),
							   tiles_of(edge) * SCORE_TILE / 4);
		fetch<PARTS, sizeof(s.steps) / 16>(s.steps, steps_of(a, k, p.head),
						   p.heads * edge * 16 * STEP_PLANES / 4);
		fetch<PARTS, sizeof(s.x) / 16>(s.x, x_of(a, chunk, p.first), p.slices * CHUNK_ROWS * SLICE / 8);
		copies_close();
#pragma unroll
		for (int v = 0; v < N / 16; v++)
			h[v] = states[v * 32];
		copies_wait<0>();
		__syncthreads();
		mask_scores<N, PARTS>(s, p, edge);
		__syncthreads();
		if (p.own < p.slices)
			output_chunk<N, PARTS>(a, s, p, k, h);
		__syncthreads();
		add_squares<N>(a, s, p, k);
		if (apart && threadIdx.x == 0)
			forget(&a.buffers.known[chunk], known, hearers);
		if (apart && chunk == chunks - 1)
			previous_ended(); /* so that this kernel ends behind chunk_states */
	}
}

template <int N>
static cudaError_t launch(const struct chunk_params &a, size_t chunks, bool early, bool apart, int processors,
			  cudaStream_t stream)
{
	const size_t bytes = sizeof(struct outputs_memory<N>);
	const int slices = a.layout.inner / a.layout.groups / SLICE;
	const dim3 blocks((slices + BLOCK_SLICES - 1) / BLOCK_SLICES, a.layout.groups,
			  chunks < 1 << 15 ? (unsigned)chunks : 1 << 15);

	if (blocks.x * blocks.y * chunks <= (size_t)processors)
		return launch_early(early, ssd_outputs<N, 2>, blocks, 2 * BLOCK_THREADS, bytes, stream, a, slices,
				    apart);
	return launch_early(early, ssd_outputs<N, 1>, blocks, BLOCK_THREADS, bytes, stream, a, slices, apart);
}

cudaError_t chunk_outputs(const struct layout *layout, const struct layer_weights *weights, int layer,
			  const struct chunk_buffers *buffers, const struct batch_view *batch, size_t chunks,
			  bool early, bool apart, int processors, cudaStream_t stream)
{
	struct chunk_params a = { *layout, *weights, *buffers, layer, batch };

	return layout->state == 64 ? launch<64>(a, chunks, early, apart, processors, stream) :
				     launch<128>(a, chunks, early, apart, processors, stream);
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
