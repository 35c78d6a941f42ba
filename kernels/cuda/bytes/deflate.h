/*
 * Raw DEFLATE (RFC 1951) of many independent byte streams at once, one thread block each: what zlib inflates.
 * Literals only: matches would add next to nothing (docs/cuda-kernels.md has the figures). A stream is cut
 * into DEFLATE blocks of DEFLATE_BLOCK_BYTES, so that the codes follow what changes along it; each block is
 * stored, or has the fixed codes, or codes of its own, whichever is smallest.
 *
 * Traffic: n bytes read twice (counting, then coding, when they are in L1 or L2), the output written once.
 * The floor is far from memory's: 20 GB/s are 0.089 bytes a cycle and SM (132 SMs at 1.7 GHz), 46 thousand
 * cycles of an SM for a block of 4 KiB. What a block costs its thread block:
 * - counting: 128 warp-wide additions to shared memory, each about as many cycles as its most frequent byte
 * has lanes (5 to 10), and as many look-ups in the code table, twice, with some 50 additions to the staged
 * words of a few cycles each: 3 thousand cycles of the SM's shared-memory pipe;
 * - ranks and codes: two loops over 257 symbols by 128 threads, some 4 thousand cycles of issue;
 * - one thread makes the Huffman tree, in up to 256 steps of some 100 cycles and as many of some 130 for the
 *   depths; and the runs of the header, 258 steps of some 45: 70 thousand cycles of latency when all 256
 * values occur, during which the SM's other thread blocks work. 10 thread blocks fit an SM (48 registers a
 * thread, 10 KB of shared memory): 10 blocks in 80 thousand cycles, 0.5 bytes a cycle, 110 GB/s on 132 SMs;
 * with fewer streams than 10 an SM, in proportion: 240 streams are 20 GB/s. These are counts, not
 * measurements.
 */
#ifndef KERNELS_CUDA_DEFLATE_H
#define KERNELS_CUDA_DEFLATE_H

#include <stdint.h>

enum {
	DEFLATE_THREADS = 128,
	DEFLATE_BLOCK_BYTES = 4096,
	DEFLATE_ALIGN = 16, /* of out; in may lie anywhere, aligned to this it is read faster */
};

enum deflate_status {
	DEFLATE_DONE = 0,
	DEFLATE_OVERFLOW = 1,   /* the room is too small */
	DEFLATE_DAMAGED = 2,    /* inflate: not a DEFLATE stream */
	DEFLATE_CUT_SHORT = 3,  /* inflate: the stream goes on where the input ends */
	DEFLATE_MISALIGNED = 4, /* out is not aligned to DEFLATE_ALIGN; nothing was done */
};

/* One stream, either way. Nothing outside in[0 .. in_bytes) is read, nothing outside out[0 .. room) is
 * written. */
struct deflate_stream {
	const uint8_t *in;
	uint8_t *out;
	uint32_t in_bytes;
	uint32_t room;
};

struct deflate_result {
	uint32_t status; /* enum deflate_status */
	/* Bytes of output. When deflating ends with DEFLATE_OVERFLOW: the room that it would have taken; what
	 * is in out then is of no use. */
	uint32_t out_bytes;
	uint32_t in_bytes; /* bytes of input that the stream took; deflating: all of them */
	uint32_t reserved;
};

/* Device addresses. */
struct deflate_streams_args {
	const struct deflate_stream *streams; /* [n_streams] */
	struct deflate_result *results;       /* [n_streams] */
	uint32_t n_streams;
};

/* No stream of in_bytes, under 2^28, deflates to more. */
static inline uint32_t deflate_room(uint32_t in_bytes)
{
	return in_bytes + 5 * (in_bytes / DEFLATE_BLOCK_BYTES + 1) + 1;
}

/* The launch: DEFLATE_THREADS threads, no dynamic shared memory. */
static inline void deflate_grid(uint32_t n_streams, uint32_t grid[3])
{
	grid[0] = n_streams;
	grid[1] = grid[2] = 1;
}

#endif
