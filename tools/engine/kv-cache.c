#include "tools/engine/kv-cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014. */
static uint64_t splitmix(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static void scramble(uint32_t *blocks, uint32_t n, uint64_t seed)
{
	for (uint32_t i = 0; i < n; i++)
		blocks[i] = i;
	for (uint32_t i = n; i > 1; i--) {
		uint32_t j = (uint32_t)(splitmix(&seed) % i);
		uint32_t block = blocks[i - 1];

		blocks[i - 1] = blocks[j];
		blocks[j] = block;
	}
}

static void lay_out(struct kv_cache *c, enum kv_order order)
{
	uint64_t head = c->head_dim * sizeof(uint16_t), block = c->n_heads * head * KV_BLOCK_TOKENS;

	for (uint32_t i = 0; i < 2 * c->n_layers; i++)
		c->layouts[i] = (struct cistern_layout){
			.base = i * block * c->n_blocks,
			.block_stride = block,
			.token_stride = order == KV_NHD ? c->n_heads * head : head,
			.head_stride = order == KV_NHD ? head : KV_BLOCK_TOKENS * head,
		};
	c->size_bytes = 2 * c->n_layers * block * c->n_blocks;
}

int kv_cache_new(
	const struct model *m, uint32_t n_tokens, enum kv_order order, uint64_t seed, struct kv_cache **out)
{
	struct kv_cache *c = calloc(1, sizeof *c);
	void *memory;
	int r;

	if (!c)
		return -ENOMEM;
	c->fd = -1;
	c->n_layers = m->n_layers;
	c->n_heads = m->n_kv_heads;
	c->head_dim = m->head_dim;
	c->n_blocks = c->n_free = (n_tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
	c->free_blocks = calloc(c->n_blocks, sizeof *c->free_blocks);
	c->layouts = calloc(2 * c->n_layers, sizeof *c->layouts);
	if (!c->free_blocks || !c->layouts) {
		kv_cache_free(c);
		return -ENOMEM;
	}
	lay_out(c, order);
	r = cistern_memory_create("cistern-engine-kv", c->size_bytes, &c->fd, &memory);
	if (r < 0) {
		c->fd = -1;
		kv_cache_free(c);
		return r;
	}
	c->memory = memory;
	scramble(c->free_blocks, c->n_blocks, seed);
	*out = c;
	return 0;
}

struct kv_cache *kv_cache_free(struct kv_cache *c)
{
	if (!c)
		return NULL;
	if (c->memory)
		munmap(c->memory, c->size_bytes);
	if (c->fd >= 0)
		close(c->fd);
	free(c->free_blocks);
	free(c->layouts);
	free(c);
	return NULL;
}

int kv_table_new(struct kv_cache *c, uint32_t n_tokens, struct kv_table *out)
{
	uint32_t n = (n_tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
	struct kv_table table = {n, NULL};

	if (n > c->n_free)
		return -ENOSPC;
	table.blocks = calloc(n ? n : 1, sizeof *table.blocks);
	if (!table.blocks)
		return -ENOMEM;
	c->n_free -= n;
	memcpy(table.blocks, c->free_blocks + c->n_free, n * sizeof *table.blocks);
	for (uint32_t i = 0; i < 2 * c->n_layers; i++)
		for (uint32_t b = 0; b < n; b++)
			memset(c->memory + c->layouts[i].base + table.blocks[b] * c->layouts[i].block_stride,
				0xff, c->layouts[i].block_stride);
	*out = table;
	return 0;
}

void kv_table_free(struct kv_cache *c, struct kv_table *table)
{
	if (table->blocks)
		memcpy(c->free_blocks + c->n_free, table->blocks, table->n_blocks * sizeof *table->blocks);
	c->n_free += table->blocks ? table->n_blocks : 0;
	free(table->blocks);
	*table = (struct kv_table){0};
}

void kv_table_copy(struct kv_cache *c, const struct kv_table *from, const struct kv_table *to)
{
	for (uint32_t i = 0; i < 2 * c->n_layers; i++)
		for (uint32_t b = 0; b < from->n_blocks; b++) {
			const uint64_t stride = c->layouts[i].block_stride;
			uint8_t *plane = c->memory + c->layouts[i].base;

			memcpy(plane + to->blocks[b] * stride, plane + from->blocks[b] * stride, stride);
		}
}

void kv_cache_describe(const struct kv_cache *c, uint32_t model_id, struct cistern_memory *out)
{
	*out = (struct cistern_memory){
		.model_id = model_id,
		.fd = c->fd,
		.size_bytes = c->size_bytes,
		.block_tokens = KV_BLOCK_TOKENS,
		.n_blocks = c->n_blocks,
		.layouts = c->layouts,
	};
}

struct kv_pages *kv_cache_pages(const struct kv_cache *c)
{
	const size_t n = 2 * (size_t)c->n_layers;
	struct kv_pages *pages = calloc(n, sizeof *pages);

	for (size_t i = 0; pages && i < n; i++) {
		const struct cistern_layout *l = &c->layouts[i];

		pages[i] = (struct kv_pages){
			c->memory + l->base, l->block_stride, l->token_stride, l->head_stride};
	}
	return pages;
}
