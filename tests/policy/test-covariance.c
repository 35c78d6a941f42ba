/* Streaming statistics equal the two-pass ones, whatever the cuts, the mean and the order of merging. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "policy/covariance.h"

enum { P = 12, TOKENS = 5000, STRIDE = P + 3 };

/* Correlated features whose mean is a thousand times their spread. */
static float *example(void)
{
	float *x = calloc((size_t)TOKENS * STRIDE, sizeof *x);
	uint64_t state = 7;

	assert_non_null(x);
	for (size_t t = 0; t < TOKENS; t++) {
		float common = 0;

		for (size_t i = 0; i < P; i++) {
			state = state * 6364136223846793005 + 1442695040888963407;
			common += (float)((double)(state >> 40) / (1 << 24)) - 0.5f;
			x[t * STRIDE + i] = common + 1000.0f * (float)i;
		}
		for (size_t i = P; i < STRIDE; i++)
			x[t * STRIDE + i] = NAN;
	}
	return x;
}

static void two_pass(const float *x, double mean[P], double matrix[P * P])
{
	memset(mean, 0, P * sizeof *mean);
	memset(matrix, 0, P * P * sizeof *matrix);
	for (size_t t = 0; t < TOKENS; t++)
		for (size_t i = 0; i < P; i++)
			mean[i] += (double)x[t * STRIDE + i] / TOKENS;
	for (size_t t = 0; t < TOKENS; t++)
		for (size_t i = 0; i < P; i++)
			for (size_t j = 0; j < P; j++)
				matrix[i * P + j] += ((double)x[t * STRIDE + i] - mean[i]) *
						     ((double)x[t * STRIDE + j] - mean[j]) / TOKENS;
}

static void compare(struct covariance *c, const float *x)
{
	double mean[P], matrix[P * P], want_mean[P], want[P * P];

	two_pass(x, want_mean, want);
	assert_int_equal(covariance_count(c), TOKENS);
	covariance_mean(c, mean);
	covariance_matrix(c, mean, matrix);
	for (size_t i = 0; i < P; i++)
		assert_true(fabs(mean[i] - want_mean[i]) < 1e-6 * (1 + fabs(want_mean[i])));
	for (size_t i = 0; i < P * P; i++)
		assert_true(fabs(matrix[i] - want[i]) < 1e-6 * want[P * P - 1]);
}

static void test_cuts(void **state)
{
	static const size_t cuts[] = {TOKENS, 256, 1000, 1, 257};
	float *x = example();

	(void)state;
	for (size_t k = 0; k < sizeof cuts / sizeof cuts[0]; k++) {
		struct covariance *c = covariance_new(P);

		assert_non_null(c);
		for (size_t t = 0; t < TOKENS; t += cuts[k])
			covariance_add(
				c, x + t * STRIDE, STRIDE, TOKENS - t < cuts[k] ? TOKENS - t : cuts[k]);
		compare(c, x);
		covariance_free(c);
	}
	free(x);
}

static void test_merge(void **state)
{
	static const size_t parts[] = {0, 0, 1, 300, 2900, TOKENS};
	struct covariance *all = covariance_new(P), *c;
	float *x = example();

	(void)state;
	assert_non_null(all);
	for (size_t k = 0; k + 1 < sizeof parts / sizeof parts[0]; k++) {
		c = covariance_new(P);
		assert_non_null(c);
		covariance_add(c, x + parts[k] * STRIDE, STRIDE, parts[k + 1] - parts[k]);
		covariance_merge(all, c);
		covariance_free(c);
	}
	compare(all, x);
	covariance_free(all);
	free(x);
}

/* About another centre than the mean: variance plus the squared distance. */
static void test_centre(void **state)
{
	static const float x[] = {1, 10, 3, 10};
	static const double centre[2] = {1, 7};
	struct covariance *c = covariance_new(2);
	double matrix[4];

	(void)state;
	assert_non_null(c);
	covariance_add(c, x, 2, 2);
	covariance_matrix(c, centre, matrix);
	assert_true(fabs(matrix[0] - 2) < 1e-12);
	assert_true(fabs(matrix[1] - 3) < 1e-12);
	assert_true(fabs(matrix[2] - 3) < 1e-12);
	assert_true(fabs(matrix[3] - 9) < 1e-12);
	covariance_free(c);
}

static void test_unusable_tokens_are_left_out(void **state)
{
	float *x = example(), *with = calloc((size_t)(TOKENS + 4) * STRIDE, sizeof *with);
	static const float bad[] = {NAN, INFINITY, -INFINITY, 1e30f};
	struct covariance *c = covariance_new(P);
	double mean[P], matrix[P * P];

	(void)state;
	assert_non_null(with);
	assert_non_null(c);
	covariance_mean(c, mean);
	covariance_matrix(c, mean, matrix);
	assert_true(mean[3] == 0 && matrix[3] == 0);
	memcpy(with, x, 4 * STRIDE * sizeof *x);
	for (int k = 0; k < 4; k++)
		with[k * STRIDE + k] = bad[k];
	memcpy(with + 4 * STRIDE, x, (size_t)TOKENS * STRIDE * sizeof *x);
	covariance_add(c, with, STRIDE, TOKENS + 4);
	assert_int_equal(covariance_rejected(c), 4);
	compare(c, x);
	covariance_free(c);
	free(with);
	free(x);
}

/* After fading, old and new tokens weigh as they are meant to. */
static void test_fade(void **state)
{
	struct covariance *c = covariance_new(1);
	float x[1000];
	double mean, variance;

	(void)state;
	assert_non_null(c);
	for (int i = 0; i < 1000; i++)
		x[i] = 4;
	covariance_add(c, x, 1, 1000);
	covariance_fade(c, 2000);
	assert_int_equal(covariance_count(c), 1000);
	covariance_fade(c, 100);
	assert_int_equal(covariance_count(c), 100);
	for (int i = 0; i < 300; i++)
		x[i] = 8;
	covariance_add(c, x, 1, 300);
	covariance_mean(c, &mean);
	covariance_matrix(c, &mean, &variance);
	assert_true(fabs(mean - 7) < 1e-6);
	assert_true(fabs(variance - 3) < 1e-5);
	covariance_fade(c, 0);
	covariance_mean(c, &mean);
	assert_int_equal(covariance_count(c), 0);
	covariance_add(c, x, 1, 2);
	covariance_mean(c, &mean);
	assert_true(fabs(mean - 8) < 1e-6);
	covariance_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cuts),
		cmocka_unit_test(test_merge),
		cmocka_unit_test(test_centre),
		cmocka_unit_test(test_unusable_tokens_are_left_out),
		cmocka_unit_test(test_fade),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
