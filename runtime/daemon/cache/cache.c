#include "runtime/daemon/cache/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	GHOSTS_POOL = 1 << 14, /* dropped chunks that the policy remembers */
	GHOSTS_DISK = 1 << 17,
	/* What may be on its way to the disk: enough to keep it busy, and a part of the pool at most. */
	WRITING_MAX_BYTES = 64 << 20,
	WRITING_SHARE = 4,
};

/* ---- what the policy asks ---- */

static struct evict_node *pool_node(void *owner, uint32_t id)
{
	return &index_at(((struct cache *)owner)->index, id)->in_pool;
}

static struct evict_node *disk_node(void *owner, uint32_t id)
{
	return &index_at(((struct cache *)owner)->index, id)->on_disk;
}

static uint64_t bytes_of(void *owner, uint32_t id)
{
	return pages_of(record_bytes(index_at(((struct cache *)owner)->index, id)->frame_bytes));
}

static uint64_t hash_of(void *owner, uint32_t id)
{
	const struct index_entry *e = index_at(((struct cache *)owner)->index, id);
	uint64_t bits;

	memcpy(&bits, e->key, sizeof bits);
	return (bits ^ e->owner) * 0x9e3779b97f4a7c15u;
}

static uint32_t parent_of(void *owner, uint32_t id)
{
	return index_at(((struct cache *)owner)->index, id)->parent;
}

/* ---- a cache ---- */

struct cache *cache_new(struct pool *pool, struct store *store)
{
	struct cache *c = calloc(1, sizeof *c);
	struct evict_items items = {
		.node = pool_node, .bytes = bytes_of, .hash = hash_of, .parent = parent_of, .owner = c};
	struct pool_stats s;

	if (!c)
		return NULL;
	pool_get_stats(pool, &s);
	c->writing_max = s.limit_bytes / WRITING_SHARE < WRITING_MAX_BYTES ? s.limit_bytes / WRITING_SHARE
									   : WRITING_MAX_BYTES;
	c->pool = pool;
	c->store = store;
	c->needs_end = &c->needs;
	c->index = index_new();
	if (!c->index || evict_init(&c->in_pool, &items, GHOSTS_POOL) < 0)
		return cache_free(c);
	items.node = disk_node;
	if (evict_init(&c->on_disk, &items, GHOSTS_DISK) < 0)
		return cache_free(c);
	return c;
}

static void free_record(void *arg, struct index_entry *e)
{
	struct cache *c = arg;

	if (e->record)
		pool_release(c->pool, e->record, record_bytes(e->frame_bytes));
}

struct cache *cache_free(struct cache *c)
{
	if (!c)
		return NULL;
	assert(!c->n_busy && !c->needs && !c->parked);
	if (c->index)
		index_each(c->index, free_record, c);
	c->index = index_free(c->index);
	evict_fini(&c->in_pool);
	evict_fini(&c->on_disk);
	reclaim_fini(c);
	free(c->orphans);
	free(c->shares);
	free(c);
	return NULL;
}

/* On both sides of any change of where an entry lies: takes it out of the board's sums, enters it again. */
static void count(struct cache *c, const struct index_entry *e, int sign)
{
	if (c->board && !e->dead)
		board_entry(c->board, index_owner(c->index, e->owner), e, sign);
}

void cache_count_on(struct cache *c, struct board *board)
{
	c->board = board;
}

void cache_tell_gone(struct cache *c, void (*fn)(void *arg, uint32_t number), void *arg)
{
	c->gone = fn;
	c->gone_arg = arg;
}

static void tell_gone(struct cache *c, const struct index_entry *e)
{
	if (c->gone)
		c->gone(c->gone_arg, index_number(c->index, e));
}

/* ---- namespaces ---- */

/* NULL: out of memory. */
static struct cache_share *find_share(struct cache *c, const uint8_t name_space[16])
{
	struct cache_share *more;

	for (size_t i = 0; i < c->n_shares; i++)
		if (memcmp(c->shares[i].name_space, name_space, 16) == 0)
			return &c->shares[i];
	more = reallocarray(c->shares, c->n_shares + 1, sizeof *more);
	if (!more)
		return NULL;
	c->shares = more;
	c->shares[c->n_shares] = (struct cache_share){0};
	memcpy(c->shares[c->n_shares].name_space, name_space, 16);
	return &c->shares[c->n_shares++];
}

int cache_set_quota(struct cache *c, const uint8_t name_space[16], uint64_t pool_bytes, uint64_t store_bytes)
{
	struct cache_share *share = find_share(c, name_space);

	if (!share)
		return -ENOMEM;
	share->pool_quota = pool_bytes;
	share->store_quota = store_bytes;
	return 0;
}

bool cache_get_share(const struct cache *c, size_t n, struct cache_share *out)
{
	if (n >= c->n_shares)
		return false;
	*out = c->shares[n];
	return true;
}

struct cache_share *share_of(struct cache *c, const struct index_entry *e)
{
	/* What has not been described yet holds nothing. */
	static struct cache_share nobody;
	const uint32_t tag = index_owner(c->index, e->owner)->tag;

	return tag ? &c->shares[tag - 1] : &nobody;
}

/* ---- entries ---- */

void link_parent(struct cache *c, struct index_entry *e, const uint8_t parent[32])
{
	static const uint8_t none[32];
	struct index_key id;
	struct index_entry *p;

	if (memcmp(parent, none, 32) == 0)
		return;
	memcpy(id.owner, index_owner(c->index, e->owner)->digest, 16);
	memcpy(id.key, parent, 32);
	p = index_find(c->index, &id);
	if (p && p != e)
		e->parent = index_number(c->index, p);
}

void describe(struct cache *c, struct index_entry *e, const struct store_record *r)
{
	struct cache_share *share = find_share(c, r->name_space);

	index_name_owner(
		c->index, e, r->name_space, r->fingerprint, share ? (uint32_t)(share - c->shares) + 1 : 0);
	e->frame_bytes = (uint32_t)r->frame_bytes;
	e->raw_bytes = r->raw_bytes < UINT32_MAX ? (uint32_t)r->raw_bytes : UINT32_MAX;
	e->n_tokens = r->n_tokens & 0x1fff;
	index_set_transform(c->index, e, r->transform);
	share = share_of(c, e);
	share->n_chunks++;
	share->frame_bytes += e->frame_bytes;
	share->raw_bytes += e->raw_bytes;
	c->stats.frame_bytes += e->frame_bytes;
	c->stats.raw_bytes += e->raw_bytes;
}

static void undescribe(struct cache *c, const struct index_entry *e)
{
	struct cache_share *share = share_of(c, e);

	if (!e->frame_bytes)
		return;
	share->n_chunks--;
	share->frame_bytes -= e->frame_bytes;
	share->raw_bytes -= e->raw_bytes;
	c->stats.frame_bytes -= e->frame_bytes;
	c->stats.raw_bytes -= e->raw_bytes;
}

/* A child has left: its parent, if that is dead, may have waited for this alone. */
static void settle_parent(struct cache *c, struct index_entry *e)
{
	struct index_entry *p = e->parent ? index_at(c->index, e->parent) : NULL;

	if (e->in_pool.queue == EVICT_OUT && e->on_disk.queue != EVICT_SMALL &&
		e->on_disk.queue != EVICT_MAIN)
		e->parent = 0;
	if (p && p->dead)
		bury(c, p);
}

void set_record(struct cache *c, struct index_entry *e, void *record)
{
	count(c, e, -1);
	e->record = record;
	count(c, e, 1);
	c->stats.n_in_pool++;
	share_of(c, e)->pool_bytes += pages_of(record_bytes(e->frame_bytes));
	if (e->dead)
		return;
	evict_insert(&c->in_pool, index_number(c->index, e));
	/* What proved itself in the one tier need not do so again in the other. */
	if (e->on_disk.queue == EVICT_MAIN)
		evict_touch(&c->in_pool, index_number(c->index, e));
}

static void leave_pool(struct cache *c, struct index_entry *e, bool is_dropped)
{
	if (e->in_pool.queue == EVICT_OUT)
		return;
	if (is_dropped)
		evict_dropped(&c->in_pool, index_number(c->index, e));
	else
		evict_remove(&c->in_pool, index_number(c->index, e));
	settle_parent(c, e);
}

void drop_record(struct cache *c, struct index_entry *e, bool is_dropped)
{
	if (!e->record)
		return;
	leave_pool(c, e, is_dropped);
	unqueue_write(c, e);
	count(c, e, -1);
	pool_release(c->pool, e->record, record_bytes(e->frame_bytes));
	share_of(c, e)->pool_bytes -= pages_of(record_bytes(e->frame_bytes));
	e->record = NULL;
	count(c, e, 1);
	c->stats.n_in_pool--;
}

void set_location(struct cache *c, struct index_entry *e, const struct store_location *l)
{
	count(c, e, -1);
	e->segment = l->segment;
	e->page = (uint32_t)(l->offset / STORE_ALIGN);
	count(c, e, 1);
	c->stats.n_on_disk++;
	share_of(c, e)->store_bytes += pages_of(record_bytes(e->frame_bytes));
	evict_insert(&c->on_disk, index_number(c->index, e));
	if (e->in_pool.queue == EVICT_MAIN)
		evict_touch(&c->on_disk, index_number(c->index, e));
}

static void leave_disk(struct cache *c, struct index_entry *e, bool is_dropped)
{
	if (e->on_disk.queue == EVICT_OUT || e->on_disk.queue == EVICT_LIST)
		return;
	if (is_dropped)
		evict_dropped(&c->on_disk, index_number(c->index, e));
	else
		evict_remove(&c->on_disk, index_number(c->index, e));
	settle_parent(c, e);
}

/* Its place on disk is not its any more. */
static void clear_location(struct cache *c, struct index_entry *e, bool is_dropped)
{
	leave_disk(c, e, is_dropped);
	share_of(c, e)->store_bytes -= pages_of(record_bytes(e->frame_bytes));
	count(c, e, -1);
	e->page = 0;
	count(c, e, 1);
	c->stats.n_on_disk--;
}

void drop_location(struct cache *c, struct index_entry *e, bool is_dropped)
{
	const struct store_location l = index_location(e);

	if (!e->page)
		return;
	if (c->store)
		store_forget(c->store, &l);
	clear_location(c, e, is_dropped);
	if (e->record && !e->dead) {
		struct store_record what;

		store_describe(e->record, &what);
		what.location = (struct store_location){0};
		store_draft(e->record, &what);
	}
}

void bury(struct cache *c, struct index_entry *e)
{
	if (!e->dead || !is_idle(e))
		return;
	if (e->in_pool.flags != IN_POOL_BURIED) {
		e->in_pool.flags = IN_POOL_BURIED;
		drop_record(c, e, false);
		drop_location(c, e, false);
		c->n_dead--;
	}
	/* Its number is still in use: by sessions that pinned it, and by its children. */
	if (e->n_pins || e->in_pool.n_children || e->on_disk.n_children)
		return;
	index_give_back(c->index, e);
}

void kill_entry(struct cache *c, struct index_entry *e)
{
	if (!e->dead) {
		tell_gone(c, e);
		count(c, e, -1);
		undescribe(c, e);
		forget_replaced(c, e);
		unqueue_write(c, e);
		leave_pool(c, e, false);
		leave_disk(c, e, false);
		index_detach(c->index, e);
		c->n_dead++;
	}
	bury(c, e);
}

void cache_found(void *arg, const struct store_record *record)
{
	struct cache *c = arg;
	struct index_entry *e;
	struct index_key id;

	index_key_make(&id, record->name_space, record->fingerprint, record->key);
	e = index_find(c->index, &id) ? NULL : index_add(c->index, &id);
	if (!e)
		return; /* out of memory: the record is as good as not there */
	describe(c, e, record);
	e->preset = INDEX_PRESET_UNKNOWN;
	link_parent(c, e, record->parent);
	if (!e->parent && c->n_orphans == c->orphans_capacity) {
		const size_t more = c->orphans_capacity * 2 + 256;
		struct orphan *orphans = reallocarray(c->orphans, more, sizeof *orphans);

		if (orphans) {
			c->orphans = orphans;
			c->orphans_capacity = more;
		}
	}
	if (!e->parent && c->n_orphans < c->orphans_capacity) {
		struct orphan *o = &c->orphans[c->n_orphans++];

		o->number = index_number(c->index, e);
		memcpy(o->parent, record->parent, 32);
	}
	set_location(c, e, &record->location);
}

void cache_attach(struct cache *c, struct store *store)
{
	c->store = store;
	for (size_t i = 0; i < c->n_orphans; i++) {
		struct index_entry *e = index_at(c->index, c->orphans[i].number);

		link_parent(c, e, c->orphans[i].parent);
		if (e->parent && index_at(c->index, e->parent)->on_disk.n_children < UINT16_MAX)
			index_at(c->index, e->parent)->on_disk.n_children++;
	}
	free(c->orphans);
	c->orphans = NULL;
	c->n_orphans = c->orphans_capacity = 0;
	c->stats.store_state = store ? CACHE_STORE_GOOD : CACHE_STORE_NONE;
	if (store)
		reclaim_check(c);
}

struct index_entry *cache_peek(struct cache *c, const struct index_key *id)
{
	struct index_entry *e = index_find(c->index, id);

	return e && (e->record || e->page) ? e : NULL;
}

struct index_entry *cache_find(struct cache *c, const struct index_key *id)
{
	struct index_entry *e = cache_peek(c, id);

	if (e) {
		evict_touch(&c->in_pool, index_number(c->index, e));
		evict_touch(&c->on_disk, index_number(c->index, e));
		/* It had gone from the disk for want of use. */
		if (e->record && !e->page && !e->writing && e->on_disk.queue == EVICT_OUT)
			queue_write(c, e);
	}
	c->stats.n_hits += e != NULL;
	c->stats.n_misses += e == NULL;
	return e;
}

size_t cache_look(struct cache *c, const uint8_t owner[16], const uint8_t (*keys)[32], size_t n)
{
	enum { BATCH = 64 };
	struct index_entry *found[BATCH];
	size_t n_there = 0;

	while (n_there < n) {
		const size_t n_here = n - n_there < BATCH ? n - n_there : BATCH;
		size_t i = 0;

		index_find_many(c->index, owner, keys + n_there, n_here, found);
		while (i < n_here && found[i] && (found[i]->record || found[i]->page))
			i++;
		n_there += i;
		if (i < n_here)
			break;
	}
	c->stats.n_hits += n_there;
	c->stats.n_misses += n_there < n;
	return n_there;
}

bool cache_is_reserved(struct cache *c, const struct index_key *id)
{
	const struct index_entry *e = index_find(c->index, id);

	return e && !e->record && !e->page;
}

void cache_id(const struct cache *c, const struct index_entry *e, struct index_key *out)
{
	index_id(c->index, e, out);
}

const uint8_t *cache_transform(const struct cache *c, const struct index_entry *e)
{
	return index_transform(c->index, e);
}

const struct index_owner *cache_owner(const struct cache *c, const struct index_entry *e)
{
	return index_owner(c->index, e->owner);
}

void cache_each(struct cache *c, void (*fn)(void *arg, struct index_entry *e), void *arg)
{
	index_each(c->index, fn, arg);
}

void cache_hold(struct index_entry *e)
{
	e->n_users++;
}

void cache_release(struct cache *c, struct index_entry *e)
{
	assert(e->n_users);
	e->n_users--;
	bury(c, e);
	serve_needs(c);
}

int cache_pin(struct index_entry *e)
{
	if (e->n_pins == INDEX_PINS_MAX)
		return -ENOSPC;
	e->n_pins++;
	return 0;
}

void cache_unpin(struct cache *c, struct index_entry *e)
{
	assert(e->n_pins);
	e->n_pins--;
	bury(c, e);
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

void cache_fill(struct cache *c, struct index_entry *e, const struct store_record *what, uint8_t *frame,
	size_t frame_bytes, struct cache_wait *wait)
{
	struct need n = {.entry = e, .frame = frame, .frame_bytes = frame_bytes, .what = *what, .wait = wait};

	n.what.frame_bytes = frame_bytes;
	memcpy(n.what.key, e->key, sizeof n.what.key);
	if (!e->dead)
		describe(c, e, &n.what);
	else
		e->frame_bytes = (uint32_t)frame_bytes;
	if (add_need(c, &n)) {
		free(frame);
		wait->fn(wait, -ENOSPC);
	}
}

/* Its place in the order of eviction stays: that a frame was made anew is no use of the chunk. */
int cache_replace(struct cache *c, struct index_entry *e, uint8_t *frame, size_t frame_bytes,
	const uint8_t transform[16])
{
	const uint64_t before = pages_of(record_bytes(e->frame_bytes)),
		       after = pages_of(record_bytes(frame_bytes));
	struct cache_share *share = share_of(c, e);
	struct store_record what;
	void *record;

	if (e->dead || !e->record || e->n_users != 1 || e->writing || e->reading)
		return -EBUSY;
	record = e->record;
	if (after > before && make_room(c, share, record_bytes(frame_bytes), false, &record))
		return -ENOSPC;
	store_describe(e->record, &what);
	if (e->page) {
		what.location = index_location(e);
		clear_location(c, e, false);
		e->on_disk.flags = ON_DISK_REPLACING;
	} else if (e->on_disk.flags != ON_DISK_REPLACING) {
		what.location = (struct store_location){0};
	}
	tell_gone(c, e);
	unqueue_write(c, e);
	count(c, e, -1);
	if (record == e->record)
		pool_shrink(c->pool, record, before, after);
	else
		pool_release(c->pool, e->record, before);
	what.frame_bytes = frame_bytes;
	memcpy(what.transform, transform, 16);
	store_draft(record, &what);
	memcpy((uint8_t *)record + STORE_HEADER_BYTES, frame, frame_bytes);
	memset((uint8_t *)record + record_bytes(frame_bytes), 0, after - record_bytes(frame_bytes));
	free(frame);
	share->frame_bytes += frame_bytes - e->frame_bytes;
	c->stats.frame_bytes += frame_bytes - e->frame_bytes;
	share->pool_bytes += after - before;
	e->record = record;
	e->frame_bytes = (uint32_t)frame_bytes;
	evict_resized(&c->in_pool, index_number(c->index, e), before);
	index_set_transform(c->index, e, transform);
	e->coarse_in_vain = 0;
	count(c, e, 1);
	c->stats.n_replaced++;
	queue_write(c, e);
	return 0;
}

struct index_entry *cache_next_cold(struct cache *c, struct evict_walk *walk, double share)
{
	const uint32_t id = evict_next_cold(&c->in_pool, walk, share);

	return id ? index_at(c->index, id) : NULL;
}

struct index_entry *cache_parent(struct cache *c, const struct index_entry *e)
{
	return e->parent ? index_at(c->index, e->parent) : NULL;
}

void cache_fetch(struct cache *c, struct index_entry *e, struct cache_wait *wait)
{
	const struct need n = {.entry = e, .frame_bytes = e->frame_bytes};
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
	e->reading = 1;
	if (add_need(c, &n))
		fail_read(c, e, -ENOSPC);
}

const void *cache_frame(const struct index_entry *e)
{
	return (const uint8_t *)e->record + STORE_HEADER_BYTES;
}

uint64_t cache_n_lost(const struct cache *c)
{
	return c->stats.n_lost;
}

size_t cache_n_busy(const struct cache *c)
{
	return c->n_busy;
}

const struct index *cache_index(const struct cache *c)
{
	return c->index;
}

const struct cache_stats *cache_counters(const struct cache *c)
{
	return &c->stats;
}

void cache_get_stats(struct cache *c, struct cache_stats *out)
{
	*out = c->stats;
	out->n_entries = index_count(c->index);
	out->n_unwritten = c->unwritten.n;
	out->writing_bytes = c->writing_bytes;
	out->index_bytes = index_memory_bytes(c->index) +
			   (c->in_pool.n_ghosts + c->on_disk.n_ghosts) * sizeof *c->in_pool.ghosts;
	if (c->failing)
		out->store_state = CACHE_STORE_FAILING;
	out->store_error = c->error;
}
