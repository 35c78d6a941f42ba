#include "runtime/daemon/cache.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

struct cache {
	struct index *index;
	struct pool *pool;
	struct store *store;
	struct board *board;             /* NULL: nobody counts */
	struct need *needs, **needs_end; /* in order of arrival: who waits for room in the pool */
	size_t n_busy;                   /* store operations in flight */
	size_t n_dead;                   /* entries that wait for their last user */
	bool serving;                    /* needs are being served now */
	struct cache_stats stats;
};

/* Room in the pool that somebody waits for: to fill an entry with a frame, or (frame NULL) to read its record
 * back, for all of the entry's waiters. */
struct need {
	struct need *next;
	struct index_entry *entry;
	uint8_t *frame;
	size_t frame_bytes;
	struct cache_wait *wait;
};

/* A store operation of ours. */
struct cache_op {
	struct store_op op; /* first: store_reap returns this */
	struct index_entry *entry;
	struct cache_wait *wait; /* REMOVE, SYNC */
	uint64_t submitted_ns;
};

static size_t record_bytes(size_t frame_bytes)
{
	return STORE_HEADER_BYTES + frame_bytes;
}

static size_t pages_of(size_t len_bytes)
{
	return (len_bytes + STORE_ALIGN - 1) / STORE_ALIGN * STORE_ALIGN;
}

struct cache *cache_new(struct pool *pool, struct store *store)
{
	struct cache *c = calloc(1, sizeof *c);

	if (!c)
		return NULL;
	c->pool = pool;
	c->store = store;
	c->needs_end = &c->needs;
	c->index = index_new();
	if (!c->index)
		return cache_free(c);
	return c;
}

/* On both sides of any change of where an entry lies: takes it out of the board's sums, enters it again. */
static void count(struct cache *c, const struct index_entry *e, int sign)
{
	if (c->board && !e->dead)
		board_entry(c->board, e, sign);
}

static void release_record(struct cache *c, struct index_entry *e)
{
	if (!e->record)
		return;
	count(c, e, -1);
	index_untrack(c->index, e);
	pool_release(c->pool, e->record, record_bytes(e->frame_bytes));
	e->record = NULL;
	count(c, e, 1);
}

static void free_record(void *arg, struct index_entry *e)
{
	release_record(arg, e);
}

struct cache *cache_free(struct cache *c)
{
	if (!c)
		return NULL;
	assert(!c->n_busy && !c->needs);
	if (c->index)
		index_each(c->index, free_record, c);
	c->index = index_free(c->index);
	free(c);
	return NULL;
}

void cache_attach(struct cache *c, struct store *store)
{
	c->store = store;
}

void cache_count_on(struct cache *c, struct board *board)
{
	c->board = board;
}

void cache_found(void *arg, const struct store_record *record)
{
	struct cache *c = arg;
	struct index_entry *e;
	struct index_key id;

	index_key_make(&id, record->name_space, record->fingerprint, record->key);
	e = index_find(c->index, &id);
	if (!e)
		e = index_add(c->index, &id);
	if (!e)
		return; /* out of memory: the record is as good as not there */
	count(c, e, -1);
	memcpy(e->parent, record->parent, 32);
	memcpy(e->name_space, record->name_space, 16);
	memcpy(e->fingerprint, record->fingerprint, 16);
	memcpy(e->transform, record->transform, 16);
	e->frame_bytes = (uint32_t)record->frame_bytes;
	e->raw_bytes = record->raw_bytes;
	e->n_tokens = record->n_tokens;
	e->position = record->position;
	e->location = record->location;
	count(c, e, 1);
}

struct index_entry *cache_peek(struct cache *c, const struct index_key *id)
{
	struct index_entry *e = index_find(c->index, id);

	return e && (e->record || e->location.len_pages) ? e : NULL;
}

struct index_entry *cache_find(struct cache *c, const struct index_key *id)
{
	struct index_entry *e = cache_peek(c, id);

	if (e)
		index_touch(c->index, e);
	c->stats.n_hits += e != NULL;
	c->stats.n_misses += e == NULL;
	return e;
}

bool cache_is_reserved(struct cache *c, const struct index_key *id)
{
	const struct index_entry *e = index_find(c->index, id);

	return e && !e->record && !e->location.len_pages;
}

void cache_hold(struct index_entry *e)
{
	e->n_users++;
}

static bool is_idle(const struct index_entry *e)
{
	return !e->n_users && !e->writing && !e->reading;
}

static void serve_needs(struct cache *c);

/* A dead entry goes with its last user. */
static void bury(struct cache *c, struct index_entry *e)
{
	if (!e->dead || !is_idle(e))
		return;
	if (e->record) {
		pool_release(c->pool, e->record, record_bytes(e->frame_bytes));
		e->record = NULL;
	}
	if (e->location.len_pages && c->store)
		store_forget(c->store, &e->location);
	if (e->replaced.len_pages && c->store)
		store_forget(c->store, &e->replaced);
	c->n_dead--;
	free(e);
}

static void kill_entry(struct cache *c, struct index_entry *e)
{
	if (!e->dead) {
		count(c, e, -1);
		index_detach(c->index, e);
		e->dead = true;
		c->n_dead++;
	}
	bury(c, e);
}

void cache_release(struct cache *c, struct index_entry *e)
{
	assert(e->n_users);
	e->n_users--;
	bury(c, e);
	serve_needs(c);
}

struct index_entry *cache_reserve(struct cache *c, const struct index_key *id)
{
	struct index_entry *e = index_add(c->index, id);

	if (e)
		e->n_users = 1;
	return e;
}

void cache_abandon(struct cache *c, struct index_entry *e)
{
	e->n_users--;
	kill_entry(c, e);
}

static bool evict_one(struct cache *c)
{
	struct index_entry *e = index_victim(c->index);

	if (!e)
		return false;
	release_record(c, e);
	c->stats.n_evicted++;
	if (!e->location.len_pages) {
		c->stats.n_dropped++;
		kill_entry(c, e);
	}
	return true;
}

static void note_use(void *arg, struct index_entry *e)
{
	bool *in_use = arg;

	if (e->record && !is_idle(e))
		*in_use = true;
}

/* Whether some of the pool's memory will come free by itself. If not, all of it is pinned, and who waits for
 * room would wait for ever. */
static bool will_have_room(struct cache *c)
{
	bool in_use = c->n_busy || c->n_dead;

	if (!in_use)
		index_each(c->index, note_use, &in_use);
	return in_use;
}

/* -ENOSPC: not now, what is there is in use. -ENOMEM: it is larger than the pool, or the rest is pinned. */
static int make_room(struct cache *c, size_t len_bytes, void **addr)
{
	int r;

	while ((r = pool_alloc(c->pool, len_bytes, addr)) == -ENOSPC)
		if (!evict_one(c))
			return will_have_room(c) ? -ENOSPC : -ENOMEM;
	return r;
}

static struct cache_op *op_new(struct index_entry *e, enum store_op_kind kind, struct cache_wait *wait)
{
	struct cache_op *op = calloc(1, sizeof *op);

	if (!op)
		return NULL;
	op->op.kind = kind;
	op->entry = e;
	op->wait = wait;
	if (e) {
		op->op.record = (struct store_record){.frame_bytes = e->frame_bytes,
			.raw_bytes = e->raw_bytes,
			.n_tokens = e->n_tokens,
			.position = e->position,
			.location = e->location};
		memcpy(op->op.record.name_space, e->name_space, 16);
		memcpy(op->op.record.fingerprint, e->fingerprint, 16);
		memcpy(op->op.record.key, e->id.key, 32);
		memcpy(op->op.record.parent, e->parent, 32);
		memcpy(op->op.record.transform, e->transform, 16);
	}
	return op;
}

static void submit(struct cache *c, struct cache_op *op)
{
	c->n_busy++;
	op->submitted_ns = board_now_ns();
	store_submit(c->store, &op->op);
}

static void start_write(struct cache *c, struct index_entry *e)
{
	struct cache_op *op;

	if (!c->store)
		return;
	op = op_new(e, STORE_WRITE, NULL);
	if (!op) {
		c->stats.n_write_errors++;
		return;
	}
	e->writing = true;
	op->op.data = e->record;
	submit(c, op);
}

/* Makes the frame the entry's record. */
static void set_record(struct index_entry *e, void *record, uint8_t *frame, size_t frame_bytes)
{
	const size_t len = record_bytes(frame_bytes);

	memset(record, 0, STORE_HEADER_BYTES);
	memcpy((uint8_t *)record + STORE_HEADER_BYTES, frame, frame_bytes);
	memset((uint8_t *)record + len, 0, pages_of(len) - len); /* it goes to disk too */
	free(frame);
	e->record = record;
	e->frame_bytes = (uint32_t)frame_bytes;
}

static void fill_now(struct cache *c, struct index_entry *e, void *record, uint8_t *frame, size_t frame_bytes)
{
	set_record(e, record, frame, frame_bytes);
	c->stats.n_filled++;
	count(c, e, 1);
	if (e->dead)
		return;
	index_touch(c->index, e);
	start_write(c, e);
}

/* Its place in the order of eviction stays: that a frame was made anew is no use of the chunk. */
int cache_replace(struct cache *c, struct index_entry *e, uint8_t *frame, size_t frame_bytes,
	const uint8_t transform[16])
{
	void *record;

	if (e->dead || !e->record || e->n_users != 1 || e->writing || e->reading)
		return -EBUSY;
	if (make_room(c, record_bytes(frame_bytes), &record))
		return -ENOSPC;
	count(c, e, -1);
	pool_release(c->pool, e->record, record_bytes(e->frame_bytes));
	set_record(e, record, frame, frame_bytes);
	memcpy(e->transform, transform, 16);
	c->stats.n_replaced++;
	/* One of the two at most is a place: a record on disk is current, or waits to be replaced. */
	if (e->location.len_pages)
		e->replaced = e->location;
	e->location = (struct store_location){0};
	count(c, e, 1);
	start_write(c, e);
	return 0;
}

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

static int start_read(struct cache *c, struct index_entry *e, void *record)
{
	struct cache_op *op = op_new(e, STORE_READ, NULL);

	if (!op)
		return -ENOMEM;
	op->op.data = record;
	submit(c, op);
	return 0;
}

/* The record cannot be had: everybody who waits for it is told. */
static void fail_read(struct cache *c, struct index_entry *e, int status)
{
	e->reading = false;
	e->n_users++; /* a waiter that lets go must not free it under the others */
	wake(e, status);
	e->n_users--;
	bury(c, e);
}

/* -ENOSPC: there is no room now. With any other outcome the need has been dealt with. */
static int serve(struct cache *c, const struct need *n)
{
	struct index_entry *e = n->entry;
	void *record;
	int r = make_room(c, record_bytes(n->frame_bytes), &record);

	if (r == -ENOSPC)
		return r;
	if (n->frame) {
		if (r)
			free(n->frame);
		else
			fill_now(c, e, record, n->frame, n->frame_bytes);
		n->wait->fn(n->wait, r ? -ENOSPC : 0);
		return 0;
	}
	if (!r) {
		r = start_read(c, e, record);
		if (r)
			pool_release(c->pool, record, record_bytes(n->frame_bytes));
	}
	if (r)
		fail_read(c, e, -ENOSPC);
	return 0;
}

/* Serving calls back, and what is called may let go of entries and come here again: the outer call goes on.
 */
static void serve_needs(struct cache *c)
{
	if (c->serving)
		return;
	c->serving = true;
	while (c->needs) {
		struct need *n = c->needs;

		if (serve(c, n) == -ENOSPC)
			break;
		c->needs = n->next;
		if (!c->needs)
			c->needs_end = &c->needs;
		free(n);
	}
	c->serving = false;
}

static int add_need(
	struct cache *c, struct index_entry *e, uint8_t *frame, size_t frame_bytes, struct cache_wait *wait)
{
	struct need *n = malloc(sizeof *n);

	if (!n)
		return -ENOMEM;
	*n = (struct need){.entry = e, .frame = frame, .frame_bytes = frame_bytes, .wait = wait};
	*c->needs_end = n;
	c->needs_end = &n->next;
	serve_needs(c);
	return 0;
}

void cache_fill(
	struct cache *c, struct index_entry *e, uint8_t *frame, size_t frame_bytes, struct cache_wait *wait)
{
	if (add_need(c, e, frame, frame_bytes, wait)) {
		free(frame);
		wait->fn(wait, -ENOSPC);
	}
}

void cache_fetch(struct cache *c, struct index_entry *e, struct cache_wait *wait)
{
	struct cache_wait **end = (struct cache_wait **)&e->waiters;

	if (e->record) {
		wait->fn(wait, 0);
		return;
	}
	while (*end)
		end = &(*end)->next;
	wait->next = NULL;
	*end = wait;
	if (e->reading)
		return;
	e->reading = true;
	if (add_need(c, e, NULL, e->frame_bytes, NULL))
		fail_read(c, e, -ENOSPC);
}

const void *cache_frame(const struct index_entry *e)
{
	return (const uint8_t *)e->record + STORE_HEADER_BYTES;
}

void cache_remove(struct cache *c, struct index_entry *e, struct cache_wait *wait)
{
	struct cache_op *op = NULL;
	const bool on_disk = c->store && (e->location.len_pages || e->replaced.len_pages || e->writing);

	c->stats.n_removed++;
	if (on_disk)
		op = op_new(e, STORE_REMOVE, wait);
	/* The record may be in use: it goes with its last user. The tombstone goes out at once; a write that
	 * is in flight was submitted before it and so is older. */
	if (op) {
		op->entry = NULL;
		submit(c, op);
	}
	kill_entry(c, e);
	if (!op && wait)
		wait->fn(wait, on_disk ? -ENOMEM : 0);
}

void cache_sync(struct cache *c, struct cache_wait *wait)
{
	struct cache_op *op = c->store ? op_new(NULL, STORE_SYNC, wait) : NULL;

	if (op)
		submit(c, op);
	else
		wait->fn(wait, c->store ? -ENOMEM : -ENOTSUP);
}

static void written(struct cache *c, struct cache_op *op)
{
	struct index_entry *e = op->entry;

	e->writing = false;
	if (op->op.status) {
		if (!c->stats.n_write_errors++)
			log_warning("store: a write failed (%s); chunks stay in the pool only",
				strerror(-op->op.status));
	} else {
		count(c, e, -1);
		e->location = op->op.record.location;
		count(c, e, 1);
		if (e->replaced.len_pages)
			store_forget(c->store, &e->replaced);
		e->replaced = (struct store_location){0};
	}
	bury(c, e);
}

static void read_back(struct cache *c, struct cache_op *op)
{
	struct index_entry *e = op->entry;
	const int status = op->op.status;

	if (status) {
		c->stats.n_read_errors++;
		log_warning(
			"store: a record could not be read (%s); its chunk is dropped", strerror(-status));
		pool_release(c->pool, op->op.data, record_bytes(e->frame_bytes));
		e->n_users++;
		fail_read(c, e, status);
		e->n_users--;
		kill_entry(c, e);
		return;
	}
	e->reading = false;
	count(c, e, -1);
	e->record = op->op.data;
	count(c, e, 1);
	c->stats.n_fetched++;
	if (!e->dead)
		index_touch(c->index, e);
	e->n_users++;
	wake(e, 0);
	e->n_users--;
	bury(c, e);
}

void cache_each(struct cache *c, void (*fn)(void *arg, struct index_entry *e), void *arg)
{
	index_each(c->index, fn, arg);
}

void cache_reap(struct cache *c)
{
	struct store_op *list = c->store ? store_reap(c->store) : NULL;

	while (list) {
		struct cache_op *op = (struct cache_op *)list;

		list = list->next;
		c->n_busy--;
		if (c->board)
			board_store_op(c->board, op->op.kind, board_now_ns() - op->submitted_ns);
		switch (op->op.kind) {
		case STORE_WRITE: written(c, op); break;
		case STORE_READ: read_back(c, op); break;
		case STORE_REMOVE:
		case STORE_SYNC:
			if (op->wait)
				op->wait->fn(op->wait, op->op.status);
			break;
		}
		free(op);
	}
	serve_needs(c);
}

struct drop {
	struct cache *cache;
	size_t n;
};

static void drop_record(void *arg, struct index_entry *e)
{
	struct drop *d = arg;

	if (!e->record || !e->location.len_pages || !is_idle(e))
		return;
	release_record(d->cache, e);
	d->n++;
}

size_t cache_drop_pool(struct cache *c)
{
	struct drop d = {.cache = c};

	index_each(c->index, drop_record, &d);
	serve_needs(c);
	return d.n;
}

uint64_t cache_n_write_errors(const struct cache *c)
{
	return c->stats.n_write_errors;
}

size_t cache_n_busy(const struct cache *c)
{
	return c->n_busy;
}

static void count_entry(void *arg, struct index_entry *e)
{
	struct cache_stats *s = arg;

	s->n_in_pool += e->record != NULL;
	s->n_on_disk += e->location.len_pages != 0;
	s->frame_bytes += e->frame_bytes;
	s->raw_bytes += e->raw_bytes;
}

const struct cache_stats *cache_counters(const struct cache *c)
{
	return &c->stats;
}

void cache_get_stats(struct cache *c, struct cache_stats *out)
{
	*out = c->stats;
	out->n_entries = index_count(c->index);
	index_each(c->index, count_entry, out);
}
