/* Durations on a logarithmic scale: where they fall, and what can be read back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "shm/stats/histogram.h"

static void buckets_meet(void **state)
{
	(void)state;
	assert_int_equal(histogram_bucket(0), 0);
	assert_int_equal(histogram_bucket(249), 0);
	assert_int_equal(histogram_bucket(250), 1);
	assert_int_equal(histogram_bucket(UINT64_MAX), HISTOGRAM_BUCKETS - 1);
	/* The last duration before a bucket's end is in it, the end itself in the next. */
	for (uint32_t i = 0; i + 1 < HISTOGRAM_BUCKETS; i++) {
		const uint64_t end = histogram_end_ns(i);

		assert_int_equal(histogram_bucket(end - 1), i);
		assert_int_equal(histogram_bucket(end), i + 1);
	}
	assert_true(histogram_end_ns(HISTOGRAM_BUCKETS - 1) == UINT64_MAX);
}

static int by_value(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* A quantile is never under the true one, and at most a quarter of a doubling (25%) over it. */
static void quantiles_are_near(void **state)
{
	enum { N = 10000 };
	static uint64_t ns[N];
	struct histogram h = {0};
	const unsigned seed = (unsigned)time(NULL);
	uint64_t sum = 0;

	(void)state;
	printf("seed %u\n", seed);
	srand(seed);
	for (int i = 0; i < N; i++) {
		ns[i] = 250 + ((uint64_t)rand() << (rand() % 4));
		sum += ns[i];
		histogram_add(&h, ns[i]);
	}
	qsort(ns, N, sizeof *ns, by_value);
	assert_int_equal(histogram_count(&h), N);
	assert_true(h.sum_ns == sum);
	for (int percent = 1; percent <= 100; percent++) {
		const uint64_t truth = ns[percent * N / 100 - 1];
		const uint64_t told = histogram_quantile_ns(&h, percent / 100.0);

		assert_true(told > truth);
		assert_true((double)told <= (double)truth * 1.25 + 1);
	}
}

static void empty_and_overfull(void **state)
{
	struct histogram h = {0};

	(void)state;
	assert_true(histogram_quantile_ns(&h, 0.5) == 0);
	histogram_add(&h, UINT64_MAX / 2);
	assert_true(histogram_quantile_ns(&h, 0.5) == histogram_end_ns(HISTOGRAM_BUCKETS - 2));
}

static void what_came_between(void **state)
{
	struct histogram before = {0}, after, between;

	(void)state;
	histogram_add(&before, 1000);
	after = before;
	histogram_add(&after, 5000000);
	histogram_between(&before, &after, &between);
	assert_int_equal(histogram_count(&between), 1);
	assert_true(between.sum_ns == 5000000);
	/* The daemon was restarted: all of what the new one has. */
	histogram_between(&after, &before, &between);
	assert_int_equal(histogram_count(&between), 1);
	assert_true(between.sum_ns == 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(buckets_meet),
		cmocka_unit_test(quantiles_are_near),
		cmocka_unit_test(empty_and_overfull),
		cmocka_unit_test(what_came_between),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
