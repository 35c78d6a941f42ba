#include "tests/format/small-cache.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct geometry geometries[] = {
	{.name = "gqa",
		.n_layers = SMALL_LAYERS,
		.n_planes = 2,
		.tp_size = 1,
		.planes = {{.n_heads = 2,
				   .dim = 16,
				   .dtype = DTYPE_F16,
				   .rope_kind = ROPE_HALF,
				   .rope_dim = 16,
				   .rope_scale = 1},
			{.n_heads = 2, .dim = 16, .dtype = DTYPE_F16, .rope_scale = 1}}},
	{.name = "partial",
		.n_layers = SMALL_LAYERS,
		.n_planes = 2,
		.tp_rank = 1,
		.tp_size = 2,
		.planes = {{.n_heads = 1,
				   .dim = 24,
				   .dtype = DTYPE_BF16,
				   .rope_kind = ROPE_INTERLEAVED,
				   .rope_offset = 8,
				   .rope_dim = 12,
				   .rope_scale = 1.25f},
			{.n_heads = 1, .dim = 20, .dtype = DTYPE_BF16, .rope_scale = 1}}},
	{.name = "latent",
		.n_layers = SMALL_LAYERS,
		.n_planes = 1,
		.tp_size = 1,
		.planes = {{.n_heads = 1,
			.dim = 40,
			.dtype = DTYPE_F32,
			.rope_kind = ROPE_HALF,
			.rope_offset = 24,
			.rope_dim = 16,
			.rope_scale = 1}}},
};

static const struct geometry *find(const char *name)
{
	const size_t len = strcspn(name, "-");

	for (size_t i = 0; i < sizeof geometries / sizeof *geometries; i++)
		if (strlen(geometries[i].name) == len && !memcmp(geometries[i].name, name, len))
			return &geometries[i];
	return NULL;
}

int small_cache_init(struct small_cache *cache, const char *name)
{
	const struct geometry *g = find(name);
	size_t bytes = 0;
	uint8_t *at;

	if (!g)
		return -ENOENT;
	*cache = (struct small_cache){.g = *g};
	for (uint32_t i = 0; i < g->n_planes; i++) {
		struct plane *p = &cache->g.planes[i];

		/* In sixteenths, so that no library's powf has a say in the fingerprint. */
		for (uint32_t k = 0; k < p->rope_dim / 2; k++)
			p->inv_freq[k] = ldexpf((float)(23 - k) / 16, -(int)k);
		bytes += plane_width(p) * dtype_bytes(p->dtype);
	}
	cache->memory = calloc(SMALL_LAYERS * SMALL_BLOCKS * SMALL_BLOCK, bytes);
	if (!cache->memory || geometry_check(&cache->g, NULL, 0))
		abort();
	at = cache->memory;
	for (uint32_t i = 0; i < SMALL_LAYERS * g->n_planes; i++) {
		const struct plane *p = &g->planes[i % g->n_planes];
		const size_t token = plane_width(p) * dtype_bytes(p->dtype);

		cache->pages[i] = (struct kv_pages){.base = at,
			.block_stride = SMALL_BLOCK * token,
			.token_stride = token,
			.head_stride = p->dim * dtype_bytes(p->dtype)};
		at += SMALL_BLOCKS * SMALL_BLOCK * token;
	}
	for (uint32_t i = 0; i < SMALL_BLOCKS; i++)
		cache->blocks[i] = (i * 3 + 2) % SMALL_BLOCKS;
	return 0;
}

void small_cache_fini(struct small_cache *cache)
{
	free(cache->memory);
	cache->memory = NULL;
}

uint8_t *small_cache_element(const struct small_cache *cache, uint32_t layer, uint32_t plane, uint32_t token)
{
	const struct kv_pages *p = &cache->pages[layer * cache->g.n_planes + plane];
	const uint32_t at = SMALL_OFFSET + token;

	return p->base + cache->blocks[at / SMALL_BLOCK] * p->block_stride +
	       at % SMALL_BLOCK * p->token_stride;
}

struct codec_chunk small_cache_chunk(const struct small_cache *cache, uint32_t n_tokens, uint64_t position)
{
	if (n_tokens > SMALL_TOKENS_MAX)
		abort();
	return (struct codec_chunk){.geometry = &cache->g,
		.pages = cache->pages,
		.run = {.blocks = cache->blocks, .block_tokens = SMALL_BLOCK, .offset = SMALL_OFFSET},
		.n_tokens = n_tokens,
		.position = position};
}

uint8_t *small_cache_copy(const struct small_cache *cache, uint32_t n_tokens, size_t *len)
{
	uint8_t *copy = malloc(n_tokens * geometry_token_bytes(&cache->g)), *at = copy;

	if (!copy)
		abort();
	for (uint32_t plane = 0; plane < cache->g.n_planes; plane++) {
		const struct plane *p = &cache->g.planes[plane];
		const size_t bytes = plane_width(p) * dtype_bytes(p->dtype);

		for (uint32_t t = 0; t < n_tokens; t++)
			for (uint32_t l = 0; l < cache->g.n_layers; l++, at += bytes)
				memcpy(at, small_cache_element(cache, l, plane, t), bytes);
	}
	*len = (size_t)(at - copy);
	return copy;
}
