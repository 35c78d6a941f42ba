/*
 * What levels cost and lose, class by class: the tables that they are coded with, and from them the rate and
 * the distortion at any step. A rung is found with it. Plain data; pure functions.
 */
#ifndef POLICY_LEVELS_MODEL_H
#define POLICY_LEVELS_MODEL_H

#include "base/levels.h"

struct levels_model {
	struct levels_tables tables;
	double bits[LEVELS_TABLES];       /* of a level, without low bits that go around the table */
	double distortion[LEVELS_TABLES]; /* mean squared error, in squared steps */
};

/* From integrals over a Gaussian whose scale varies by a fifth of an octave or so, as coefficients' does: a
 * start for a model that nothing has been counted for. */
void levels_model_default(struct levels_model *model);

/* What was counted, on top of what is there as if it had been seen a few hundred times. */
void levels_model_update(struct levels_model *model, const struct levels_counts *counts);

/* Bits of a level of a component, between classes interpolated: 0 when it is not coded at this step. */
double levels_model_bits(const struct levels_model *model, double deviation, double step);
/* Mean squared error of a component, in the square of its unit. */
double levels_model_distortion(const struct levels_model *model, double deviation, double step);

#endif
