/*
 * The kernel that device_new runs once, to learn at the start and not in the first request whether the device
 * runs what we carry: each thread writes a number that depends on who it is and on another lane of its warp.
 * Also the example of how a kernel is declared.
 */
#ifndef KERNELS_CUDA_PROBE_H
#define KERNELS_CUDA_PROBE_H

#include <stdint.h>

enum { PROBE_BLOCK = 128 };

struct probe_args {
	uint32_t *out; /* [n] */
	uint32_t n;
	uint32_t seed;
};

/* What out[i] is to be. */
static inline uint32_t probe_expected(uint32_t i, uint32_t seed)
{
	return ((i ^ 1u) * 2654435761u) ^ seed;
}

#endif
