/*
 * Streaming mean and covariance of feature vectors. Products are formed in f32, a batch at a time and about a
 * shift close to the mean, and summed in f64, so that neither a large mean nor a long stream costs digits.
 * One owner, one thread at a time; partial ones of several threads can be merged. Memory: 12 p^2 bytes.
 */
#ifndef POLICY_COVARIANCE_H
#define POLICY_COVARIANCE_H

#include <stddef.h>
#include <stdint.h>

struct covariance;

/* n_features: p, at least 1. NULL when out of memory. */
struct covariance *covariance_new(size_t n_features);
struct covariance *covariance_free(struct covariance *c);

/* Adds x: [n_tokens, p] f32, rows x_stride floats apart. Tokens with a value that is not finite, or so large
 * (over 1e15) that its square would not be, are left out. */
void covariance_add(struct covariance *c, const float *x, size_t x_stride, size_t n_tokens);
/* Adds to c all that other has seen; other keeps what it has. The same number of features. */
void covariance_merge(struct covariance *c, struct covariance *other);

/* Lets c weigh as if it had seen n_tokens only; nothing happens when it has seen fewer. For a source that
 * changes: what is added from here on then counts for more. */
void covariance_fade(struct covariance *c, uint64_t n_tokens);

/* Tokens taken, or what covariance_fade has left of them. */
uint64_t covariance_count(const struct covariance *c);
/* Tokens left out. */
uint64_t covariance_rejected(const struct covariance *c);

/* The results so far; adding may go on. mean: [p]. Zero when nothing was added. */
void covariance_mean(struct covariance *c, double *mean);
/* matrix: [p, p], symmetric: sum of (x - centre)(x - centre)^T over tokens, divided by their number. centre:
 * [p], the mean usually. Zero when nothing was added. */
void covariance_matrix(struct covariance *c, const double *centre, double *matrix);

#endif
