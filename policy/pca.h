/* Principal components of a covariance matrix. Pure functions; memory for LAPACK's work is taken and returned
 * inside. */
#ifndef POLICY_PCA_H
#define POLICY_PCA_H

#include <stddef.h>

/* The eigenvectors of matrix (symmetric, [p, p]; destroyed) as the rows of basis [p, p], in order of falling
 * eigenvalue, rounded to what f16 can hold. The sign of each row is such that its largest component by
 * magnitude is positive, so that the same matrix gives the same basis everywhere.
 * -ENOMEM; -EDOM: not finite, or LAPACK did not converge. */
int pca(double *matrix, size_t p, float *basis);

/* The same from a basis (in: [p, p], orthonormal) that was right for a matrix not far from this one, for when
 * its first r components are what matters: one step of subspace iteration from them and from some random
 * directions of the rest, so that what is new is found, then the decomposition of the small matrix that this
 * leaves (Halko, Martinsson, Tropp, SIAM Review 53, 2011, section 4). The rows behind are orthogonal to it
 * and to each other, and in no order. Takes a third of pca's time at r = p / 8. 1 <= r <= p. */
int pca_refine(double *matrix, size_t p, size_t r, float *basis);

/* variance[i] = basis_i * matrix * basis_i^T for the first r rows; matrix: symmetric [p, p]. Not the
 * eigenvalues: what the rounded basis really has, on data of the caller's choice. -ENOMEM. */
int pca_variance(const double *matrix, const float *basis, size_t r, size_t p, double *variance);

/* The largest difference of basis * basis^T from the identity, or INFINITY when there is no memory. */
double pca_deviation(const float *basis, size_t r, size_t p);

#endif
