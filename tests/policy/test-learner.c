/* When a daemon samples, learns, and learns again: the decisions, told in tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "policy/learner.h"

enum { CHUNK = 256, FIRST = 4096 };

static const struct learner_options options = {.first_tokens = FIRST, .drift = 0.05};

/* Chunks come in, of which the transform captures so much, until it learns or n_chunks have come. Returns how
 * many were sampled. */
static uint32_t feed(struct learner *l, uint32_t n_chunks, double captured)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < n_chunks && l->state != LEARNER_LEARNING; i++) {
		if (!learner_offer(l, CHUNK))
			continue;
		learner_take(l, CHUNK, 100 * captured, 100);
		n++;
		learner_begin(l, true);
	}
	return n;
}

/* First from little, then from four times as much, then from all that is wanted; after that it watches. */
static void grows(void **state)
{
	struct learner l;

	(void)state;
	learner_init(&l, &options, 0);
	assert_int_equal(feed(&l, 1000, 0), FIRST / CHUNK);
	/* None while it learns, however many come; what was on its way counts. */
	assert_false(learner_offer(&l, CHUNK));
	learner_take(&l, CHUNK, 0, 0);
	assert_int_equal(l.n_taken, FIRST + CHUNK);
	learner_learned(&l, true);
	assert_int_equal(feed(&l, 1000, 0.9), 3 * (FIRST / CHUNK + 1));
	assert_int_equal(l.n_taken, 4 * (FIRST + CHUNK));
	learner_learned(&l, true);
	feed(&l, 1000, 0.9);
	assert_int_equal(l.n_taken, LEARNER_ENOUGH * FIRST);
	learner_learned(&l, true);
	assert_int_equal(l.state, LEARNER_WATCHING);
	assert_int_equal(feed(&l, 800, 0.9), 100);
	assert_int_equal(l.n_learned, 3);
	assert_int_equal(l.n_drifted, 0);
	assert_true(l.n_seen > l.n_taken);
}

/* A fall beyond the threshold makes it collect every chunk, and learn from old and new in equal parts. */
static void drifts(void **state)
{
	static const struct {
		double captured;
		bool drifts;
	} cases[] = {{0.9, false}, {0.97, false}, {0.86, false}, {0.84, true}, {0, true}};
	struct learner l;

	(void)state;
	for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
		learner_init(&l, &options, UINT64_MAX);
		assert_int_equal(l.state, LEARNER_WATCHING);
		feed(&l, 8 * LEARNER_WINDOW_TOKENS / CHUNK, 0.9);
		assert_true(l.baseline > 0.899 && l.baseline < 0.901);
		assert_int_equal(learner_fade(&l), 0);
		feed(&l, 8 * (LEARNER_WINDOW_TOKENS / CHUNK - 1), cases[k].captured);
		assert_int_equal(l.n_drifted, 0); /* not on less than a window */
		feed(&l, 1, cases[k].captured);
		assert_int_equal(l.n_drifted, cases[k].drifts);
		assert_int_equal(l.state, cases[k].drifts ? LEARNER_COLLECTING : LEARNER_WATCHING);
		assert_int_equal(learner_fade(&l), cases[k].drifts ? FIRST : 0);
		assert_int_equal(learner_fade(&l), 0);
		if (!cases[k].drifts)
			continue;
		assert_int_equal(l.n_taken, FIRST); /* it was just as many: nothing faded */
		assert_int_equal(feed(&l, 1000, 0.5), FIRST / CHUNK);
		assert_int_equal(l.state, LEARNER_LEARNING);
		/* The fall of what is on its way does not count a second time. */
		for (int i = 0; i < 100; i++)
			learner_take(&l, CHUNK, 0, 100);
		learner_learned(&l, true);
		assert_int_equal(l.n_drifted, 1);
		assert_true(l.baseline < 0);
	}
}

/* What was learned from little before a restart is made better; a given transform is left alone. */
static void begins_with_a_version(void **state)
{
	struct learner l;

	(void)state;
	learner_init(&l, &options, FIRST);
	assert_int_equal(feed(&l, 1000, 0.9), 4 * FIRST / CHUNK);
	assert_int_equal(l.state, LEARNER_LEARNING);
	learner_init(&l, &options, LEARNER_ENOUGH * FIRST);
	assert_int_equal(l.state, LEARNER_WATCHING);
	learner_init(&l, &options, UINT64_MAX);
	feed(&l, 100000, 0.9);
	assert_int_equal(l.state, LEARNER_WATCHING);
}

/* With as many versions in use as there may be it waits, and samples no more than a watcher does. */
static void blocked(void **state)
{
	struct learner l;
	uint32_t n = 0;

	(void)state;
	learner_init(&l, &options, 0);
	for (int i = 0; i < FIRST / CHUNK; i++) {
		assert_true(learner_offer(&l, CHUNK));
		learner_take(&l, CHUNK, 0, 0);
	}
	assert_false(learner_begin(&l, false));
	assert_true(l.blocked);
	for (int i = 0; i < 80; i++)
		n += learner_offer(&l, CHUNK);
	assert_int_equal(n, 80 / LEARNER_WATCH_EVERY);
	assert_true(learner_begin(&l, true));
	assert_false(l.blocked);
	assert_false(learner_begin(&l, true));
}

/* A decomposition that failed is tried again after as many tokens as the first took. */
static void failed(void **state)
{
	struct learner l;

	(void)state;
	learner_init(&l, &options, 0);
	feed(&l, 1000, 0);
	learner_learned(&l, false);
	assert_false(l.has_version);
	assert_int_equal(feed(&l, 1000, 0), FIRST / CHUNK);
	assert_int_equal(l.state, LEARNER_LEARNING);
	/* Chunks with nothing to code are no samples. */
	learner_learned(&l, false);
	assert_false(learner_offer(&l, 0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(grows),
		cmocka_unit_test(drifts),
		cmocka_unit_test(begins_with_a_version),
		cmocka_unit_test(blocked),
		cmocka_unit_test(failed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
