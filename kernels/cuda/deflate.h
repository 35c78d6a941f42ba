/*
 * Raw DEFLATE (RFC 1951) of many independent byte streams at once, one thread block each: what zlib inflates.
 * Literals only: Huffman coding is where the gain is (docs/cuda-kernels.md has what matches would add). A
 * stream is cut into DEFLATE blocks of DEFLATE_BLOCK_BYTES, so that the codes follow what changes along it;
 * each block is stored, or has the fixed codes, or codes of its own, whichever is smallest.
 *
 * Traffic: n bytes read twice (counting, then coding; the second time mostly from L2), the output written
 * once. The floor is far from memory's: at 20 GB/s an SM of 132 at 1.7 GHz has 11 cycles for a byte. What a
 * block of 32 KiB costs a thread block:
 * - counting: 2,048 warp-wide additions to shared memory, each about as many cycles as its most frequent byte
 *   has lanes (5 to 10): 10 to 20 thousand cycles of the SM's shared-memory pipe;
 * - coding: 2,048 look-ups in the code table and about 800 additions to the staged words, each warp-wide,
 *   again 10 to 20 thousand cycles;
 * - one thread makes the Huffman tree: 256 steps of some 100 cycles, and the header 300 steps of some 40: 40
 *   thousand cycles of latency, during which the SM's other thread blocks work.
 * So the pipe limits an SM to 32 KiB in 20 to 40 thousand cycles, 0.8 to 1.6 bytes a cycle, 180 to 360 GB/s
 * on 132 SMs; and latency, 100 thousand cycles for each of 8 resident blocks, to 2.6 bytes a cycle. A stream
 * of 4 KiB has the tree's 40 thousand cycles to itself: 8 blocks in 50 thousand cycles are 0.65 bytes a
 * cycle, 145 GB/s. Fewer streams than 8 a SM fall in proportion. These are counts, not measurements.
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
