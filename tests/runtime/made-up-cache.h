/* A small cache of made-up values, paged and rotated as an engine's would be, with a transform for it: what
 * the codec's tests work on. */
#ifndef TESTS_MADE_UP_CACHE_H
#define TESTS_MADE_UP_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/codec.h"

enum { LAYERS = 3, HEADS = 2, DIM = 16, WIDTH = HEADS * DIM, P = LAYERS * WIDTH, R = 80, RUNGS = 3 };
enum { BLOCK = 16, BLOCKS = 24, TOKENS_MAX = 256 };

struct world {
	struct geometry g;
	struct transform *t;
	void *transform_data; /* serialised */
	size_t transform_len;
	uint16_t *memory; /* [LAYERS][2][BLOCKS][BLOCK][HEADS][DIM] f16 */
	struct kv_pages pages[LAYERS * 2];
	uint32_t blocks[BLOCKS];
	struct codec *codec;
	uint64_t random;
};

/* The transform's weight of feature i of a layer: the same in a head, so that rotated features may be
 * weighed. */
static inline double world_weight(uint32_t layer, uint32_t i)
{
	return 0.7 + 0.2 * ((layer * HEADS + i / DIM) % 4);
}

/* K is rotated, V is not. Aborts when something fails. */
struct world *world_new(enum rope_kind rope_kind);
void world_free(struct world *w);
/* New values everywhere. */
void world_fill(struct world *w);
/* A token of one layer and plane, [HEADS][DIM]; token counts from offset. */
uint16_t *world_element(
	const struct world *w, uint32_t layer, uint32_t plane, uint32_t offset, uint32_t token);
struct codec_chunk world_chunk(struct world *w, uint32_t offset, uint32_t n_tokens, uint64_t position);

#endif
