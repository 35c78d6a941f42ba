#include "runtime/store/engine-internal.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- tasks ---- */

int engine_init(struct engine *e, const struct store_config *config, int dir_fd, bool direct)
{
	int r;

	*e = (struct engine){.depth = config->depth,
		.n_tasks = config->depth + (config->depth + 3) / 4,
		.limit_bytes = config->limit_bytes,
		.segment_bytes = config->segment_bytes};
	op_list_init(&e->reads);
	op_list_init(&e->others);
	op_list_init(&e->finished);
	e->tasks = calloc(e->n_tasks, sizeof *e->tasks);
	if (!e->tasks)
		return -ENOMEM;
	for (uint32_t i = 0; i < e->n_tasks; i++) {
		e->tasks[i].engine = e;
		e->tasks[i].next = e->idle;
		e->idle = &e->tasks[i];
	}
	r = segments_init(&e->segments, dir_fd, direct);
	e->segments.io = &e->io;
	return r;
}

uint32_t engine_requests(const struct engine *e)
{
	/* Segments being synced or closed have requests of their own beside the tasks'. */
	return e->n_tasks + 16;
}

void engine_fini(struct engine *e)
{
	assert(e->n_busy_reads + e->n_busy_others + e->n_closing == 0);
	for (uint32_t i = 0; e->tasks && i < e->n_tasks; i++)
		free(e->tasks[i].page);
	free(e->tasks);
	segments_fini(&e->segments);
}

void engine_submit(struct engine *e, struct store_op *op)
{
	op->checksum_segment = 0;
	op_list_add(op->kind == STORE_READ ? &e->reads : &e->others, op);
}

static void finish_op(struct engine *e, struct store_op *op, int status)
{
	/* A store at its limit and a record that is not there are answers, not errors of the disk. */
	e->stats.n_errors += status < 0 && status != -EDQUOT && status != -ENOENT && status != -EBADMSG &&
			     status != -EALREADY;
	e->stats.n_dropped += status == -EBADMSG;
	op->status = status;
	op_list_add(&e->finished, op);
}

static uint32_t *n_busy(struct engine *e, const struct store_op *op)
{
	return op->kind == STORE_READ ? &e->n_busy_reads : &e->n_busy_others;
}

static void free_task(struct task *t)
{
	struct engine *e = t->engine;

	(*n_busy(e, t->op))--;
	t->op = NULL;
	t->segment = NULL;
	t->next = e->idle;
	e->idle = t;
}

void engine_finish_task(struct task *t, int status)
{
	finish_op(t->engine, t->op, status);
	free_task(t);
}

void engine_start_io(struct task *t, enum io_kind kind, int fd, void *data, uint64_t len, uint64_t offset,
	void (*done)(struct io_request *, int))
{
	t->io = (struct io_request){.kind = kind,
		.fd = fd,
		.data = data,
		.len = (size_t)len,
		.offset = offset,
		.done = done,
		.user = t};
	t->segment->n_in_flight++;
	io_start(&t->engine->io, &t->io);
}

/* ---- the turn ---- */

static int start_task(struct task *t)
{
	switch (t->op->kind) {
	case STORE_WRITE: return engine_start_record(t);
	case STORE_READ: return engine_start_read(t);
	case STORE_REMOVE:
	case STORE_PURGE: return engine_start_tombstone(t);
	case STORE_LIST: return engine_start_list(t);
	case STORE_SYNC: engine_start_sync(t); return 0;
	}
	return -EINVAL;
}

/* False: it must be tried again when something has ended. */
static bool start_op(struct engine *e, struct store_op *op)
{
	struct task *t = e->idle;
	int r;

	e->idle = t->next;
	(*n_busy(e, op))++;
	t->op = op;
	t->segment = NULL;
	t->serial = 0;
	r = start_task(t);
	if (r == -EAGAIN)
		free_task(t);
	else if (r < 0)
		engine_finish_task(t, r);
	return r != -EAGAIN;
}

static bool start_first(struct engine *e, struct op_list *l)
{
	struct store_op *op = op_list_pop(l);

	if (start_op(e, op))
		return true;
	op_list_put_back(l, op);
	return false;
}

void engine_turn(struct engine *e)
{
	do {
		while (e->reads.first && e->idle && e->n_busy_reads < e->depth && start_first(e, &e->reads))
			;
		while (e->others.first && e->idle && e->n_busy_others < e->depth &&
			start_first(e, &e->others))
			;
		/* Syncs that find nothing to sync end at once, and nothing else will tell those who wait for
		 * their tasks. */
	} while (engine_sync_what_waits(e) && (e->others.first || e->reads.first));
}

void engine_wait(struct engine *e)
{
	int r = e->io.has_ring ? io_poll(&e->io) : 0;

	/* Rather than sit by while the disk works. */
	if (r == 0 && e->io.has_ring && engine_prepare_write(e))
		return;
	if (r == 0)
		r = io_wait(&e->io);
	if (r < 0) {
		/* Nothing can be taken back from the kernel, so this can only be tried again. */
		log_error("store: io_uring: %s", strerror(-r));
		nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
	}
}

bool engine_is_idle(const struct engine *e)
{
	return !e->reads.first && !e->others.first && e->n_busy_reads + e->n_busy_others == 0;
}

bool engine_wind_up(struct engine *e)
{
	struct segment *g = e->open;

	if (g && g->n_slots == 0 && g->n_in_flight == 0) {
		e->open = NULL;
		segments_discard(&e->segments, g);
	} else if (g) {
		engine_close_segment(e, g);
	}
	e->close_now = true;
	engine_sync_what_waits(e);
	if (!engine_drop_spare(e) || e->n_closing || e->n_round_requests)
		return false;
	/* The footers. */
	if (!e->wound_up) {
		e->wound_up = true;
		engine_start_round(e);
	}
	return e->n_round_requests == 0;
}

void engine_get_stats(const struct engine *e, struct store_stats *out)
{
	*out = e->stats;
	out->limit_bytes = e->limit_bytes;
	out->segment_bytes = e->segment_bytes;
	out->used_bytes = e->segments.used_bytes;
	out->live_bytes = e->segments.live_bytes;
	out->n_segments = e->segments.n;
	out->slot_bytes = e->segments.slot_bytes;
	out->n_records = e->segments.n_live;
	out->direct = e->segments.direct;
	out->fixed_buffers = e->io.fixed_buffers;
	out->fixed_files = e->io.fixed_files;
}
