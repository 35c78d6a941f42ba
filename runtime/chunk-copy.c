#include "runtime/chunk-copy.h"

#include <assert.h>
#include <stdlib.h>

struct chunk_copy *chunk_copy_new(const struct geometry *g, uint32_t room_tokens)
{
	struct chunk_copy *c = calloc(1, sizeof *c);
	uint8_t *at;

	if (!c)
		return NULL;
	c->geometry = g;
	c->room_tokens = room_tokens;
	c->len_bytes = geometry_token_bytes(g) * room_tokens;
	c->memory = malloc(c->len_bytes);
	c->pages = calloc((size_t)g->n_layers * g->n_planes, sizeof *c->pages);
	if (!c->memory || !c->pages)
		return chunk_copy_free(c);
	at = c->memory;
	for (uint32_t i = 0; i < g->n_layers * g->n_planes; i++) {
		const struct plane *plane = &g->planes[i % g->n_planes];
		const size_t element = dtype_bytes(plane->dtype), token = plane_width(plane) * element;

		c->pages[i] = (struct kv_pages){.base = at,
			.block_stride = token * room_tokens,
			.token_stride = token,
			.head_stride = plane->dim * element};
		at += token * room_tokens;
	}
	return c;
}

struct chunk_copy *chunk_copy_free(struct chunk_copy *c)
{
	if (c) {
		free(c->memory);
		free(c->pages);
		free(c);
	}
	return NULL;
}

void chunk_copy_place(struct chunk_copy *c, uint32_t n_tokens, uint64_t position)
{
	assert(n_tokens <= c->room_tokens);
	c->n_tokens = n_tokens;
	c->position = position;
}

void chunk_copy_take(struct chunk_copy *c, const struct kernels *kernels, const struct codec_chunk *from)
{
	const struct geometry *g = c->geometry;
	uint16_t tokens[FRAME_TOKENS_MAX];

	chunk_copy_place(c, from->n_tokens, from->position);
	for (uint32_t t = 0; t < from->n_tokens; t++)
		tokens[t] = (uint16_t)t;
	for (uint32_t i = 0; i < g->n_layers * g->n_planes; i++)
		kernels->gather_raw(&g->planes[i % g->n_planes], &from->pages[i], &from->run, tokens,
			from->n_tokens, c->pages[i].base);
}

struct codec_chunk chunk_copy_view(const struct chunk_copy *c)
{
	static const uint32_t block;

	return (struct codec_chunk){.geometry = c->geometry,
		.pages = c->pages,
		.run = {.blocks = &block, .block_tokens = c->room_tokens},
		.n_tokens = c->n_tokens,
		.position = c->position};
}
