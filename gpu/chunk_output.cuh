/*
 * Device code: y of a chunk, from the state before it; shared by the kernel that carries the state along and the one
 * that reads it.
 *
 *   y_i = 2^{l_i} h C_i + sum_{j <= i} (C_i B_j) 2^{l_i - l_j} dt_j x_j + D x_i,    gated = y * silu(z)
 */
#ifndef GPU_CHUNK_OUTPUT_CUH
#define GPU_CHUNK_OUTPUT_CUH

#include "gpu/chunk.cuh"

/* What a block and a warp of it work on. */
struct chunk_place {
	int block;       /* of the segment */
	int group, head; /* the block's group and first head */
	int slice;       /* the warp's */
	int warp_head;   /* the warp's head, counted from head */
	int heads;       /* of the block */
	bool active;     /* a group's last block may have warps to spare */
};

/* A block's shared memory. */
template <int N> struct chunk_memory {
	bfloat16 c[CHUNK_ROWS * (N + BC_PAD)], b[CHUNK_ROWS * (N + BC_PAD)];
	float scores[CHUNK_TILES * SCORE_TILE];
	uint4 masked[CHUNK_HEADS(N)][CHUNK_TILES][32]; /* scores with decay, as left operands */
	bfloat16 x[BLOCK_SLICES][X_TILE];
	float steps[2][CHUNK_HEADS(N) * STEP_PLANES * CHUNK_ROWS]; /* packed for the rows that the chunk has */
	float squares[CHUNK_ROWS][BLOCK_SLICES];
	float norm[BLOCK_SLICES][SLICE]; /* gated_norm */
};

static __device__ inline struct chunk_place chunk_place_of(const struct layout &l, int block)
{
	int slices = l.inner / l.groups / SLICE, blocks = (slices + BLOCK_SLICES - 1) / BLOCK_SLICES;
	int first = block % blocks * BLOCK_SLICES, own = first + threadIdx.x / 32;
	struct chunk_place p;

	p.block = block;
	p.group = block / blocks;
	p.active = own < slices;
	p.slice = p.group * slices + (p.active ? own : first);
	p.head = (p.group * slices + first) * SLICE / l.head_dim;
	p.warp_head = p.slice * SLICE / l.head_dim - p.head;
	p.heads = min(max(BLOCK_SLICES * SLICE / l.head_dim, 1), (p.group + 1) * (l.heads / l.groups) - p.head);
	return p;
}

/* Copy n times 16 bytes in the background, by the whole block. */
static __device__ inline void fetch(void *to, const void *from, int n)
{
	for (int i = threadIdx.x; i < n; i += BLOCK_THREADS)
		copy16((char *)to + 16 * i, (const char *)from + 16 * i);
}

template <int N>
static __device__ inline void fetch_bc(const struct chunk_params &a, const struct chunk_view &k, int group, int which,
				       bfloat16 *to)
{
	fetch(to, bc_of(a, k, group, which), edge_of(k) * 16 * (N + BC_PAD) / 8);
}

static __device__ inline void fetch_scores(const struct chunk_params &a, const struct chunk_view &k, int group,
					   float *to)
{
	fetch(to, scores_of(a, k, group), tiles_of(edge_of(k)) * SCORE_TILE / 4);
}

static __device__ inline void fetch_steps(const struct chunk_params &a, const struct chunk_view &k,
					  const struct chunk_place &p, float *to)
{
	fetch(to, steps_of(a, k, p.head), p.heads * edge_of(k) * 16 * STEP_PLANES / 4);
}

static __device__ inline const float *step_plane(const float *steps, int head, int rows, enum step_plane plane)
{
	return steps + (head * STEP_PLANES + plane) * rows;
}

/*
 * Tile (i, j) of the scores with the decay from each column's row to each row's, and dt; on the diagonal nothing right
 * of it, and D added on it: a left operand.
 */
static __device__ inline uint4 masked_tile(const float *scores, const float *since, const float *source, float d,
					   int i, int j)
{
	int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4 * 2;
	float v[2][2][2]; /* half of the columns, half of the rows, column */
	uint32_t left[4];

	*(float4 *)v[0] = *(const float4 *)(scores + (tiles_of(i) + j) * SCORE_TILE + lane * 4);
	*(float4 *)v[1] = *(const float4 *)(scores + (tiles_of(i) + j) * SCORE_TILE + 128 + lane * 4);
#pragma unroll
	for (int half = 0; half < 2; half++) {
		float2 from = *(const float2 *)(source + 16 * j + 8 * half + q);

#pragma unroll
		for (int row = 0; row < 2; row++) {
			float end = since[16 * i + 8 * row + g];
			int right = 8 * half + q - (8 * row + g); /* of the diagonal */

			v[half][row][0] *= fast_exp2(end - from.x);
			v[half][row][1] *= fast_exp2(end - from.y);
			if (i == j) {
				v[half][row][0] = right > 0 ? 0.0f : right == 0 ? v[half][row][0] + d : v[half][row][0];
				v[half][row][1] = right + 1 > 0 ? 0.0f : right + 1 == 0 ? v[half][row][1] + d : v[half][row][1];
			}
			left[2 * half + row] = pack2(v[half][row][0], v[half][row][1]);
		}
	}
	return make_uint4(left[0], left[1], left[2], left[3]);
}

/* The masked scores of the block's heads, each warp some of the tiles. */
template <int N>
static __device__ inline void mask_scores(const struct chunk_params &a, struct chunk_memory<N> &s,
					  const struct chunk_place &p, const float *steps, int edge)
{
	int tiles = tiles_of(edge), lane = threadIdx.x % 32;

	for (int n = threadIdx.x / 32; n < p.heads * tiles; n += BLOCK_SLICES) {
		int head = n / tiles, t = n % tiles, i = t >= 6 ? 3 : t >= 3 ? 2 : t >= 1 ? 1 : 0;

		s.masked[head][t][lane] =
			masked_tile(s.scores, step_plane(steps, head, 16 * edge, STEP_SINCE),
				    step_plane(steps, head, 16 * edge, STEP_SOURCE), a.weights.d[p.head + head], i,
				    t - tiles_of(i));
	}
}

/* y in rows 16 i to 16 i + 15: sum[t] is the accumulator of places p 8 t to 8 t + 7. */
template <int N, class State>
static __device__ inline void output_tile(const bfloat16 *c, const bfloat16 *x, const uint4 (*masked)[32],
					  const float *reach, const State &h, int i, float sum[2][4])
{
	int lane = threadIdx.x % 32, g = lane / 4;
	float low = reach[16 * i + g], high = reach[16 * i + 8 + g];

#pragma unroll
	for (int v = 0; v < N / 16; v++) {
		uint4 right = state_operand<N>(h, v);
		uint32_t left[4];

		tile_load(left, c + (16 * i + lane % 16) * (N + BC_PAD) + 16 * v + lane / 16 * 8);
		tile_product(sum[0], left, right.x, right.y);
		tile_product(sum[1], left, right.z, right.w);
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
		uint32_t left[4] = { m.x, m.y, m.z, m.w }, right[4];

		load_x(x, j, right);
		tile_product(sum[0], left, right[0], right[1]);
		tile_product(sum[1], left, right[2], right[3]);
	}
}

/* Gate and store four columns of a row; every lane calls it.  square: the row's place for the warp's sum. */
static __device__ inline void gate(const float y[4], uint2 z, const float *norm, bool valid, bfloat16 *to, float *square)
{
	float gated[4] = { y[0] * fast_silu(first_of(z.x)), y[1] * fast_silu(second_of(z.x)),
			   y[2] * fast_silu(first_of(z.y)), y[3] * fast_silu(second_of(z.y)) };
	float4 weight = *(const float4 *)norm;
	float sum = gated[0] * gated[0];

	sum = fmaf(gated[1], gated[1], sum);
	sum = fmaf(gated[2], gated[2], sum);
	sum = fmaf(gated[3], gated[3], sum);
	sum += __shfl_xor_sync(0xffffffff, sum, 1);
	sum += __shfl_xor_sync(0xffffffff, sum, 2);
	if (valid)
		*(uint2 *)to = make_uint2(pack2(gated[0] * weight.x, gated[1] * weight.y),
					  pack2(gated[2] * weight.z, gated[3] * weight.w));
	if (threadIdx.x % 4 == 0)
		*square = sum;
}

/* All rows of the chunk, for the warp's slice. */
template <int N, class State>
static __device__ inline void output_chunk(const struct chunk_params &a, struct chunk_memory<N> &s,
					   const struct chunk_place &p, const struct chunk_view &k, const float *steps,
					   const State &h)
{
	const struct layout &l = a.layout;
	int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 4, edge = edge_of(k);
	const float *reach = step_plane(steps, p.warp_head, 16 * edge, STEP_REACH);
	const bfloat16 *z = (const bfloat16 *)a.buffers.proj + (size_t)(k.row + g) * l.proj_cols + p.slice * SLICE + column;
	bfloat16 *to = (bfloat16 *)a.buffers.gated + (size_t)(k.row + g) * l.inner_cols + p.slice * SLICE + column;

#pragma unroll 1
	for (int i = 0; i < edge; i++) {
		bool valid[2] = { 16 * i + g < k.rows, 16 * i + 8 + g < k.rows };
		uint2 gates[2] = { { 0, 0 }, { 0, 0 } };
		float sum[2][4] = { { 0.0f } };

		if (valid[0])
			gates[0] = *(const uint2 *)z;
		if (valid[1])
			gates[1] = *(const uint2 *)(z + 8 * (size_t)l.proj_cols);
		output_tile<N>(s.c, s.x[warp], s.masked[p.warp_head], reach, h, i, sum);
#pragma unroll
		for (int half = 0; half < 2; half++) {
			float y[4] = { sum[0][2 * half], sum[0][2 * half + 1], sum[1][2 * half], sum[1][2 * half + 1] };

			gate(y, gates[half], &s.norm[warp][column], valid[half],
			     to + 8 * half * (size_t)l.inner_cols, &s.squares[16 * i + 8 * half + g][warp]);
		}
		z += 16 * (size_t)l.proj_cols;
		to += 16 * (size_t)l.inner_cols;
	}
}

/* How many of a block's warps are active. */
static __device__ inline int active_warps(const struct layout &l, int block)
{
	int slices = l.inner / l.groups / SLICE, blocks = (slices + BLOCK_SLICES - 1) / BLOCK_SLICES;

	return min(BLOCK_SLICES, slices - block % blocks * BLOCK_SLICES);
}

/* The block's sums of squares, behind a barrier: its active warps' in order. */
template <int N>
static __device__ inline void add_squares(const struct chunk_params &a, const struct chunk_memory<N> &s,
					  const struct chunk_place &p, const struct chunk_view &k)
{
	int r = threadIdx.x, warps = active_warps(a.layout, p.block);
	float sum = 0.0f;

	if (r >= k.rows)
		return;
	for (int i = 0; i < warps; i++)
		sum += s.squares[r][i];
	a.buffers.squares[(size_t)(k.row + r) * chunk_blocks(&a.layout) + p.block] = sum;
}

#endif
