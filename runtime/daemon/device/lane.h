/*
 * A lane: the thread and the streams of one engine on the GPU. All that the daemon asks of the driver for
 * that engine is asked on its lane, so that a call that does not come back, or work that does not end, holds
 * up nobody else. The front thread hands tasks over and gets them back through lanes_reap, each exactly once.
 *
 * Tasks are tried in order of arrival; one that answers -EAGAIN is tried again soon, and others meanwhile.
 * Once a task has put work on a stream it names an event behind it and is over when that has fired: the lane
 * asks, it never waits in the driver.
 *
 * Two streams: work for kernels, copy for what goes over the bus, so that an event recorded behind a kernel
 * does not wait for copies.
 *
 * An engine's end closes its lane: tasks that have not begun come back with -ECANCELED, work that is under
 * way ends, what the engine had open is closed (lane_keep), the thread ends. The front thread does not wait
 * for it.
 */
#ifndef RUNTIME_DAEMON_DEVICE_LANE_H
#define RUNTIME_DAEMON_DEVICE_LANE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/api.h"

struct device;
struct lanes;
struct lane;

struct lane_task {
	/* On the lane. 0: it is over, or will be when landed has fired; -EAGAIN: not yet; -errno: it is over.
	 */
	int (*run)(struct lane_task *t);
	/* On the front thread; may free the task. */
	void (*done)(struct lane_task *t);
	const char *what; /* for people: "gather" */
	struct lane *lane;
	CUevent landed; /* set by run; NULL: nothing to wait for */
	int status;
	uint64_t since_ns; /* when it was handed over; when it began, for done */
	struct lane_task *next;
};

/* What an engine has open: closed on the lane, when its time has come or with the lane. */
struct lane_keep {
	void (*close)(struct lane_keep *k);    /* on the lane; frees nothing that the front thread may see */
	bool (*is_stale)(struct lane_keep *k); /* on the lane; NULL: it never is */
	bool is_open;                          /* the lane's */
	struct lane_keep *next;
};

/* All lanes. Front thread. d is borrowed. -ENOMEM, -errno. */
int lanes_new(const struct device *d, struct lanes **out);
/* Every lane has been closed, or will be by what its tasks do when they come back. Waits for up to a second
 * for those that are not at their end; one that does not come is left as it is, with what it has open, and
 * false returned: the device must then not be taken down.
 */
bool lanes_free(struct lanes *l);
/* Readable when tasks have come back. */
int lanes_fd(const struct lanes *l);
/* Calls done of those. Returns how many. */
size_t lanes_reap(struct lanes *l);
/* Tasks that have not come back. */
size_t lanes_n_busy(const struct lanes *l);
/* Looks for calls that do not come back and work that does not end: a log line for each, once. Returns after
 * how many milliseconds to look again; -1: there is nothing to look after. */
int lanes_watch(struct lanes *l);
/* Has every lane look whether something it has open is stale. */
void lanes_look(struct lanes *l);
/* [{name, tasks, doing, for_ms, stuck}] */
json_t *lanes_status(const struct lanes *l);

/* The thread begins; name is for people, and copied. -ENOMEM, -EAGAIN. */
int lane_new(struct lanes *l, const char *name, struct lane **out);
void lane_submit(struct lane *lane, struct lane_task *t);
/* No more tasks; the lane frees itself when all have come back and its thread has ended. NULL is fine. */
void lane_close(struct lane *lane);

/* On the lane: from now on k is open. */
void lane_keep(struct lane *lane, struct lane_keep *k);
/* On the lane: closes it now, if it is open. */
void lane_let_go(struct lane *lane, struct lane_keep *k);
/* On the lane: closes what is stale. */
void lane_drop_stale(struct lane *lane);
/* On the lane: asks the front thread for lanes_look. */
void lane_want_look(struct lane *lane);
CUstream lane_work(const struct lane *lane);
CUstream lane_copy(const struct lane *lane);
const struct device *lane_device(const struct lane *lane);

#endif
