#include "gpu/chunk.cuh"
#include "gpu/launch.cuh"

/*
 * B, C (and x) = silu(conv(...));  scores = C B^T;  dt = clamp(softplus(raw + dt_bias)) and the decay since the start
 *
 * A block takes a chunk and one of three kinds of work, the longest first: B and C of a group, and their scores; 256
 * columns of x; or the steps of 32 heads.  Where it convolves, a warp takes ROWS rows and 128 of 256 columns, a lane
 * four.  A block has eight warps of 16 rows each, or 16 of eight rows where there is so little work that no two blocks
 * share a processor.  Where there is much, x of many chunks, blocks stay, and bring the next chunk's rows to shared
 * memory while they are busy with one's.
 */
#define X_COLUMNS 256
#define STEP_HEADS 32
#define STEP_PITCH (STEP_HEADS + 8)              /* numbers of a row of raw steps */

/* Warps of a block. */
static constexpr __host__ __device__ int warps_of(int rows)
{
	return CHUNK_ROWS / rows * (X_COLUMNS / 128);
}

/*
 * Rows of warps meet in shared memory, to leave together: 256 columns in cores, as chunk.cuh orders them, but
 * further apart, which keeps the lanes of a warp off one bank.
 */
#define CORE_PITCH 72                          /* numbers from a core to its neighbour */
#define CORES_PITCH (X_COLUMNS / 8 * CORE_PITCH + 8) /* and to the next eight rows */
typedef bfloat16 staging[CHUNK_ROWS / 8 * CORES_PITCH];

struct prepare_memory {
	staging tile;
	__align__(16) bfloat16 raw[CHUNK_ROWS][STEP_PITCH]; /* steps as in_proj left them */
};

/* Rows of 256 columns as in_proj left them, and those before them. */
typedef bfloat16 raw_rows[TAPS - 1 + CHUNK_ROWS][X_COLUMNS];

#define MANY_THREADS (32 * warps_of(16))

struct prepare_many_memory {
	__align__(16) raw_rows rows[2]; /* of the chunk, and of the next, by turns */
	struct prepare_memory one;
};

static __device__ int staged(int row, int core)
{
	return row / 8 * CORES_PITCH + core * CORE_PITCH + row % 8 * 8;
}

/* A lane's share of the convolution: four columns of 256, from lane_column on, in ROWS rows of 64, from lane_row on. */
template <int ROWS> struct conv_lane {
	float rows[TAPS][4], weight[TAPS][4], bias[4]; /* the weights and the bias halved */
	uint2 ahead[ROWS];
};

template <int ROWS> static __device__ int lane_column(void)
{
	return threadIdx.x / 32 / (CHUNK_ROWS / ROWS) * 128 + threadIdx.x % 32 * 4;
}

template <int ROWS> static __device__ int lane_row(void)
{
	return threadIdx.x / 32 % (CHUNK_ROWS / ROWS) * ROWS;
}

static __device__ void load4(const float *from, float (&v)[4])
{
	*(float4 *)v = *(const float4 *)from;
}

static __device__ void load_half4(const float *from, float (&v)[4])
{
	load4(from, v);
#pragma unroll
	for (int i = 0; i < 4; i++)
		v[i] *= 0.5f;
}

static __device__ void unpack4(uint2 from, float (&v)[4])
{
	v[0] = first_of(from.x), v[1] = second_of(from.x), v[2] = first_of(from.y), v[3] = second_of(from.y);
}

/* Row r of the segment, four columns from c, as in_proj left it; rows before the segment come from the cache. */
static __device__ void conv_input(const struct chunk_params &a, const struct segment_view &s, int r, int c,
				  float (&v)[4])
{
	const struct layout &l = a.layout;

	if (r < 0)
		load4(conv_state_of(a, s, s.parity) + (size_t)(TAPS - 1 + r) * l.conv_cols + c, v);
	else
		unpack4(*(const uint2 *)((const bfloat16 *)a.buffers.proj + (size_t)(s.row + r) * l.proj_cols +
					 l.inner_cols + c), v);
}

/*
 * Load all that a lane needs for column c of the convolution and the three next ones; from raw if it is not NULL.
 */
template <int ROWS>
static __device__ void conv_begin(const struct chunk_params &a, const struct segment_view &s,
				  const struct chunk_view &k, int c, const raw_rows *raw, struct conv_lane<ROWS> &lane)
{
	const struct layout &l = a.layout;
	int from = lane_row<ROWS>(), column = lane_column<ROWS>();
	const bfloat16 *proj = (const bfloat16 *)a.buffers.proj + (size_t)(k.row + from) * l.proj_cols + l.inner_cols +
			       c;

#pragma unroll
	for (int i = 0; i < ROWS; i++)
		if (raw)
			lane.ahead[i] = *(const uint2 *)&(*raw)[TAPS - 1 + from + i][column];
		else
			lane.ahead[i] = from + i < k.rows ? *(const uint2 *)(proj + (size_t)i * l.proj_cols) :
							    make_uint2(0, 0);
#pragma unroll
	for (int i = 0; i < TAPS - 1; i++)
		if (raw && k.first + from + i >= TAPS - 1)
			unpack4(*(const uint2 *)&(*raw)[from + i][column], lane.rows[i]);
		else
			conv_input(a, s, min(k.first + from, s.rows) + i - (TAPS - 1), c, lane.rows[i]);
	load_half4(a.weights.conv_bias + c, lane.bias);
#pragma unroll
	for (int i = 0; i < TAPS; i++)
		load_half4(a.weights.conv + (size_t)i * l.conv_cols + c, lane.weight[i]);
}

/* The i_th of the lane's rows, as pairs of columns; zero behind the chunk's end. */
template <int ROWS>
static __device__ void conv_next(struct conv_lane<ROWS> &lane, int i, bool valid, uint32_t (&pairs)[2])
{
	float out[4];

	unpack4(lane.ahead[i], lane.rows[TAPS - 1]);
	convolve(lane.rows, lane.weight, lane.bias, out);
	shift(lane.rows);
	pairs[0] = valid ? pack2(out[0], out[1]) : 0;
	pairs[1] = valid ? pack2(out[2], out[3]) : 0;
}

/* The conv state behind the kept rows, four columns; by a warp of the block with the last kept chunk. */
template <int ROWS>
static __device__ void keep_conv(const struct chunk_params &a, const struct segment_view &s, int chunk, int c)
{
	float v[4];

	if (lane_row<ROWS>() > 0 || chunk != s.chunk + s.kept_chunks - 1)
		return;
	for (int i = 0; i < TAPS - 1; i++) {
		conv_input(a, s, s.kept - (TAPS - 1) + i, c, v);
		*(float4 *)(conv_state_of(a, s, 1 - s.parity) + (size_t)i * a.layout.conv_cols + c) = *(float4 *)v;
	}
}

/* Convolve the lane's columns, c on, to their places behind the 16 columns' core. */
template <int ROWS>
static __device__ void convolve_to(const struct chunk_params &a, const struct segment_view &s,
				   const struct chunk_view &k, int c, const raw_rows *raw, bfloat16 *tile)
{
	int from = lane_row<ROWS>(), core = lane_column<ROWS>() / 16 * 2, place = c % 16 / 2;
	struct conv_lane<ROWS> lane;

	conv_begin(a, s, k, c, raw, lane);
#pragma unroll
	for (int i = 0; i < ROWS; i++) {
		uint32_t pairs[2];

		conv_next(lane, i, from + i < k.rows, pairs);
		*(uint32_t *)(tile + staged(from + i, core) + place) = pairs[0];
		*(uint32_t *)(tile + staged(from + i, core + 1) + place) = pairs[1];
	}
}

/* Copy eights of rows and `cores` cores of each, from core `first` on, to where they lie close together; by THREADS. */
template <int THREADS>
static __device__ void leave(const bfloat16 *tile, int first, int cores, int eights, bfloat16 *to)
{
	for (int i = threadIdx.x % THREADS; i < eights * cores * 8; i += THREADS)
		*(uint4 *)(to + 8 * i) =
			*(const uint4 *)(tile + staged(i / (8 * cores) * 8 + i % 8, first + i / 8 % cores));
}

/* The same for x: two cores of each slice, which lie together; 128 threads take a slice. */
template <int ROWS>
static __device__ void leave_x(const bfloat16 *tile, int slices, int edge, bfloat16 *to)
{
	const int at_once = warps_of(ROWS) / 4, first = threadIdx.x / 128, i = threadIdx.x % 128;
	const bfloat16 *from = tile + staged(i / 16 * 8 + i % 8, 2 * first + i / 8 % 2);

	to += first * CHUNK_ROWS * SLICE + 8 * i;
	if (i >= 2 * edge * 16)
		return;
#pragma unroll
	for (int slice = 0; slice < X_COLUMNS / SLICE; slice += at_once)
		if (slice + first < slices)
			*(uint4 *)(to + slice * CHUNK_ROWS * SLICE) =
				*(const uint4 *)(from + slice * 2 * CORE_PITCH);
}

/* Start to copy raw steps of STEP_HEADS heads from `first`, a multiple of 8, on. */
static __device__ void fetch_steps(const struct chunk_params &a, const struct chunk_view &k, int first,
				   struct prepare_memory &s)
{
	const struct layout &l = a.layout;
	int r = threadIdx.x / (STEP_HEADS / 8), c = threadIdx.x % (STEP_HEADS / 8) * 8;

	if (r < k.rows && first + c < l.heads)
		copy16(&s.raw[r][c],
		       (const bfloat16 *)a.buffers.proj + (size_t)(k.row + r) * l.proj_cols + l.dt_col + first + c);
}

/* A head's steps: a lane has rows 2 lane and the next. */
struct lane_steps {
	float dt[2], since[2], last; /* last: since the start, of the chunk's last row */
};

static __device__ struct lane_steps head_steps(const struct chunk_params &a, const struct chunk_view &k, int head,
					       const bfloat16 *raw)
{
	const struct layout &l = a.layout;
	int lane = threadIdx.x % 32, r = 2 * lane;
	float slope = a.weights.a[head] * LOG2_E, bias = a.weights.dt_bias[head], sum;
	struct lane_steps s = { { 0.0f, 0.0f } };

	for (int j = 0; j < 2; j++)
		if (r + j < k.rows)
			s.dt[j] = time_step(widen(raw[(r + j) * STEP_PITCH]), bias, l.dt_min, l.dt_max);
	sum = s.dt[0] * slope + s.dt[1] * slope;
	for (int step = 1; step < 32; step *= 2) {
		float other = __shfl_up_sync(0xffffffff, sum, step);

		sum = lane >= step ? sum + other : sum;
	}
	s.since[0] = __shfl_up_sync(0xffffffff, sum, 1);
	s.since[0] = (lane > 0 ? s.since[0] : 0.0f) + s.dt[0] * slope;
	s.since[1] = sum;
	s.last = __shfl_sync(0xffffffff, k.rows % 2 ? s.since[0] : s.since[1], (k.rows - 1) / 2);
	return s;
}

/* What a row of the lane's weighs in the state's step. */
static __device__ float weight_of(const struct lane_steps &s, int j)
{
	return fast_exp2(s.last - s.since[j]) * s.dt[j];
}

template <int ROWS>
static __device__ void prepare_steps(const struct chunk_params &a, const struct chunk_view &k, int part,
				     struct prepare_memory &s)
{
	int first = part * STEP_HEADS, last = min(first + STEP_HEADS, a.layout.heads);
	int r = threadIdx.x % 32 * 2, rows = 16 * edge_of(k);

	fetch_steps(a, k, first, s);
	copies_close();
	copies_wait<0>();
	__syncthreads();
	for (int head = first + threadIdx.x / 32; head < last; head += warps_of(ROWS)) {
		const struct lane_steps v = head_steps(a, k, head, s.raw[0] + head - first);
		float *to = steps_of(a, k, head) + r;

		if (r >= rows)
			continue;
		*(float2 *)(to + STEP_SINCE * rows) = make_float2(v.since[0], v.since[1]);
		*(float2 *)(to + STEP_REACH * rows) = make_float2(fast_exp2(v.since[0]), fast_exp2(v.since[1]));
		*(float2 *)(to + STEP_SOURCE * rows) =
			make_float2(v.since[0] - fast_log2(v.dt[0]), v.since[1] - fast_log2(v.dt[1]));
		*(float2 *)(to + STEP_WEIGHT * rows) = make_float2(weight_of(v, 0), weight_of(v, 1));
	}
	__syncthreads();
}

template <int ROWS>
static __device__ void prepare_x(const struct chunk_params &a, const struct segment_view &segment,
				 const struct chunk_view &k, int chunk, int part, const raw_rows *raw, bfloat16 *tile)
{
	const struct layout &l = a.layout;
	int from = part * X_COLUMNS, columns = min(X_COLUMNS, l.inner - from), c = from + lane_column<ROWS>();
	int edge = edge_of(k);

	if (c < l.inner && lane_row<ROWS>() < 16 * edge) {
		convolve_to<ROWS>(a, segment, k, c, raw, tile);
		keep_conv<ROWS>(a, segment, chunk, c);
	}
	__syncthreads();
	leave_x<ROWS>(tile, columns / SLICE, edge, x_of(a, chunk, from / SLICE));
	__syncthreads();
}

/* Tile (i, j) of C B^T; a lane leaves its 8 numbers as it holds them. */
static __device__ void score(const bfloat16 *tile, int state, int i, int j, float *to)
{
	int lane = threadIdx.x % 32, c = state / 8; /* C's first core */
	float sum[2][4] = { { 0.0f } };

	for (int n = 0; n < state / 8; n += 2) {
		uint32_t left[4], right[4];

		tile_load(left, tile + staged(16 * i + lane % 16, c + n + lane / 16));
		tile_load(right, tile + staged(16 * j + lane % 8 + lane / 16 * 8, n + lane / 8 % 2));
		tile_product(sum[0], left, right[0], right[1]);
		tile_product(sum[1], left, right[2], right[3]);
	}
	*(float4 *)(to + lane * 4) = make_float4(sum[0][0], sum[0][1], sum[0][2], sum[0][3]);
	*(float4 *)(to + 128 + lane * 4) = make_float4(sum[1][0], sum[1][1], sum[1][2], sum[1][3]);
}

template <int ROWS>
static __device__ void prepare_bc(const struct chunk_params &a, const struct segment_view &s,
				  const struct chunk_view &k, int chunk, int group, const raw_rows *raw,
				  bfloat16 *tile)
{
	const struct layout &l = a.layout;
	int edge = edge_of(k), which = lane_column<ROWS>() / l.state; /* 0: B, 1: C */
	int c = l.inner_cols + (which * l.groups + group) * l.state + lane_column<ROWS>() % l.state;

	if (which < 2 && lane_row<ROWS>() < 16 * edge) {
		convolve_to<ROWS>(a, s, k, c, raw, tile);
		keep_conv<ROWS>(a, s, chunk, c);
	}
	__syncthreads();
	leave<32 * warps_of(ROWS)>(tile, 0, l.state / 8, 2 * edge, bc_of(a, k, group, 0));
	leave<32 * warps_of(ROWS)>(tile, l.state / 8, l.state / 8, 2 * edge, bc_of(a, k, group, 1));
	for (int t = threadIdx.x / 32; t < tiles_of(edge); t += warps_of(ROWS)) {
		int i = t >= 6 ? 3 : t >= 3 ? 2 : t >= 1 ? 1 : 0;

		score(tile, l.state, i, t - tiles_of(i), scores_of(a, k, group) + t * SCORE_TILE);
	}
	__syncthreads();
}

/* Parts of a chunk's work, of each kind. */
struct prepare_parts {
	int groups, x, steps;
};

static __host__ __device__ struct prepare_parts parts_of(const struct layout &l, bool with_x)
{
	return { l.groups, with_x ? (l.inner + X_COLUMNS - 1) / X_COLUMNS : 0,
		 (l.heads + STEP_HEADS - 1) / STEP_HEADS };
}

template <int ROWS, bool WITH_X>
static __global__ void __launch_bounds__(32 * warps_of(ROWS), ROWS == 8 ? 1 : 2)
prepare_chunks(const struct chunk_params a)
{
	__shared__ struct prepare_memory s;
	const struct prepare_parts parts = parts_of(a.layout, WITH_X);
	const int chunks = a.batch->n_chunks, wide = parts.groups + parts.x;

	previous_ended();
	next_may_begin(); /* only now: what follows at once already reads proj */
	for (int item = blockIdx.x; item < chunks * (wide + parts.steps); item += gridDim.x) {
		bool steps = item >= chunks * wide;
		int rest = steps ? item - chunks * wide : item, of = steps ? parts.steps : wide;
		int chunk = rest / of, part = rest % of;
		const struct chunk_view k = a.batch->chunks[chunk];

		if (steps)
			prepare_steps<ROWS>(a, k, part, s);
		else if (part < parts.groups)
			prepare_bc<ROWS>(a, a.batch->segments[k.segment], k, chunk, part, NULL, s.tile);
		else
			prepare_x<ROWS>(a, a.batch->segments[k.segment], k, chunk, part - parts.groups, NULL, s.tile);
	}
}

/* Column of the convolution behind that of a part's offset, of 256, or -1. */
static __device__ int part_column(const struct layout &l, const struct prepare_parts &parts, int part, int offset)
{
	int c = (part - parts.groups) * X_COLUMNS + offset, which = offset >= l.state;

	if (part >= parts.groups)
		return c < l.inner ? c : -1;
	return offset < 2 * l.state ? l.inner_cols + (which * l.groups + part) * l.state + offset - which * l.state : -1;
}

/* Start to copy a chunk's rows, and the three before it that are the segment's, of a part's columns. */
static __device__ void fetch_rows(const struct chunk_params &a, const struct prepare_parts &parts,
				  const struct chunk_view &k, int part, raw_rows &to)
{
	const struct layout &l = a.layout;
	const int offset = threadIdx.x % (X_COLUMNS / 8) * 8, c = part_column(l, parts, part, offset);
	const int at_once = MANY_THREADS / (X_COLUMNS / 8), first = threadIdx.x / (X_COLUMNS / 8) - (TAPS - 1);
	const bfloat16 *from = (const bfloat16 *)a.buffers.proj + (ptrdiff_t)(k.row + first) * l.proj_cols +
			       l.inner_cols + c;
	const uint32_t row = once(shared_address(&to[TAPS - 1 + first][offset]));

	if (c < 0)
		return;
#pragma unroll
	for (int r = 0; r < TAPS - 1 + CHUNK_ROWS; r += at_once, from = once(from + (size_t)at_once * l.proj_cols))
		if (first + r < k.rows && (r > 0 || k.first + first >= 0))
			copy16_to(row + r * (int)sizeof(to[0]), from);
}

/* A chunk and a part of its work, and those that are so many further. */
struct prepare_item {
	int chunk, part;
};

static __device__ struct prepare_item item_behind(struct prepare_item item, struct prepare_item step, int parts)
{
	item.chunk += step.chunk;
	item.part += step.part;
	if (item.part >= parts)
		item.chunk++, item.part -= parts;
	return item;
}

/* The same as prepare_chunks with x, of many chunks: blocks stay, and have the next rows on their way. */
static __global__ void __launch_bounds__(MANY_THREADS, 2) prepare_many(const struct chunk_params a)
{
	extern __shared__ __align__(16) char shared[];
	struct prepare_many_memory &s = *(struct prepare_many_memory *)shared;
	const struct prepare_parts parts = parts_of(a.layout, true);
	const int chunks = a.batch->n_chunks, wide = parts.groups + parts.x, blocks = gridDim.x, block = blockIdx.x;
	const struct prepare_item step = { blocks / wide, blocks % wide };
	const struct chunk_view *views = a.batch->chunks;
	struct prepare_item item = { block / wide, block % wide }, behind = item_behind(item, step, wide);
	const struct segment_view *segments = a.batch->segments;
	struct segment_view segment;
	struct chunk_view k, next;
	int current = -1; /* the segment that is loaded */

	if (chunks == 0)
		return;
	k = views[min(item.chunk, chunks - 1)];
	next = views[min(behind.chunk, chunks - 1)];
	previous_ended();
	next_may_begin(); /* only now: what follows at once already reads proj */
	if (item.chunk < chunks)
		fetch_rows(a, parts, k, item.part, s.rows[0]);
	copies_close();
	for (int turn = 0; item.chunk < chunks; turn = !turn) {
		const struct prepare_item later = item_behind(behind, step, wide);

		if (k.segment != current) {
			current = k.segment;
			segment = segments[current];
		}
		const struct chunk_view last = views[min(later.chunk, chunks - 1)];

		if (behind.chunk < chunks)
			fetch_rows(a, parts, next, behind.part, s.rows[!turn]);
		copies_close();
		copies_wait<1>();
		__syncthreads();
		if (item.part < parts.groups)
			prepare_bc<16>(a, segment, k, item.chunk, item.part, &s.rows[turn], s.one.tile);
		else
			prepare_x<16>(a, segment, k, item.chunk, item.part - parts.groups, &s.rows[turn], s.one.tile);
		item = behind, behind = later;
		k = next, next = last;
	}
	for (int i = block; i < chunks * parts.steps; i += blocks)
		prepare_steps<16>(a, views[i / parts.steps], i % parts.steps, s.one);
}

template <int ROWS, bool WITH_X>
static cudaError_t launch(const struct chunk_params &a, bool early, unsigned blocks, cudaStream_t stream)
{
	return launch_early(early, prepare_chunks<ROWS, WITH_X>, blocks, 32 * warps_of(ROWS), 0, stream, a);
}

cudaError_t chunk_prepare(const struct layout *layout, const struct layer_weights *weights, int layer,
			  const struct chunk_buffers *buffers, bool with_x, const struct batch_view *batch,
			  size_t chunks, bool early, int processors, cudaStream_t stream)
{
	struct chunk_params a = { *layout, *weights, *buffers, layer, batch };
	const struct prepare_parts parts = parts_of(*layout, with_x);
	size_t items = chunks * (size_t)(parts.groups + parts.x + parts.steps);
	unsigned blocks = (unsigned)(items < 1 << 16 ? items : 1 << 16);

	if (items <= (size_t)processors)
		return with_x ? launch<8, true>(a, early, blocks, stream) : launch<8, false>(a, early, blocks, stream);
	if (!with_x || !early)
		return with_x ? launch<16, true>(a, early, blocks, stream) : launch<16, false>(a, early, blocks, stream);
	blocks = blocks < 2 * (unsigned)processors ? blocks : 2 * (unsigned)processors;
	return launch_early(early, prepare_many, blocks, MANY_THREADS, sizeof(struct prepare_many_memory), stream, a);
}

cudaError_t chunk_prepare_setup(bool early)
{
	if (!early)
		return cudaSuccess; /* nor has every processor as much shared memory */
	return cudaFuncSetAttribute(prepare_many, cudaFuncAttributeMaxDynamicSharedMemorySize,
				    sizeof(struct prepare_many_memory));
}
