/* Memory of the CPU back end: weights, activations and caches. */
#include "model/cpu_memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LINE ((size_t)64)
#define HUGE_PAGE ((size_t)2 << 20)
#define LEAST_HUGE (8 * HUGE_PAGE) /* less would waste much of its last page */

void *cpu_memory_new(size_t bytes)
{
	const size_t align = bytes >= LEAST_HUGE ? HUGE_PAGE : LINE;
	void *memory;

	if (bytes > SIZE_MAX - align)
		return NULL;
	bytes = (bytes + align - 1) & ~(align - 1);
	memory = aligned_alloc(align, bytes ? bytes : align);
	if (memory && align == HUGE_PAGE)
		madvise(memory, bytes, MADV_HUGEPAGE); /* only faster */
	return memory;
}

void *cpu_memory_zeroed(size_t bytes)
{
	void *memory = cpu_memory_new(bytes);

	return memory ? memset(memory, 0, bytes) : NULL;
}
