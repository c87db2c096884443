/* Which kernels this CPU can run: the tables of every instruction set in the build, best first. */
#include "model/cpu_kernels.h"

#include <string.h>

#define KERNELS(path, lanes, bfloat16)                                                                              \
	{                                                                                                           \
		.name = #path, .panel = CPU_PANEL_VECTORS * (lanes), .has_bfloat16 = (bfloat16),                    \
		.product = cpu_product_##path, .prepare = cpu_prepare_##path, .scale = cpu_scale_##path,            \
		.normalise = cpu_normalise_##path, .scan_inputs = cpu_scan_inputs_##path,                           \
		.scan_head = cpu_scan_head_##path                                                                   \
	}

static const struct cpu_kernels kernels[] = {
#if defined(CPU_X86)
	KERNELS(avx512bf16, 16, true),
	KERNELS(avx512, 16, false),
	KERNELS(avx2, 8, false),
#endif
	KERNELS(plain, 4, false),
};

static bool cpu_has(const char *path)
{
#if defined(CPU_X86)
	const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
	const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");

	if (!strcmp(path, "avx512bf16"))
		return avx512 && __builtin_cpu_supports("avx512bf16");
	if (!strcmp(path, "avx512"))
		return avx512;
	if (!strcmp(path, "avx2"))
		return avx2;
#endif
	return !strcmp(path, "plain");
}

int cpu_kernels_find(const char *name, const struct cpu_kernels **ret_kernels, struct error *err)
{
	for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
		if ((!name || !strcmp(name, kernels[i].name)) && cpu_has(kernels[i].name)) {
			*ret_kernels = &kernels[i];
			return 0;
		}
	return error_set(err, ERR_UNSUPPORTED, "this CPU or build has no kernels \"%s\"", name);
}

size_t cpu_scan_scratch(const struct cpu_scan *scan)
{
	const size_t chunk = CPU_CHUNK * scan->head_dim + CPU_CHUNK * CPU_CHUNK + (2 + CPU_BLOCK) * CPU_CHUNK +
			     scan->state_size * CPU_CHUNK + scan->state_size * scan->head_dim;
	const size_t pairs = CPU_CHUNK / 2 * scan->head_dim + scan->state_size / 2 * scan->head_dim;

	return chunk + pairs;
}
