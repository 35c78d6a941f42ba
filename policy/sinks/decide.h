/*
 * Which tokens of a chunk are sinks, and why. Evidence of three kinds, the best first: attention that was
 * seen resting on the token, what the detector foretells from its keys and values, and, for a model of which
 * no attention was ever seen, how unusual these are. What was learned says little of a token that is far from
 * all that it was learned from: one that is SINKS_FAR times as unusual as these are, and as would be enough
 * had nothing been learned, is a sink whatever the detector foretells, and comes first. A token that was a
 * sink before stays one down to a lower score, so that one near the threshold does not come and go
 * (hysteresis). No more than a share of the chunk is protected: what stands out most comes first. Pure.
 */
#ifndef POLICY_SINKS_DECIDE_H
#define POLICY_SINKS_DECIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SINKS_FAR 1.25f

struct sinks_rules {
	double budget;   /* share of the chunk's tokens, beside those that are sinks by their position */
	double multiple; /* attention of so many times the uniform share is a sink's */
	double unusual;  /* cold: standard deviations from which on a token is taken for one */
	double keep;     /* hysteresis, in units of the score */
};

struct sinks_evidence {
	size_t n_tokens;
	const float *seen; /* [n_tokens], log of multiples of the uniform share; NAN: not seen; NULL: none */
	const float *scores;   /* [n_tokens], of a detector; NULL: none */
	bool trained;          /* what the scores mean */
	float threshold;       /* trained: the detector's */
	const float *unusual;  /* [n_tokens], beside the scores of a trained one; NULL: not known */
	float familiar;        /* trained: the detector's */
	const uint8_t *before; /* [n_tokens], whether it was a sink; NULL: not known */
	size_t n_spent;        /* of the budget: sinks that were found before and stay */
};

enum sinks_reason {
	SINKS_BY_POSITION = 1,  /* one of the first tokens of its sequence */
	SINKS_BY_ATTENTION = 2, /* seen: score and threshold are logs of multiples of the uniform share */
	SINKS_FORETOLD = 3,     /* by the signal `feature` above all: the same unit */
	SINKS_UNUSUAL = 4,      /* in the signal `feature` above all: standard deviations */
	SINKS_KEPT = 5,         /* was one before, and is above the lower threshold */
};

struct sinks_finding {
	uint16_t token;
	uint8_t reason;
	uint16_t feature; /* for the caller to set: sinks_top() of the token */
	float score;
	float threshold;
};

/* How unusual a token has to be for a sink in the face of a trained detector. */
static inline float sinks_far(const struct sinks_rules *rules, const struct sinks_evidence *e)
{
	return SINKS_FAR * (e->familiar > (float)rules->unusual ? e->familiar : (float)rules->unusual);
}

/* classes: [n_tokens] enum token_class; tokens found become TOKEN_SINK. findings has room for n_tokens: one
 * for each sink, those by position too, in order of tokens. Returns how many. */
size_t sinks_decide(const struct sinks_rules *rules, const struct sinks_evidence *evidence, uint8_t *classes,
	struct sinks_finding *findings);

const char *sinks_reason_name(enum sinks_reason reason);

#endif
