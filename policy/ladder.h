/*
 * The rate ladder: which quantiser step gives which ratio, predicted from the deviations of all components
 * and the model of their levels. The step is one for all parts and planes, so that bits go where they do most
 * good, be it K or V, early layers or late ones: at one step all components that are coded at all have about
 * the same error, which is what reverse water-filling asks for (Cover and Thomas, Elements of Information
 * Theory, 10.3.3). Pure.
 */
#ifndef POLICY_LADDER_H
#define POLICY_LADDER_H

#include <stddef.h>
#include <stdint.h>

#include "policy/levels-model.h"

struct ladder_part {
	const float *deviation; /* [n_components], falling */
	uint32_t n_components;
	const struct levels_model *model; /* of the part's plane */
};

/* What a step comes to. */
struct ladder_point {
	double bits;     /* a token, with what frames cost beside levels */
	double *lost;    /* [n_parts] squared error a token; NULL: not wanted */
	uint32_t *coded; /* [n_parts] components coded; NULL: not wanted */
};

/* chunk_tokens: how many tokens share a frame. */
void ladder_at(const struct ladder_part *parts, size_t n_parts, uint32_t chunk_tokens, double step,
	struct ladder_point *point);

/* The smallest step, to a thousandth, at which a token takes at most so many bits. When no step does, one at
 * which nothing is coded. */
double ladder_step(const struct ladder_part *parts, size_t n_parts, uint32_t chunk_tokens, double bits);

#endif
