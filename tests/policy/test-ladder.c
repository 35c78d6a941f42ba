/* Steps and what they come to, against a search and against the rate-distortion bound. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "policy/ladder.h"

enum { N = 300, CHUNK = 256 };

static struct levels_model model;
static float deviation[2][N];

static void parts_make(struct ladder_part parts[2])
{
	for (int p = 0; p < 2; p++) {
		for (int i = 0; i < N; i++)
			deviation[p][i] = (float)((p ? 0.7 : 1.0) * pow(i + 1, p ? -0.5 : -0.9));
		parts[p] = (struct ladder_part){deviation[p], N, &model};
	}
}

/* Bits of a Gaussian vector at a squared error: reverse water-filling. */
static double bound_bits(double lost)
{
	double low = 1e-12, high = 1;

	for (int k = 0; k < 200; k++) {
		const double level = sqrt(low * high);
		double sum = 0;

		for (int p = 0; p < 2; p++)
			for (int i = 0; i < N; i++)
				sum += fmin(level, (double)deviation[p][i] * (double)deviation[p][i]);
		*(sum < lost ? &low : &high) = level;
	}
	double bits = 0;
	for (int p = 0; p < 2; p++)
		for (int i = 0; i < N; i++)
			bits += fmax(0, 0.5 * log2((double)deviation[p][i] * (double)deviation[p][i] / low));
	return bits;
}

static void test_step_meets_budget(void **state)
{
	struct ladder_part parts[2];
	(void)state;

	parts_make(parts);
	for (double bits = 60; bits < 3000; bits *= 1.7) {
		struct ladder_point at = {0}, finer = {0};
		const double step = ladder_step(parts, 2, CHUNK, bits);

		ladder_at(parts, 2, CHUNK, step, &at);
		ladder_at(parts, 2, CHUNK, step * 0.99, &finer);
		assert_true(at.bits <= bits);
		assert_true(finer.bits > bits);
	}
}

/* A larger step never costs more, loses less or codes more components. */
static void test_monotonic(void **state)
{
	double lost[2], lost_before = 0, bits_before = INFINITY;
	uint32_t coded[2], coded_before = 2 * N;
	struct ladder_part parts[2];
	(void)state;

	parts_make(parts);
	for (double step = 1e-3; step < 10; step *= 1.05) {
		struct ladder_point at = {.lost = lost, .coded = coded};

		ladder_at(parts, 2, CHUNK, step, &at);
		assert_true(at.bits <= bits_before + 1e-9);
		assert_true(lost[0] + lost[1] >= lost_before * 0.999);
		assert_true(coded[0] + coded[1] <= coded_before);
		bits_before = at.bits;
		lost_before = lost[0] + lost[1];
		coded_before = coded[0] + coded[1];
	}
	assert_int_equal(coded_before, 0);
}

/* What the default model promises is neither better than theory allows nor far from it. */
static void test_near_the_bound(void **state)
{
	struct ladder_part parts[2];
	double lost[2];
	(void)state;

	parts_make(parts);
	for (double step = 0.02; step < 0.3; step *= 1.5) {
		struct ladder_point at = {.lost = lost};
		double bound;

		ladder_at(parts, 2, 1 << 20, step, &at);
		bound = bound_bits(lost[0] + lost[1]);
		printf("step %.3f: %.1f bits, bound %.1f\n", step, at.bits, bound);
		assert_true(at.bits > bound);
		assert_true(at.bits < 1.3 * bound);
	}
}

static void test_hopeless_budget(void **state)
{
	struct ladder_part parts[2];
	struct ladder_point at = {0};
	(void)state;

	parts_make(parts);
	ladder_at(parts, 2, CHUNK, ladder_step(parts, 2, CHUNK, 1), &at);
	assert_true(at.bits > 1); /* the frame itself */
	for (int i = 0; i < N; i++)
		deviation[0][i] = deviation[1][i] = 0;
	ladder_at(parts, 2, CHUNK, ladder_step(parts, 2, CHUNK, 100), &at);
	assert_true(isfinite(at.bits));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_step_meets_budget),
		cmocka_unit_test(test_monotonic),
		cmocka_unit_test(test_near_the_bound),
		cmocka_unit_test(test_hopeless_budget),
	};

	levels_model_default(&model);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
