/* The alarm: raised over its bound, ended some way below it, gone with the bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "policy/alarm.h"

static void a_life(void **state)
{
	static const struct {
		double figure, bound;
		bool enough;
		enum alarm_turn turn;
		bool raised;
	} steps[] = {
		{0.1, 0.2, true, ALARM_SAME, false},
		{0.2, 0.2, true, ALARM_SAME, false},  /* at the bound is within it */
		{0.9, 0.2, false, ALARM_SAME, false}, /* too little to go by */
		{0.21, 0.2, true, ALARM_RAISED, true},
		{0.3, 0.2, true, ALARM_SAME, true},
		{0.195, 0.2, true, ALARM_SAME, true}, /* not far enough below */
		{0.195, 0.2, false, ALARM_SAME, true},
		{0.19, 0.2, true, ALARM_ENDED, false},
		{0.195, 0.2, true, ALARM_SAME, false},
		{0.3, 0.2, true, ALARM_RAISED, true},
		{0.3, 0.5, true, ALARM_ENDED, false}, /* the bound was raised */
		{0.3, 0.2, true, ALARM_RAISED, true},
		{0.3, 0, true, ALARM_ENDED, false}, /* and taken away */
		{9, 0, true, ALARM_SAME, false},
		{NAN, 0.2, true, ALARM_RAISED, true},
		{NAN, 0, true, ALARM_ENDED, false},
	};
	struct alarm a = {0};

	(void)state;
	for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
		const enum alarm_turn turn = alarm_turn(&a, steps[i].figure, steps[i].bound, steps[i].enough);

		if (turn != steps[i].turn || a.raised != steps[i].raised)
			fail_msg("step %zu: turn %d, raised %d", i, turn, a.raised);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(a_life)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
