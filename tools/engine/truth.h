/*
 * A sequence computed with the attention that was really paid, for judging the search for sinks: which tokens
 * the model rests on, and the queries that an engine would send. One thread; owned by whoever made it.
 */
#ifndef ENGINE_TRUTH_H
#define ENGINE_TRUTH_H

#include "tools/engine/engine.h"

enum { TRUTH_QUERIES = 16 }; /* of each chunk, its last ones */

struct truth {
	uint32_t n_tokens, n_chunks;
	/* A sink rests attention whatever is asked: in some head, at least half of the queries of the whole
	 * chunk that follows its own give it FORWARD_RESTING times the uniform share or more. Of the last
	 * chunk nothing is known, and the mark is 0. */
	uint8_t *sink; /* [n_tokens] */
	/* The same, but for the mean over those queries, which counts what is asked for now and then, too. */
	uint8_t *attended;
	float *queries;      /* [n_layers, n_chunks * TRUTH_QUERIES, n_heads * head_dim] */
	uint64_t *positions; /* [n_chunks * TRUTH_QUERIES] */
};

/* Computes the tokens, their keys and values going into the table. n: a multiple of FORWARD_CHUNK. -errno. */
int truth_compute(struct engine *e, const struct kv_table *table, const uint32_t *tokens, uint32_t n,
	struct truth *out);
void truth_fini(struct truth *t);

#endif
