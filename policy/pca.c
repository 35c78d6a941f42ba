#include "policy/pca.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include <cblas.h>
#include <lapacke.h>

#include "base/half.h"

enum {
	/* Up to here the eigenvectors are computed in f64, above in f32, which takes half the time and
	 * memory. Its eigenvalues err by some 1e-7 of the largest, below what 8 bits a component can show. */
	DOUBLE_FEATURES_MAX = 256,
	BLOCK_ROWS = 256,
};

/* LAPACK takes columns for rows; of a symmetric matrix its lower triangle is our upper one, and the
 * eigenvectors that it leaves in columns are rows to us. */
static int eigenvectors_f64(double *matrix, size_t p, float *basis)
{
	double *values = malloc(p * sizeof *values);
	lapack_int r;

	if (!values)
		return -ENOMEM;
	r = LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'L', (lapack_int)p, matrix, (lapack_int)p, values);
	free(values);
	for (size_t i = 0; i < p * p && r == 0; i++)
		basis[i] = (float)matrix[i];
	return r == LAPACK_WORK_MEMORY_ERROR ? -ENOMEM : r ? -EDOM : 0;
}

static int eigenvectors_f32(double *matrix, size_t p, float *basis)
{
	float *values = malloc(p * sizeof *values);
	lapack_int r;

	if (!values)
		return -ENOMEM;
	for (size_t i = 0; i < p * p; i++)
		basis[i] = (float)matrix[i];
	r = LAPACKE_ssyevd(LAPACK_COL_MAJOR, 'V', 'L', (lapack_int)p, basis, (lapack_int)p, values);
	free(values);
	return r == LAPACK_WORK_MEMORY_ERROR ? -ENOMEM : r ? -EDOM : 0;
}

static void reverse_rows(float *basis, size_t p)
{
	for (size_t i = 0; i < p / 2; i++)
		cblas_sswap((int)p, basis + i * p, 1, basis + (p - 1 - i) * p, 1);
}

static void fix_sign_and_round(float *row, size_t p)
{
	size_t largest = 0;
	float sign;

	for (size_t j = 1; j < p; j++)
		if (fabsf(row[j]) > fabsf(row[largest]))
			largest = j;
	sign = row[largest] < 0 ? -1.0f : 1.0f;
	for (size_t j = 0; j < p; j++)
		row[j] = half_to_float(half_from_float(sign * row[j]));
}

int pca(double *matrix, size_t p, float *basis)
{
	double largest = 0;
	int r;

	for (size_t i = 0; i < p * p; i++) {
		if (!isfinite(matrix[i]))
			return -EDOM;
		largest = fmax(largest, fabs(matrix[i]));
	}
	/* Any scale has the same vectors; this one keeps f32 from overflow. */
	for (size_t i = 0; i < p * p && largest > 0; i++)
		matrix[i] /= largest;
	r = p <= DOUBLE_FEATURES_MAX ? eigenvectors_f64(matrix, p, basis)
				     : eigenvectors_f32(matrix, p, basis);
	if (r < 0)
		return r;
	reverse_rows(basis, p);
	for (size_t i = 0; i < p; i++)
		fix_sign_and_round(basis + i * p, p);
	return 0;
}

int pca_variance(const double *matrix, const float *basis, size_t r, size_t p, double *variance)
{
	double *rows = malloc(BLOCK_ROWS * p * sizeof *rows);
	double *products = malloc(BLOCK_ROWS * p * sizeof *products);
	int result = -ENOMEM;

	if (!rows || !products)
		goto out;
	for (size_t i = 0; i < r; i += BLOCK_ROWS) {
		size_t n = r - i < BLOCK_ROWS ? r - i : BLOCK_ROWS;

		for (size_t k = 0; k < n * p; k++)
			rows[k] = (double)basis[i * p + k];
		cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)p, (int)p, 1, rows,
			(int)p, matrix, (int)p, 0, products, (int)p);
		for (size_t k = 0; k < n; k++)
			variance[i + k] = fmax(0, cblas_ddot((int)p, rows + k * p, 1, products + k * p, 1));
	}
	result = 0;
out:
	free(products);
	free(rows);
	return result;
}

double pca_deviation(const float *basis, size_t r, size_t p)
{
	float *products = malloc(BLOCK_ROWS * r * sizeof *products);
	double largest = 0;

	if (!products)
		return INFINITY;
	for (size_t i = 0; i < r; i += BLOCK_ROWS) {
		size_t n = r - i < BLOCK_ROWS ? r - i : BLOCK_ROWS;

		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)r, (int)p, 1, basis + i * p,
			(int)p, basis, (int)p, 0, products, (int)r);
		for (size_t k = 0; k < n; k++)
			for (size_t j = 0; j < r; j++)
				largest = fmax(
					largest, fabs((double)products[k * r + j] - (i + k == j ? 1 : 0)));
	}
	free(products);
	return largest;
}
