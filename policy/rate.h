/*
 * Which rung each chunk gets, so that a target holds over a moving window of chunks: a ratio, or a mean
 * error. Plain data, one owner, one thread; no clock: the window counts chunks.
 *
 * Every rung has a cost, as measured on the chunks that were coded with it: for a ratio what a coded token's
 * bytes became, for an error the error itself. The costlier rung of the two whose costs lie on either side of
 * the target is taken whenever the window, this chunk included, stays within the target; else the other. So
 * neighbouring rungs are mixed in the proportion that meets the target, and a rung that meets it alone (to
 * RATE_CLOSE, as does the window) is used alone. Chunks that are on their way count with what their rung is
 * expected to cost.
 *
 * The target is of the coded tokens. Tokens kept bit-exact count on neither side: how many they are is for
 * the window, the sinks and the error bound to say, and a short prompt, all of it window, could meet no
 * target.
 */
#ifndef POLICY_RATE_H
#define POLICY_RATE_H

#include <stddef.h>
#include <stdint.h>

#include "policy/policy.h"
#include "policy/transform.h"

enum { RATE_WINDOW_MAX = 4096 };

#define RATE_CLOSE 0.04

/* A chunk that was coded, or is on its way. */
struct rate_chunk {
	float weight; /* bytes of the coded tokens before */
	float cost;   /* of a byte */
};

struct rate {
	uint32_t mode;
	double target;             /* cost */
	struct rate_chunk *window; /* ring of the last chunks coded */
	uint32_t size, n, next;
	double weight, sum;                     /* over the window: of weights, of weight * cost */
	double pending_weight, pending_sum;     /* on their way */
	float cost[TRANSFORM_RUNGS_MAX];        /* measured; 0: not yet */
	uint32_t measured[TRANSFORM_RUNGS_MAX]; /* chunks behind each */
	double ratio, error; /* over the last chunks, fading: what was achieved, in any mode */
	uint64_t n_chunks;
};

/* What was planned for a chunk, to be handed back when it is coded. */
struct rate_plan {
	uint32_t rung;
	float weight, cost;
};

/* -ENOMEM. */
int rate_init(struct rate *r, uint32_t window);
void rate_fini(struct rate *r);

/* The next chunk: its coded tokens take about `bytes` uncompressed; fill: the share of the pool that is
 * taken. A policy with another mode, target or window than before starts a new window. -ENOMEM. */
int rate_choose(struct rate *r, const struct policy *p, const struct transform *t, double bytes, double fill,
	struct rate_plan *plan);
/* It was coded: from `bytes` to coded_bytes, with this mean relative error. bytes 0: none of it was coded, or
 * it failed. */
void rate_note(struct rate *r, const struct rate_plan *plan, double bytes, double coded_bytes, double error);

/* The ratio that mode=pressure wants at this fill of the pool. */
double rate_under_pressure(const struct policy *p, double fill);

/* The rungs of salient and of redundant tokens beside that of plain ones, on t's ladder. */
uint32_t rate_salient_rung(const struct policy *p, uint32_t rung);
uint32_t rate_redundant_rung(const struct policy *p, const struct transform *t, uint32_t rung);

/* Achieved over the window: ratio of the coded tokens (or, in mode fidelity, their error); 0: nothing yet. */
double rate_achieved(const struct rate *r);

#endif
