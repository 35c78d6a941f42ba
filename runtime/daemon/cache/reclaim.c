#include "runtime/daemon/cache/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/*
 * Room on the disk comes in two steps. First the policy says which records go, until what is live leaves some
 * of the store free. Then the segments with the least in them are emptied: what is live of them is written
 * anew, from the pool if it is there, the old places are forgotten once the new ones are safe, and the store
 * deletes the segment when it needs the room.
 */

enum {
	LIVE_PERCENT = 85, /* of what segments for records may take; the rest is what keeps moving cheap */
	MOVES = 8,         /* in flight */
};

/* A segment that is nearly all live costs more than it gives. */
static const double MAX_SHARE = 0.95;

static void go_on(struct cache *c);

struct candidates {
	struct cache *c;
	const struct cache_share *share; /* NULL: of all */
};

static bool may_go(void *arg, uint32_t id)
{
	const struct candidates *w = arg;
	const struct index_entry *e = index_at(w->c->index, id);

	return !e->n_pins && is_idle(e) && (!w->share || share_of(w->c, e) == w->share);
}

/* Drops one record from the disk; the chunk is gone unless the pool has it. False: none can go. */
static bool evict_one(struct cache *c, const struct cache_share *share)
{
	struct candidates which = {.c = c, .share = share};
	const uint32_t id = evict_victim(&c->on_disk, may_go, &which);
	struct index_entry *e;

	if (!id)
		return false;
	e = index_at(c->index, id);
	c->stats.n_disk_evicted++;
	drop_location(c, e, true);
	if (!e->record)
		kill_entry(c, e);
	return true;
}

bool reclaim_quota(struct cache *c, struct cache_share *share, uint64_t bytes)
{
	if (!share->store_quota)
		return true;
	while (share->store_bytes + bytes > share->store_quota)
		if (!evict_one(c, share))
			return false;
	return true;
}

/* ---- moving ---- */

static void finish(struct cache *c)
{
	struct reclaim *r = &c->reclaim;

	free(r->list);
	free(r->moved);
	*r = (struct reclaim){0};
}

/* What could not be moved for want of room goes, or the store would stay as full as it is. Returns how many.
 */
static uint32_t drop_unmoved(struct cache *c)
{
	const struct reclaim *r = &c->reclaim;
	struct candidates which = {.c = c};
	uint32_t n = 0;

	for (uint32_t i = 0; i < r->list->n; i++) {
		const struct store_record *record = &r->list->records[i];
		struct index_entry *e;
		struct index_key id;

		if (record->kind != STORE_RECORD_FRAME)
			continue;
		index_key_make(&id, record->name_space, record->fingerprint, record->key);
		e = index_find(c->index, &id);
		if (!e || e->segment != record->location.segment ||
			(uint64_t)e->page * STORE_ALIGN != record->location.offset ||
			!may_go(&which, index_number(c->index, e)))
			continue;
		c->stats.n_disk_evicted++;
		drop_location(c, e, true);
		if (!e->record)
			kill_entry(c, e);
		n++;
	}
	return n;
}

static void moves_synced(struct cache *c, struct cache_op *op)
{
	struct reclaim *r = &c->reclaim;
	bool progress = !r->failed;

	if (op->op.status == 0) {
		for (uint32_t i = 0; i < r->n_moved; i++)
			store_forget(c->store, &r->moved[i]);
		if (r->failed && c->full)
			progress = drop_unmoved(c) || r->n_moved;
	} else {
		note_write(c, op->op.status);
		progress = false;
	}
	free(op);
	finish(c);
	/* Without progress this would go round and round: it is tried again in a while. */
	room_on_disk(c, !progress);
	if (progress)
		reclaim_check(c);
}

static void end_move(struct cache *c, struct cache_op *op)
{
	struct index_entry *e = op->entry;

	free(op->buffer);
	free(op);
	if (e) {
		e->n_users--;
		bury(c, e);
	}
	c->reclaim.n_active--;
	go_on(c);
}

static void move_written(struct cache *c, struct cache_op *op)
{
	struct index_entry *e = op->entry;
	const struct store_location *new = &op->op.record.location;

	c->writing_bytes -= op->bytes;
	note_write(c, op->op.status);
	if (op->op.status < 0) {
		c->reclaim.failed = true;
	} else if (e->dead || !e->page) {
		store_forget(c->store, new);
	} else {
		c->reclaim.moved[c->reclaim.n_moved++] = index_location(e);
		e->segment = new->segment;
		e->page = (uint32_t)(new->offset / STORE_ALIGN);
		c->stats.n_moved++;
	}
	end_move(c, op);
}

static void move_read(struct cache *c, struct cache_op *op)
{
	struct index_entry *e = op->entry;

	if (op->op.status < 0) {
		/* Rotten or not readable: nothing to move. Who wants it will be told the same. */
		c->reclaim.failed = c->reclaim.failed || op->op.status != -EBADMSG;
		end_move(c, op);
		return;
	}
	if (e->dead || !e->page) {
		end_move(c, op);
		return;
	}
	op->op.kind = STORE_WRITE;
	op->op.moving = true;
	op->done = move_written;
	op->bytes = pages_of(record_bytes(e->frame_bytes));
	c->writing_bytes += op->bytes;
	submit(c, op);
}

static void removal_moved(struct cache *c, struct cache_op *op)
{
	c->reclaim.failed = c->reclaim.failed || op->op.status < 0;
	if (op->op.status < 0)
		note_write(c, op->op.status);
	end_move(c, op);
}

/* -ENOMEM. */
static int move_removal(struct cache *c, const struct store_record *r)
{
	struct cache_op *op =
		op_new(NULL, r->kind == STORE_RECORD_PURGE ? STORE_PURGE : STORE_REMOVE, NULL, removal_moved);

	if (!op)
		return -ENOMEM;
	op->op.record = *r;
	op->op.bound = r->raw_bytes;
	c->reclaim.n_active++;
	submit(c, op);
	return 0;
}

static int move_record(struct cache *c, const struct store_record *r)
{
	struct index_entry *e;
	struct cache_op *op;
	struct index_key id;

	index_key_make(&id, r->name_space, r->fingerprint, r->key);
	e = index_find(c->index, &id);
	if (!e || e->segment != r->location.segment || (uint64_t)e->page * STORE_ALIGN != r->location.offset)
		return 0;
	op = op_new(e, STORE_READ, NULL, move_read);
	if (!op)
		return -ENOMEM;
	op->op.record = *r;
	op->op.record.kind = 0;
	if (e->record) {
		op->op.data = e->record;
	} else {
		op->buffer = aligned_alloc(STORE_ALIGN, pages_of(record_bytes(e->frame_bytes)));
		op->op.data = op->buffer;
	}
	if (!op->op.data) {
		free(op);
		return -ENOMEM;
	}
	e->n_users++;
	c->reclaim.n_active++;
	if (e->record)
		move_read(c, op);
	else
		submit(c, op);
	return 0;
}

static void go_on(struct cache *c)
{
	struct reclaim *r = &c->reclaim;
	struct cache_op *op;

	while (!r->failed && r->next < r->list->n && r->n_active < MOVES) {
		const struct store_record *record = &r->list->records[r->next++];
		int status =
			record->kind == STORE_RECORD_FRAME ? move_record(c, record) : move_removal(c, record);

		r->failed = status < 0;
	}
	if (r->n_active)
		return;
	op = op_new(NULL, STORE_SYNC, NULL, moves_synced);
	if (op) {
		submit(c, op);
		return;
	}
	finish(c);
	room_on_disk(c, true);
}

static void listed(struct cache *c, struct cache_op *op)
{
	struct reclaim *r = &c->reclaim;
	const int status = op->op.status;

	r->list = op->op.list;
	free(op);
	if (status < 0) {
		const bool hopeless = status == -ENOENT;

		if (!hopeless && status != -EALREADY)
			log_warning("store: a segment could not be listed (%s)", strerror(-status));
		finish(c);
		room_on_disk(c, hopeless && !evict_one(c, NULL));
		return;
	}
	r->moved = calloc(r->list->n + 1u, sizeof *r->moved);
	if (!r->moved) {
		finish(c);
		room_on_disk(c, true);
		return;
	}
	go_on(c);
}

void reclaim_check(struct cache *c)
{
	struct store_stats s;
	uint64_t for_records, live_max;
	struct cache_op *op;

	if (!c->store || c->reclaim.active || (c->failing && !c->full))
		return;
	store_get_stats(c->store, &s);
	/* Two segments are kept for removals and moves; the open one is never full. */
	for_records = s.limit_bytes - 2 * s.segment_bytes;
	live_max = for_records / 100 * LIVE_PERCENT;
	if (live_max > for_records - s.segment_bytes / 2)
		live_max = for_records - s.segment_bytes / 2;
	while (evict_bytes(&c->on_disk) + c->writing_bytes > live_max)
		if (!evict_one(c, NULL))
			break;
	if (!c->full && s.used_bytes + s.segment_bytes <= for_records)
		return;
	op = op_new(NULL, STORE_LIST, NULL, listed);
	if (!op)
		return;
	op->op.max_share = MAX_SHARE;
	c->reclaim.active = true;
	submit(c, op);
}

void reclaim_fini(struct cache *c)
{
	finish(c);
}
