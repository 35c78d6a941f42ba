/*
 * Small paged caches of a few geometries, known by name, for frames to be made from and decoded into: "gqa"
 * (f16, half-split rotation of K), "partial" (bf16, an interleaved rotation of half of K's head, scaled) and
 * "latent" (one f32 plane, partly rotated). The folder tests/golden holds frames of these, so a geometry here
 * never changes: another one gets another name. Owned by one thread; every function aborts on what only a
 * mistake in a test can cause.
 */
#ifndef TESTS_SMALL_CACHE_H
#define TESTS_SMALL_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/codec.h"

enum { SMALL_LAYERS = 3, SMALL_TOKENS_MAX = 112, SMALL_BLOCK = 16, SMALL_OFFSET = 5, SMALL_BLOCKS = 8 };

struct small_cache {
	struct geometry g;
	uint8_t *memory;
	struct kv_pages pages[SMALL_LAYERS * GEOMETRY_PLANES_MAX]; /* [layers][planes] */
	uint32_t blocks[SMALL_BLOCKS];
};

/* name: up to its end or a '-'. 0, or -ENOENT: no such geometry. */
int small_cache_init(struct small_cache *cache, const char *name);
void small_cache_fini(struct small_cache *cache);

/* One token's elements of a layer and plane, [heads][dim]. */
uint8_t *small_cache_element(const struct small_cache *cache, uint32_t layer, uint32_t plane, uint32_t token);
struct codec_chunk small_cache_chunk(const struct small_cache *cache, uint32_t n_tokens, uint64_t position);

/* All elements of the first tokens, [planes][n_tokens][layers][heads][dim], malloc'd and the caller's. */
uint8_t *small_cache_copy(const struct small_cache *cache, uint32_t n_tokens, size_t *len);

#endif
