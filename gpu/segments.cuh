/*
 * Device code of chunk_segments: what a block has in shared memory, and the steps of a chunk, from copies to stores.
 *
 * Within a head, column 32 s + 8 q + 2 t + e stands at place 8 (4 s + t) + 2 q + e (s < 2; t, q < 4; e < 2): of an
 * accumulator's row, a lane has twice eight neighbours, and four lanes together 64 bytes in a row.
 */
#ifndef GPU_SEGMENTS_CUH
#define GPU_SEGMENTS_CUH

#include "gpu/chunk.cuh"
#include "gpu/wgmma.cuh"

#define GROUPS 3
#define GROUP_THREADS 128
#define HALO (TAPS - 1)
#define X_CORE 144                /* bytes from a core of x to its neighbour, */
#define X_CORES (8 * X_CORE + 16) /* and to the next eight rows: lanes that store x keep off one bank */

struct segments_params : chunk_params {
	CUtensorMap rows; /* of proj: boxes of 64 rows and GROUP_COLUMNS columns */
};

/* What a warpgroup works on: a head of a segment. */
struct item {
	struct segment_view segment;
	int group;             /* of B and C */
	int first_head, heads; /* of the block: where it has only one head, warpgroups are to spare, */
	int column;            /* whose column is negative */
	float d;
	bool last; /* of the block's */
};

/* A warpgroup's own shared memory. */
template <int N> struct __align__(128) group_memory {
	float state[GROUP_COLUMNS * N];    /* [p, n] of the next item, */
	float conv[HALO][GROUP_COLUMNS];   /* and its conv state */
	union {
		bfloat16 h[GROUP_COLUMNS * N]; /* cores of [p, n], until y's first product is done; */
		bfloat16 z[CHUNK_ROWS][GROUP_COLUMNS]; /* then z */
	};
	union {
		bfloat16 raw[CHUNK_ROWS][GROUP_COLUMNS]; /* proj's x, until it is convolved; */
		char x[CHUNK_ROWS / 8 * X_CORES];        /* then cores of x */
	};
	bfloat16 halo[2][HALO][GROUP_COLUMNS]; /* the rows before the chunk, and before the next one */
	float weight[TAPS + 1][GROUP_COLUMNS]; /* of the convolution, and its bias */
	float norm[GROUP_COLUMNS];             /* gated_norm */
	struct item items[2];                  /* the item and the next, by turns */
	struct chunk_view views[2];            /* the chunk and the next, by turns */
	uint64_t state_full, raw_full, z_full;
};

template <int N> struct __align__(128) segments_memory {
	bfloat16 c[CHUNK_ROWS * N], b[CHUNK_ROWS * N];
	float scores[CHUNK_TILES * SCORE_TILE];
	float steps[GROUPS * STEP_PLANES * CHUNK_ROWS];
	struct group_memory<N> group[GROUPS];
	uint64_t c_full, b_full; /* c; b with scores and steps */
	uint64_t c_done, b_done; /* no warpgroup needs them any more */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/*
 * How all heads of the batch's segments divide into items: first in threes, as many as there are in each group; then
 * one by one what is left of the groups, and also the last threes, if all of them then find a processor at once: that
 * ends sooner than threes on some of the processors would.
 */
struct division {
	int of_group; /* heads in threes */
	int in_threes, threes, items;
};

static __device__ struct division divide(const struct chunk_params &a)
{
	const int groups = a.batch->n_segments * a.layout.groups, heads = a.layout.heads / a.layout.groups;
	struct division d = { .of_group = heads / GROUPS * GROUPS };

	d.in_threes = groups * d.of_group;
	d.threes = d.in_threes / GROUPS;
	int last = d.threes % gridDim.x, left = groups * heads - d.in_threes;
	if (GROUPS * last + left <= gridDim.x)
		d.threes -= last;
	d.items = groups * heads - (GROUPS - 1) * d.threes;
	return d;
}

/* The block's nth item; by one thread of the warpgroup. */
static __device__ void find_item(const struct chunk_params &a, int n, struct item &item)
{
	const struct layout &l = a.layout;
	const struct division d = divide(a);
	int number = blockIdx.x + n * gridDim.x, heads = l.heads / l.groups, own = threadIdx.x / GROUP_THREADS;
	int head = number + min(number, d.threes) * (GROUPS - 1); /* counted as they divide */
	int group, first;

	if (head < d.in_threes)
		group = head / d.of_group, first = head % d.of_group;
	else
		group = (head - d.in_threes) / (heads - d.of_group),
		first = d.of_group + (head - d.in_threes) % (heads - d.of_group);
	item.segment = a.batch->segments[group / l.groups];
	item.group = group % l.groups;
	item.first_head = item.group * heads + first;
	item.heads = number < d.threes ? GROUPS : 1;
	item.column = own < item.heads ? (item.first_head + own) * GROUP_COLUMNS : -1;
	item.d = own < item.heads ? a.weights.d[item.first_head + own] : 0.0f;
	item.last = number + gridDim.x >= d.items;
}

static __device__ int group_thread(void)
{
	return threadIdx.x % GROUP_THREADS;
}

static __device__ void group_barrier(void)
{
	warpgroup_barrier(1 + threadIdx.x / GROUP_THREADS);
}

/* C of a chunk; by one thread. */
template <int N>
static __device__ void fetch_c(const struct chunk_params &a, struct segments_memory<N> &s, const struct item &item,
			       const struct chunk_view &k)
{
	int bytes = edge_of(k) * 16 * N * (int)sizeof(bfloat16);

	mbarrier_expect(&s.c_full, bytes);
	bulk_copy(s.c, bc_of(a, k, item.group, 1), bytes, &s.c_full);
}

/* B, scores and steps; likewise. */
template <int N>
static __device__ void fetch_b(const struct chunk_params &a, struct segments_memory<N> &s, const struct item &item,
			       const struct chunk_view &k)
{
	int edge = edge_of(k), b = edge * 16 * N * (int)sizeof(bfloat16), scores = tiles_of(edge) * SCORE_TILE * 4;
	int steps = item.heads * edge * 16 * STEP_PLANES * 4;

	mbarrier_expect(&s.b_full, b + scores + steps);
	bulk_copy(s.scores, scores_of(a, k, item.group), scores, &s.b_full);
	bulk_copy(s.steps, steps_of(a, k, item.first_head), steps, &s.b_full);
	bulk_copy(s.b, bc_of(a, k, item.group, 0), b, &s.b_full);
}

/* The states that an item begins with; by one thread. */
template <int N>
static __device__ void fetch_state(const struct chunk_params &a, struct group_memory<N> &m,
				   const struct item &item)
{
	const float *conv = conv_state_of(a, item.segment, item.segment.parity) + item.column;

	mbarrier_expect(&m.state_full, sizeof(m.state) + sizeof(m.conv));
	bulk_copy(m.state, state_of(a, item.segment, 0) + (size_t)item.column * N, sizeof(m.state), &m.state_full);
	for (int i = 0; i < HALO; i++)
		bulk_copy(m.conv[i], conv + i * a.layout.conv_cols, sizeof(m.conv[i]), &m.state_full);
}

/*
 * x of a chunk's rows, as in_proj left it, with an item's first chunk the convolution's weights; and z of the rows on
 * its way as far as L2.  What lies behind the rows is another chunk's.  By one thread.
 */
template <int N>
static __device__ void fetch_raw(const struct segments_params &a, struct group_memory<N> &m, const struct chunk_view &k,
				 int column, bool first)
{
	const float *weight = a.weights.conv + column;

	mbarrier_expect(&m.raw_full, sizeof(m.raw) + (first ? sizeof(m.weight) : 0));
	box_copy(m.raw, &a.rows, a.layout.inner_cols + column, k.row, &m.raw_full);
	box_expect(&a.rows, column, k.row);
	if (!first)
		return;
	for (int i = 0; i < TAPS; i++)
		bulk_copy(m.weight[i], weight + i * a.layout.conv_cols, sizeof(m.weight[i]), &m.raw_full);
	bulk_copy(m.weight[TAPS], a.weights.conv_bias + column, sizeof(m.weight[TAPS]), &m.raw_full);
}

/* z likewise, with an item's first chunk the weights of the gated norm. */
template <int N>
static __device__ void fetch_z(const struct segments_params &a, struct group_memory<N> &m, const struct chunk_view &k,
			       int column, bool first)
{
	mbarrier_expect(&m.z_full, sizeof(m.z) + (first ? sizeof(m.norm) : 0));
	box_copy(m.z, &a.rows, column, k.row, &m.z_full);
	if (first)
		bulk_copy(m.norm, a.weights.gated_norm + column, sizeof(m.norm), &m.z_full);
}

static __device__ void load_half2(const float *from, float (&v)[2])
{
	v[0] = 0.5f * from[0], v[1] = 0.5f * from[1];
}

/*
 * raw -> x in its place, and the rows before the next chunk; a warp takes 16 rows, a lane two columns.  In a segment's
 * first chunk (n = 0) the rows before it are the stream's conv state, behind the last kept one they become the next.
 */
template <int N>
static __device__ void convolve_x(const struct chunk_params &a, struct group_memory<N> &m,
				  const struct segment_view &segment, int column, int n, int rows)
{
	const struct layout &l = a.layout;
	int from = group_thread() / 32 * 16, c = threadIdx.x % 32 * 2, turn = n % 2;
	float v[TAPS][2], weight[TAPS][2], bias[2], out[2];
	uint32_t raw[16];

#pragma unroll
	for (int i = 0; i < TAPS; i++)
		load_half2(&m.weight[i][c], weight[i]);
	load_half2(&m.weight[TAPS][c], bias);
#pragma unroll
	for (int i = 0; i < HALO; i++) {
		uint32_t row = *(const uint32_t *)(from > 0 ? &m.raw[from - HALO + i][c] : &m.halo[turn][i][c]);

		v[i][0] = first_of(row), v[i][1] = second_of(row);
		if (from == 0 && n == 0)
			*(float2 *)v[i] = *(const float2 *)&m.conv[i][c];
	}
#pragma unroll
	for (int i = 0; i < 16; i++)
		raw[i] = *(const uint32_t *)&m.raw[from + i][c];
	if (from < 16 * HALO) {
		int i = from / 16, r = rows - HALO + i;
		uint32_t row = *(const uint32_t *)(r >= 0 ? &m.raw[r][c] : &m.halo[turn][HALO + r][c]);

		*(uint32_t *)&m.halo[!turn][i][c] = row;
		if (n + 1 == segment.kept_chunks)
			*(float2 *)(conv_state_of(a, segment, 1 - segment.parity) + i * l.conv_cols + column + c) =
				make_float2(first_of(row), second_of(row));
	}
	group_barrier(); /* all have read: x may take raw's place */
	char *to = m.x + from / 8 * X_CORES + (c / 32 * 4 + c % 8 / 2) * X_CORE + c % 32 / 8 * 4;
#pragma unroll
	for (int i = 0; i < 16; i++) {
		v[HALO][0] = first_of(raw[i]), v[HALO][1] = second_of(raw[i]);
		convolve(v, weight, bias, out);
		shift(v);
		*(uint32_t *)(to + i / 8 * X_CORES + i % 8 * 16) = from + i < rows ? pack2(out[0], out[1]) : 0;
	}
	publish_to_async();
}

/* y = h C, under way. */
template <int N> static __device__ void start_y(const bfloat16 *c, const bfloat16 *h, float (&y)[32])
{
	uint64_t left = operand_along(c, 128, N * 16), right = operand_along(h, 128, N * 16);

	warpgroup_fence();
	product_along<false>(y, left, right);
#pragma unroll
	for (int v = 1; v < N / 16; v++)
		product_along<true>(y, operand_behind(left, v * 256), operand_behind(right, v * 256));
	warpgroup_commit();
}

/* y = 2^l y + masked scores x, the latter under way; a warp has the scores of its 16 rows. */
static __device__ void start_scores(const float *scores, const float *since, float d, const char *x, int edge,
				    float (&y)[32])
{
	int i = uniform(group_thread() / 32), g = threadIdx.x % 32 / 4;
	const float *source = since + STEP_SOURCE * 16 * edge, *reach = since + STEP_REACH * 16 * edge + 16 * i + g;
	float low = reach[0], high = reach[8];
	uint64_t right = operand_across(x, X_CORES, X_CORE);
	uint32_t left[CHUNK_ROWS / 16][4];

#pragma unroll
	for (int j = 0; j < CHUNK_ROWS / 16; j++) {
		uint4 m = make_uint4(0, 0, 0, 0);

		if (j <= i && i < edge)
			m = masked_tile(scores, since, source, d, i, j);
		left[j][0] = m.x, left[j][1] = m.y, left[j][2] = m.z, left[j][3] = m.w;
	}
#pragma unroll
	for (int t = 0; t < 8; t++) {
		y[4 * t] *= low;
		y[4 * t + 1] *= low;
		y[4 * t + 2] *= high;
		y[4 * t + 3] *= high;
	}
	warpgroup_fence();
#pragma unroll
	for (int j = 0; j < CHUNK_ROWS / 16; j++) /* x is zero behind the chunk's rows, and so are the scores */
		product_across(y, left[j], operand_behind(right, 2 * j * X_CORES));
	warpgroup_commit();
}

/* left[j] = x in rows 16 j on times their weights; a warp has 16 columns. */
static __device__ void weigh_x(const char *x, const float *weight, int edge, uint32_t (&left)[CHUNK_ROWS / 16][4])
{
	int warp = group_thread() / 32, lane = threadIdx.x % 32;
	const char *row = x + lane % 16 / 8 * X_CORES + (2 * warp + lane / 16) * X_CORE + lane % 8 * 16;
	uint32_t r[4];

#pragma unroll
	for (int j = 0; j < CHUNK_ROWS / 16; j++) {
		if (j >= edge)
			break;
		tile_load_transposed(r, (const bfloat16 *)(row + 2 * j * X_CORES));
		weigh(r, row_weights(weight + 16 * j), left[j]);
	}
}

/* h = decay h + sum_j left_j B_j^T, under way. */
template <int N>
static __device__ void start_h(const bfloat16 *b, const uint32_t (&left)[CHUNK_ROWS / 16][4], float decay, int edge,
			       float (&h)[N / 2])
{
	uint64_t right = operand_across(b, N * 16, 128);

#pragma unroll
	for (int i = 0; i < N / 2; i++)
		h[i] *= decay;
	warpgroup_fence();
#pragma unroll
	for (int j = 0; j < CHUNK_ROWS / 16; j++)
		if (j < edge)
			product_across(h, left[j], operand_behind(right, 2 * j * N * 16));
	warpgroup_commit();
}

/* Gate y and store it. */
template <int N>
static __device__ void finish_y(const struct chunk_params &a, const struct group_memory<N> &m, int column,
				const struct chunk_view &k, const float (&y)[32])
{
	const struct layout &l = a.layout;
	int warp = group_thread() / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

#pragma unroll
	for (int half = 0; half < 2; half++) {
		int r = 16 * warp + 8 * half + g;
		bfloat16 *to = (bfloat16 *)a.buffers.gated + (size_t)(k.row + r) * l.inner_cols + column + 8 * q;
		float sums[2];

#pragma unroll
		for (int s = 0; s < 2; s++) {
			uint4 z = *(const uint4 *)&m.z[r][32 * s + 8 * q];
			const float *norm = m.norm + 32 * s + 8 * q, *at = y + 16 * s + 2 * half;
			float low[4] = { at[0], at[1], at[4], at[5] }, high[4] = { at[8], at[9], at[12], at[13] };
			float gated[4];

			sums[s] = gate4(low, make_uint2(z.x, z.y), gated);
			uint2 first = weighted4(gated, *(const float4 *)norm);
			sums[s] += gate4(high, make_uint2(z.z, z.w), gated);
			uint2 second = weighted4(gated, *(const float4 *)(norm + 4));
			if (r < k.rows)
				store_whole(to + 32 * s, make_uint4(first.x, first.y, second.x, second.y));
			sums[s] += __shfl_xor_sync(0xffffffff, sums[s], 1);
			sums[s] += __shfl_xor_sync(0xffffffff, sums[s], 2);
		}
		if (q == 0 && r < k.rows)
			a.buffers.squares[(size_t)(k.row + r) * (l.inner / GROUP_COLUMNS) + column / GROUP_COLUMNS] =
				sums[0] + sums[1];
	}
}

/* Where the lane's numbers begin in a state [64, N]: fours of n, 16 apart, in two rows p, 2 apart. */
static __device__ int first_of_state(int n_columns)
{
	int warp = group_thread() / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

	return (warp / 2 * 32 + g / 2 * 8 + warp % 2 * 4 + g % 2) * n_columns + 4 * q;
}

template <int N> static __device__ void load_h(const float *state, float (&h)[N / 2])
{
	const float *from = state + first_of_state(N);

#pragma unroll
	for (int v = 0; v < N / 16; v++)
#pragma unroll
		for (int half = 0; half < 2; half++) {
			float4 n = *(const float4 *)(from + 2 * half * N + 16 * v);

			h[8 * v + 2 * half] = n.x, h[8 * v + 2 * half + 1] = n.y;
			h[8 * v + 4 + 2 * half] = n.z, h[8 * v + 4 + 2 * half + 1] = n.w;
		}
}

template <int N> static __device__ void store_h(float *state, const float (&h)[N / 2])
{
	float *to = state + first_of_state(N);

#pragma unroll
	for (int v = 0; v < N / 16; v++)
#pragma unroll
		for (int half = 0; half < 2; half++) {
			const float *at = h + 8 * v + 2 * half;

			store_whole(to + 2 * half * N + 16 * v, make_float4(at[0], at[1], at[4], at[5]));
		}
}

/* The state as the next chunk's operand: cores of [p, n]. */
template <int N> static __device__ void copy_h(const float (&h)[N / 2], bfloat16 *to)
{
	int warp = group_thread() / 32, lane = threadIdx.x % 32;
	bfloat16 *row = to + (2 * warp + lane / 8 % 2) * N * 8 + lane / 16 * 64 + lane % 8 * 8;

#pragma unroll
	for (int v = 0; v < N / 16; v++) {
		const float *at = h + 8 * v;
		const uint32_t r[4] = { pack2(at[0], at[1]), pack2(at[2], at[3]), pack2(at[4], at[5]),
					pack2(at[6], at[7]) };

		store_cores(row + v * 128, r);
	}
	publish_to_async();
}

#endif

#endif
