/* Rate control against a codec whose rungs do not quite keep what they promise. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "policy/rate.h"

enum { BYTES = 300000, IN_FLIGHT = 16, SEED = 3 };

static const struct transform ladder = {.n_rungs = 8, .rung_ratio = {4, 6, 8, 12, 16, 20, 32, 40}};

static uint64_t random_state = SEED;

/* 0.9 to 1.1 */
static double noise(void)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return 0.9 + 0.2 * (double)(random_state >> 40) / 16777216.0;
}

struct codec {
	double better;      /* real ratios are so much larger than the rungs say */
	double error_at_16; /* and errors grow with the root of the ratio */
};

/* n chunks, IN_FLIGHT of them on their way at once; returns sums over the last `judged` ones. */
static void run(struct rate *r, const struct policy *p, const struct codec *c, int n, int judged, double fill,
	double *ratio, double *error)
{
	struct rate_plan plans[IN_FLIGHT];
	double raw = 0, coded = 0, errors = 0;

	for (int i = 0; i < n + IN_FLIGHT; i++) {
		struct rate_plan *plan = &plans[i % IN_FLIGHT];

		if (i >= IN_FLIGHT) {
			const double nominal = (double)ladder.rung_ratio[plan->rung];
			const double bytes = BYTES * noise(), out = bytes / (nominal * c->better * noise());
			const double e = c->error_at_16 * sqrt(nominal / 16) * noise();

			rate_note(r, plan, bytes, out, e);
			if (i - IN_FLIGHT >= n - judged) {
				raw += bytes;
				coded += out;
				errors += e / judged;
			}
		}
		if (i < n)
			assert_int_equal(rate_choose(r, p, &ladder, BYTES, fill, plan), 0);
	}
	*ratio = raw / coded;
	*error = errors;
}

static void a_ratio_is_held(void **state)
{
	static const double targets[] = {5, 8, 10, 14, 16, 18, 20, 25, 31, 38};
	static const double betters[] = {0.85, 1, 1.2};

	(void)state;
	for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
		for (size_t k = 0; k < sizeof betters / sizeof *betters; k++) {
			const struct codec c = {betters[k], 0.1};
			struct policy p;
			struct rate r;
			double ratio, error;

			policy_init(&p);
			p.ratio = targets[i];
			assert_int_equal(rate_init(&r, p.rate_window), 0);
			run(&r, &p, &c, 200 + 64, 64, 0, &ratio, &error);
			/* What the ladder does not reach cannot be held. */
			if (targets[i] >= 4.2 * c.better && targets[i] <= 39 * c.better &&
				fabs(ratio / targets[i] - 1) > 0.05)
				fail_msg("target %g, rungs %g better: %g", targets[i], betters[k], ratio);
			if (targets[i] >= 4.2 * c.better && targets[i] <= 39 * c.better)
				assert_true(fabs(rate_achieved(&r) / targets[i] - 1) < 0.05);
			rate_fini(&r);
		}
}

static void an_error_is_held(void **state)
{
	static const double targets[] = {0.06, 0.08, 0.1, 0.12, 0.14};

	(void)state;
	for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
		const struct codec c = {1, 0.1};
		struct policy p;
		struct rate r;
		double ratio, error;

		policy_init(&p);
		p.mode = POLICY_FIDELITY;
		p.target_error = targets[i];
		assert_int_equal(rate_init(&r, p.rate_window), 0);
		run(&r, &p, &c, 264, 64, 0, &ratio, &error);
		if (fabs(error / targets[i] - 1) > 0.05)
			fail_msg("target %g: %g", targets[i], error);
		/* The ratio floats to where that error is. */
		assert_true(fabs(ratio / (16 * pow(targets[i] / 0.1, 2)) - 1) < 0.15);
		rate_fini(&r);
	}
}

static void a_rung_that_fits_is_used_alone(void **state)
{
	const struct codec c = {1, 0.1};
	struct policy p;
	struct rate r;
	double ratio, error;

	(void)state;
	policy_init(&p);
	assert_int_equal(rate_init(&r, p.rate_window), 0);
	run(&r, &p, &c, 100, 100, 0, &ratio, &error);
	for (uint32_t i = 0; i < ladder.n_rungs; i++)
		assert_true((r.cost[i] > 0) == (ladder.rung_ratio[i] == 16));
	rate_fini(&r);
}

static void pressure_grows_with_the_pool(void **state)
{
	struct policy p;
	struct rate r;
	struct rate_plan plan;
	double last = 0;

	(void)state;
	policy_init(&p);
	p.mode = POLICY_PRESSURE;
	assert_int_equal(rate_init(&r, p.rate_window), 0);
	for (double fill = 0; fill <= 1.05; fill += 0.05) {
		const double ratio = rate_under_pressure(&p, fill);

		assert_true(ratio >= last);
		last = ratio;
		assert_int_equal(rate_choose(&r, &p, &ladder, BYTES, fill, &plan), 0);
		assert_int_equal(plan.rung, transform_rung(&ladder, ratio));
		rate_note(&r, &plan, 0, 0, 0);
	}
	assert_true(rate_under_pressure(&p, 0.7) == 16 && rate_under_pressure(&p, 1) == 40);
	assert_true(r.pending_weight == 0 && rate_achieved(&r) == 0);
	rate_fini(&r);
}

static void a_new_target_starts_over(void **state)
{
	const struct codec c = {1, 0.1};
	struct policy p;
	struct rate r;
	double ratio, error;

	(void)state;
	policy_init(&p);
	p.ratio = 8;
	assert_int_equal(rate_init(&r, p.rate_window), 0);
	run(&r, &p, &c, 300, 64, 0, &ratio, &error);
	p.ratio = 20;
	p.rate_window = 32;
	run(&r, &p, &c, 40, 40, 0, &ratio, &error);
	/* No chunk pays for what was coded before. */
	assert_true(fabs(ratio / 20 - 1) < 0.05);
	rate_fini(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(a_ratio_is_held),
		cmocka_unit_test(an_error_is_held), cmocka_unit_test(a_rung_that_fits_is_used_alone),
		cmocka_unit_test(pressure_grows_with_the_pool), cmocka_unit_test(a_new_target_starts_over)};

	print_message("seed %d\n", SEED);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
