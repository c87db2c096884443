extern "C" {
#include "gpu/scan.h"
}
#include "gpu/number.cuh"

/*
 * x, B, C = silu(conv(...));  h = h * exp(dt A) + dt x B;  y = h C + D x;  gated = y * silu(z)
 *
 * A block takes a head of a segment.  Its state stays in registers from the first row to the last: a warp owns some rows
 * p of the state [head_dim, state], a lane VECTOR columns n.  Rows go by in tiles of TILE: convolve them all, then
 * step through them, then gate them all.
 */
#define TILE 8
#define MAX_WARPS 16
#define ROWS_OF(vector) ((vector) == 8 ? 8 : 16) /* of the state, for each warp: 64 registers a lane at most */

struct scan_params {
	struct layout layout;
	struct layer_weights weights;
	int layer;
	const void *proj;
	void *gated;
	float *squares;
	const struct batch_view *batch;
};

/* A block's shared memory: columns of x (padded to whole warps), B and C for the rows of a tile. */
struct scan_tile {
	float *x, *b, *c; /* [TILE, p_cols], [TILE, n_cols] twice */
	float *y;         /* [TILE, p_cols] */
	float *dt, *decay;
	int p_cols, n_cols;
};

static __device__ struct scan_tile tile_in(float *shared, int p_cols, int n_cols)
{
	struct scan_tile t = { shared, shared, shared, shared, shared, shared, p_cols, n_cols };

	t.b = t.x + TILE * p_cols;
	t.c = t.b + TILE * n_cols;
	t.y = t.c + TILE * n_cols;
	t.dt = t.y + TILE * p_cols;
	t.decay = t.dt + TILE;
	return t;
}

static size_t shared_bytes(int p_cols, int n_cols)
{
	return (2 * TILE * p_cols + 2 * TILE * n_cols + 2 * TILE) * sizeof(float);
}

/* What the convolution sees of column c in row r of the segment; rows before it come from the cache. */
template <typename T>
static __device__ float conv_input(const struct scan_params &a, const struct segment_view &s, const float *cache,
				   int r, int c)
{
	const struct layout &l = a.layout;

	if (r < 0)
		return cache[s.parity * l.conv_floats + (size_t)(l.taps - 1 + r) * l.conv_cols + c];
	return widen(((const T *)a.proj)[(size_t)(s.row + r) * l.proj_cols + l.inner_cols + c]);
}

template <typename T>
static __device__ float convolve(const struct scan_params &a, const struct segment_view &s, const float *cache, int r,
				 int c)
{
	const struct layout &l = a.layout;
	float sum = a.weights.conv_bias[c];

	for (int k = 0; k < l.taps; k++)
		sum = fmaf(a.weights.conv[(size_t)k * l.conv_cols + c], conv_input<T>(a, s, cache, r + k - l.taps + 1, c),
			   sum);
	return exact_silu(sum);
}

/* Column c of a tile's n_th conv input: x of the head, then B and C of its group; and where it goes. */
static __device__ int conv_column(const struct layout &l, int head, int i)
{
	int group = head / (l.heads / l.groups);

	if (i < l.head_dim)
		return head * l.head_dim + i;
	i -= l.head_dim;
	if (i < l.state_cols)
		return l.inner_cols + group * l.state_cols + i;
	return l.inner_cols + (l.groups + group) * l.state_cols + i - l.state_cols;
}

template <typename T>
static __device__ void convolve_tile(const struct scan_params &a, const struct segment_view &s, const float *cache,
				     int head, int from, int rows, const struct scan_tile &t)
{
	const struct layout &l = a.layout;
	int columns = l.head_dim + 2 * l.state_cols;

	for (int i = threadIdx.x; i < columns; i += blockDim.x) {
		int c = conv_column(l, head, i), n = i - l.head_dim;

		for (int r = 0; r < rows; r++) {
			float v = convolve<T>(a, s, cache, from + r, c);

			if (n < 0)
				t.x[r * t.p_cols + i] = v;
			else if (n < l.state_cols)
				t.b[r * t.n_cols + n] = v;
			else
				t.c[r * t.n_cols + n - l.state_cols] = v;
		}
	}
	if (threadIdx.x < rows) {
		size_t at = (size_t)(s.row + from + threadIdx.x) * l.proj_cols + l.dt_col + head;
		float dt = time_step(widen(((const T *)a.proj)[at]), a.weights.dt_bias[head], l.dt_min, l.dt_max);

		t.dt[threadIdx.x] = dt;
		t.decay[threadIdx.x] = expf(dt * a.weights.a[head]);
	}
}

/* VECTOR neighbouring numbers, as wide as they come. */
template <int VECTOR> static __device__ void load_vector(const float *from, float v[VECTOR])
{
	if (VECTOR == 8) {
		load8(from, v);
	} else if (VECTOR == 4) {
		*(float4 *)v = *(const float4 *)from;
	} else {
		for (int i = 0; i < VECTOR; i++)
			v[i] = from[i];
	}
}

template <int VECTOR> static __device__ void store_vector(float *to, const float v[VECTOR])
{
	if (VECTOR == 8) {
		store8(to, v);
	} else if (VECTOR == 4) {
		*(float4 *)to = *(const float4 *)v;
	} else {
		for (int i = 0; i < VECTOR; i++)
			to[i] = v[i];
	}
}

/*
 * v[i] summed over the warp, for each of COUNT sums; lane l gets sum l * COUNT / 32.  Each exchange, with the lane left
 * away, halves the sums that a lane still has to carry.
 */
template <int COUNT> static __device__ float warp_sums(float (&v)[COUNT], int left = 16)
{
	float half[(COUNT + 1) / 2];
	bool upper = threadIdx.x & left;

	if constexpr (COUNT == 1) {
		for (; left > 0; left /= 2)
			v[0] += __shfl_xor_sync(0xffffffff, v[0], left);
		return v[0];
	} else {
#pragma unroll
		for (int i = 0; i < COUNT / 2; i++) {
			float low = v[i], high = v[i + COUNT / 2];

			half[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffff, upper ? low : high, left);
		}
		return warp_sums(half, left / 2);
	}
}

/* One row: the state's step and its product with C. */
template <int VECTOR, int ROWS>
static __device__ void step(float (&h)[ROWS][VECTOR], const struct scan_tile &t, int r, int columns)
{
	int lane = threadIdx.x % 32, first = threadIdx.x / 32 * ROWS;
	float dt = t.dt[r], decay = t.decay[r], b[VECTOR] = { 0.0f }, c[VECTOR] = { 0.0f }, y[ROWS];

	if (lane * VECTOR < columns) {
		load_vector<VECTOR>(t.b + r * t.n_cols + lane * VECTOR, b);
		load_vector<VECTOR>(t.c + r * t.n_cols + lane * VECTOR, c);
	}
#pragma unroll
	for (int i = 0; i < ROWS; i++) {
		float dtx = dt * t.x[r * t.p_cols + first + i];

		y[i] = 0.0f;
#pragma unroll
		for (int v = 0; v < VECTOR; v++) {
			h[i][v] = fmaf(h[i][v], decay, dtx * b[v]);
			y[i] = fmaf(h[i][v], c[v], y[i]);
		}
	}
	float sum = warp_sums(y);
	if (lane % (32 / ROWS) == 0)
		t.y[r * t.p_cols + first + lane / (32 / ROWS)] = sum;
}

/* y + D x, gated by z; a warp takes a row. */
template <typename T>
static __device__ void gate_tile(const struct scan_params &a, size_t row, int head, int rows,
				 const struct scan_tile &t)
{
	const struct layout &l = a.layout;
	const T *proj = (const T *)a.proj;
	float d = a.weights.d[head];

	for (int r = threadIdx.x / 32; r < rows; r += blockDim.x / 32) {
		float squares = 0.0f;

		for (int p = threadIdx.x % 32; p < l.head_dim; p += 32) {
			int c = head * l.head_dim + p;
			float y = fmaf(d, t.x[r * t.p_cols + p], t.y[r * t.p_cols + p]);
			float gated = y * exact_silu(widen(proj[(row + r) * l.proj_cols + c]));

			squares = fmaf(gated, gated, squares);
			narrow(gated * a.weights.gated_norm[c], (T *)a.gated + (row + r) * l.inner_cols + c);
		}
		squares = warp_sum(squares);
		if (threadIdx.x % 32 == 0)
			a.squares[(row + r) * l.heads + head] = squares;
	}
}

template <typename T, int VECTOR, int ROWS>
static __device__ void scan_rows(const struct scan_params &a, const struct segment_view &s, const float *cache,
				 int head, int from, int to, float (&h)[ROWS][VECTOR], const struct scan_tile &t)
{
	for (int r = from; r < to; r += TILE) {
		int rows = to - r < TILE ? to - r : TILE;

		convolve_tile<T>(a, s, cache, head, r, rows, t);
		__syncthreads();
		for (int i = 0; i < rows; i++)
			step(h, t, i, a.layout.state_cols);
		__syncthreads();
		gate_tile<T>(a, (size_t)(s.row + r), head, rows, t);
		__syncthreads();
	}
}

/* The conv state behind the kept rows: the head's x, and a group's B and C by its first head. */
template <typename T>
static __device__ void keep_conv(const struct scan_params &a, const struct segment_view &s, float *cache, int head)
{
	const struct layout &l = a.layout;
	bool first = head % (l.heads / l.groups) == 0;
	int columns = first ? l.head_dim + 2 * l.state_cols : l.head_dim;
	float *to = cache + (1 - s.parity) * l.conv_floats;

	for (int i = threadIdx.x; i < columns; i += blockDim.x) {
		int c = conv_column(l, head, i);

		for (int k = 0; k < l.taps - 1; k++)
			to[(size_t)k * l.conv_cols + c] = conv_input<T>(a, s, cache, s.kept - l.taps + 1 + k, c);
	}
}

template <typename T, int VECTOR>
static __global__ void __launch_bounds__(32 * MAX_WARPS) scan_heads(const struct scan_params a)
{
	extern __shared__ float shared[];
	constexpr int ROWS = ROWS_OF(VECTOR);
	const struct layout &l = a.layout;
	struct scan_tile t = tile_in(shared, blockDim.x / 32 * ROWS, 32 * VECTOR);
	int lane = threadIdx.x % 32, first = threadIdx.x / 32 * ROWS;

	for (int item = blockIdx.x; item < a.batch->n_segments * l.heads; item += gridDim.x) {
		const struct segment_view s = a.batch->segments[item / l.heads];
		int head = item % l.heads;
		float *cache = s.cache + a.layer * l.layer_floats, h[ROWS][VECTOR];
		float *state = cache + 2 * l.conv_floats + ((size_t)head * l.head_dim + first) * l.state_cols +
			       lane * VECTOR;
		bool mine = lane * VECTOR < l.state_cols;

#pragma unroll
		for (int i = 0; i < ROWS; i++) {
			for (int v = 0; v < VECTOR; v++)
				h[i][v] = 0.0f;
			if (mine && first + i < l.head_dim)
				load_vector<VECTOR>(state + i * l.state_cols, h[i]);
		}
		scan_rows<T>(a, s, cache, head, 0, s.kept, h, t);
		if (s.kept > 0) {
#pragma unroll
			for (int i = 0; i < ROWS; i++)
				if (mine && first + i < l.head_dim)
					store_vector<VECTOR>(state + i * l.state_cols, h[i]);
			keep_conv<T>(a, s, cache, head);
		}
		scan_rows<T>(a, s, cache, head, s.kept, s.rows, h, t);
	}
}

template <typename T, int VECTOR>
static cudaError_t launch(const struct scan_params *a, size_t segments, cudaStream_t stream)
{
	constexpr int rows = ROWS_OF(VECTOR);
	int warps = (a->layout.head_dim + rows - 1) / rows;
	size_t items = segments * (size_t)a->layout.heads, most = 1 << 15;
	unsigned blocks = (unsigned)(items < most ? items : most);

	scan_heads<T, VECTOR><<<blocks, 32 * warps, shared_bytes(warps * rows, 32 * VECTOR), stream>>>(*a);
	return cudaGetLastError();
}

template <typename T>
static cudaError_t launch_for(const struct scan_params *a, size_t segments, cudaStream_t stream)
{
	int state = a->layout.state_cols;

	if (state <= 32)
		return launch<T, 1>(a, segments, stream);
	if (state <= 64)
		return launch<T, 2>(a, segments, stream);
	if (state <= 128)
		return launch<T, 4>(a, segments, stream);
	return launch<T, 8>(a, segments, stream);
}

cudaError_t scan(const struct layout *layout, const struct scan *args, bool to_bfloat16,
		 const struct batch_view *batch, size_t segments, cudaStream_t stream)
{
	struct scan_params a = {
		*layout, *args->weights, args->layer, args->proj, args->gated, args->squares, batch,
	};

	return to_bfloat16 ? launch_for<bfloat16>(&a, segments, stream) : launch_for<float>(&a, segments, stream);
}
