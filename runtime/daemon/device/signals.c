#include "runtime/daemon/device/signals.h"

#include <errno.h>

#include "kernels/cuda/driver.h"
#include "runtime/cuda/device.h"

static struct event_group *use(struct session *s, uint32_t first, uint32_t n)
{
	struct event_group *g = event_group_find(s->events, first, n);

	if (g) {
		g->n_users++;
		event_group_ref(g);
	}
	return g;
}

static void end_use(struct event_group *g)
{
	if (g) {
		g->n_users--;
		event_group_unref(g);
	}
}

int signals_take(struct signals *g, struct session *s, const struct wire_run_events *events)
{
	g->session = s;
	g->ready = events->ready;
	g->first = events->first;
	g->n = events->n;
	if (g->ready)
		g->ready_group = use(s, g->ready, 1);
	if (g->n)
		g->group = use(s, g->first, g->n);
	if ((!g->ready || g->ready_group) && (!g->n || g->group))
		return 0;
	signals_drop(g);
	return -EINVAL;
}

void signals_drop(struct signals *g)
{
	end_use(g->ready_group);
	end_use(g->group);
	*g = (struct signals){0};
}

/* ---- on the lane ---- */

static int await(struct lane_task *t)
{
	const struct signals *g = (const struct signals *)t;
	const struct cuda_driver *cu = device_driver(lane_device(t->lane));
	const CUresult r = cu->cuEventQuery(event_group_event(g->ready_group, g->ready));

	return r == CUDA_ERROR_NOT_READY ? -EAGAIN : r ? (device_status(r), -EIO) : 0;
}

static int record(struct lane_task *t)
{
	const struct signals *g = (const struct signals *)t;
	const struct cuda_driver *cu = device_driver(lane_device(t->lane));

	for (uint32_t i = g->from; i < g->to; i++) {
		const CUresult r =
			cu->cuEventRecord(event_group_event(g->group, g->first + i), lane_work(t->lane));

		if (r) {
			device_status(r);
			return -EIO;
		}
	}
	return 0;
}

/* ---- on the front thread ---- */

static void over(struct lane_task *t)
{
	struct signals *g = (struct signals *)t;

	g->fn(g, t->status);
}

static void submit(struct signals *g, int (*run)(struct lane_task *), const char *what,
	void (*fn)(struct signals *g, int status))
{
	g->fn = fn;
	if (!g->session->lane) {
		fn(g, -ECANCELED);
		return;
	}
	g->task.run = run;
	g->task.done = over;
	g->task.what = what;
	lane_submit(g->session->lane, &g->task);
}

void signals_await(struct signals *g, void (*fn)(struct signals *g, int status))
{
	if (g->ready)
		submit(g, await, "look whether the engine is ready", fn);
	else
		fn(g, 0);
}

void signals_record(struct signals *g, uint32_t from, uint32_t to, void (*fn)(struct signals *g, int status))
{
	g->from = from;
	g->to = to;
	submit(g, record, "record events", fn);
}
