/* Capacity planning against cases that can be worked out by hand, and against a simulation of its own
 * assumptions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/operate/capacity.h"

static void by_hand(void **state)
{
	/* A mean session of 3 x 1000 / 2 = 1500 tokens of 100 bytes; 500 are kept whole. */
	struct capacity_load load = {.token_bytes = 100,
		.pool_bytes = 300000,
		.store_bytes = 1000000,
		.n_sessions = 10,
		.n_turns = 4,
		.turn_tokens = 1000,
		.kept_tokens = 500};
	struct capacity c;

	(void)state;
	capacity_at(&load, 1, &c);
	assert_true(c.session_bytes == 150000);
	assert_true(c.total_ratio == 1);
	assert_true(c.pool_sessions == 2);
	assert_true(fabs(c.pool_hit - 0.2) < 1e-9);
	assert_true(fabs(c.hit - 1.0 / 1.5) < 1e-9);
	assert_true(fabs(c.token_hit - 0.6 / 1.5) < 1e-9);
	capacity_at(&load, 10, &c);
	assert_true(c.session_bytes == 50000 + 10000);
	assert_true(c.total_ratio == 2.5);
	assert_true(c.pool_sessions == 5);
	assert_true(c.hit == 1);
	/* Nothing but what is kept whole: no rung helps. */
	load.kept_tokens = 5000;
	capacity_at(&load, 40, &c);
	assert_true(c.total_ratio == 1);
	/* No store: what the pool has is all there is. */
	load.store_bytes = 0;
	capacity_at(&load, 1, &c);
	assert_true(c.hit == c.pool_hit && c.store_sessions == 0);
}

/* Sessions of equal size, the next by chance, the least recently used one evicted: the share found is the
 * share that fits. */
static void by_simulation(void **state)
{
	enum { SESSIONS = 200, FIT = 60, TURNS = 200000 };
	const unsigned seed = (unsigned)time(NULL);
	struct capacity_load load = {.token_bytes = 1,
		.pool_bytes = FIT * 1000,
		.n_sessions = SESSIONS,
		.n_turns = 3,
		.turn_tokens = 1000};
	unsigned last[SESSIONS] = {0}, n_hits = 0;
	struct capacity c;

	(void)state;
	printf("seed %u\n", seed);
	srand(seed);
	for (unsigned turn = 1; turn <= TURNS; turn++) {
		const int s = rand() % SESSIONS;
		unsigned newer = 0;

		for (int i = 0; i < SESSIONS; i++)
			newer += last[i] > last[s];
		n_hits += last[s] && newer < FIT;
		last[s] = turn;
	}
	capacity_at(&load, 1, &c);
	printf("found %.4f, planned %.4f\n", (double)n_hits / TURNS, c.hit);
	/* Five standard deviations of the simulation. */
	assert_true(fabs((double)n_hits / TURNS - c.hit) < 5 * sqrt(0.3 * 0.7 / TURNS) + 0.001);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(by_hand),
		cmocka_unit_test(by_simulation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
