/*
 * What an engine's queries get from a chunk, and how far that changes when its keys and values are restored
 * ones instead of the originals. With the scaled dot-product attention of Vaswani et al., "Attention Is All
 * You Need" (arXiv 1706.03762, equation 1), over the tokens of the chunk alone,
 *
 *     o(q) = softmax(scale q K^T) V
 *     e(layer, head) = sqrt(sum over queries |o'(q) - o(q)|^2 / sum over queries |o(q)|^2)
 *
 * o' being the same with restored K and V. The chunk's error is the mean of e over the layers and query heads
 * that the queries are of. It is what attention would lose if it rested on this chunk alone; the rest of the
 * sequence, the window and the sinks above all, makes it less. Keys and queries are compared as they meet,
 * rotated: nothing is un-rotated, so whatever a codec does to rotated keys shows.
 *
 * A query head reads the key and the value head of its group (grouped-query attention). A model with one
 * plane (MLA) keeps latents that are key and value at once: the value is then what is not rotated of a head.
 *
 * A pure function, any thread. Takes n_queries * heads * 2 * n_tokens * (dim of keys + dim of values) * 2
 * flops a layer.
 */
#ifndef RUNTIME_ATTENTION_ERROR_H
#define RUNTIME_ATTENTION_ERROR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/chunk-copy.h"

/* Queries that see the whole chunk. */
struct attention_queries {
	uint32_t n_queries, n_heads; /* n_heads: a multiple of plane 0's */
	uint32_t first_layer, n_layers;
	float scale;           /* of the scores */
	const uint8_t *values; /* [n_layers, n_queries, n_heads, dim] of plane 0's dtype, as they meet the
				  cached keys */
};

struct attention_error {
	double mean, worst; /* over layers and heads */
	uint32_t worst_layer, worst_head;
	uint32_t n_compared; /* layers times heads; the others had no output, or one that is not finite */
};

/* Two copies of one chunk. Between layers rest is called (unless NULL), and ends it with -ECANCELED when it
 * returns false. -ENOTSUP: the planes' heads do not divide the queries'; -ENODATA: nothing could be compared;
 * -ENOMEM. */
int attention_error_measure(const struct kernels *kernels, const struct chunk_copy *original,
	const struct chunk_copy *restored, const struct attention_queries *queries, bool (*rest)(void *arg),
	void *arg, struct attention_error *out);

#endif
