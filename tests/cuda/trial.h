/*
 * Trials of kernels: device memory with guards around it, launches that wait, random numbers. Whatever goes
 * wrong ends the test. One device, one thread.
 */
#ifndef TESTS_CUDA_TRIAL_H
#define TESTS_CUDA_TRIAL_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/cuda/device.h"

enum { TRIAL_POISON = 0xcb };

/* Opens the device and prints the seed of this run's random numbers, CISTERN_TEST_SEED or the clock. Returns
 * 0, or what main is to return. */
int trial_begin(uint64_t *seed);
void trial_end(void);
const struct device *trial_device(void);

/* Memory that holds a copy, at so many bytes past an address aligned to 256, or poison, at such an address.
 */
void *trial_put(const void *data, size_t len, size_t offset);
void *trial_room(size_t len);
void trial_get(void *out, const void *from, size_t len);
/* The tear-down of every test: that nothing was written around what was handed out; then it is freed. */
int trial_release(void **state);

void trial_run(enum device_kernel kernel, const uint32_t grid[3], uint32_t block, uint32_t shared_bytes,
	const void *args);

/* A generator of random numbers (splitmix64), and numbers below n. */
static inline uint64_t trial_random(uint64_t *state)
{
	uint64_t x;

	*state += 0x9e3779b97f4a7c15u;
	x = *state;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static inline uint32_t trial_below(uint64_t *state, uint32_t n)
{
	return (uint32_t)((trial_random(state) >> 32) * n >> 32);
}

/* About normal, deviation 1. */
static inline float trial_normal(uint64_t *state)
{
	float sum = 0;

	for (int i = 0; i < 12; i++)
		sum += (float)(trial_random(state) >> 40) * 0x1p-24f;
	return sum - 6;
}

#endif
