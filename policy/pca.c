#include "policy/pca.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>
#include <lapacke.h>

#include "base/half.h"

enum {
	/* Up to here the eigenvectors are computed in f64, above in f32, which takes half the time and
	 * memory. Its eigenvalues err by some 1e-7 of the largest, below what 8 bits a component can show. */
	DOUBLE_FEATURES_MAX = 256,
	BLOCK_ROWS = 256,
	/* Random directions beside the known ones, and an eighth of these. */
	MORE_ROWS = 16,
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

/* Columns of matrix become its eigenvectors, values [n] rise. LAPACKE_ssyevd asks for the size of the work
 * space in an f32, which from 2896 on rounds it down: too small by one. So it is worked out here. */
static lapack_int decompose_f32(float *matrix, size_t n, float *values)
{
	const size_t n_work = 1 + 6 * n + 2 * n * n, n_numbers = 3 + 5 * n;
	float *work = malloc(n_work * sizeof *work);
	lapack_int *numbers = malloc(n_numbers * sizeof *numbers);
	lapack_int r = LAPACK_WORK_MEMORY_ERROR;

	if (work && numbers)
		r = LAPACKE_ssyevd_work(LAPACK_COL_MAJOR, 'V', 'L', (lapack_int)n, matrix, (lapack_int)n,
			values, work, (lapack_int)n_work, numbers, (lapack_int)n_numbers);
	free(numbers);
	free(work);
	return r;
}

static int eigenvectors_f32(double *matrix, size_t p, float *basis)
{
	float *values = malloc(p * sizeof *values);
	lapack_int r;

	if (!values)
		return -ENOMEM;
	for (size_t i = 0; i < p * p; i++)
		basis[i] = (float)matrix[i];
	r = decompose_f32(basis, p, values);
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

/* Any scale has the same vectors; this one keeps f32 from overflow. */
static int normalise(double *matrix, size_t p)
{
	double largest = 0;

	for (size_t i = 0; i < p * p; i++) {
		if (!isfinite(matrix[i]))
			return -EDOM;
		largest = fmax(largest, fabs(matrix[i]));
	}
	for (size_t i = 0; i < p * p && largest > 0; i++)
		matrix[i] /= largest;
	return 0;
}

int pca(double *matrix, size_t p, float *basis)
{
	int r = normalise(matrix, p);

	if (r < 0)
		return r;
	r = p <= DOUBLE_FEATURES_MAX ? eigenvectors_f64(matrix, p, basis)
				     : eigenvectors_f32(matrix, p, basis);
	if (r < 0)
		return r;
	reverse_rows(basis, p);
	for (size_t i = 0; i < p; i++)
		fix_sign_and_round(basis + i * p, p);
	return 0;
}

/* Sums of rest's rows [n, p] with random signs: out [n_out, p]. */
static int mix_rows(const float *rest, size_t n, size_t p, float *out, size_t n_out)
{
	float *signs = malloc((n_out * n + 1) * sizeof *signs);
	uint64_t state = 0x9e3779b97f4a7c15;

	if (!signs)
		return -ENOMEM;
	for (size_t i = 0; i < n_out * n; i++) {
		state = state * 6364136223846793005 + 1442695040888963407;
		signs[i] = state >> 63 ? 1 : -1;
	}
	if (n_out && n)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n_out, (int)p, (int)n, 1, signs,
			(int)n, rest, (int)p, 0, out, (int)p);
	free(signs);
	return 0;
}

/* Turns basis (orthonormal rows) so that its first m rows span those of target [m, p], by m Householder
 * reflections: what a QR decomposition of the target, seen from the basis, consists of. That is some 4 m p^2
 * operations, where making all of the basis anew would take p^3. room: [m, p]. LAPACK sees columns. */
static int turn_basis(float *basis, size_t p, const float *target, size_t m, float *room)
{
	float *factors = malloc(m * sizeof *factors);
	lapack_int r;

	if (!factors)
		return -ENOMEM;
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m, (int)p, (int)p, 1, target, (int)p, basis,
		(int)p, 0, room, (int)p);
	r = LAPACKE_sgeqrf(LAPACK_COL_MAJOR, (lapack_int)p, (lapack_int)m, room, (lapack_int)p, factors);
	if (r == 0)
		r = LAPACKE_sormqr(LAPACK_COL_MAJOR, 'R', 'N', (lapack_int)p, (lapack_int)p, (lapack_int)m,
			room, (lapack_int)p, factors, basis, (lapack_int)p);
	free(factors);
	return r == LAPACK_WORK_MEMORY_ERROR ? -ENOMEM : r ? -EDOM : 0;
}

/* Turns rows [m, p] within their span so that they decorrelate: Rayleigh and Ritz. image: [m, p]. */
static int turn_rows(const float *matrix, size_t p, float *rows, size_t m, float *image)
{
	float *small = malloc(m * m * sizeof *small), *values = malloc(m * sizeof *values);
	lapack_int r = LAPACK_WORK_MEMORY_ERROR;

	if (!small || !values)
		goto out;
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)p, (int)p, 1, rows, (int)p,
		matrix, (int)p, 0, image, (int)p);
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m, (int)m, (int)p, 1, image, (int)p, rows,
		(int)p, 0, small, (int)m);
	r = decompose_f32(small, m, values);
	if (r)
		goto out;
	reverse_rows(small, m);
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)p, (int)m, 1, small, (int)m, rows,
		(int)p, 0, image, (int)p);
	memcpy(rows, image, m * p * sizeof *rows);
out:
	free(values);
	free(small);
	return r == LAPACK_WORK_MEMORY_ERROR ? -ENOMEM : r ? -EDOM : 0;
}

int pca_refine(double *matrix, size_t p, size_t r, float *basis)
{
	const size_t more = r / 8 + MORE_ROWS, m = r + more < p ? r + more : p;
	float *narrow = malloc(p * p * sizeof *narrow);
	float *rows = malloc(m * p * sizeof *rows), *image = malloc(m * p * sizeof *image);
	int result = normalise(matrix, p);

	if (result == 0 && (!narrow || !rows || !image))
		result = -ENOMEM;
	if (result < 0)
		goto out;
	for (size_t i = 0; i < p * p; i++)
		narrow[i] = (float)matrix[i];
	memcpy(rows, basis, r * p * sizeof *rows);
	result = mix_rows(basis + r * p, p - r, p, rows + r * p, m - r);
	if (result < 0)
		goto out;
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)p, (int)p, 1, rows, (int)p,
		narrow, (int)p, 0, image, (int)p);
	result = turn_basis(basis, p, image, m, rows);
	if (result == 0)
		result = turn_rows(narrow, p, basis, m, image);
	for (size_t i = 0; i < p && result == 0; i++)
		fix_sign_and_round(basis + i * p, p);
out:
	free(image);
	free(rows);
	free(narrow);
	return result;
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
