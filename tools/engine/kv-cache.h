/*
 * A paged KV cache: f16, in blocks of KV_BLOCK_TOKENS tokens, in memory that can be registered with a daemon.
 * Owned by one engine, used by one thread (the daemon writes into it between a get and its completion).
 *
 * Blocks are handed out in a scrambled order that the seed decides, so that a block table is never the
 * identity by luck. Each plane of each layer is a tensor of its own:
 *   KV_NHD   [block, token, head, dim]
 *   KV_HND   [block, head, token, dim]
 */
#ifndef ENGINE_KV_CACHE_H
#define ENGINE_KV_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "shm/cistern.h"
#include "tools/engine/model.h"

enum { KV_BLOCK_TOKENS = 16 };

enum kv_order { KV_NHD, KV_HND };

struct kv_cache {
	int fd;
	uint8_t *memory;
	uint64_t size_bytes;
	uint32_t n_layers;
	uint32_t n_heads; /* of keys and values */
	uint32_t head_dim;
	uint32_t n_blocks;
	uint32_t n_free;
	uint32_t *free_blocks;          /* [n_blocks], the first n_free are free */
	struct cistern_layout *layouts; /* [n_layers][2]: K, V */
};

/* The blocks of one sequence, in order of its tokens. */
struct kv_table {
	uint32_t n_blocks;
	uint32_t *blocks;
};

/* Room for n_tokens over all sequences. -errno of the memory. */
int kv_cache_new(
	const struct model *m, uint32_t n_tokens, enum kv_order order, uint64_t seed, struct kv_cache **out);
struct kv_cache *kv_cache_free(struct kv_cache *c);

/* Takes blocks for n_tokens; their memory is set to the f16 NaN, so that what is read unwritten shows.
 * -ENOSPC, -ENOMEM. The table is the caller's, and goes back with kv_table_free. */
int kv_table_new(struct kv_cache *c, uint32_t n_tokens, struct kv_table *out);
void kv_table_free(struct kv_cache *c, struct kv_table *table);

/* The blocks of one table become what those of the other are; both of the same length. */
void kv_table_copy(struct kv_cache *c, const struct kv_table *from, const struct kv_table *to);

/* Features of one head of one token: head_dim halves. plane: 0 K, 1 V. */
static inline uint16_t *kv_at(const struct kv_cache *c, const struct kv_table *table, uint32_t layer,
	uint32_t plane, uint32_t position, uint32_t head)
{
	const struct cistern_layout *l = &c->layouts[2 * layer + plane];

	return (uint16_t *)(c->memory + l->base +
			    table->blocks[position / KV_BLOCK_TOKENS] * l->block_stride +
			    position % KV_BLOCK_TOKENS * l->token_stride + head * l->head_stride);
}

/* What cistern_register_memory wants; the description points into c. */
void kv_cache_describe(const struct kv_cache *c, uint32_t model_id, struct cistern_memory *out);

/* The same for the codec, in this process: [n_layers][2], malloc'd and the caller's. NULL: out of memory. */
struct kv_pages *kv_cache_pages(const struct kv_cache *c);

#endif
