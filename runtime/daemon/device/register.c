#include "runtime/daemon/device/register.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/daemon/attach.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/device/events.h"
#include "runtime/daemon/device/gpu.h"
#include "runtime/daemon/device/memory.h"
#include "runtime/stats/board.h"

/* How long a registration waits for an older allocation at its address to be closed by the lanes that have
 * it.
 */
enum { STALE_MS = 1000 };

/* Something that is opened or closed, and the answer that waits for it. */
struct registration {
	struct lane_task task; /* first */
	struct session *session;
	struct device_memory *memory; /* a reference, until it is the mapping's */
	const struct model *model;
	struct wire_register_memory head;
	uint32_t slot;
	struct mapping *leaving;
	struct event_group *group;
	uint32_t id;
	char why[200];
};

/* ---- on the lane ---- */

static int open_memory(struct lane_task *t)
{
	struct registration *r = (struct registration *)t;
	int status = device_memory_open(r->memory, t->lane, r->why, sizeof r->why);

	if (status != -EBUSY)
		return status == -EAGAIN ? -EIO : status;
	/* What is stale goes first: here, and on the lanes of other sessions of the same process. */
	lane_drop_stale(t->lane);
	lane_want_look(t->lane);
	return (board_now_ns() - t->since_ns) / 1000000 < STALE_MS ? -EAGAIN : -EBUSY;
}

static int close_memory(struct lane_task *t)
{
	struct registration *r = (struct registration *)t;

	lane_let_go(t->lane, &r->leaving->device->keep);
	return 0;
}

static int open_events(struct lane_task *t)
{
	struct registration *r = (struct registration *)t;
	const int status = event_group_open(r->group, t->lane);

	return status == -EAGAIN ? -EIO : status;
}

static int close_events(struct lane_task *t)
{
	struct registration *r = (struct registration *)t;

	lane_let_go(t->lane, &r->group->keep);
	return 0;
}

/* ---- on the front thread ---- */

static int have_lane(struct session *s, char *why, size_t why_len)
{
	char name[48];
	int r;

	if (!s->daemon->gpu) {
		snprintf(why, why_len, "the daemon uses no GPU: register shared memory (a memfd)");
		return -ENODEV;
	}
	if (s->lane)
		return 0;
	snprintf(name, sizeof name, "session %u", s->id);
	r = lane_new(s->daemon->gpu->lanes, name, &s->lane);
	if (r)
		snprintf(why, why_len, "the daemon could not start a thread for this engine");
	return r;
}

static void hand_over(struct registration *r, int (*run)(struct lane_task *),
	void (*done)(struct lane_task *), const char *what)
{
	struct session *s = r->session;

	r->task.run = run;
	r->task.done = done;
	r->task.what = what;
	s->waiting = true;
	s->n_requests++; /* the session stays until this has come back */
	daemon_pause_socket(s->daemon, s, true);
	lane_submit(s->lane, &r->task);
}

/* The end of all: the answer has been sent. */
static void over(struct registration *r)
{
	struct session *s = r->session;

	free(r);
	s->waiting = false;
	if (!s->closed)
		daemon_pause_socket(s->daemon, s, false);
	session_request_ended(s);
}

static void refuse(struct registration *r, int status)
{
	if (!r->session->closed)
		attach_refuse(r->session, status, r->why[0] ? r->why : strerror(-status));
}

static void memory_opened(struct lane_task *t)
{
	struct registration *r = (struct registration *)t;
	struct session *s = r->session;
	int status = t->status;

	/* Closed meanwhile, the lane has closed it too, or will. */
	if (!status && !s->closed)
		status = mapping_new_device(r->model, &r->head, r->memory, &s->memories[r->slot]);
	if (status || s->closed) {
		device_memory_unref(r->memory);
		refuse(r, status);
	} else {
		s->memory_bytes += r->head.size_bytes;
		log_debug("session %u: memory of %llu MiB on the GPU", s->id,
			(unsigned long long)r->head.size_bytes >> 20);
		attach_registered(s, r->slot + 1);
	}
	over(r);
}

/* All that can be said without the driver. */
static int describe(struct registration *r, const uint8_t *rest, size_t len, struct message_fds *fds)
{
	struct session *s = r->session;
	struct gpu *g = s->daemon->gpu;
	const struct geometry *geometry = &r->model->geometry;
	const uint64_t chunk = geometry_token_bytes(geometry) * s->daemon->config->chunk_tokens;
	const size_t n_layouts = (size_t)geometry->n_layers * geometry->n_planes;
	struct wire_layout *layouts;
	size_t used;
	int status = mapping_check_blocks(&r->head, r->why, sizeof r->why);

	if (status)
		return status;
	/* The block table of a chunk is the least of it. */
	if (chunk + (chunk >> 4) > staging_largest(g->staging)) {
		snprintf(r->why, sizeof r->why,
			"a chunk of this model takes %llu MiB, more than half of the daemon's device_staging",
			(unsigned long long)chunk >> 20);
		return -ENOSPC;
	}
	status = device_memory_new(
		g, s->owner, &r->head, rest, len, fds->fds, fds->n, &r->memory, &used, r->why, sizeof r->why);
	if (status)
		return status;
	if (len - used != n_layouts * sizeof *layouts) {
		snprintf(r->why, sizeof r->why,
			"one layout for each layer and plane must come with the message");
		return -EINVAL;
	}
	layouts = malloc(n_layouts * sizeof *layouts);
	if (!layouts)
		return -ENOMEM;
	memcpy(layouts, rest + used, n_layouts * sizeof *layouts);
	status = device_memory_lay_out(r->memory, geometry, &r->head, layouts, r->why, sizeof r->why);
	free(layouts);
	return status;
}

void device_register_memory(struct session *s, const struct model *model,
	const struct wire_register_memory *head, const uint8_t *rest, size_t len, struct message_fds *fds,
	uint32_t slot)
{
	struct registration *r = calloc(1, sizeof *r);
	int status;

	if (!r) {
		attach_refuse(s, -ENOMEM, "out of memory");
		return;
	}
	r->session = s;
	r->model = model;
	r->head = *head;
	r->slot = slot;
	status = have_lane(s, r->why, sizeof r->why);
	if (!status)
		status = describe(r, rest, len, fds);
	if (!status) {
		hand_over(r, open_memory, memory_opened, "open memory");
		return;
	}
	refuse(r, status);
	device_memory_unref(r->memory);
	free(r);
}

static void memory_closed(struct lane_task *t)
{
	struct registration *r = (struct registration *)t;

	mapping_unref(r->leaving);
	if (!r->session->closed)
		attach_registered(r->session, r->id);
	over(r);
}

void device_unregister_memory(struct session *s, struct mapping *m, uint32_t id)
{
	struct registration *r = calloc(1, sizeof *r);

	if (!r) {
		/* It stays as it is: nothing was promised yet. */
		s->memories[id - 1] = m;
		attach_refuse(s, -ENOMEM, "out of memory");
		return;
	}
	r->session = s;
	r->leaving = m;
	r->id = id;
	hand_over(r, close_memory, memory_closed, "close memory");
}

/* ---- events ---- */

static void events_opened(struct lane_task *t)
{
	struct registration *r = (struct registration *)t;
	struct session *s = r->session;

	if (t->status || s->closed) {
		if (t->status == -EINVAL)
			snprintf(r->why, sizeof r->why, "the driver does not open one of the event handles");
		refuse(r, t->status);
		event_group_unref(r->group);
	} else {
		r->group->next = s->events;
		s->events = r->group;
		attach_registered(s, r->group->first_id);
	}
	over(r);
}

void device_register_events(struct session *s, const uint8_t *message, size_t len)
{
	struct registration *r = calloc(1, sizeof *r);
	struct wire_register_events w = {0};
	int status;

	if (!r) {
		attach_refuse(s, -ENOMEM, "out of memory");
		return;
	}
	r->session = s;
	if (len >= sizeof w)
		memcpy(&w, message, sizeof w);
	status = have_lane(s, r->why, sizeof r->why);
	if (!status && (!w.n_events || w.n_events > WIRE_EVENTS_MAX ||
			       len != sizeof w + (size_t)w.n_events * WIRE_HANDLE_BYTES)) {
		snprintf(r->why, sizeof r->why, "the message has the wrong size");
		status = -EINVAL;
	}
	if (!status)
		status = event_group_new(
			s->events, s->daemon->gpu->imports, message + sizeof w, w.n_events, &r->group);
	if (status == -ENOSPC)
		snprintf(r->why, sizeof r->why, "a connection has at most %d events", WIRE_EVENTS_MAX);
	if (!status) {
		hand_over(r, open_events, events_opened, "open events");
		return;
	}
	refuse(r, status);
	free(r);
}

static void events_closed(struct lane_task *t)
{
	struct registration *r = (struct registration *)t;

	event_group_unref(r->group);
	if (!r->session->closed)
		attach_registered(r->session, r->id);
	over(r);
}

/* No request names them. */
static void close_group(struct session *s, struct event_group *g)
{
	struct registration *r = calloc(1, sizeof *r);

	if (!r) {
		g->next = s->events;
		s->events = g;
		attach_refuse(s, -ENOMEM, "out of memory");
		return;
	}
	r->session = s;
	r->group = g;
	r->id = g->first_id;
	hand_over(r, close_events, events_closed, "close events");
}

void device_unregister_events(struct session *s, const uint8_t *message, size_t len)
{
	struct wire_unregister_events w = {0};
	struct event_group **link = &s->events, *g;

	if (len == sizeof w)
		memcpy(&w, message, sizeof w);
	while (*link && ((*link)->first_id != w.first_id || (*link)->n != w.n_events))
		link = &(*link)->next;
	g = *link;
	if (!g) {
		attach_refuse(s, -ENOENT, "no such events were registered together");
		return;
	}
	*link = g->next;
	if (!g->n_users) {
		close_group(s, g);
		return;
	}
	s->leaving_events = g;
	daemon_pause_socket(s->daemon, s, true);
}

void device_request_ended(struct session *s)
{
	struct event_group *g = s->leaving_events;

	if (!g || g->n_users || s->closed)
		return;
	s->leaving_events = NULL;
	close_group(s, g);
}

void device_session_closed(struct session *s)
{
	struct lane *lane = s->lane;

	if (!s->daemon->gpu)
		return;
	/* From here on nothing more of this session's reaches the GPU. */
	s->lane = NULL;
	lane_close(lane);
	staging_cancel(s->daemon->gpu->staging, &s->lane);
	while (s->events) {
		struct event_group *g = s->events;

		s->events = g->next;
		event_group_unref(g);
	}
	event_group_unref(s->leaving_events);
	s->leaving_events = NULL;
}
