extern "C" {
#include "gpu/scan.h"
}
#include "gpu/launch.cuh"
#include "gpu/number.cuh"

/*
 * x, B, C = silu(conv(...));  h = h * exp(dt A) + dt x B;  y = h C + D x;  gated = y * silu(z)
 *
 * A block takes a head of a segment.  Its state stays in registers from the first row to the last: a warp owns some
 * rows p of the state [head_dim, state], a lane VECTOR columns n.  Rows go by in tiles of TILE: convolve them all, then
 * step through them, then gate them all.  COMMON: the compiler knows the sizes that nearly all models have.
 */
#define TILE 8
#define MAX_THREADS 512
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

struct scan_sizes {
	int head_dim, state, taps;
	int p_cols, n_cols, threads; /* of shared memory, and of the block */
};

template <int VECTOR, bool COMMON> static __host__ __device__ struct scan_sizes sizes_of(const struct layout &l)
{
	int rows = ROWS_OF(VECTOR), warps = COMMON ? 4 : (l.head_dim + rows - 1) / rows;

	return { COMMON ? 64 : l.head_dim, COMMON ? 128 : l.state_cols, COMMON ? 4 : l.taps, warps * rows, 32 * VECTOR,
		 32 * warps };
}

static bool is_common(const struct layout *l)
{
	return l->head_dim == 64 && l->state_cols == 128 && l->taps == 4;
}

/* What a block works on. */
struct scan_place {
	struct segment_view s;
	float *cache; /* of the layer */
	int head, group;
	bool first; /* of the group */
	float d;
};

/* A block's shared memory, for the rows of a tile; x and z are padded to whole warps. */
struct scan_tile {
	float *x, *z, *y;  /* [TILE, p_cols]; z behind its silu */
	float *b, *c;      /* [TILE, n_cols] */
	float *norm;       /* [p_cols]: gated_norm */
	float *dt, *decay; /* [TILE] */
};

static __device__ struct scan_tile tile_in(float *shared, const struct scan_sizes &z)
{
	struct scan_tile t;

	t.x = shared;
	t.z = t.x + TILE * z.p_cols;
	t.y = t.z + TILE * z.p_cols;
	t.b = t.y + TILE * z.p_cols;
	t.c = t.b + TILE * z.n_cols;
	t.norm = t.c + TILE * z.n_cols;
	t.dt = t.norm + z.p_cols;
	t.decay = t.dt + TILE;
	return t;
}

static size_t shared_bytes(const struct scan_sizes &z)
{
	return ((3 * TILE + 1) * z.p_cols + 2 * TILE * z.n_cols + 2 * TILE) * sizeof(float);
}

static __device__ float4 load4(const float *from)
{
	return *(const float4 *)from;
}

static __device__ float4 load4(const bfloat16 *from)
{
	uint2 v = *(const uint2 *)from;

	return make_float4(first_of(v.x), second_of(v.x), first_of(v.y), second_of(v.y));
}

static __device__ float4 silu4(float4 v)
{
	return make_float4(exact_silu(v.x), exact_silu(v.y), exact_silu(v.z), exact_silu(v.w));
}

/* What the convolution sees of four columns in row r of the segment; rows before it come from the cache. */
template <typename T>
static __device__ float4 conv_input(const struct scan_params &a, const struct scan_sizes &z,
				    const struct scan_place &p, int r, int c)
{
	const struct layout &l = a.layout;

	if (r < 0)
		return load4(p.cache + p.s.parity * l.conv_floats + (z.taps - 1 + r) * l.conv_cols + c);
	return load4((const T *)a.proj + (size_t)(p.s.row + r) * l.proj_cols + l.inner_cols + c);
}

template <typename T>
static __device__ float4 convolve(const struct scan_params &a, const struct scan_sizes &z, const struct scan_place &p,
				  int r, int c)
{
	const struct layout &l = a.layout;
	float4 sum = load4(a.weights.conv_bias + c);

#pragma unroll 4
	for (int k = 0; k < z.taps; k++) {
		float4 weight = load4(a.weights.conv + k * l.conv_cols + c);
		float4 v = conv_input<T>(a, z, p, r + k - z.taps + 1, c);

		sum.x = fmaf(weight.x, v.x, sum.x);
		sum.y = fmaf(weight.y, v.y, sum.y);
		sum.z = fmaf(weight.z, v.z, sum.z);
		sum.w = fmaf(weight.w, v.w, sum.w);
	}
	return silu4(sum);
}

/* The convolution's column of the head's i_th input: x of the head, then B and C of its group. */
static __device__ int conv_column(const struct layout &l, const struct scan_sizes &z, const struct scan_place &p, int i)
{
	if (i < z.head_dim)
		return p.head * z.head_dim + i;
	i -= z.head_dim;
	return l.inner_cols + (i < z.state ? p.group * z.state : (l.groups + p.group - 1) * z.state) + i;
}

/* x, B, C, z, dt and the decay in rows [from, from + rows) of the segment; a thread takes four columns at a time. */
template <typename T>
static __device__ void prepare_tile(const struct scan_params &a, const struct scan_sizes &z, const struct scan_place &p,
				    int from, int rows, const struct scan_tile &t)
{
	const struct layout &l = a.layout;
	const T *proj = (const T *)a.proj + (size_t)(p.s.row + from) * l.proj_cols, *gate = proj + p.head * z.head_dim;
	int conv = z.head_dim + 2 * z.state;

	for (int i = 4 * threadIdx.x; i < conv + z.head_dim; i += 4 * z.threads) {
		int c = conv_column(l, z, p, i), n = i - z.head_dim;
		bool wide = n >= 0 && i < conv;
		float *to = n < 0 ? t.x + i : n < z.state ? t.b + n : i < conv ? t.c + n - z.state : t.z + i - conv;

#pragma unroll 1
		for (int r = 0; r < rows; r++, to += wide ? z.n_cols : z.p_cols)
			*(float4 *)to = i < conv ? convolve<T>(a, z, p, from + r, c) :
						   silu4(load4(gate + r * l.proj_cols + i - conv));
	}
	int last = z.threads - 1 - threadIdx.x; /* the last threads convolve least */
	if (last < rows) {
		float raw = widen(proj[last * l.proj_cols + l.dt_col + p.head]);
		float dt = time_step(raw, a.weights.dt_bias[p.head], l.dt_min, l.dt_max);

		t.dt[last] = dt;
		t.decay[last] = expf(dt * a.weights.a[p.head]);
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
	if (VECTOR >= 4) {
#pragma unroll
		for (int i = 0; i + 3 < VECTOR; i += 4)
			store_whole(to + i, make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]));
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
static __device__ void step(float (&h)[ROWS][VECTOR], const struct scan_tile &t, const struct scan_sizes &z, int r)
{
	int lane = threadIdx.x % 32, first = threadIdx.x / 32 * ROWS;
	float dt = t.dt[r], decay = t.decay[r], b[VECTOR] = { 0.0f }, c[VECTOR] = { 0.0f }, x[ROWS], y[ROWS];

	if (lane * VECTOR < z.state) {
		load_vector<VECTOR>(t.b + r * z.n_cols + lane * VECTOR, b);
		load_vector<VECTOR>(t.c + r * z.n_cols + lane * VECTOR, c);
	}
#pragma unroll
	for (int i = 0; i < ROWS; i += 4)
		*(float4 *)(x + i) = *(const float4 *)(t.x + r * z.p_cols + first + i);
#pragma unroll
	for (int i = 0; i < ROWS; i++) {
		float dtx = dt * x[i];

		y[i] = 0.0f;
#pragma unroll
		for (int v = 0; v < VECTOR; v++) {
			h[i][v] = fmaf(h[i][v], decay, dtx * b[v]);
			y[i] = fmaf(h[i][v], c[v], y[i]);
		}
	}
	float sum = warp_sums(y);
	if (lane % (32 / ROWS) == 0)
		t.y[r * z.p_cols + first + lane / (32 / ROWS)] = sum;
}

/* y + D x, gated; a warp takes a row. */
template <typename T>
static __device__ void gate_tile(const struct scan_params &a, const struct scan_sizes &z, const struct scan_place &p,
				 int from, int rows, const struct scan_tile &t)
{
	const struct layout &l = a.layout;

	for (int r = threadIdx.x / 32; r < rows; r += z.threads / 32) {
		size_t row = p.s.row + from + r;
		T *to = (T *)a.gated + row * l.inner_cols + p.head * z.head_dim;
		float squares = 0.0f;

		for (int i = threadIdx.x % 32; i < z.head_dim; i += 32) {
			int at = r * z.p_cols + i;
			float gated = fmaf(p.d, t.x[at], t.y[at]) * t.z[at];

			squares = fmaf(gated, gated, squares);
			narrow(gated * t.norm[i], to + i);
		}
		squares = warp_sum(squares);
		if (threadIdx.x % 32 == 0)
			a.squares[row * l.heads + p.head] = squares;
	}
}

/* The conv state behind the kept rows: the head's x, and a group's B and C by its first head. */
template <typename T>
static __device__ void keep_conv(const struct scan_params &a, const struct scan_sizes &z, const struct scan_place &p)
{
	const struct layout &l = a.layout;
	float *to = p.cache + (1 - p.s.parity) * l.conv_floats;

	for (int i = 4 * threadIdx.x; i < z.head_dim + (p.first ? 2 * z.state : 0); i += 4 * z.threads) {
		int c = conv_column(l, z, p, i);

#pragma unroll 4
		for (int k = 0; k < z.taps - 1; k++)
			*(float4 *)(to + k * l.conv_cols + c) = conv_input<T>(a, z, p, p.s.kept - z.taps + 1 + k, c);
	}
}

/* All rows of the block's head: the first tile's loads and those of the state are under way together. */
template <typename T, int VECTOR, int ROWS>
static __device__ void run_head(const struct scan_params &a, const struct scan_sizes &z, const struct scan_place &p,
				const struct scan_tile &t)
{
	int lane = threadIdx.x % 32, first = threadIdx.x / 32 * ROWS;
	float h[ROWS][VECTOR], norm = 0.0f, *state = p.cache + 2 * a.layout.conv_floats +
						     (size_t)(p.head * z.head_dim + first) * z.state + lane * VECTOR;
	bool mine = lane * VECTOR < z.state;

	if (threadIdx.x < z.head_dim)
		norm = a.weights.gated_norm[p.head * z.head_dim + threadIdx.x];
#pragma unroll
	for (int i = 0; i < ROWS; i++) {
		for (int v = 0; v < VECTOR; v++)
			h[i][v] = 0.0f;
		if (mine && first + i < z.head_dim)
			load_vector<VECTOR>(state + i * z.state, h[i]);
	}
	previous_ended();
	for (int r = 0, rows; r < p.s.rows; r += rows) {
		rows = min(TILE, (r < p.s.kept ? p.s.kept : p.s.rows) - r);
		prepare_tile<T>(a, z, p, r, rows, t);
		if (r == 0 && threadIdx.x < z.head_dim)
			t.norm[threadIdx.x] = norm;
		__syncthreads();
#pragma unroll 1
		for (int i = 0; i < rows; i++)
			step(h, t, z, i);
		__syncthreads();
		if (r + rows == p.s.kept) {
#pragma unroll
			for (int i = 0; i < ROWS; i++)
				if (mine && first + i < z.head_dim)
					store_vector<VECTOR>(state + i * z.state, h[i]);
			keep_conv<T>(a, z, p);
		}
		gate_tile<T>(a, z, p, r, rows, t);
		__syncthreads();
	}
}

template <typename T, int VECTOR, bool COMMON>
static __global__ void __launch_bounds__(COMMON ? 128 : MAX_THREADS, COMMON ? 4 : 1)
scan_heads(const struct scan_params a)
{
	extern __shared__ __align__(16) float shared[];
	const struct layout &l = a.layout;
	const struct scan_sizes z = sizes_of<VECTOR, COMMON>(l);
	const struct scan_tile t = tile_in(shared, z);
	struct scan_place p = { .head = (int)blockIdx.x };

	next_may_begin();
	p.group = p.head / (l.heads / l.groups);
	p.first = p.head % (l.heads / l.groups) == 0;
	p.d = a.weights.d[p.head];
	for (int i = blockIdx.y; i < a.batch->n_segments; i += gridDim.y) {
		p.s = a.batch->segments[i];
		p.cache = p.s.cache + a.layer * l.layer_floats;
		run_head<T, VECTOR, ROWS_OF(VECTOR)>(a, z, p, t);
	}
}

template <typename T, int VECTOR, bool COMMON>
static cudaError_t launch(const struct scan_params *a, bool early, size_t segments, cudaStream_t stream)
{
	struct scan_sizes z = sizes_of<VECTOR, COMMON>(a->layout);
	dim3 grid((unsigned)a->layout.heads, (unsigned)(segments < 1 << 15 ? segments : 1 << 15));

	return launch_early(early, scan_heads<T, VECTOR, COMMON>, grid, z.threads, shared_bytes(z), stream, *a);
}

template <typename T>
static cudaError_t launch_for(const struct scan_params *a, bool early, size_t segments, cudaStream_t stream)
{
	int state = a->layout.state_cols;

	if (is_common(&a->layout))
		return launch<T, 4, true>(a, early, segments, stream);
	if (state <= 32)
		return launch<T, 1, false>(a, early, segments, stream);
	if (state <= 64)
		return launch<T, 2, false>(a, early, segments, stream);
	if (state <= 128)
		return launch<T, 4, false>(a, early, segments, stream);
	return launch<T, 8, false>(a, early, segments, stream);
}

cudaError_t scan(const struct layout *layout, const struct scan *args, bool to_bfloat16,
		 const struct batch_view *batch, size_t segments, cudaStream_t stream)
{
	struct scan_params a = {
		*layout, *args->weights, args->layer, args->proj, args->gated, args->squares, batch,
	};

	return to_bfloat16 ? launch_for<bfloat16>(&a, args->early, segments, stream) :
			     launch_for<float>(&a, args->early, segments, stream);
}
