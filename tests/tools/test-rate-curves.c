/* What the rate bench concludes with: curves are read between their points and no further, and the bound is
 * the formula's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "tools/bench-rate/results/bound.h"
#include "tools/bench-rate/results/curve.h"
#include "tools/bench-rate/results/figures.h"

static int near(double a, double b)
{
	return fabs(a - b) <= 1e-9 * fabs(b);
}

static void curves_are_straight_in_logarithms(void **state)
{
	/* y = 3 x^2, out of order */
	const double x[] = {8, 1, 2}, y[] = {192, 3, 12};

	(void)state;
	assert_true(near(curve_at(x, y, 3, 4), 48));
	assert_true(near(curve_at(x, y, 3, 2), 12));
	assert_true(near(curve_at(x, y, 3, 8), 192));
	assert_true(isnan(curve_at(x, y, 3, 0.99)));
	assert_true(isnan(curve_at(x, y, 3, 8.01)));
	assert_true(isnan(curve_at(x, y, 1, 8)));
	assert_true(isnan(curve_at(x, y, 3, NAN)));
}

static void bound_is_reverse_water_filling(void **state)
{
	const double equal[] = {4, 4, 4, 4}, mixed[] = {16, 4, 0.01};

	(void)state;
	/* Four components, a quarter of their variance left of each: a bit each. */
	assert_true(near(gaussian_bits(equal, 4, 4), 4));
	/* Level 1: 16 and 4 are cut to it, 0.01 is dropped. */
	assert_true(near(gaussian_bits(mixed, 3, 2.01), 2 + 1));
	/* Level 4: only the first is coded. */
	assert_true(near(gaussian_bits(mixed, 3, 8.01), 1));
	assert_true(gaussian_bits(mixed, 3, 20.01) == 0);
	assert_true(gaussian_bits(mixed, 3, 100) == 0);
}

/* Two codecs whose curves are known: at an error of 0.1 one has a ratio of 16, the other of 8. */
static void answers_compare_at_equal_loss(void **state)
{
	const struct figures points[] = {
		{.codec = "cistern",
			.rung = 8,
			.ratio_coded = 8,
			.attn_error = 0.01,
			.kl = 0.001,
			.bits_per_value = 2,
			.bound_bits_per_value = 1.6},
		{.codec = "cistern",
			.rung = 16,
			.ratio_coded = 16,
			.attn_error = 0.1,
			.attn_error_recall = 0.2,
			.kl = 0.004,
			.kl_recall = 0.01,
			.bits_per_value = 1,
			.bound_bits_per_value = 0.8,
			.recall_original = 0.99,
			.recall = 0.98},
		{.codec = "kvtc",
			.rung = 4,
			.ratio_coded = 4,
			.attn_error = 0.01,
			.attn_error_recall = 0.1,
			.kl = 0.001,
			.kl_recall = 0.001},
		{.codec = "kvtc",
			.rung = 16,
			.ratio_coded = 16,
			.attn_error = 1,
			.attn_error_recall = 0.4,
			.kl = 0.016,
			.kl_recall = 0.02},
	};
	struct answer answers[ANSWERS_MAX];
	const size_t n = answers_of(points, 4, "cistern", answers);

	(void)state;
	assert_int_equal(n, 11); /* without a 20x rung, and no kvtc-whole */
	assert_string_equal(answers[0].key, "ratio_over_kvtc");
	assert_true(near(answers[0].value, 2) && answer_met(&answers[0]));
	/* At KVTC's 16x its error is 1, where the other was not measured. */
	assert_true(isnan(answers[1].value) && !answer_met(&answers[1]));
	assert_true(isnan(answers[2].goal));
	/* On recall questions the other is as good at 8. */
	assert_string_equal(answers[3].key, "ratio_over_kvtc_recall");
	assert_true(near(answers[3].value, 2));
	assert_string_equal(answers[4].key, "ratio_over_uniform");
	assert_true(isnan(answers[4].value) && !answer_met(&answers[4]));
	assert_string_equal(answers[5].key, "kl_over_kvtc");
	assert_true(near(answers[5].value, 0.25) && answer_met(&answers[5]));
	assert_string_equal(answers[6].key, "kl_recall_over_kvtc");
	assert_true(near(answers[6].value, 0.5));
	assert_true(near(answers[7].value, 1.25) && answer_met(&answers[7]));
	assert_string_equal(answers[10].key, "recall_points_lost_16x");
	assert_true(near(answers[10].value, 1));
	assert_int_equal(answers_of(points, 4, "other", answers), 0);
}

static void quantiles_are_good_to_a_step(void **state)
{
	struct error_histogram h = {0};

	(void)state;
	/* 99 tokens at 0.01, one at 0.5: bins 233 and 431, as 1e-4 * 1.02^n just reaches them. */
	h.count[233] = 99;
	h.count[431] = 1;
	assert_true(error_quantile(&h, 0.5) >= 0.01 && error_quantile(&h, 0.5) < 0.0102);
	assert_true(error_quantile(&h, 0.99) < 0.0102);
	assert_true(error_quantile(&h, 0.995) >= 0.5 && error_quantile(&h, 0.995) < 0.51);
	assert_true(error_quantile(&h, 1) < 0.51);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(curves_are_straight_in_logarithms),
		cmocka_unit_test(bound_is_reverse_water_filling),
		cmocka_unit_test(answers_compare_at_equal_loss),
		cmocka_unit_test(quantiles_are_good_to_a_step),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
