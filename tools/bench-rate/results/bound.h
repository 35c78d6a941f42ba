/*
 * The Gaussian rate-distortion bound: how many bits a coefficient vector of these variances takes at least at
 * a given squared error, were it Gaussian with independent components (Cover and Thomas, Elements of
 * Information Theory, 2nd edition, theorem 10.3.3, reverse water-filling). The variances are the mean squares
 * of the very coefficients that the codecs coded: held-out tokens, about the calibrated mean, on all
 * components of the calibrated basis. KV are not Gaussian and do not stand still, so a codec may pass below.
 */
#ifndef BENCH_RATE_BOUND_H
#define BENCH_RATE_BOUND_H

#include <stddef.h>
#include <stdint.h>

#include "tools/bench-rate/learning.h"

struct bound {
	const struct learning *l;
	uint64_t n_tokens;
	double **energy; /* [n_groups][p], sums of squares */
};

/* -ENOMEM. */
int bound_init(struct bound *b, const struct learning *l);
void bound_fini(struct bound *b);
/* Adds a chunk's coded tokens. -ENOMEM. */
int bound_add(struct bound *b, const struct codec_chunk *chunk, const uint8_t *classes);
/* Bits a token of the plane, at this squared error a token. 0 where dropping everything errs less. */
double bound_bits(const struct bound *b, uint32_t plane, double squared_error);

/* The formula alone: variance [n]. */
double gaussian_bits(const double *variance, size_t n, double squared_error);

#endif
