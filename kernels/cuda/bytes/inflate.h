/*
 * Inflating many independent raw DEFLATE streams at once: all of RFC 1951, as strictly as zlib. INFLATE_LANES
 * lanes of a warp share a stream: one decodes its symbols, all of them make its tables and copy its matches.
 * Any input whatever ends with a status, after at most as many steps as it has bits: nothing outside the room
 * is written, and of the room nothing after what was inflated.
 *
 * Traffic: the compressed bytes read once, in words; n bytes written once, a word at a time; matches read
 * what was written, mostly from L1. Memory is not the floor, latency and issue are. A literal waits for the
 * table's entry (some 30 cycles in shared memory), for its length to be taken off the bits held and for
 * branches: some 80 cycles, whatever else the SM does. The way to 50 GB/s (0.22 bytes a cycle and SM on 132
 * SMs at 1.7 GHz) is therefore to have many streams in flight: 23 blocks of 4 streams fit an SM (9 KB of
 * shared memory each), 92 streams, 1.15 literals a cycle by latency. Issue is the tighter limit: the
 * compiler's code for sm_90 has 28 instructions a literal, refills and stores included, for up to 4 streams
 * at once as long as the four of a warp are within a block; 4 schedulers issue 0.57 literals a cycle then,
 * 128 GB/s, and a quarter of it, 32 GB/s, if the four never went together. 10,000 streams (76 an SM) are all
 * resident at once. 1,000 streams leave 8 to an SM: 0.095 literals a cycle, 21 GB/s; few long streams are
 * slow. A block's tables take some 10 thousand cycles, as long as 130 literals: 3% of a block of 4 KiB. These
 * are counts, not measurements.
 */
#ifndef KERNELS_CUDA_INFLATE_H
#define KERNELS_CUDA_INFLATE_H

#include <stdint.h>

#include "kernels/cuda/bytes/deflate.h"

enum {
	INFLATE_LANES = 8,
	INFLATE_STREAMS = 4, /* of a block */
	INFLATE_THREADS = INFLATE_LANES * INFLATE_STREAMS,
};

/* Streams and results as deflate.h has them; device addresses. room: what the stream is to inflate to at
 * most; a caller that knows compares out_bytes with what it must be, and in_bytes with what there was: bytes
 * that follow the stream are not looked at. */
struct inflate_streams_args {
	const struct deflate_stream *streams; /* [n_streams] */
	struct deflate_result *results;       /* [n_streams] */
	uint32_t n_streams;
};

/* The launch: INFLATE_THREADS threads, no dynamic shared memory. */
static inline void inflate_grid(uint32_t n_streams, uint32_t grid[3])
{
	grid[0] = (n_streams + INFLATE_STREAMS - 1) / INFLATE_STREAMS;
	grid[1] = grid[2] = 1;
}

#endif
