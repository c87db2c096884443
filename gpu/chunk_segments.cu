#include "gpu/launch.cuh"
#include "gpu/segments.cuh"

/*
 * Whole segments on Hopper: x = silu(conv(...));
 *   y_i = 2^{l_i} h C_i + sum_{j <= i} (C_i B_j) 2^{l_i - l_j} dt_j x_j + D x_i,    gated = y * silu(z)
 *   h = 2^{l_last} h + sum_j 2^{l_last - l_j} dt_j x_j B_j^T
 *
 * A block stays on its processor and takes one item after another: three neighbouring heads of one group, or one,
 * from a segment's first chunk to its last.  Each of its three warpgroups convolves the columns of a head, keeps its
 * state, 64 p x N n, in registers, and a bfloat16 copy of it in shared memory as an operand.  B, C and the scores are
 * shared.  All copies run ahead: the next chunk's, and the next item's state and weights.  What the warpgroups share is
 * fetched anew by the last of them that has done with it, so that none waits for the others.  The products add up in
 * the order of chunk_states and chunk_outputs: the same bits.
 */

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* How far a warpgroup is: items and chunks of the block, and those of them that it had columns in (modulo 2). */
struct progress {
	int items;
	unsigned chunks : 1, own_items : 1, own_chunks : 1;
};

/* Of the warpgroup. */
template <int N>
static __device__ struct group_memory<N> &own_memory(struct segments_memory<N> &s)
{
	return s.group[threadIdx.x / GROUP_THREADS];
}

/* The item of the next chunk; more: there is another in this item. */
template <int N>
static __device__ const struct item &next_item(const struct group_memory<N> &m, const struct progress &at, bool more)
{
	return m.items[(at.items + !more) % 2];
}

template <int N>
static __device__ const struct chunk_view &next_view(const struct group_memory<N> &m, const struct progress &at)
{
	return m.views[(at.chunks + 1) % 2];
}

/*
 * What will be needed next: the view of the chunk behind number n of the item, or if that is its last, of the next
 * item's first; and with its first chunk, the next item and its states.  By the warpgroup's first thread.
 */
template <int N>
static __device__ void look_ahead(const struct chunk_params &a, struct group_memory<N> &m, const struct progress &at,
				  int n)
{
	const struct item &item = m.items[at.items % 2];
	struct item &following = m.items[(at.items + 1) % 2];
	struct chunk_view &view = m.views[(at.chunks + 1) % 2];

	if (n == 0 && !item.last) {
		find_item(a, at.items + 1, following);
		if (following.column >= 0)
			fetch_state(a, m, following);
	}
	if (n + 1 < item.segment.chunks)
		view = a.batch->chunks[item.segment.chunk + n + 1];
	else if (!item.last)
		view = a.batch->chunks[following.segment.chunk];
}

/* Start the warpgroup's own copies for the next chunk; by its first thread. */
template <int N>
static __device__ void fetch_ahead(const struct segments_params &a, struct group_memory<N> &m,
				   const struct progress &at, bool more)
{
	const struct item &item = next_item(m, at, more);

	if (item.column < 0)
		return;
	publish_to_async(); /* x has been read */
	fetch_raw(a, m, next_view(m, at), item.column, !more);
}

/*
 * The warpgroup needs c, or b with scores and steps, no more: whether it is the last one, which then fetches the next
 * chunk's.  By its first thread, behind a barrier of the warpgroup: so one arrival speaks for all of it.
 */
static __device__ bool leaves_last(uint64_t *done, const struct progress &at)
{
	if (!mbarrier_arrive_last(done))
		return false;
	mbarrier_wait(done, at.chunks % 2);
	publish_to_async(); /* scores and steps have been read, by all */
	return true;
}

/* One chunk, by a warpgroup that has columns; h comes and goes in registers and as a copy. */
template <int N>
static __device__ void run_chunk(const struct segments_params &a, struct segments_memory<N> &s, const struct item &item,
				 const struct progress &at, int n, float (&h)[N / 2])
{
	struct group_memory<N> &m = own_memory(s);
	const struct chunk_view &k = m.views[at.chunks % 2];
	const bool more = n + 1 < item.segment.chunks, ends = !more && item.last, first = group_thread() == 0;
	const int edge = uniform(edge_of(k)), parity = at.chunks % 2, use = at.own_chunks % 2;
	const float *steps = step_plane(s.steps, threadIdx.x / GROUP_THREADS, 16 * edge, STEP_SINCE);
	uint32_t left[CHUNK_ROWS / 16][4];
	float y[32], decay;

	mbarrier_wait(&s.c_full, parity);
	start_y<N>(s.c, m.h, y);
	mbarrier_wait(&m.raw_full, use);
	convolve_x(a, m, item.segment, item.column, n, k.rows);
	warpgroup_wait<0>();
	group_barrier(); /* x is there; nobody needs h's copy any more: z may take its place */
	if (first) {
		fetch_z(a, m, k, item.column, n == 0);
		look_ahead(a, m, at, n);
	}
	__syncwarp();
	mbarrier_wait(&s.b_full, parity);
	start_scores(s.scores, steps, item.d, m.x, edge, y);
	weigh_x(m.x, steps + STEP_WEIGHT * 16 * edge, edge, left);
	decay = steps[STEP_REACH * 16 * edge + k.rows - 1];
	warpgroup_wait<0>();
	group_barrier(); /* nobody needs x any more: raw may take its place; what comes next is known */
	if (first && !ends) {
		fetch_ahead(a, m, at, more);
		if (leaves_last(&s.c_done, at))
			fetch_c(a, s, next_item(m, at, more), next_view(m, at));
	}
	__syncwarp();
	start_h<N>(s.b, left, decay, edge, h);
	mbarrier_wait(&m.z_full, use);
	finish_y(a, m, item.column, k, y);
	warpgroup_wait<0>();
	group_barrier(); /* nobody needs z any more: h may take its place */
	if (first && !ends && leaves_last(&s.b_done, at))
		fetch_b(a, s, next_item(m, at, more), next_view(m, at));
	__syncwarp();
}

/* A chunk of an item in which the warpgroup has no columns: its first thread counts for it. */
template <int N>
static __device__ void skip_chunk(const struct segments_params &a, struct segments_memory<N> &s,
				  const struct item &item, const struct progress &at, int n)
{
	struct group_memory<N> &m = own_memory(s);
	const bool more = n + 1 < item.segment.chunks, ends = !more && item.last;

	if (group_thread() == 0) {
		look_ahead(a, m, at, n);
		if (!ends) {
			fetch_ahead(a, m, at, more);
			mbarrier_wait(&s.c_full, at.chunks % 2); /* not to count for the chunk before */
			if (leaves_last(&s.c_done, at))
				fetch_c(a, s, next_item(m, at, more), next_view(m, at));
			mbarrier_wait(&s.b_full, at.chunks % 2);
			if (leaves_last(&s.b_done, at))
				fetch_b(a, s, next_item(m, at, more), next_view(m, at));
		}
	}
	__syncwarp();
	group_barrier(); /* what comes next is known */
}

/* One item, from its first chunk to its last. */
template <int N>
static __device__ void run_item(const struct segments_params &a, struct segments_memory<N> &s, struct progress &at)
{
	struct group_memory<N> &m = own_memory(s);
	const struct item &item = m.items[at.items % 2];
	const bool active = item.column >= 0;
	float h[N / 2];

	if (active) {
		mbarrier_wait(&m.state_full, at.own_items++ % 2);
		load_h<N>(m.state, h);
		copy_h<N>(h, m.h);
	}
	group_barrier(); /* the state is in registers, its copy is there */
	for (int n = 0; n < item.segment.chunks; n++, at.chunks++) {
		if (!active) {
			skip_chunk(a, s, item, at, n);
			continue;
		}
		run_chunk(a, s, item, at, n, h);
		at.own_chunks++;
		if (n + 1 == item.segment.kept_chunks)
			store_h<N>(state_of(a, item.segment, 0) + (size_t)item.column * N, h);
		if (n + 1 < item.segment.chunks) {
			copy_h<N>(h, m.h);
			group_barrier();
		}
	}
	at.items++;
}

template <int N> static __device__ void set_barriers(struct segments_memory<N> &s)
{
	mbarrier_init(&s.c_full, 1);
	mbarrier_init(&s.b_full, 1);
	mbarrier_init(&s.c_done, GROUPS);
	mbarrier_init(&s.b_done, GROUPS);
	for (int i = 0; i < GROUPS; i++) {
		mbarrier_init(&s.group[i].state_full, 1);
		mbarrier_init(&s.group[i].raw_full, 1);
		mbarrier_init(&s.group[i].z_full, 1);
	}
	publish_to_async();
}

/* Start the copies that a block's first chunk waits for. */
template <int N>
static __device__ void begin(const struct segments_params &a, struct segments_memory<N> &s)
{
	struct group_memory<N> &m = own_memory(s);
	struct item &item = m.items[0];

	if (threadIdx.x == 0)
		set_barriers(s);
	if (group_thread() == 0) {
		find_item(a, 0, item);
		m.views[0] = a.batch->chunks[item.segment.chunk];
	}
	__syncthreads();
	if (group_thread() == 0 && item.column >= 0) {
		fetch_state(a, m, item);
		fetch_raw(a, m, m.views[0], item.column, true);
	}
	previous_ended();
	if (threadIdx.x == 0) {
		fetch_c(a, s, item, m.views[0]);
		fetch_b(a, s, item, m.views[0]);
	}
}

#endif

template <int N>
static __global__ void __launch_bounds__(GROUPS *GROUP_THREADS, 1)
ssd_segments(const __grid_constant__ struct segments_params a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(128) char shared[];
	struct segments_memory<N> &s = *(struct segments_memory<N> *)shared;
	struct progress at = { 0, 0, 0, 0 };

	if (blockIdx.x >= divide(a).items)
		return;
	begin(a, s);
	do
		run_item(a, s, at);
	while (!own_memory(s).items[(at.items - 1) % 2].last);
#endif
}

bool chunk_segments_serves(const struct layout *layout)
{
	return layout->head_dim == GROUP_COLUMNS;
}

cudaError_t chunk_segments(const struct layout *layout, const struct layer_weights *weights, int layer,
			   const struct chunk_buffers *buffers, const CUtensorMap *proj_boxes,
			   const struct batch_view *batch, size_t segments, int processors, cudaStream_t stream)
{
	struct segments_params a = { { *layout, *weights, *buffers, layer, batch }, *proj_boxes };
	size_t heads = segments * (size_t)layout->heads;
	unsigned blocks = (unsigned)(heads < (size_t)processors ? heads : (size_t)processors);

	return layout->state == 64 ? launch_early(true, ssd_segments<64>, blocks, GROUPS * GROUP_THREADS,
						  sizeof(struct segments_memory<64>), stream, a) :
				     launch_early(true, ssd_segments<128>, blocks, GROUPS * GROUP_THREADS,
						  sizeof(struct segments_memory<128>), stream, a);
}

cudaError_t chunk_segments_setup(void)
{
	cudaError_t status = cudaFuncSetAttribute(ssd_segments<64>, cudaFuncAttributeMaxDynamicSharedMemorySize,
						  sizeof(struct segments_memory<64>));

	if (status != cudaSuccess)
		return status;
	return cudaFuncSetAttribute(ssd_segments<128>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				    sizeof(struct segments_memory<128>));
}
