/*
 * The forward pass: tokens in, logits out, keys and values of the new tokens written to a paged cache and all
 * attention read from it. One struct forward is scratch memory for one thread; model and cache are the
 * caller's and must outlive it. Arithmetic is f32 but for what the cache holds.
 *
 * Work is cut at positions that are multiples of FORWARD_CHUNK, whatever the calls: a prompt that is computed
 * from a multiple of it onwards gives the same bits as one that is computed whole.
 */
#ifndef ENGINE_FORWARD_H
#define ENGINE_FORWARD_H

#include <stddef.h>
#include <stdint.h>

#include "tools/engine/kv-cache.h"
#include "tools/engine/model.h"

enum { FORWARD_CHUNK = 256, FORWARD_RESTING = 10 };

struct forward;

struct forward_request {
	const struct kv_cache *cache;
	const struct kv_table *table; /* room for position + n_tokens; [0, position) is filled */
	const uint32_t *tokens;       /* [n_tokens] */
	uint32_t n_tokens;
	uint32_t position; /* of the first token */
	uint32_t n_cached; /* the first so many tokens are in the cache and stay there as they are */

	uint32_t n_collect;   /* of the last so many tokens, collect: */
	float *logits;        /* [n_collect, vocab], or NULL */
	float *attention_out; /* [n_layers, n_collect, n_heads * head_dim], or NULL; before the output
				 projection */
	float *queries;       /* in the same form, or NULL: rotated, as they meet the keys */

	/* Attention that positions [0, received_stride) get from the new tokens, added up per layer and query
	 * head: [n_layers, n_heads, received_stride], or NULL. received_stride >= position + n_tokens. */
	double *received;
	size_t received_stride;
	/* By how many of the new tokens each position was given FORWARD_RESTING times the uniform share and
	 * more, in the same form, or NULL. */
	uint16_t *resting;
};

/* -ENOMEM. Sets the BLAS library of this process to one thread. */
int forward_new(const struct model *m, struct forward **out);
struct forward *forward_free(struct forward *f);

/* -EINVAL: a token, the position or n_cached, n_collect out of range, or a table too short. */
int forward_run(struct forward *f, const struct forward_request *request);

#endif
