/*
 * Token statistics for the search for sinks (kernels.h, statistics), of any number of layers, planes and
 * chunks in one launch. An item is one layer of one plane of one chunk; its tokens lie in an engine's pages,
 * or in a copy of them, or anywhere else that strides describe.
 *
 * The results are the host backend's, bit for bit: the same sixteen partial sums, which sixteen lanes have
 * here, folded in the same order, and no product fused into a sum. (NaNs stay NaNs, but may carry other
 * payloads.)
 *
 * Traffic: 2 w bytes a token and layer in bf16, read once; 12 bytes written a head. The lanes of a group read
 * 32 consecutive bytes, whole sectors. Centre, weight and direction (12 w bytes an item), read once for
 * STATISTICS_TOKENS tokens, and the rotation's table (8 bytes a pair and token, for all heads and layers)
 * come from L1 and L2. Floor: bytes over bandwidth, 21 bytes a cycle and SM on 132 SMs at 4.8 TB/s and 1.7
 * GHz. Two things keep it from that. Issue: 14 instructions a feature with a rotation, 64 bytes for 32 lanes,
 * at 4 a cycle are 18 bytes a cycle. Latency: 80 registers leave 24 warps an SM, each with 8 loads of 64
 * bytes in flight, 12 KB in some 800 cycles: 15 bytes a cycle. The host's order of summation costs this:
 * loads of 16 bytes would keep more in flight, and would have a lane hold other features. Sink detection
 * looks at a few layers of a chunk, so the bits are worth more than the third. These are counts, not
 * measurements.
 */
#ifndef KERNELS_CUDA_STATISTICS_H
#define KERNELS_CUDA_STATISTICS_H

#include <stdint.h>

enum {
	STATISTICS_THREADS = 256,
	STATISTICS_LANES = 16, /* of a head of a token: its partial sums */
	STATISTICS_TOKENS = 4, /* that lanes have at a time, of one head */
	STATISTICS_ROWS = STATISTICS_THREADS / STATISTICS_LANES,
};

/* As struct plane has it (base/geometry.h). */
struct statistics_plane {
	uint32_t n_heads, dim, dtype, rope_kind, rope_offset, rope_dim;
	float rope_scale;
};

/* Device addresses; strides in bytes. Token t lies in block blocks[(offset + t) / block_tokens]; blocks NULL:
 * block (offset + t) / block_tokens itself. Every element is aligned to its size. */
struct statistics_item {
	const uint8_t *base;
	const uint32_t *blocks;
	uint64_t block_stride, token_stride, head_stride;
	uint32_t block_tokens, offset;
	uint32_t n_tokens;
	uint32_t plane;                           /* 0 or 1 */
	const float *cos, *sin;                   /* [n_tokens, rope_dim / 2]; NULL for a plane without */
	const float *centre, *weight, *direction; /* [n_heads, dim] */
	float *out; /* [n_tokens, n_heads, 3]: norm, distance, dot (struct token_statistic) */
};

struct statistics_tokens_args {
	const struct statistics_item *items; /* [n_items] */
	struct statistics_plane planes[2];
};

/* The launch: STATISTICS_THREADS threads, no dynamic shared memory. n_tokens: of the largest item; n_heads:
 * of the plane that has most. */
static inline void statistics_grid(uint32_t n_items, uint32_t n_tokens, uint32_t n_heads, uint32_t grid[3])
{
	const uint32_t rows = (n_tokens + STATISTICS_TOKENS - 1) / STATISTICS_TOKENS * n_heads;

	grid[0] = n_items;
	grid[1] = (rows + STATISTICS_ROWS - 1) / STATISTICS_ROWS;
	grid[2] = 1;
}

#endif
