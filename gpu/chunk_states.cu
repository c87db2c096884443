#include "gpu/launch.cuh"
#include "gpu/mbarrier.cuh"
#include "gpu/states.cuh"

/*
 * h = 2^{l_last} h + sum_j 2^{l_last - l_j} dt_j x_j B_j^T, chunk after chunk; the state before each is left as
 * bfloat16.
 *
 * For long segments, whose chunks depend on each other only here.  A block takes two slices and 64 columns n of their
 * states: four warps multiply, a slice and 32 n each, and three keep a few chunks of x and of B on their way, each every
 * third chunk.  How long a chunk takes is how long one of the former is busy with it: it loads the next chunk's operands
 * between its products.  The arithmetic is that of chunk_segments, bit for bit.
 */
#define TILES (CHUNK_ROWS / 16)
#define SLICES 2
#define WIDTH 32   /* n of a warp that multiplies, */
#define COLUMNS 64 /* of a block */
#define MULTIPLIERS (SLICES * COLUMNS / WIDTH) /* warps */
#define FETCHERS 3
#define THREADS (32 * (MULTIPLIERS + FETCHERS))
#define STAGES 6u

struct __align__(16) stage {
	bfloat16 x[SLICES][CHUNK_ROWS * SLICE];
	bfloat16 b[CHUNK_ROWS * COLUMNS];
	float weights[SLICES][CHUNK_ROWS]; /* of rows in the state's step, for each head */
	float decay[SLICES];               /* over the chunk, likewise */
	int edge;
	uint64_t full, empty;
};

/* What a block works on. */
struct states_place {
	int slice, group; /* the first slice */
	int head, heads;
	int part; /* which 64 columns n */
};

/* Where a stage lies in a segment's sequence of chunks, counted from the block's first. */
static __device__ struct stage *stage_of(struct stage *stages, unsigned turn)
{
	return &stages[turn % STAGES];
}

static __device__ int parity_of(unsigned turn)
{
	return turn / STAGES % 2;
}

/* By a warp: x, whole whatever the chunk's rows, the heads' weights and decays, and B's columns. */
static __device__ void fetch_stage(const struct chunk_params &a, const struct chunk_view &k, int chunk,
				   const struct states_place &p, struct stage *stage)
{
	int lane = threadIdx.x % 32, edge = edge_of(k), eight_rows = a.layout.state * 8, head = lane / 16;
	const bfloat16 *x = once(x_of(a, chunk, p.slice) + lane * 8);
	const bfloat16 *b = once(bc_of(a, k, p.group, 0) + p.part * COLUMNS * 8 + lane * 8);
	const uint32_t x_to = once(shared_address(stage->x[0] + lane * 8));
	const uint32_t b_to = x_to + (uint32_t)sizeof(stage->x);

#pragma unroll
	for (int i = 0; i < SLICES * CHUNK_ROWS * SLICE / 8 / 32; i++)
		copy16_to(x_to + i * 512, x + i * 256);
#pragma unroll
	for (int i = 0; i < CHUNK_ROWS / 8; i++, b = once(b + eight_rows))
		if (i < 2 * edge) {
			copy16_to(b_to + i * 1024, b);
			copy16_to(b_to + i * 1024 + 512, b + 256);
		}
	for (; head < p.heads; head += 2) {
		const float *steps = steps_of(a, k, p.head + head);

		if (lane % 16 < 4 * edge)
			copy16(&stage->weights[head][lane % 16 * 4],
			       step_plane(steps, 0, 16 * edge, STEP_WEIGHT) + lane % 16 * 4);
		if (lane % 16 == 0)
			copy4(&stage->decay[head], step_plane(steps, 0, 16 * edge, STEP_REACH) + k.rows - 1);
	}
	if (lane == 0) {
		stage->edge = edge;
		mbarrier_arrive(&stage->full);
	}
	mbarrier_arrive_behind_copies(&stage->full);
}

/* A fetching warp's chunks of a segment, as stages become empty; turn: of the segment's first chunk. */
static __device__ void fetch_segment(const struct chunk_params &a, const struct segment_view &s,
				     const struct states_place &p, struct stage *stages, unsigned turn)
{
	const struct chunk_view *chunks = a.batch->chunks + s.chunk;
	int n = (threadIdx.x / 32 - MULTIPLIERS + FETCHERS - turn % FETCHERS) % FETCHERS;
	struct chunk_view next = chunks[min(n, s.chunks - 1)];

	previous_ended();
	for (; n < s.chunks; n += FETCHERS) {
		const struct chunk_view k = next;
		struct stage *stage = stage_of(stages, turn + n);

		next = chunks[min(n + FETCHERS, s.chunks - 1)];
		mbarrier_wait(&stage->empty, !parity_of(turn + n));
		fetch_stage(a, k, s.chunk + n, p, stage);
	}
}

/* A warp that multiplies: its share of a state, and the operands of the chunk that comes next. */
struct multiplier {
	int head;         /* counted from the block's first */
	int x_from, b_from; /* the lane's places of its tiles of rows 0 to 15, in a stage's x and b */
	uint32_t x[TILES][4], b[TILES][WIDTH / 16][4];
	struct row_weights weights[TILES];
	float decay;
	int edge;
	float h[WIDTH / 2];
};

static __device__ void load_chunk(const struct stage *stage, struct multiplier &m)
{
	m.edge = stage->edge;
	m.decay = stage->decay[m.head];
}

/* Rows 16 j on. */
static __device__ void load_tile(const struct stage *stage, int j, struct multiplier &m)
{
	tile_load_transposed(m.x[j], stage->x[0] + m.x_from + core_place(16 * j, 0, SLICE));
#pragma unroll
	for (int v = 0; v < WIDTH / 16; v++)
		tile_load_transposed(m.b[j][v], stage->b + m.b_from + core_place(16 * j, 16 * v, COLUMNS));
	m.weights[j] = row_weights(stage->weights[m.head] + 16 * j);
}

/* h += sum of (weight x) B^T over these rows. */
static __device__ void add_tile(int j, struct multiplier &m)
{
	uint32_t left[4];

	weigh(m.x[j], m.weights[j], left);
#pragma unroll
	for (int v = 0; v < WIDTH / 16; v++) {
		tile_product(m.h + 8 * v, left, m.b[j][v][0], m.b[j][v][1]);
		tile_product(m.h + 8 * v + 4, left, m.b[j][v][2], m.b[j][v][3]);
	}
}

/* A chunk; the next one's operands come in place of its own, from stage `next`.  WHOLE: it has all its rows. */
template <bool WHOLE>
static __device__ void advance(const struct stage *next, struct multiplier &m)
{
	const int edge = m.edge;

#pragma unroll
	for (int i = 0; i < WIDTH / 2; i++)
		m.h[i] *= m.decay;
	load_chunk(next, m);
#pragma unroll
	for (int j = 0; j < TILES; j++) {
		if (WHOLE || j < edge)
			add_tile(j, m);
		load_tile(next, j, m);
	}
}

/* Where a warp that multiplies is in a segment. */
struct progress {
	struct stage *stages;
	unsigned turn, last; /* of stages: of chunk n, of the segment's last chunk */
	int n;
	uint4 *left; /* for the state before chunk n, as chunk_outputs multiplies with it; */
	size_t step; /* so much further for the next chunk's */
};

/* The next chunk; WHOLE: and those that follow before number `to`, as long as they have all their rows. */
template <bool WHOLE>
static __device__ void advance_to(int to, struct progress &at, struct multiplier &m)
{
	do {
		const unsigned turn = min(at.turn + 1, at.last);
		struct stage *next = stage_of(at.stages, turn);
		uint4 left[WIDTH / 16];

		pack_state<WIDTH>(m.h, left);
#pragma unroll
		for (int v = 0; v < WIDTH / 16; v++)
			at.left[v * 32] = left[v];
		at.left += at.step;
		mbarrier_wait(&next->full, parity_of(turn));
		advance<WHOLE>(next, m);
		mbarrier_arrive(&stage_of(at.stages, at.turn++)->empty);
		at.n++;
	} while (WHOLE && at.n < to && m.edge == TILES);
}

/* All chunks of a segment, as stages become full; turn: of its first. */
static __device__ void multiply_segment(const struct chunk_params &a, const struct segment_view &s,
					const struct states_place &p, struct stage *stages, unsigned turn)
{
	const int warp = threadIdx.x / 32, n_columns = a.layout.state, own = warp / (COLUMNS / WIDTH);
	const int column = warp % (COLUMNS / WIDTH) * WIDTH, slice = p.slice + own, first = (p.part * COLUMNS + column) / 16;
	struct multiplier m = {
		.head = slice * SLICE / a.layout.head_dim - p.head,
		.x_from = own * CHUNK_ROWS * SLICE + lane_place(SLICE),
		.b_from = core_place(0, column, COLUMNS) + lane_place(COLUMNS)
	};
	struct progress at = {
		stages, turn, turn + s.chunks - 1, 0, states_of(a, s.chunk, slice) + first * 32 + threadIdx.x % 32,
		(size_t)(a.layout.inner / SLICE) * (n_columns / 16) * 32
	};
	float *state = state_of(a, s, slice);

	load_state<WIDTH>(state, n_columns, first, m.h);
	mbarrier_wait(&stage_of(stages, turn)->full, parity_of(turn));
	load_chunk(stage_of(stages, turn), m);
#pragma unroll
	for (int j = 0; j < TILES; j++)
		load_tile(stage_of(stages, turn), j, m);
	for (int to = s.kept_chunks; at.n < s.chunks; to = s.chunks) {
		while (at.n < to)
			if (m.edge == TILES)
				advance_to<true>(to, at, m);
			else
				advance_to<false>(to, at, m);
		if (at.n == s.kept_chunks)
			store_state<WIDTH>(state, n_columns, first, m.h);
	}
}

static __global__ void __launch_bounds__(THREADS) ssd_states(const struct chunk_params a)
{
	extern __shared__ __align__(16) char shared[];
	struct stage *stages = (struct stage *)shared;
	const struct layout &l = a.layout;
	int parts = l.state / COLUMNS, blocks = l.inner / (SLICE * SLICES) * parts;
	unsigned turn = 0;

	if (threadIdx.x < STAGES) {
		mbarrier_init(&stages[threadIdx.x].full, 32 + 1);
		mbarrier_init(&stages[threadIdx.x].empty, 32 * MULTIPLIERS);
	}
	__syncthreads();
	next_may_begin();
	for (int item = blockIdx.x; item < a.batch->n_segments * blocks; item += gridDim.x) {
		const struct segment_view s = a.batch->segments[item / blocks];
		struct states_place p = { .slice = item % blocks / parts * SLICES };

		p.group = p.slice / (l.inner / l.groups / SLICE);
		p.head = p.slice * SLICE / l.head_dim;
		p.heads = (p.slice + SLICES - 1) * SLICE / l.head_dim - p.head + 1;
		p.part = item % parts;
		if (threadIdx.x < 32 * MULTIPLIERS)
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
	size_t items = segments * (size_t)(layout->inner / (SLICE * SLICES)) * (size_t)(layout->state / COLUMNS);
	unsigned blocks = (unsigned)(items < 1 << 14 ? items : 1 << 14);

	return launch_early(early, ssd_states, blocks, THREADS, STAGES * sizeof(struct stage), stream, a);
}

cudaError_t chunk_states_setup(void)
{
	return cudaFuncSetAttribute(ssd_states, cudaFuncAttributeMaxDynamicSharedMemorySize,
				    STAGES * sizeof(struct stage));
}
