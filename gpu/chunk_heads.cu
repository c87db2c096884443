#include "gpu/follow.cuh"
#include "gpu/launch.cuh"
#include "gpu/states.cuh"
#include "gpu/wgmma.cuh"

/*
 * h = 2^{l_last} h + sum_j 2^{l_last - l_j} dt_j x_j B_j^T, chunk after chunk; the state before each is left as
 * bfloat16.
 *
 * The same bits as chunk_states', for many chunks of few segments, on Hopper.  A block takes the state of a head, 64
 * columns of x, or 64 n of it where that leaves half of the processors to others.  chunk_outputs runs beside it, and is
 * told how far the block is; of its blocks one has room beside one of 64 n, and none beside a whole head's.  Chunks depend
 * on each other in nothing but the state, so the warpgroups that have it, 64 n each, only decay, store and multiply: all
 * else is done before or behind.  A chunk goes from hand to hand: a warp fetches it, a warpgroup weighs its x in place,
 * those multiply, and another warp lets go of its place and tells that they have.
 */
#define TILES (CHUNK_ROWS / 16)
#define HEAD 64  /* columns */
#define WIDTH 64 /* n of a warpgroup */
#define STAGES 8u
#define WEIGHERS 2 /* warpgroups, by turns */
#define FETCHERS 2 /* warps, by turns; 32 is a multiple of it */
#define TELLERS 2  /* warps, by turns, of TOLD chunks each */
#define TOLD 4
#define REGISTERS 88 /* of a thread: leaves room for a block of chunk_outputs */

static_assert(STAGES % FETCHERS == 0 && STAGES % (TELLERS * TOLD) == 0, "a stage is always the same warp's");

/* COLUMNS: n of a block. */
template <int COLUMNS> struct __align__(128) heads_stage {
	bfloat16 x[CHUNK_ROWS * HEAD]; /* cores of each slice; when weighed, cores of [row, place] */
	bfloat16 b[CHUNK_ROWS * COLUMNS];
	float steps[STEP_PLANES * CHUNK_ROWS];
	int rows;
	float decay; /* over the chunk; when weighed */
	uint64_t full, weighed, done, empty;
};

/* Warps that multiply; then come those that weigh, fetch and tell. */
static constexpr __host__ __device__ int multipliers(int columns)
{
	return columns / WIDTH * 4;
}

static constexpr __host__ __device__ int threads_of(int columns)
{
	return 32 * (multipliers(columns) + 4 * WEIGHERS + FETCHERS + TELLERS);
}

/* What a block works on. */
template <int COLUMNS> struct heads_item {
	struct segment_view segment;
	int group, head, part; /* part: of the head's n */
	struct heads_stage<COLUMNS> *stages; /* [STAGES], used by turns */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int COLUMNS>
static __device__ struct heads_stage<COLUMNS> &stage_of(const struct heads_item<COLUMNS> &item, int chunk)
{
	return item.stages[chunk % STAGES];
}

static __device__ int parity_of(int chunk)
{
	return chunk / STAGES % 2;
}

/* Start to copy a chunk to its stage; by a warp, of which eight lanes have eight rows of B each. */
template <int COLUMNS>
static __device__ void fetch_chunk(const struct chunk_params &a, const struct heads_item<COLUMNS> &item, int n,
				   const struct chunk_view &k, struct heads_stage<COLUMNS> &s)
{
	const int lane = threadIdx.x % 32, edge = edge_of(k), b = COLUMNS * 8 * (int)sizeof(bfloat16);
	const int steps = edge * (int)sizeof(s.steps) / TILES;

	if (lane == 0) {
		s.rows = k.rows;
		mbarrier_expect(&s.full, (int)sizeof(s.x) + 2 * edge * b + steps);
		bulk_copy(s.x, x_of(a, item.segment.chunk + n, item.head * (HEAD / SLICE)), sizeof(s.x), &s.full);
		bulk_copy(s.steps, steps_of(a, k, item.head), steps, &s.full);
	}
	__syncwarp();
	if (lane < 2 * edge)
		bulk_copy(s.b + lane * COLUMNS * 8,
			  bc_of(a, k, item.group, 0) + (lane * a.layout.state + item.part * COLUMNS) * 8, b, &s.full);
}

/*
 * Those of the segment's chunks whose turn is the warp's, as stages become free; its lanes have the views of 32 chunks,
 * and of 32 more.
 */
template <int COLUMNS>
static __device__ void fetch_item(const struct chunk_params &a, const struct heads_item<COLUMNS> &item)
{
	const int lane = threadIdx.x % 32, chunks = item.segment.chunks;
	const int begin = threadIdx.x / 32 % FETCHERS;
	const struct chunk_view *views = a.batch->chunks + item.segment.chunk;
	struct chunk_view ahead = views[min(lane, chunks - 1)];

	previous_ended();
	for (int first = 0; first < chunks; first += 32) {
		const struct chunk_view now = ahead;

		ahead = views[min(first + 32 + lane, chunks - 1)];
		for (int i = begin; i < min(32, chunks - first); i += FETCHERS) {
			struct heads_stage<COLUMNS> &s = stage_of(item, first + i);
			struct chunk_view k;

			k.rows = __shfl_sync(0xffffffff, now.rows, i);
			k.unit = __shfl_sync(0xffffffff, now.unit, i);
			mbarrier_wait(&s.empty, !parity_of(first + i));
			publish_to_async();
			fetch_chunk(a, item, first + i, k, s);
		}
	}
}

/* Let go of stages that are done with, and tell of the states that were left, where it is the warp's turn; by a thread. */
template <int COLUMNS>
static __device__ void tell_item(const struct chunk_params &a, const struct heads_item<COLUMNS> &item)
{
	const int chunks = item.segment.chunks;

	for (int first = threadIdx.x / 32 % TELLERS * TOLD; first < chunks; first += TELLERS * TOLD) {
		const int end = min(first + TOLD, chunks);

		for (int n = first; n < end; n++) {
			struct heads_stage<COLUMNS> &s = stage_of(item, n);

			mbarrier_wait(&s.done, parity_of(n));
			mbarrier_arrive(&s.empty);
		}
		tell(a.buffers.known + item.segment.chunk + first, end - first, COLUMNS / 64);
	}
}

/*
 * x times the weights of its rows, in place, but in other cores: by a warpgroup, a thread part of a row.  Behind the chunk's
 * last tile x and B are zero.
 */
template <int COLUMNS> static __device__ void weigh_chunk(struct heads_stage<COLUMNS> &s)
{
	const int t = threadIdx.x % 128, row = t / 16 * 8 + t % 8, core = t / 8 % 2, edge = (s.rows + 15) / 16;
	const float weight = row < 16 * edge ? step_plane(s.steps, 0, 16 * edge, STEP_WEIGHT)[row] : 0.0f;
	uint4 x[HEAD / SLICE];

	if (t == 0)
		s.decay = step_plane(s.steps, 0, 16 * edge, STEP_REACH)[s.rows - 1];

#pragma unroll
	for (int slice = 0; slice < HEAD / SLICE; slice++)
		x[slice] = *(const uint4 *)(s.x + slice * CHUNK_ROWS * SLICE + 8 * t);
	warpgroup_barrier(1 + threadIdx.x / 128 % WEIGHERS); /* all have read */
#pragma unroll
	for (int slice = 0; slice < HEAD / SLICE; slice++) {
		uint32_t *two = (uint32_t *)&x[slice];

#pragma unroll
		for (int i = 0; i < 4; i++)
			two[i] = row < 16 * edge ? pack2(first_of(two[i]) * weight, second_of(two[i]) * weight) : 0;
		*(uint4 *)(s.x + core_place(row, slice * SLICE + core * 8, HEAD)) = x[slice];
	}
	if (edge < TILES)
		for (int i = edge * 16 * COLUMNS + 8 * t; i < CHUNK_ROWS * COLUMNS; i += 8 * 128)
			*(uint4 *)(s.b + i) = make_uint4(0, 0, 0, 0);
	publish_to_async();
}

/* Each WEIGHERS_th of the segment's chunks, as they come; by a warpgroup. */
template <int COLUMNS> static __device__ void weigh_item(const struct heads_item<COLUMNS> &item)
{
	for (int n = threadIdx.x / 128 % WEIGHERS; n < item.segment.chunks; n += WEIGHERS) {
		struct heads_stage<COLUMNS> &s = stage_of(item, n);

		mbarrier_wait(&s.full, parity_of(n));
		weigh_chunk(s);
		mbarrier_arrive(&s.weighed);
	}
}

/*
 * All chunks of the segment; by a warpgroup with 64 n of the head's state.  What each chunk's products wait for is the end
 * of the last one's: so a warpgroup looks for the next chunk before it multiplies, and stores and waits while it does.
 */
template <int COLUMNS>
static __device__ void multiply_item(const struct chunk_params &a, const struct heads_item<COLUMNS> &item)
{
	const int slice = item.head * (HEAD / SLICE) + threadIdx.x / 32 % 4, column = threadIdx.x / 128 * WIDTH;
	const int n_columns = a.layout.state, first = (item.part * COLUMNS + column) / 16;
	const int chunks = item.segment.chunks, kept = item.segment.kept_chunks;
	uint4 *to = states_of(a, item.segment.chunk, slice) + first * 32 + threadIdx.x % 32;
	const size_t step = (size_t)(a.layout.inner / SLICE) * (n_columns / 16) * 32;
	float *state = state_of(a, item.segment, slice);
	uint4 left[WIDTH / 16];
	float h[WIDTH / 2], decay;
	int n = 0;

	load_state<WIDTH>(state, n_columns, first, h);
	mbarrier_wait(&stage_of(item, 0).weighed, parity_of(0));
	decay = stage_of(item, 0).decay;
#pragma unroll 1
	for (int stop = kept;; stop = chunks) { /* the state behind `kept` leaves between these two, not in the loop */
#pragma unroll 1
		for (; n < stop; n++, to += step) {
			struct heads_stage<COLUMNS> &s = stage_of(item, n), &next = stage_of(item, n + 1);
			const uint64_t x = operand_across(s.x, HEAD * 16, 128);
			const uint64_t b = operand_across(s.b + core_place(0, column, COLUMNS), COLUMNS * 16, 128);
			const bool more = n + 1 < chunks;
			const bool there = !more || mbarrier_passed(&next.weighed, parity_of(n + 1));

			pack_state<WIDTH>(h, left);
#pragma unroll
			for (int i = 0; i < WIDTH / 2; i++)
				h[i] *= decay;
			settle(h);
			warpgroup_fence();
#pragma unroll
			for (int j = 0; j < TILES; j++)
				product_across(h, operand_behind(x, 2 * j * HEAD * 16),
					       operand_behind(b, 2 * j * COLUMNS * 16));
			warpgroup_commit();
			if (!there)
				mbarrier_wait(&next.weighed, parity_of(n + 1));
			if (more)
				decay = next.decay;
#pragma unroll
			for (int v = 0; v < WIDTH / 16; v++)
				to[v * 32] = left[v];
			warpgroup_wait<0>();
			settle(h);
			mbarrier_arrive(&s.done);
		}
		if (n == kept && n > 0)
			store_state<WIDTH>(state, n_columns, first, h);
		if (n == chunks)
			break;
	}
}

#endif

template <int COLUMNS>
static __global__ void __maxnreg__(REGISTERS) ssd_heads(const struct chunk_params a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(128) char shared[];
	struct heads_item<COLUMNS> item = { .stages = (struct heads_stage<COLUMNS> *)shared };
	const int heads = a.layout.heads, parts = a.layout.state / COLUMNS, warp = threadIdx.x / 32;

	if (threadIdx.x < STAGES) {
		mbarrier_init(&item.stages[threadIdx.x].full, 1);
		mbarrier_init(&item.stages[threadIdx.x].weighed, 128);
		mbarrier_init(&item.stages[threadIdx.x].done, 32 * multipliers(COLUMNS));
		mbarrier_init(&item.stages[threadIdx.x].empty, 1);
	}
	publish_to_async();
	__syncthreads();
	next_may_begin();
	if (blockIdx.x >= a.batch->n_segments * heads * parts)
		return;
	item.segment = a.batch->segments[blockIdx.x / (heads * parts)];
	item.segment.chunks = uniform(item.segment.chunks);
	item.segment.kept_chunks = uniform(item.segment.kept_chunks);
	item.head = blockIdx.x / parts % heads;
	item.group = item.head / (heads / a.layout.groups);
	item.part = blockIdx.x % parts;
	if (warp < multipliers(COLUMNS))
		multiply_item(a, item);
	else if (warp < multipliers(COLUMNS) + 4 * WEIGHERS)
		weigh_item(item);
	else if (warp < multipliers(COLUMNS) + 4 * WEIGHERS + FETCHERS)
		fetch_item(a, item);
	else if (threadIdx.x % 32 == 0)
		tell_item(a, item);
#endif
}

template <int COLUMNS> static constexpr size_t shared_of(void)
{
	return STAGES * sizeof(struct heads_stage<COLUMNS>);
}

template <int COLUMNS> static cudaError_t launch(const struct chunk_params &a, size_t blocks, cudaStream_t stream)
{
	return launch_early(true, ssd_heads<COLUMNS>, (unsigned)blocks, threads_of(COLUMNS), shared_of<COLUMNS>(),
			    stream, a);
}

bool chunk_heads_serves(const struct layout *layout, size_t segments, int processors)
{
	return layout->head_dim == HEAD && segments * (size_t)layout->heads <= (size_t)processors;
}

cudaError_t chunk_heads(const struct layout *layout, int layer, const struct chunk_buffers *buffers,
			const struct batch_view *batch, size_t segments, int processors, cudaStream_t stream)
{
	struct chunk_params a = { *layout, {}, *buffers, layer, batch };
	size_t heads = segments * (size_t)layout->heads, parts = (size_t)layout->state / 64;

	return parts == 1 || heads * parts <= (size_t)processors / 2 ? launch<64>(a, heads * parts, stream) :
								       launch<128>(a, heads, stream);
}

template <int COLUMNS> static cudaError_t setup(void)
{
	return cudaFuncSetAttribute(ssd_heads<COLUMNS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				    (int)shared_of<COLUMNS>());
}

cudaError_t chunk_heads_setup(void)
{
	cudaError_t status = setup<64>();

	return status != cudaSuccess ? status : setup<128>();
}
