#include "runtime/daemon/device/events.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cuda/import.h"

/* The first of n ids that no group has; 0: there are none. */
static uint32_t free_ids(const struct event_group *list, uint32_t n)
{
	uint32_t first = 1;
	bool moved = true;

	/* Each round moves past a group: there are at most as many rounds as groups. */
	while (moved) {
		moved = false;
		for (const struct event_group *g = list; g; g = g->next)
			if (g->first_id < first + n && first < g->first_id + g->n) {
				first = g->first_id + g->n;
				moved = true;
			}
	}
	return first + n - 1 <= WIRE_EVENTS_MAX ? first : 0;
}

static void unref(struct event_group *g)
{
	/* acq_rel: what either side did to it comes before its end. */
	if (atomic_fetch_sub_explicit(&g->n_refs, 1, memory_order_acq_rel) > 1)
		return;
	free(g->events);
	free(g->handles);
	free(g);
}

void event_group_ref(struct event_group *g)
{
	atomic_fetch_add_explicit(&g->n_refs, 1, memory_order_relaxed);
}

void event_group_unref(struct event_group *g)
{
	if (g)
		unref(g);
}

int event_group_new(struct event_group *list, struct imports *x, const uint8_t *handles, uint32_t n,
	struct event_group **out)
{
	const uint32_t first = free_ids(list, n);
	struct event_group *g;

	if (!first)
		return -ENOSPC;
	g = calloc(1, sizeof *g);
	if (!g)
		return -ENOMEM;
	atomic_init(&g->n_refs, 1);
	g->imports = x;
	g->first_id = first;
	g->n = n;
	g->events = calloc(n, sizeof *g->events);
	g->handles = calloc(n, sizeof *g->handles);
	if (!g->events || !g->handles) {
		unref(g);
		return -ENOMEM;
	}
	memcpy(g->handles, handles, n * sizeof *g->handles);
	*out = g;
	return 0;
}

struct event_group *event_group_find(struct event_group *list, uint32_t first, uint32_t n)
{
	for (struct event_group *g = list; g; g = g->next)
		if (first >= g->first_id && first - g->first_id < g->n && n <= g->n - (first - g->first_id))
			return g;
	return NULL;
}

/* ---- on the lane ---- */

static void close_all(struct event_group *g)
{
	for (uint32_t i = 0; i < g->n; i++) {
		if (g->events[i])
			import_close_event(g->imports, g->events[i]);
		g->events[i] = NULL;
	}
}

static void close_group(struct lane_keep *k)
{
	struct event_group *g = (struct event_group *)k;

	close_all(g);
	unref(g);
}

int event_group_open(struct event_group *g, struct lane *lane)
{
	for (uint32_t i = 0; i < g->n; i++) {
		const int r = import_open_event(g->imports, g->handles[i], &g->events[i]);

		if (r) {
			g->events[i] = NULL;
			close_all(g);
			return r;
		}
	}
	event_group_ref(g);
	g->keep = (struct lane_keep){.close = close_group};
	lane_keep(lane, &g->keep);
	return 0;
}

CUevent event_group_event(const struct event_group *g, uint32_t id)
{
	return g->events[id - g->first_id];
}
