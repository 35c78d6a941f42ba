/*
 * A watcher's hold on a daemon: its statistics page, the socket that tells of its end, and the last two looks
 * at the page, between which rates lie. Survives the daemon: when it has gone, the looks stay, and attaching
 * again finds the next one. One thread.
 */
#ifndef TOOLS_TOP_WATCH_H
#define TOOLS_TOP_WATCH_H

#include <jansson.h>
#include <stdbool.h>

#include "shm/stats/view.h"

struct watch {
	const char *socket; /* NULL: the default */
	int alive;          /* -1: no daemon */
	struct stats_view view;
	struct stats_snapshot now, before; /* before is empty after the first look at a daemon */
	double now_s, before_s; /* when they were taken, CLOCK_MONOTONIC; before_s: 0 is the daemon's start */
	char why[256];          /* there is no daemon: the reason */
};

void watch_init(struct watch *w, const char *socket);
void watch_fini(struct watch *w);

/* Looks: finds the daemon if there is none yet, or it has gone. 0; or an error of cistern_statistics, said in
 * why: the looks before that are still there, if there were any. */
int watch_look(struct watch *w);
/* Forgets the look before: figures are then of all time since the daemon's start. */
void watch_since_start(struct watch *w);

/* Seconds between the two looks; since the daemon's start after the first. */
double watch_seconds(const struct watch *w);
double watch_uptime_s(const struct watch *w);

/* Values now; and how much came in between. A field that the page lacks is 0. i: record of the group. */
uint64_t watch_number(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id);
double watch_real(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id);
const char *watch_text(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id);
uint64_t watch_gain(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id);
double watch_rate(const struct watch *w, enum stats_group_id group, uint32_t i, const char *id);
/* A quantile of the durations in between; of all of them when there were none in between. 0: none at all. */
uint64_t watch_quantile_ns(
	const struct watch *w, enum stats_group_id group, uint32_t i, const char *id, double q);

/* All fields of all records by their names; counters as they are, and as rates in "per_second". New
 * reference. */
json_t *watch_json(const struct watch *w);

#endif
