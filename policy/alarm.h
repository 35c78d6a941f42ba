/*
 * A running figure that is to stay under a bound: the alarm is raised when it passes, and ends when it has
 * come back some way below, so that it does not flutter. Pure.
 */
#ifndef POLICY_ALARM_H
#define POLICY_ALARM_H

#include <stdbool.h>

/* It ends at so much of the bound. */
#define ALARM_END 0.95

struct alarm {
	bool raised;
};

enum alarm_turn { ALARM_SAME, ALARM_RAISED, ALARM_ENDED };

/* A new figure, or a new bound. bound 0: there is none, and no alarm. enough: the figure rests on enough to
 * raise one. A figure that is no number raises it. */
enum alarm_turn alarm_turn(struct alarm *a, double figure, double bound, bool enough);

#endif
