/*
 * Interprocess events that an engine registered, in groups as they were registered together. Ids are the
 * session's, from 1 to WIRE_EVENTS_MAX, without gaps inside a group. The session owns them: they are opened
 * on its lane, requests in flight count as users of their group, and none is closed before its users have
 * ended, or the lane has ended all work.
 *
 * Front thread; the CUevents are for the lane.
 */
#ifndef RUNTIME_DAEMON_DEVICE_EVENTS_H
#define RUNTIME_DAEMON_DEVICE_EVENTS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "runtime/daemon/device/lane.h"
#include "shm/protocol.h"

struct imports;

struct event_group {
	struct lane_keep keep;   /* first */
	_Atomic uint32_t n_refs; /* the front thread's, and one of the lane's while they are open */
	struct imports *imports;
	struct event_group *next; /* of the session's */
	uint32_t first_id, n;
	uint32_t n_users;
	CUevent *events;                       /* [n] */
	uint8_t (*handles)[WIRE_HANDLE_BYTES]; /* [n] */
};

/* Finds n free ids among those of list. handles: n of them. -ENOSPC, -ENOMEM. */
int event_group_new(struct event_group *list, struct imports *x, const uint8_t *handles, uint32_t n,
	struct event_group **out);
void event_group_ref(struct event_group *g);
/* Lets go of a reference. NULL is fine. */
void event_group_unref(struct event_group *g);
/* The group that has all of ids [first, first + n); NULL. */
struct event_group *event_group_find(struct event_group *list, uint32_t first, uint32_t n);

/* On the lane: all or none. -EINVAL: a handle names no event. */
int event_group_open(struct event_group *g, struct lane *lane);
/* On the lane. */
CUevent event_group_event(const struct event_group *g, uint32_t id);

#endif
