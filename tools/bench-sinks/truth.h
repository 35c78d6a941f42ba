/*
 * The attention that the model really pays over a sequence, for judging the search for sinks: which tokens it
 * rests on, in three readings of what that means, and the queries that an engine would show. Plain data,
 * owned by whoever made it; one thread.
 *
 * A token's multiple of a query at position q is its weight times (q + 1): 1 is the uniform share. A token is
 * judged by whole chunks of queries behind its own chunk, head by head; its own chunk's queries would tell
 * more of how near it is.
 */
#ifndef BENCH_SINKS_TRUTH_H
#define BENCH_SINKS_TRUTH_H

#include "tools/engine/forward.h"

enum truth_reading {
	/* The mean multiple over the chunk that follows is FORWARD_RESTING and more in some head. Counts what
	 * a few queries look up. */
	TRUTH_MEAN,
	/* At least half of the queries of the chunk that follows give it FORWARD_RESTING and more, in some
	 * head: it rests attention whatever is asked, in that chunk. */
	TRUTH_HALF,
	/* The mean multiple is FORWARD_RESTING and more in every chunk that follows, two at least, in the
	 * same head: it goes on resting attention, wherever the text goes. */
	TRUTH_LASTING,
	TRUTH_READINGS
};

/* Marks: 2 where a chunk too few follows for this reading. */
enum truth_mark { TRUTH_NO, TRUTH_YES, TRUTH_UNKNOWN };

struct truth {
	uint32_t n_tokens, n_chunks;
	uint8_t *marks[TRUTH_READINGS]; /* [n_tokens] enum truth_mark */
	float *queries; /* [n_layers, n_tokens, n_heads * head_dim]: rotated, as they meet the keys */
	/* How many tokens TRUTH_MEAN has by the head that gives them most. */
	uint32_t *by_head; /* [n_layers * n_heads] */
};

const char *truth_name(enum truth_reading reading);

/* Computes the tokens, their keys and values going into the table. n: a multiple of FORWARD_CHUNK. Tokens
 * before first are sinks by their position and count as none. -EINVAL, -ENOMEM. */
int truth_compute(struct forward *f, const struct model *m, const struct kv_cache *cache,
	const struct kv_table *table, const uint32_t *tokens, uint32_t n, uint32_t first, struct truth *out);
void truth_fini(struct truth *t);

#endif
