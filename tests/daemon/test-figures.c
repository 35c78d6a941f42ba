/* The running figures of a namespace and model, and their alarms. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "runtime/daemon/governor/figures.h"

static void frames(void **state)
{
	const struct frame_info good = {.n_tokens = 256, .n_raw = 6, .error = {{0.1f, 0.02f}, {0.2f, 0.05f}}};
	const struct frame_info bad = {.n_tokens = 100, .error = {{0.4f, 0.03f}, {0.9f, 0.6f}}};
	enum alarm_turn error, attention;
	struct figures f = {0};
	struct policy p;

	(void)state;
	policy_init(&p);
	p.alarm_error = 0.1;
	p.max_error = 0.5;
	for (int i = 0; i < 100; i++) {
		figures_frame(&f, &p, &good);
		figures_review(&f, &p, &error, &attention);
		assert_true(error == ALARM_SAME && attention == ALARM_SAME);
	}
	assert_true(fabs(f.error[0] - 0.02) < 1e-6 && fabs(figures_error(&f) - 0.05) < 1e-6);
	assert_true(f.n_chunks == 100 && f.n_tokens == 25600 && f.n_raw == 600 && f.n_violations == 0);
	/* Each moves the mean by a 64th of what it is away: seven of them from 0.05 over 0.1. */
	for (int i = 1; i <= 7; i++) {
		figures_frame(&f, &p, &bad);
		figures_review(&f, &p, &error, &attention);
		assert_int_equal(error, i == 7 ? ALARM_RAISED : ALARM_SAME);
	}
	assert_true(fabs(f.worst[1] - 0.9) < 1e-6);
	assert_int_equal(f.n_violations, 7);
	p.alarm_error = 0;
	figures_review(&f, &p, &error, &attention);
	assert_int_equal(error, ALARM_ENDED);
}

static void attention_compared(void **state)
{
	struct attention_error e = {
		.mean = 0.04, .worst = 0.2, .worst_layer = 3, .worst_head = 5, .n_compared = 8};
	enum alarm_turn error, turn;
	struct figures f = {0};
	struct policy p;
	int n = 0;

	(void)state;
	policy_init(&p);
	p.alarm_attention = 0.03;
	/* Three comparisons say too little. */
	do {
		figures_attention(&f, &e);
		figures_review(&f, &p, &error, &turn);
		n++;
	} while (turn == ALARM_SAME && n < 100);
	assert_int_equal(n, FIGURES_ALARM_COMPARED);
	assert_true(turn == ALARM_RAISED && f.attention_alarm.raised && !f.error_alarm.raised);
	assert_true(fabs(f.attention - 0.04) < 1e-12);
	/* The mean of all, while they are few. */
	e = (struct attention_error){.mean = 0.01, .worst = 0.1, .worst_layer = 1, .n_compared = 8};
	for (int i = 0; i < FIGURES_ALARM_COMPARED; i++)
		figures_attention(&f, &e);
	assert_true(fabs(f.attention - 0.025) < 1e-12);
	assert_true(f.attention_worst == 0.2 && f.attention_layer == 3 && f.attention_head == 5);
	figures_review(&f, &p, &error, &turn);
	assert_int_equal(turn, ALARM_ENDED);
	for (int i = 0; i < 200; i++)
		figures_attention(&f, &e);
	assert_true(fabs(f.attention - 0.01) < 1e-6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(frames), cmocka_unit_test(attention_compared)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
