/* Allocations are the best for what they cost: compared with trying every one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "policy/allocate.h"

enum { MAX = 5 };

struct example {
	struct allocate_tables tables;
	struct allocate_part parts[2];
	float variance[2][MAX];
	uint8_t bits[2][MAX];
	struct allocate_options options;
};

static double uniform(void)
{
	return rand() / (RAND_MAX + 1.0);
}

static int falling(const void *a, const void *b)
{
	const float *x = a, *y = b;

	return (*x < *y) - (*x > *y);
}

/* Three components and two; variances over six decades, some equal, some zero. */
static void example_init(struct example *e, int odd_tables)
{
	memset(e, 0, sizeof *e);
	allocate_default_tables(&e->tables);
	/* Measured tables are not always convex: some widths are then never worth it. */
	for (int b = 1; b < 9 && odd_tables; b++) {
		e->tables.rate[b] = e->tables.rate[b - 1] + 0.1 + uniform();
		e->tables.distortion[b] = e->tables.distortion[b - 1] * (0.1 + 0.8 * uniform());
	}
	for (int p = 0; p < 2; p++) {
		uint32_t n = p ? 2 : 3;

		e->parts[p] = (struct allocate_part){.variance = e->variance[p],
			.n_components = n,
			.weight = pow(10, 2 * uniform()),
			.bits = e->bits[p]};
		for (uint32_t i = 0; i < n; i++)
			e->variance[p][i] = (float)pow(10, 6 * uniform() - 3);
		if (rand() % 4 == 0)
			e->variance[p][0] = e->variance[p][1];
		if (rand() % 4 == 0)
			e->variance[p][1] = 0;
		qsort(e->variance[p], n, sizeof(float), falling);
	}
	e->options = (struct allocate_options){
		.tables = &e->tables, .run = 1, .side_bits_per_token = 16.0 / 256, .budget = 45 * uniform()};
}

static double width_cost(const struct example *e, unsigned b)
{
	return b ? e->tables.rate[b] + e->options.side_bits_per_token : 0;
}

/* The least distortion of all 9^5 allocations that cost at most bits. */
static double best_for(const struct example *e, double bits)
{
	double best = INFINITY;

	for (unsigned code = 0; code < 59049; code++) {
		double cost = 0, distortion = 0;

		for (unsigned i = 0, rest = code; i < 5; i++, rest /= 9) {
			int p = i >= 3;

			cost += width_cost(e, rest % 9);
			distortion += e->parts[p].weight * (double)e->variance[p][i - 3 * p] *
				      e->tables.distortion[rest % 9];
		}
		if (cost <= bits + 1e-9 && distortion < best)
			best = distortion;
	}
	return best;
}

static void test_nothing_is_better_for_the_cost(void **state)
{
	unsigned seed = (unsigned)time(NULL);

	(void)state;
	print_message("seed %u\n", seed);
	srand(seed);
	for (int round = 0; round < 60; round++) {
		struct allocate_result result;
		struct example e;
		double best;

		example_init(&e, round % 2);
		assert_int_equal(allocate(e.parts, 2, &e.options, &result), 0);
		assert_true(result.bits_per_token <= e.options.budget + 1e-9);
		best = best_for(&e, result.bits_per_token);
		if (result.distortion > best * (1 + 1e-9))
			fail_msg("round %d: distortion %g, possible %g", round, result.distortion, best);
		for (int p = 0; p < 2; p++)
			for (uint32_t i = 1; i < e.parts[p].n_components; i++)
				assert_true(e.bits[p][i] <= e.bits[p][i - 1]);
	}
}

static void test_more_budget_never_takes_bits_away(void **state)
{
	(void)state;
	srand(1);
	for (int round = 0; round < 50; round++) {
		uint8_t before[2][MAX] = {{0}};
		struct allocate_result result;
		double distortion = INFINITY;
		struct example e;

		example_init(&e, round % 2);
		for (e.options.budget = 0; e.options.budget < 50; e.options.budget += 0.7) {
			assert_int_equal(allocate(e.parts, 2, &e.options, &result), 0);
			assert_true(result.distortion <= distortion);
			distortion = result.distortion;
			for (int k = 0; k < 2 * MAX; k++)
				assert_true(((uint8_t *)e.bits)[k] >= ((uint8_t *)before)[k]);
			memcpy(before, e.bits, sizeof before);
		}
	}
}

/* Enough components that one step is a small part of the budget: nearly all of it is used, runs share a
 * width, and the last run is shorter. */
static void test_runs(void **state)
{
	enum { N = 1003, RUN = 8 };
	static float variance[N];
	static uint8_t bits[N];
	struct allocate_tables tables;
	struct allocate_part part = {.variance = variance, .n_components = N, .weight = 1, .bits = bits};
	struct allocate_options options = {.tables = &tables, .run = RUN, .side_bits_per_token = 1.0 / 16};
	struct allocate_result result;

	(void)state;
	allocate_default_tables(&tables);
	for (int i = 0; i < N; i++)
		variance[i] = expf(-0.01f * (float)i);
	for (options.budget = 500; options.budget < 5000; options.budget += 500) {
		assert_int_equal(allocate(&part, 1, &options, &result), 0);
		assert_true(result.bits_per_token <= options.budget);
		assert_true(result.bits_per_token > options.budget - 2.1 * RUN);
		for (int i = 0; i < N; i++)
			assert_int_equal(bits[i], bits[i - i % RUN]);
	}
	options.budget = 1e9;
	assert_int_equal(allocate(&part, 1, &options, &result), 0);
	assert_int_equal(bits[0], 8);
	assert_int_equal(bits[N - 1], 8);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_is_better_for_the_cost),
		cmocka_unit_test(test_more_budget_never_takes_bits_away),
		cmocka_unit_test(test_runs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
