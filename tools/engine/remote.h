/*
 * A connection to the daemon as this engine uses it: one model, one paged cache, one request at a time, each
 * call blocking until its completion. One thread; cache and model are the caller's and must outlive it.
 */
#ifndef ENGINE_REMOTE_H
#define ENGINE_REMOTE_H

#include <stddef.h>
#include <stdint.h>

#include "shm/cistern.h"
#include "tools/engine/kv-cache.h"
#include "tools/engine/model.h"

struct remote;

/* Connects and registers model and cache. socket_path, name_space: NULL for libcistern's defaults. -errno
 * with a sentence in why. */
int remote_open(const char *socket_path, const char *name_space, const struct model *m,
	const struct kv_cache *cache, struct remote **out, char *why, size_t why_len);
struct remote *remote_close(struct remote *r);

/* A sentence about the last call that failed. */
const char *remote_error(const struct remote *r);
uint32_t remote_chunk_tokens(const struct remote *r);

/* What a request brought about. */
struct outcome {
	uint32_t n_chunks; /* kept, found or restored, from the sequence's start */
	uint64_t bytes;    /* of their frames; lookup: 0 */
};

/* Requests about a sequence from its first token on; its keys are the hash chain of its tokens. The table
 * holds it (put) or is to hold it (get). -EINVAL: a table that is too short; else what libcistern or the
 * completion says. */
int remote_put(struct remote *r, const struct kv_table *table, const uint32_t *tokens, uint32_t n_tokens,
	struct outcome *out);
/* Shows the daemon queries of the sequence, whose keys the table holds: values is [n_layers, n_queries,
 * n_heads, head_dim], f16, of all layers of the model. out: n_chunks that were judged. */
int remote_observe(struct remote *r, const struct kv_table *table, const uint32_t *tokens, uint32_t n_tokens,
	const struct model *m, const uint32_t *positions, uint32_t n_queries, const uint16_t *values,
	struct outcome *out);
int remote_lookup(struct remote *r, const uint32_t *tokens, uint32_t n_tokens, struct outcome *out);
int remote_get(struct remote *r, const struct kv_table *table, const uint32_t *tokens, uint32_t n_tokens,
	struct outcome *out);
/* -ENOTSUP: the daemon has no store. */
int remote_sync(struct remote *r);

#endif
