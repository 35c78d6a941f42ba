/*
 * XXH3-64 of many byte ranges at once, the same as the xxhash library's: frames' sections are checksummed
 * with it where they lie. A warp has a range, XXH3_LANES lanes a block of 1 KiB of it, each with one of the
 * eight sums that XXH3 has: sums over a block are added to what came before, so four blocks are summed side
 * by side, and what is left to do one after the other is a product for each. Ranges begin at any byte and
 * have any length. The algorithm is specified by xxHash's doc/xxhash_spec.md.
 *
 * Traffic: every byte read once, 64 consecutive bytes by the lanes of a range; eight hashed bytes take a lane
 * some 12 instructions, 32 lanes 256 bytes: an SM of 4 schedulers gets through 85 bytes a cycle, 19 TB/s on
 * 132 SMs at 1.7 GHz, so memory is the floor: bytes over the device's read bandwidth, given loads enough in
 * flight. A lane has XXH3_AHEAD loads of 8 bytes in flight; 2,000 ranges have 4 MB then, more than bandwidth
 * times latency (4.8 TB/s, 0.7 us: 3.4 MB). A single range goes at 2 KiB a latency: hash many at once. A
 * range whose start is not a multiple of 8 has each word loaded twice, the second time from L1.
 */
#ifndef KERNELS_CUDA_XXH3_H
#define KERNELS_CUDA_XXH3_H

#include <stdint.h>

enum {
	XXH3_THREADS = 128,
	XXH3_LANES = 8,
	XXH3_RANGES = XXH3_THREADS / 32, /* of a block */
	XXH3_AHEAD = 8,                  /* loads of a lane in flight */
};

/* Of a range whose start is not a multiple of 8 whole aligned words are read: up to 7 bytes before it, none
 * after it. */
struct xxh3_range {
	const uint8_t *data;
	uint64_t len;
	uint64_t seed; /* 0 for what frames have of bodies */
};

/* Device addresses. */
struct xxh3_ranges_args {
	const struct xxh3_range *ranges; /* [n_ranges] */
	uint64_t *hashes;                /* [n_ranges] */
	uint32_t n_ranges;
};

/* The launch: XXH3_THREADS threads, no dynamic shared memory. */
static inline void xxh3_grid(uint32_t n_ranges, uint32_t grid[3])
{
	grid[0] = (n_ranges + XXH3_RANGES - 1) / XXH3_RANGES;
	grid[1] = grid[2] = 1;
}

#endif
