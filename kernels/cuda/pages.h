/*
 * Between an engine's paged memory and a packed copy: tokens of many layers and planes, bit for bit, whatever
 * the strides. Packed is [layer][plane][token][head][dim], gapless. Compiles as C and as CUDA.
 */
#ifndef KERNELS_CUDA_PAGES_H
#define KERNELS_CUDA_PAGES_H

#include <stdint.h>

/* One layer of one plane: element (b, t, h) begins at base + b * block_stride + t * token_stride + h *
 * head_stride. */
struct pages_plane {
	uint64_t base; /* device address */
	uint64_t block_stride, token_stride, head_stride;
	uint64_t packed_bytes; /* a token's in the planes before it: its packed copy begins at n_tokens times
				  this */
	uint32_t n_heads;
	uint32_t head_bytes;
	uint32_t unit_bytes; /* 16, 8, 4 or 2: all of the above are multiples of it */
	uint32_t reserved;
};

/* The widest access that everything of the plane is aligned to. A packed copy of n tokens begins at n times
 * packed_bytes and steps by the token, so with packed_bytes and head_bytes its addresses are multiples too.
 */
static inline uint32_t pages_unit(const struct pages_plane *p)
{
	const uint64_t all = p->base | p->block_stride | p->token_stride | p->head_stride | p->packed_bytes |
			     p->head_bytes;
	uint32_t unit = 16;

	while (unit > 2 && all % unit)
		unit /= 2;
	return unit;
}

struct pages_args {
	uint64_t planes;  /* struct pages_plane [], the first of those to be copied */
	uint64_t blocks;  /* uint32_t []: token t lies in block blocks[(offset + t) / block_tokens] */
	uint64_t packed;  /* aligned to 16 bytes */
	uint64_t skipped; /* bytes of the packed copy before packed: of planes that are not there */
	uint32_t n_tokens;
	uint32_t block_tokens;
	uint32_t offset;
	uint32_t reserved;
};

/* Tokens of one block of threads; threads of one. */
enum { PAGES_TILE = 16, PAGES_THREADS = 256 };

/* Grid: [ceil(n_tokens / PAGES_TILE), planes]. pages_gather reads the pages, pages_scatter writes them. */

#endif
