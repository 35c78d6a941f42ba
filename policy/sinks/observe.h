/*
 * Attention, as it was seen, per token: how far a token rests attention whatever is asked (a sink), and how
 * far it is asked for now and then (salient). From the attention weights of a few queries. Pure.
 *
 * Of one query at position q a token's multiple of the uniform share is its weight times (q + 1). Over
 * several queries of one head, a sink is told by the geometric mean, which one query that passes a token by
 * pulls down; the arithmetic mean tells how much attention it gets in all, and is large for a token that a
 * few queries are after. How much attention a token will go on drawing lies between: from few queries the
 * arithmetic mean is a guess that one of them can spoil, the geometric one hardly moves when half of them
 * turn to the token. So decisions go by the mean of the two logs. Each is taken in the head where it is
 * largest.
 */
#ifndef POLICY_SINKS_OBSERVE_H
#define POLICY_SINKS_OBSERVE_H

#include <stddef.h>
#include <stdint.h>

/* A weight that is less than this multiple of the uniform share counts as this much: what is below is noise
 * of no interest. */
#define OBSERVE_FLOOR 0.01f

/* [n_tokens] each, logs of multiples; NAN: not known. */
struct observed {
	float *drawing; /* the mean of the other two, in one head */
	float *resting; /* geometric */
	float *asked;   /* arithmetic */
};

/* One head's queries: scores [n_queries, stride], before the softmax, scaled; query i stands at position
 * positions[i] and sees tokens up to it. Raises what was observed of tokens in [first, end), where every
 * query sees them all. Destroys scores. */
void observe_head(float *scores, size_t stride, const uint64_t *positions, size_t n_queries, size_t first,
	size_t end, const struct observed *out);

/* One token's log multiple from the sum of weights that n_queries gave it, of n_seen tokens that they saw. */
float observe_sum(float sum, uint32_t n_queries, uint64_t n_seen);

#endif
