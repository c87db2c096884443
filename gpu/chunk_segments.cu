#include "gpu/chunk_output.cuh"

/*
 * Whole segments: x = silu(conv(...));  y as in chunk_output.cuh;
 *   h = 2^{l_last} h + sum_j 2^{l_last - l_j} dt_j x_j B_j^T
 *
 * A block of eight warps takes eight neighbouring slices of one group, which share B, C and the scores, from the
 * segment's first chunk to its last.  A warp convolves its slice, and keeps its state, 16 p x N n, in registers.  The
 * sum over a chunk's rows starts from zero, so that chunk_states, which cuts the work otherwise, gets the same bits.
 */
#define RAW_TILE (CHUNK_ROWS / 8 * 144) /* numbers: 8 rows of 16, then 16 that keep lanes 8 rows apart off one bank */
#define HALO (TAPS - 1)

/* A warp's shared memory for the convolution. */
struct conv_memory {
	bfloat16 raw[RAW_TILE];       /* its slice of proj's x */
	float halo[2][HALO][SLICE];   /* the rows before the chunk, and before the next one */
	float weight[TAPS + 1][SLICE]; /* and bias */
};

template <int N> struct segment_memory {
	struct chunk_memory<N> chunk;
	struct conv_memory conv[BLOCK_SLICES];
};

static __device__ int raw_place(int row)
{
	return row / 8 * 144 + row % 8 * SLICE;
}

static __device__ void fetch_raw(const struct chunk_params &a, const struct chunk_view &k, int slice, bfloat16 *raw)
{
	const struct layout &l = a.layout;
	int lane = threadIdx.x % 32, half = lane % 2 * 8;
	const bfloat16 *from = (const bfloat16 *)a.buffers.proj + (size_t)k.row * l.proj_cols + l.inner_cols +
			       slice * SLICE + half;

#pragma unroll
	for (int i = 0; i < CHUNK_ROWS / 16; i++) {
		int r = 16 * i + lane / 2;

		if (16 * i < k.rows)
			copy16_or_zero(raw + raw_place(r) + half, from + (r < k.rows ? (size_t)r * l.proj_cols : 0),
				       r < k.rows);
	}
}

/* What the first chunk's convolution needs from weights and cache. */
static __device__ void conv_setup(const struct chunk_params &a, const struct segment_view &segment, int slice,
				  struct conv_memory &m)
{
	const struct layout &l = a.layout;
	const float *state = conv_state_of(a, segment, segment.parity) + slice * SLICE;

	for (int i = threadIdx.x % 32; i < (TAPS + 1) * SLICE; i += 32) {
		int row = i / SLICE, c = slice * SLICE + i % SLICE;

		m.weight[row][i % SLICE] = row < TAPS ? a.weights.conv[(size_t)row * l.conv_cols + c] :
							a.weights.conv_bias[c];
		if (row < HALO)
			m.halo[0][row][i % SLICE] = state[(size_t)row * l.conv_cols + i % SLICE];
	}
}

static __device__ float4 raw_row(const struct conv_memory &m, int row, int column)
{
	uint2 v = *(const uint2 *)(m.raw + raw_place(row) + column);

	return make_float4(first_of(v.x), second_of(v.x), first_of(v.y), second_of(v.y));
}

/* raw -> the tile of x; a lane takes 8 rows of 4 columns.  Leaves the halo of the next chunk. */
static __device__ void convolve_slice(struct conv_memory &m, int turn, int n, bfloat16 *x)
{
	int group = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 4;
	float rows[TAPS][4], weight[TAPS][4], bias[4], out[4];

	if (8 * group < (n + 15) / 16 * 16) {
#pragma unroll
		for (int i = 0; i < TAPS; i++)
			*(float4 *)weight[i] = *(const float4 *)&m.weight[i][column];
		*(float4 *)bias = *(const float4 *)&m.weight[TAPS][column];
#pragma unroll
		for (int i = 0; i < HALO; i++)
			*(float4 *)rows[i] = group == 0 ? *(const float4 *)&m.halo[turn][i][column] :
							  raw_row(m, 8 * group - HALO + i, column);
#pragma unroll
		for (int i = 0; i < 8; i++) {
			*(float4 *)rows[HALO] = raw_row(m, 8 * group + i, column);
			convolve(rows, weight, bias, out);
			shift(rows);
			*(uint32_t *)(x + x_place(8 * group + i, column / 2)) = pack2(out[0], out[1]);
			*(uint32_t *)(x + x_place(8 * group + i, 8 + column / 2)) = pack2(out[2], out[3]);
		}
	}
	if (group < HALO) {
		int r = n - HALO + group;

		*(float4 *)&m.halo[!turn][group][column] =
			r >= 0 ? raw_row(m, r, column) : *(const float4 *)&m.halo[turn][HALO + r][column];
	}
	__syncwarp();
}

/* The halo behind the last kept chunk is the stream's next conv state. */
static __device__ void keep_conv(const struct chunk_params &a, const struct segment_view &segment, int slice,
				 const struct conv_memory &m, int turn)
{
	int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 4;
	float *to = conv_state_of(a, segment, 1 - segment.parity) + slice * SLICE + column;

	if (row < HALO)
		*(float4 *)(to + (size_t)row * a.layout.conv_cols) = *(const float4 *)&m.halo[turn][row][column];
}

/* h = decay h + sum_j weight_j x_j B_j^T over the chunk's rows */
template <int N>
static __device__ void advance(const bfloat16 *b, const bfloat16 *x, const float *weight, int edge, float decay,
			       float (&h)[N / 8][4])
{
	int lane = threadIdx.x % 32;
	uint32_t left[CHUNK_ROWS / 16][4], right[4];

#pragma unroll
	for (int j = 0; j < CHUNK_ROWS / 16; j++)
		if (j < edge)
			load_weighted_x(x, weight, j, left[j]);
#pragma unroll
	for (int v = 0; v < N / 16; v++) {
		float sum[2][4] = { { 0.0f } };

#pragma unroll
		for (int j = 0; j < CHUNK_ROWS / 16; j++) {
			if (j >= edge)
				break;
			tile_load_transposed(right, b + (16 * j + lane % 16) * (N + BC_PAD) + 16 * v + lane / 16 * 8);
			tile_product(sum[0], left[j], right[0], right[1]);
			tile_product(sum[1], left[j], right[2], right[3]);
		}
#pragma unroll
		for (int u = 0; u < 2; u++)
#pragma unroll
			for (int e = 0; e < 4; e++)
				h[2 * v + u][e] = fmaf(decay, h[2 * v + u][e], sum[u][e]);
	}
}

/* Between the cache's state [SLICE, N] and registers. */
template <int N> static __device__ void load_state(const float *state, float (&h)[N / 8][4])
{
	int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

#pragma unroll
	for (int v = 0; v < N / 16; v++)
#pragma unroll
		for (int half = 0; half < 2; half++) {
			float4 n = *(const float4 *)(state + slice_column(g, half) * N + 16 * v + 4 * q);

			h[2 * v][2 * half] = n.x, h[2 * v][2 * half + 1] = n.y;
			h[2 * v + 1][2 * half] = n.z, h[2 * v + 1][2 * half + 1] = n.w;
		}
}

template <int N> static __device__ void store_state(float *state, const float (&h)[N / 8][4])
{
	int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

#pragma unroll
	for (int v = 0; v < N / 16; v++)
#pragma unroll
		for (int half = 0; half < 2; half++)
			*(float4 *)(state + slice_column(g, half) * N + 16 * v + 4 * q) =
				make_float4(h[2 * v][2 * half], h[2 * v][2 * half + 1], h[2 * v + 1][2 * half],
					    h[2 * v + 1][2 * half + 1]);
}

/*
 * One segment.  Copies run behind the arithmetic: B and the next chunk's x and steps while y is computed, the next C and
 * scores while the state advances.
 */
template <int N>
static __device__ void run_segment(const struct chunk_params &a, struct segment_memory<N> &memory,
				   const struct chunk_place &p, const struct segment_view &segment)
{
	struct chunk_memory<N> &s = memory.chunk;
	struct conv_memory &m = memory.conv[threadIdx.x / 32];
	const struct chunk_view *chunks = a.batch->chunks + segment.chunk;
	const int n_chunks = segment.chunks, kept = segment.kept_chunks;
	bfloat16 *x = s.x[threadIdx.x / 32];
	float h[N / 8][4];

	fetch_bc<N>(a, chunks[0], p.group, 1, s.c);
	fetch_scores(a, chunks[0], p.group, s.scores);
	fetch_steps(a, chunks[0], p, s.steps[0]);
	fetch_raw(a, chunks[0], p.slice, m.raw);
	copies_close();
	conv_setup(a, segment, p.slice, m);
	load_state<N>(state_of(a, segment, p.slice), h);
	for (int n = 0; n < n_chunks; n++) {
		const struct chunk_view &k = chunks[n], &next = chunks[n + 1];
		bool more = n + 1 < n_chunks, moves = more || n + 1 == kept;
		const float *steps = s.steps[n % 2];

		copies_wait<0>();
		__syncthreads(); /* all has arrived; nobody needs B any more */
		if (moves)
			fetch_bc<N>(a, k, p.group, 0, s.b);
		copies_close();
		mask_scores<N>(a, s, p, steps, edge_of(k));
		convolve_slice(m, n % 2, k.rows, x);
		if (more) {
			fetch_raw(a, next, p.slice, m.raw);
			fetch_steps(a, next, p, s.steps[(n + 1) % 2]);
		}
		copies_close();
		__syncthreads(); /* the masked scores are there */
		if (p.active)
			output_chunk<N>(a, s, p, k, steps, h);
		copies_wait<1>();
		__syncthreads(); /* so is B; nobody needs C any more */
		if (more) {
			fetch_bc<N>(a, next, p.group, 1, s.c);
			fetch_scores(a, next, p.group, s.scores);
		}
		copies_close();
		add_squares<N>(a, s, p, k);
		if (moves)
			advance<N>(s.b, x, step_plane(steps, p.warp_head, 16 * edge_of(k), STEP_WEIGHT), edge_of(k),
				   step_plane(steps, p.warp_head, 16 * edge_of(k), STEP_REACH)[k.rows - 1], h);
		if (p.active && n + 1 == kept) {
			store_state<N>(state_of(a, segment, p.slice), h);
			keep_conv(a, segment, p.slice, m, (n + 1) % 2);
		}
	}
}

template <int N>
static __global__ void __launch_bounds__(BLOCK_THREADS, 2) ssd_segments(const struct chunk_params a)
{
	extern __shared__ __align__(16) char shared[];
	struct segment_memory<N> &memory = *(struct segment_memory<N> *)shared;
	int blocks = chunk_blocks(&a.layout), warp = threadIdx.x / 32, lane = threadIdx.x % 32;

	for (int item = blockIdx.x; item < a.batch->n_segments * blocks; item += gridDim.x) {
		struct chunk_place p = chunk_place_of(a.layout, item % blocks);

		if (lane < SLICE)
			memory.chunk.norm[warp][lane] = a.weights.gated_norm[p.slice * SLICE + lane];
		run_segment<N>(a, memory, p, a.batch->segments[item / blocks]);
		__syncthreads();
	}
}

cudaError_t chunk_segments(const struct layout *layout, const struct layer_weights *weights, int layer,
			   const struct chunk_buffers *buffers, const struct batch_view *batch, size_t segments,
			   cudaStream_t stream)
{
	struct chunk_params a = { *layout, *weights, *buffers, layer, batch };
	size_t items = segments * (size_t)chunk_blocks(layout);
	unsigned blocks = (unsigned)(items < 1 << 14 ? items : 1 << 14);

	if (layout->state == 64)
		ssd_segments<64><<<blocks, BLOCK_THREADS, sizeof(struct segment_memory<64>), stream>>>(a);
	else
		ssd_segments<128><<<blocks, BLOCK_THREADS, sizeof(struct segment_memory<128>), stream>>>(a);
	return cudaGetLastError();
}

cudaError_t chunk_segments_setup(void)
{
	cudaError_t status = cudaFuncSetAttribute(ssd_segments<64>, cudaFuncAttributeMaxDynamicSharedMemorySize,
						  sizeof(struct segment_memory<64>));

	if (status != cudaSuccess)
		return status;
	return cudaFuncSetAttribute(ssd_segments<128>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				    sizeof(struct segment_memory<128>));
}
