/* Choosing among the cpu back end's instruction sets: see cpu_paths.h. */
#include "tests/cpu_paths.h"

#include <stdlib.h>

#include "model/cpu_kernels.h"
#include "tests/stream.h"

#define KERNELS "MAMBA2D_CPU_KERNELS"

const char *const cpu_paths[CPU_PATHS] = { "plain", "avx2", "avx512", "avx512bf16" };

bool cpu_paths_choose(const char *path)
{
	const struct cpu_kernels *kernels;

	if (cpu_kernels_find(path, &kernels, NULL))
		return false;
	setenv(KERNELS, path, 1);
	return true;
}

void cpu_paths_forget(void)
{
	unsetenv(KERNELS);
}

struct device *cpu_paths_open(const struct model *model, enum precision precision, size_t window, size_t threads)
{
	const int outputs[] = { OUTPUT_FINAL };
	const struct device_options options = {
		.precision = precision, .threads = threads, .window = window, .outputs = outputs, .n_outputs = 1
	};

	return stream_device("cpu", model, &options);
}
