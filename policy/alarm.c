#include "policy/alarm.h"

enum alarm_turn alarm_turn(struct alarm *a, double figure, double bound, bool enough)
{
	const bool was = a->raised;

	/* Written so that what is no number counts as over the bound. */
	a->raised = bound > 0 && (was || enough) && !(figure <= (was ? ALARM_END : 1) * bound);
	return a->raised == was ? ALARM_SAME : a->raised ? ALARM_RAISED : ALARM_ENDED;
}
