/*
 * Device code: a kernel that follows the one ahead chunk by chunk while both run.  The one ahead counts, for each chunk,
 * what it has done; the one behind waits for all of it.  It began early (launch.cuh), so all blocks that it waits for
 * have begun, and none keeps another from running.
 */
#ifndef GPU_FOLLOW_CUH
#define GPU_FOLLOW_CUH

/* So much more is done of each of n chunks: all that this thread wrote, or knows by a barrier to be written. */
static __device__ inline void tell(unsigned *done, int n, unsigned more)
{
	asm volatile("fence.acq_rel.gpu;" ::: "memory");
	for (int i = 0; i < n; i++)
		asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(done + i), "r"(more) : "memory");
}

/* Wait until so much is done of a chunk, and may be read. */
static __device__ inline void hear(const unsigned *done, unsigned all)
{
	unsigned now;

	do
		asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(done) : "memory");
	while (now < all);
}

/* One of `hearers` will not ask again for this chunk; the last of them sets it back. */
static __device__ inline void forget(unsigned *done, unsigned all, unsigned hearers)
{
	if (atomicAdd(done, 1) + 1 == all + hearers)
		*done = 0;
}

#endif
