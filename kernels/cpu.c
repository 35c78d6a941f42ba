/* Picks the host backend's variant for this machine. */
#include "kernels/kernels.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/variant.h"

size_t kernels_variants(const struct kernels *variants[3])
{
	size_t n = 0;
	variants[n++] = &kernels_generic;
#if defined(__x86_64__)
	const char *cap = getenv("CISTERN_CPU");
	if (cap && strcmp(cap, "generic") == 0)
		return n;
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
		return n;
#if !defined(__clang__) /* clang 14 does not know the name; there is no processor with AVX2 and without it   \
			 */
	if (!__builtin_cpu_supports("f16c"))
		return n;
#endif
	variants[n++] = &kernels_avx2;
	if (cap && strcmp(cap, "avx2") == 0)
		return n;
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
		variants[n++] = &kernels_avx512;
#endif
	return n;
}

const struct kernels *kernels_cpu(void)
{
	static const struct kernels *chosen;
	if (!chosen) {
		/* Threads are per chunk: a second one inside a product costs more than it brings. */
		openblas_set_num_threads(1);
		const struct kernels *variants[3];
		chosen = variants[kernels_variants(variants) - 1];
	}
	return chosen;
}
