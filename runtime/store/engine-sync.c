#include "runtime/store/engine-internal.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	FULL_MAX = 4,
	FULL_BYTES_MAX = 256 << 20, /* to be scanned */
};

/* ---- syncing ---- */

static void end_round(struct engine *e)
{
	int status = e->round_status;

	e->round_status = 0;
	while (e->round) {
		struct task *t = e->round;

		e->round = t->next;
		engine_finish_task(t, status);
	}
	/* What the disk did with the data is unknown then, and a later sync may well say that all is fine.
	 * Those who asked for this one have been told; what comes now goes elsewhere. */
	if (status < 0 && e->open)
		engine_close_segment(e, e->open);
}

static void request_synced(struct engine *e, int status)
{
	if (status < 0)
		e->round_status = status;
	if (--e->n_round_requests == 0)
		end_round(e);
}

static void segment_synced(struct io_request *r, int status)
{
	struct segment *g = r->user;

	g->n_in_flight--;
	g->in_sync = false;
	/* Tombstones here may make those in other files superfluous now. */
	((struct engine *)g->owner)->segments.nothing_to_reclaim = false;
	if (status < 0) {
		g->dirty = true;
		log_error("store: segment-%08x: sync: %s", g->number, strerror(-status));
	}
	engine_go_on_closing(g, status == 0);
	request_synced(g->owner, status);
}

static void dir_synced(struct io_request *r, int status)
{
	struct engine *e = r->user;

	if (status < 0) {
		e->segments.dir_dirty = true;
		log_error("store: directory: sync: %s", strerror(-status));
	}
	request_synced(e, status);
}

void engine_start_round(struct engine *e)
{
	struct segments *t = &e->segments;

	/* One more than there are, lest the round end while it begins. */
	e->n_round_requests = 1;
	e->close_now = false;
	for (size_t i = 0; i < t->n; i++) {
		struct segment *g = t->list[i];
		int fd;

		if ((!g->dirty && !g->footer_dirty) || g->state == SEGMENT_SPARE) {
			engine_go_on_closing(g, true);
			continue;
		}
		fd = segment_fd(t, g);
		if (fd < 0) {
			e->round_status = fd;
			engine_go_on_closing(g, false);
			continue;
		}
		g->dirty = g->footer_dirty = false;
		g->in_sync = true;
		g->owner = e;
		g->syncing = (struct io_request){
			.kind = IO_FDATASYNC, .fd = fd, .done = segment_synced, .user = g};
		g->n_in_flight++;
		e->n_round_requests++;
		io_start(&e->io, &g->syncing);
	}
	if (t->dir_dirty) {
		t->dir_dirty = false;
		e->dir_sync =
			(struct io_request){.kind = IO_FSYNC, .fd = t->dir_fd, .done = dir_synced, .user = e};
		e->n_round_requests++;
		io_start(&e->io, &e->dir_sync);
	}
	request_synced(e, 0);
}

/* The lowest serial number of a write in flight, or one more than the last. */
static uint64_t oldest_write(const struct engine *e)
{
	uint64_t oldest = e->serial + 1;

	for (uint32_t i = 0; i < e->n_tasks; i++) {
		const struct task *t = &e->tasks[i];

		/* A tombstone that was written has serial 0 and waits for a sync itself. */
		if (t->op && t->op->kind != STORE_SYNC && t->op->kind != STORE_READ && t->serial &&
			t->serial < oldest)
			oldest = t->serial;
	}
	return oldest;
}

/* A sync has the file system commit its journal, which every write into room that was not written before then
 * waits for. So segments that are full wait for a sync that somebody asks for, or for others of their kind;
 * were the machine to die meanwhile they would be scanned. */
static bool is_time_to_close(const struct engine *e)
{
	return e->n_full && (e->close_now || engine_is_small(e) || e->n_full >= FULL_MAX ||
				    e->n_full * e->segment_bytes >= FULL_BYTES_MAX);
}

bool engine_sync_what_waits(struct engine *e)
{
	uint64_t oldest;

	if (e->n_round_requests || (!e->syncs && !is_time_to_close(e)))
		return false;
	oldest = oldest_write(e);
	for (struct task **link = &e->syncs; *link;) {
		struct task *t = *link;

		if (t->serial >= oldest) {
			link = &t->next;
			continue;
		}
		*link = t->next;
		t->next = e->round;
		e->round = t;
	}
	if (!e->round && !is_time_to_close(e))
		return false;
	engine_start_round(e);
	return !e->n_round_requests;
}

void engine_start_sync(struct task *t)
{
	t->serial = t->engine->serial;
	t->next = t->engine->syncs;
	t->engine->syncs = t;
}
