/*
 * Bit allocation: how many bits each component of each part gets, so that the weighted squared error is least
 * under a budget. Runs of neighbouring components share a width. The budget is pooled over all parts, so that
 * bits go where they do most good, be it K or V, early layers or late ones. Pure.
 *
 * Method: for each run the points (rate, distortion) of the 9 widths have a lower convex hull; the steps
 * along all hulls, taken in the order of distortion saved per bit, give allocations each of which is the best
 * there is for what it costs (Shoham and Gersho, IEEE Trans. ASSP 36, 1988; KVTC, arXiv 2511.01815, solves
 * the same problem by dynamic programming). What is left of the budget is less than one step of one run.
 */
#ifndef POLICY_ALLOCATE_H
#define POLICY_ALLOCATE_H

#include <stddef.h>
#include <stdint.h>

enum { ALLOCATE_BITS_MAX = 8 };

/* What a width buys and costs, for a component of variance 1. distortion[0] is 1, rate[0] is 0; distortion
 * falls, rate rises. */
struct allocate_tables {
	double distortion[ALLOCATE_BITS_MAX + 1]; /* mean squared error */
	double rate[ALLOCATE_BITS_MAX + 1];       /* bits a coefficient takes after entropy coding */
};

struct allocate_part {
	const float *variance; /* [n_components], falling */
	uint32_t n_components;
	double weight; /* of this part's squared error */
	uint8_t *bits; /* out: [n_components], non-increasing */
};

struct allocate_options {
	const struct allocate_tables *tables;
	uint32_t run;               /* components that share a width, from 1 */
	double side_bits_per_token; /* for each component with bits > 0: its step, spread over a chunk */
	double budget;              /* bits per token over all parts */
};

struct allocate_result {
	double bits_per_token; /* at most the budget */
	double distortion;     /* weighted squared error per token, of the given components */
};

/* Measured with Gaussian rows of 256 values, the quantiser of kernels/formula.h and zlib's Huffman coding of
 * the packed codes: widths that do not divide a byte gain less from it. */
void allocate_default_tables(struct allocate_tables *tables);

/* Writes bits of all parts. The same parts with a larger budget never get fewer bits anywhere. -ENOMEM. */
int allocate(const struct allocate_part *parts, size_t n_parts, const struct allocate_options *options,
	struct allocate_result *result);

#endif
