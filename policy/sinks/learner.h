/*
 * Learns a model's sinks from tokens as they pass by: from their keys and values alone what a mean token is
 * and how signals are spread; from tokens whose attention was seen, the direction in which sinks lie and how
 * far each signal foretells attention (ridge regression on all signals at once). One owner, one thread at a
 * time. Memory: 24 bytes a feature of the view's layers, and 8 n_features^2.
 *
 *     sinks_learner_new; sinks_learn...; sinks_learner_detector, now and then; sinks_learner_free
 *
 * Old tokens weigh less and less: what was seen before the last SINKS_MEMORY tokens fades.
 */
#ifndef POLICY_SINKS_LEARNER_H
#define POLICY_SINKS_LEARNER_H

#include "policy/sinks/detector.h"

enum {
	SINKS_BATCH_MAX = 4096,      /* tokens of one call */
	SINKS_OBSERVED_MIN = 512,    /* tokens with attention before a direction is fixed */
	SINKS_MEMORY_TOKENS = 65536, /* tokens after which what was seen has lost half its weight */
};

struct sinks_learner;

struct sinks_learner *sinks_learner_new(const struct sinks_view *view);
struct sinks_learner *sinks_learner_free(struct sinks_learner *l);

/* Tokens: x[layer index][plane] is [n_tokens, width], rotation undone. attention: [n_tokens], the logarithm
 * of the share of attention seen, in multiples of the uniform one; NAN where none was seen; NULL: of none.
 * Tokens with values that are not finite are left out. -ENOMEM. */
int sinks_learn(struct sinks_learner *l, const float *x[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX],
	const float *attention, size_t n_tokens);

/* What is known now, as a new detector with one reference. mistaken_max: the share of tokens that may be
 * taken for sinks wrongly, for the threshold. sink: the score, as log of multiples of the uniform share, from
 * which on a token is a sink. -ENODATA: nothing was learned yet; -ENOMEM. */
int sinks_learner_detector(
	struct sinks_learner *l, double mistaken_max, double sink, struct sinks_detector **out);

#endif
