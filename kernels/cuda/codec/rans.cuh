/*
 * What decoding and encoding of rANS streams share (kernels/levels.h; the bytes are those of
 * kernels/cpu/rans.c and runtime/codec/levels.c). A stream is a warp's, its lanes are the stream's; what a
 * step of 32 tokens takes from the stream, or adds to it, is where a lane stands among those that want a
 * word, which a ballot says. Blocks are of one warp, so that streams spread evenly over the schedulers; each
 * has the two sets of the component's table in its shared memory, and loads others where the class or a
 * band's offset changes. Which tables components have is found for 32 of them at a time, one a lane.
 */
#ifndef KERNELS_CUDA_RANS_CUH
#define KERNELS_CUDA_RANS_CUH

#include "kernels/cuda/codec/codec.h"
#include "kernels/cuda/simt/simt.h"

#define ALL 0xffffffffu

/* Table, table of the biases, shift. */
enum { KEY_BIAS = 8, KEY_SHIFT = 16, KEY_TABLES = 0xffff };

struct components {
	const int8_t *classes;
	const uint8_t *offsets;
	uint32_t n, lane;
	int level_class, offset; /* of the next 32; loaded, but not waited for */
};

__device__ static inline void components_fetch(struct components *c, uint32_t first)
{
	const uint32_t i = first + c->lane;

	if (i < c->n) {
		c->level_class = c->classes[i];
		c->offset = (int8_t)c->offsets[i / LEVELS_BAND];
	}
}

/* The key of what was fetched. Biases are the calibrated class's. */
__device__ static inline uint32_t components_key(const struct components *c)
{
	const struct levels_row row = levels_row(c->level_class + c->offset);

	return (uint32_t)row.table | (uint32_t)levels_row(c->level_class).table << KEY_BIAS |
	       (uint32_t)row.shift << KEY_SHIFT;
}

__device__ static inline struct components components_of(
	const struct codec_device_part *part, uint32_t rung, const uint8_t *offsets, uint32_t lane)
{
	const struct components c = {
		part->classes + (size_t)rung * part->n_components, offsets, part->active[rung], lane, 0, 0};

	return c;
}

#endif
