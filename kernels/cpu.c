/* Picks the host backend's variant for this machine. */
#include "kernels/kernels.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/variant.h"

#if defined(__x86_64__)
static int have_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
	       __builtin_cpu_supports("f16c");
}

static int have_avx512(void)
{
	return have_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const struct kernels *kernels_cpu(void)
{
	static const struct kernels *chosen;
	if (chosen)
		return chosen;
	/* Threads are per chunk: a second one inside a product costs more than it brings. */
	openblas_set_num_threads(1);
	const struct kernels *best = &kernels_generic;
#if defined(__x86_64__)
	const char *cap = getenv("CISTERN_CPU");
	if (!cap || strcmp(cap, "generic") != 0) {
		if (have_avx2())
			best = &kernels_avx2;
		if (have_avx512() && (!cap || strcmp(cap, "avx2") != 0))
			best = &kernels_avx512;
	}
#endif
	chosen = best;
	return chosen;
}
