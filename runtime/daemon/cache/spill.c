#include "runtime/daemon/cache/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"

enum { BACKOFF_MIN_MS = 250, BACKOFF_MAX_MS = 10000, FULL_RETRY_MS = 1000 };

uint64_t cache_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

struct cache_op *op_new(struct index_entry *e, enum store_op_kind kind, struct cache_wait *wait,
	void (*done)(struct cache *c, struct cache_op *op))
{
	struct cache_op *op = calloc(1, sizeof *op);

	if (!op)
		return NULL;
	op->op.kind = kind;
	op->done = done;
	op->entry = e;
	op->wait = wait;
	return op;
}

void submit(struct cache *c, struct cache_op *op)
{
	c->n_busy++;
	op->submitted_ns = board_now_ns();
	store_submit(c->store, &op->op);
}

/* ---- writing ---- */

static void fail_store(struct cache *c, int status)
{
	if (!c->failing)
		log_error("store: writing fails (%s): the pool alone serves until it works again",
			strerror(-status));
	c->failing = true;
	c->error = status;
	c->backoff_ms = c->backoff_ms ? c->backoff_ms * 2 : BACKOFF_MIN_MS;
	if (c->backoff_ms > BACKOFF_MAX_MS)
		c->backoff_ms = BACKOFF_MAX_MS;
	c->retry_ms = cache_now_ms() + c->backoff_ms;
}

void note_write(struct cache *c, int status)
{
	if (status == 0 && c->failing) {
		log_info("store: works again, %u records wait to be written", c->unwritten.n);
		c->failing = false;
		c->error = 0;
		c->backoff_ms = 0;
	}
	if (status == 0)
		return;
	c->n_failures++;
	if (status == -EDQUOT) {
		c->full = true;
		c->retry_ms = cache_now_ms() + FULL_RETRY_MS;
		return;
	}
	c->stats.n_write_errors++;
	fail_store(c, status);
}

static void written(struct cache *c, struct cache_op *op)
{
	struct index_entry *e = op->entry;
	const int status = op->op.status;

	e->writing = 0;
	c->writing_bytes -= op->bytes;
	share_of(c, e)->store_bytes -= op->bytes;
	note_write(c, status);
	if (status == 0 && e->dead)
		store_forget(c->store, &op->op.record.location);
	else if (status == 0)
		set_location(c, e, &op->op.record.location);
	if (op->replaced.segment && (status == 0 || e->dead))
		store_forget(c->store, &op->replaced);
	if (status == 0 || e->dead) {
		e->on_disk.flags = 0;
	} else {
		op->op.record.location = op->replaced;
		store_draft(e->record, &op->op.record);
		evict_list_add(&c->unwritten, &c->on_disk.items, index_number(c->index, e));
	}
	free(op);
	bury(c, e);
	reclaim_check(c);
	pump_writes(c);
}

/* False: it was not started. */
static bool start_write(struct cache *c, struct index_entry *e)
{
	const uint64_t bytes = pages_of(record_bytes(e->frame_bytes));
	struct cache_share *share = share_of(c, e);
	struct cache_op *op;

	unqueue_write(c, e);
	/* Over its part of the disk, it stays in the pool alone. */
	if (!reclaim_quota(c, share, bytes)) {
		forget_replaced(c, e);
		return true;
	}
	op = op_new(e, STORE_WRITE, NULL, written);
	if (!op) {
		c->n_failures++;
		evict_list_add(&c->unwritten, &c->on_disk.items, index_number(c->index, e));
		return false;
	}
	store_describe(e->record, &op->op.record);
	op->replaced = op->op.record.location;
	op->op.data = e->record;
	op->bytes = bytes;
	e->writing = 1;
	c->writing_bytes += bytes;
	share->store_bytes += bytes;
	submit(c, op);
	return true;
}

void unqueue_write(struct cache *c, struct index_entry *e)
{
	if (e->on_disk.queue == EVICT_LIST)
		evict_list_remove(&c->unwritten, &c->on_disk.items, index_number(c->index, e));
}

void forget_replaced(struct cache *c, struct index_entry *e)
{
	struct store_record what;

	if (e->on_disk.flags != ON_DISK_REPLACING || e->writing)
		return;
	e->on_disk.flags = 0;
	store_describe(e->record, &what);
	store_forget(c->store, &what.location);
}

void pump_writes(struct cache *c)
{
	uint32_t n = c->unwritten.n;

	if (!c->store || c->full || (c->failing && cache_now_ms() < c->retry_ms))
		return;
	while (n-- && c->unwritten.n && (!c->writing_bytes || c->writing_bytes < c->writing_max)) {
		/* One at a time shows whether the disk works again. */
		if (c->failing && c->writing_bytes)
			return;
		if (!start_write(c, index_at(c->index, c->unwritten.oldest)))
			return;
	}
}

void queue_write(struct cache *c, struct index_entry *e)
{
	if (!c->store)
		return;
	evict_list_add(&c->unwritten, &c->on_disk.items, index_number(c->index, e));
	pump_writes(c);
}

void room_on_disk(struct cache *c, bool hopeless)
{
	struct cache_op *parked = c->parked;

	c->parked = NULL;
	if (hopeless) {
		c->retry_ms = cache_now_ms() + FULL_RETRY_MS;
	} else {
		c->full = false;
		pump_writes(c);
	}
	while (parked) {
		struct cache_op *op = parked;

		parked = op->next;
		if (op->wait) {
			if (hopeless)
				op->wait->fn(op->wait, -EIO);
			else
				cache_sync(c, op->wait);
		}
		free(op);
	}
}

/* ---- syncing ---- */

static void synced(struct cache *c, struct cache_op *op)
{
	int status = op->op.status;

	if (c->full && c->reclaim.active) {
		op->next = c->parked;
		c->parked = op;
		return;
	}
	if (status < 0)
		note_write(c, status);
	if (status == 0 && op->n_failures != c->n_failures)
		status = -EIO;
	op->wait->fn(op->wait, status);
	free(op);
}

void cache_sync(struct cache *c, struct cache_wait *wait)
{
	struct cache_op *op;

	if (!c->store) {
		wait->fn(wait, -ENOTSUP);
		return;
	}
	op = c->failing ? NULL : op_new(NULL, STORE_SYNC, wait, synced);
	if (!op) {
		wait->fn(wait, c->failing ? -EIO : -ENOMEM);
		return;
	}
	op->n_failures = c->n_failures;
	/* Who asks for a sync wants it all written, however much that is. */
	for (uint32_t n = c->unwritten.n; n && !c->full; n--)
		if (!start_write(c, index_at(c->index, c->unwritten.oldest)))
			break;
	if (c->full && c->reclaim.active) {
		op->next = c->parked;
		c->parked = op;
		return;
	}
	if (c->unwritten.n)
		op->n_failures = UINT64_MAX;
	submit(c, op);
}

/* ---- reading back ---- */

/* Calls everybody who waits for the entry's record. The list is cut off first: a waiter may wait again. */
static void wake(struct index_entry *e, int status)
{
	struct cache_wait *w = e->waiters;

	e->waiters = NULL;
	while (w) {
		struct cache_wait *next = w->next;

		w->fn(w, status);
		w = next;
	}
}

void fail_read(struct cache *c, struct index_entry *e, int status)
{
	e->reading = 0;
	e->n_users++; /* a waiter that lets go must not free it under the others */
	wake(e, status);
	e->n_users--;
	bury(c, e);
}

static void read_back(struct cache *c, struct cache_op *op)
{
	struct index_entry *e = op->entry;
	const int status = op->op.status;
	void *record = op->op.data;

	free(op);
	if (status) {
		c->stats.n_read_errors++;
		log_warning(
			"store: a record could not be read (%s); its chunk is dropped", strerror(-status));
		pool_release(c->pool, record, record_bytes(e->frame_bytes));
		e->n_users++;
		fail_read(c, e, status);
		e->n_users--;
		kill_entry(c, e);
		return;
	}
	e->reading = 0;
	c->stats.n_fetched++;
	set_record(c, e, record);
	e->n_users++;
	wake(e, 0);
	e->n_users--;
	bury(c, e);
}

int start_read(struct cache *c, struct index_entry *e, void *record)
{
	struct cache_op *op = op_new(e, STORE_READ, NULL, read_back);
	const struct index_owner *owner = index_owner(c->index, e->owner);

	if (!op)
		return -ENOMEM;
	op->op.data = record;
	op->op.record = (struct store_record){.frame_bytes = e->frame_bytes, .location = index_location(e)};
	memcpy(op->op.record.name_space, owner->name_space, 16);
	memcpy(op->op.record.fingerprint, owner->fingerprint, 16);
	memcpy(op->op.record.key, e->key, 32);
	submit(c, op);
	return 0;
}

/* ---- what comes back ---- */

void cache_reap(struct cache *c)
{
	struct store_op *list = c->store ? store_reap(c->store) : NULL;

	while (list) {
		struct cache_op *op = (struct cache_op *)list;

		list = list->next;
		c->n_busy--;
		if (c->board)
			board_store_op(c->board, &op->op, op->submitted_ns);
		op->done(c, op);
	}
	serve_needs(c);
}

int cache_tick(struct cache *c)
{
	const uint64_t now = cache_now_ms(), deadline = needs_deadline_ms(c);

	if (deadline != UINT64_MAX) {
		if (now < deadline)
			return (int)(deadline - now);
		serve_needs(c);
	}
	if (!c->store || !(c->full || c->failing))
		return -1;
	if (now < c->retry_ms)
		return (int)(c->retry_ms - now);
	/* Emptying segments tries a disk that failed, too: with a full store nothing else could. */
	if (c->full)
		reclaim_check(c);
	pump_writes(c);
	/* With nothing to write there is nothing to try. */
	if (c->retry_ms <= now)
		c->retry_ms = now + (c->failing ? c->backoff_ms : FULL_RETRY_MS);
	return (int)(c->retry_ms - now);
}
