/* Components of matrices whose components are known, and what rounding to f16 leaves of orthonormality. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "policy/pca.h"

static double uniform(uint64_t *state)
{
	*state = *state * 6364136223846793005 + 1442695040888963407;
	return (double)(*state >> 40) / (1 << 24) - 0.5;
}

/* matrix = sum of variance_k u_k u_k^T, u_k the columns of the reflection I - 2 v v^T. */
static void example(size_t p, const double *variance, double *u, double *matrix)
{
	uint64_t state = p;
	double norm = 0, *v = malloc(p * sizeof *v);

	assert_non_null(v);
	for (size_t i = 0; i < p; i++) {
		v[i] = uniform(&state);
		norm += v[i] * v[i];
	}
	for (size_t i = 0; i < p; i++)
		for (size_t k = 0; k < p; k++)
			u[k * p + i] = (i == k) - 2 * v[i] * v[k] / norm;
	memset(matrix, 0, p * p * sizeof *matrix);
	for (size_t k = 0; k < p; k++)
		for (size_t i = 0; i < p; i++)
			for (size_t j = 0; j < p; j++)
				matrix[i * p + j] += variance[k] * u[k * p + i] * u[k * p + j];
	free(v);
}

static double dot(const float *a, const double *b, size_t p)
{
	double sum = 0;

	for (size_t i = 0; i < p; i++)
		sum += (double)a[i] * b[i];
	return sum;
}

static void check_size(size_t p, double scale)
{
	double *u = malloc(p * p * sizeof *u), *matrix = malloc(p * p * sizeof *matrix);
	double *copy = malloc(p * p * sizeof *copy), *variance = malloc(p * sizeof *variance);
	double *got = malloc(p * sizeof *got);
	float *basis = malloc(p * p * sizeof *basis);

	assert_true(u && matrix && copy && variance && got && basis);
	/* Shuffled: 7 has no factor in common with the sizes used here. */
	for (size_t k = 0; k < p; k++)
		variance[k] = scale * pow(2, -(double)(7 * k % p));
	example(p, variance, u, matrix);
	memcpy(copy, matrix, p * p * sizeof *copy);
	assert_int_equal(pca(matrix, p, basis), 0);
	for (size_t k = 0; k < p; k++) {
		size_t place = 7 * k % p;
		double cosine = dot(basis + place * p, u + k * p, p);

		if (place < 20 && fabs(fabs(cosine) - 1) > 1e-3)
			fail_msg("size %zu, component %zu: cosine %g", p, place, cosine);
	}
	for (size_t i = 0; i < p; i++) {
		float largest = 0;

		for (size_t j = 0; j < p; j++) {
			float x = basis[i * p + j];

			assert_true(x == half_to_float(half_from_float(x)));
			if (fabsf(x) > fabsf(largest))
				largest = x;
		}
		assert_true(largest > 0);
	}
	assert_true(pca_deviation(basis, p, p) < 1e-3);
	assert_int_equal(pca_variance(copy, basis, p, p, got), 0);
	for (size_t k = 0; k < p; k++)
		if (7 * k % p < 10)
			assert_true(fabs(got[7 * k % p] / variance[k] - 1) < 2e-3);
	free(basis);
	free(got);
	free(variance);
	free(copy);
	free(matrix);
	free(u);
}

static void test_known_components(void **state)
{
	(void)state;
	check_size(1, 1);
	check_size(2, 1);
	check_size(30, 1);
	check_size(30, 1e30);
	check_size(30, 1e-30);
	check_size(200, 4);
}

/* Above 256 features the work is done in f32: a matrix that is known by its diagonal blocks. */
static void test_large(void **state)
{
	size_t p = 260;
	double *matrix = calloc(p * p, sizeof *matrix), *variance = malloc(p * sizeof *variance);
	float *basis = malloc(p * p * sizeof *basis);

	(void)state;
	assert_true(matrix && variance && basis);
	for (size_t i = 0; i < p; i++)
		matrix[i * p + i] = 1 + (double)i;
	/* [[260, 300], [300, 259]] has 259.5 + 300.0004 and the vector (1, 1) / sqrt(2). */
	matrix[p * p - 2] = matrix[p * p - 1 - p] = 300;
	assert_int_equal(pca(matrix, p, basis), 0);
	assert_true(fabsf(basis[p - 1] - sqrtf(0.5f)) < 1e-3f);
	assert_true(fabsf(basis[p - 2] - sqrtf(0.5f)) < 1e-3f);
	assert_true(fabsf(basis[p + p - 3] - 1) < 1e-3f);
	assert_true(pca_deviation(basis, p, p) < 1e-3);
	free(basis);
	free(variance);
	free(matrix);
}

static void test_edges(void **state)
{
	double zero[4] = {0}, bad[4] = {1, NAN, NAN, 1}, matrix[4] = {1, 0, 0, 1}, variance[2];
	static const float skew[4] = {1, 0, 0.5f, 1};
	float basis[4];

	(void)state;
	assert_int_equal(pca(zero, 2, basis), 0);
	assert_true(pca_deviation(basis, 2, 2) < 1e-6);
	assert_int_equal(pca(bad, 2, basis), -EDOM);
	assert_true(fabs(pca_deviation(skew, 2, 2) - 0.5) < 1e-6);
	assert_int_equal(pca_variance(matrix, skew, 2, 2, variance), 0);
	assert_true(fabs(variance[1] - 1.25) < 1e-6);
}

/* What the first r rows hold of the matrix's trace. */
static double held(const double *matrix, const float *basis, size_t r, size_t p)
{
	double *variance = malloc(r * sizeof *variance), sum = 0;

	assert_non_null(variance);
	assert_int_equal(pca_variance(matrix, basis, r, p, variance), 0);
	for (size_t i = 0; i < r; i++)
		sum += variance[i];
	free(variance);
	return sum;
}

/* A matrix that has turned a little, and one that has got a component that was not there before: refining the
 * old basis holds what the exact components hold. */
static void test_refine(void **state)
{
	enum { SIZE = 96, KEPT = 12 };
	const size_t p = SIZE, r = KEPT, bytes = p * p * sizeof(double);
	double *old = malloc(bytes), *matrix = malloc(bytes), *copy = malloc(bytes), *u = malloc(bytes);
	float *exact = malloc(p * p * sizeof *exact), *basis = malloc(p * p * sizeof *basis);
	double variance[SIZE];

	(void)state;
	assert_true(old && matrix && copy && u && exact && basis);
	for (size_t k = 0; k < p; k++)
		variance[k] = pow(0.7, (double)k) + 1e-4;
	example(p, variance, u, old);
	for (int is_new = 0; is_new < 2; is_new++) {
		memcpy(copy, old, bytes);
		assert_int_equal(pca(copy, p, basis), 0);
		memcpy(matrix, old, bytes);
		for (size_t i = 0; i < p; i++)
			for (size_t j = 0; j < p; j++)
				matrix[i * p + j] += is_new ? 0.5 * u[70 * p + i] * u[70 * p + j]
							    : 0.02 * cos((double)i) * cos((double)j);
		memcpy(copy, matrix, bytes);
		assert_int_equal(pca(copy, p, exact), 0);
		memcpy(copy, matrix, bytes);
		if (is_new)
			assert_true(held(matrix, basis, r, p) < 0.9 * held(matrix, exact, r, p));
		assert_int_equal(pca_refine(copy, p, r, basis), 0);
		assert_true(held(matrix, basis, r, p) > 0.999 * held(matrix, exact, r, p));
		assert_true(pca_deviation(basis, p, p) < 2e-3);
	}
	free(basis);
	free(exact);
	free(u);
	free(copy);
	free(matrix);
	free(old);
}

/* Where the size of LAPACK's work space no longer fits an f32. */
static void test_widest(void **state)
{
	const size_t p = 2900;
	double *matrix = calloc(p * p, sizeof *matrix), variance[1];
	float *basis = malloc(p * p * sizeof *basis);

	(void)state;
	assert_true(matrix && basis);
	for (size_t i = 0; i < p; i++)
		matrix[i * p + i] = i == 1234 ? 2 : 1;
	assert_int_equal(pca(matrix, p, basis), 0);
	assert_true(basis[1234] > 0.99f);
	memset(matrix, 0, p * p * sizeof *matrix);
	matrix[1234 * p + 1234] = 2;
	assert_int_equal(pca_variance(matrix, basis, 1, p, variance), 0);
	assert_true(fabs(variance[0] - 2) < 1e-2);
	free(basis);
	free(matrix);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest wide[] = {cmocka_unit_test(test_widest)};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_components),
		cmocka_unit_test(test_large),
		cmocka_unit_test(test_edges),
		cmocka_unit_test(test_refine),
	};

	if (argc > 1 && !strcmp(argv[1], "wide"))
		return cmocka_run_group_tests(wide, NULL, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
