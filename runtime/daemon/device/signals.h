/*
 * The events of one request on memory on the GPU: the one it waits for, and those that are recorded for it.
 * Its groups count it as a user from signals_take to signals_drop. Front thread.
 *
 * That the engine is ready is asked for on the lane, again and again, not waited for on the GPU: an event
 * whose recorder died never fires, and a stream that waits for it never goes on, with other streams perhaps
 * behind it.
 */
#ifndef RUNTIME_DAEMON_DEVICE_SIGNALS_H
#define RUNTIME_DAEMON_DEVICE_SIGNALS_H

#include "runtime/daemon/device/events.h"
#include "runtime/daemon/session.h"

struct signals {
	struct lane_task task; /* first */
	struct session *session;
	struct event_group *ready_group, *group; /* NULL: none */
	uint32_t ready, first, n;
	uint32_t from, to; /* of the n: those that are being recorded */
	void (*fn)(struct signals *g, int status);
};

/* All zero before, or after signals_drop. -EINVAL: events that are not registered. */
int signals_take(struct signals *g, struct session *s, const struct wire_run_events *events);
void signals_drop(struct signals *g);

/* Calls fn when ready has fired, at once when there is none. -ECANCELED: the engine has gone; -EIO. */
void signals_await(struct signals *g, void (*fn)(struct signals *g, int status));
/* Records events [from, to) of the n behind all kernels that were handed to the lane before. Calls fn when
 * they are recorded, not when they have fired. One call at a time. */
void signals_record(struct signals *g, uint32_t from, uint32_t to, void (*fn)(struct signals *g, int status));

#endif
