#include "runtime/cuda/tier.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "policy/evict.h"
#include "runtime/pool.h"

enum { GHOSTS = 1 << 14, FIRST_ITEMS = 256 };

enum item_state {
	FREE,
	FILLING, /* held by who fills it */
	FILLED,
	FORGOTTEN, /* goes with its last holder */
};

struct item {
	struct evict_node node;
	uint8_t state;
	uint32_t number;
	uint32_t n_users;
	uint32_t bytes;
	void *at;
	void *note;
	uint32_t next; /* in its bucket; of those that are free. 0: the last */
};

struct tier {
	struct pool *pool;
	uint64_t limit_bytes;
	bool shrinking; /* to less than limit_bytes, and held up */
	struct evict evict;
	struct item *items; /* [n_items], the first one unused: id 0 is nobody */
	uint32_t n_items, n_free, free;
	uint32_t *buckets; /* [n_items]: ids by number */
	struct tier_stats stats;
};

static struct item *item_of(const struct tier *t, uint32_t id)
{
	return &t->items[id];
}

/* ---- what the policy asks ---- */

static struct evict_node *node_of(void *owner, uint32_t id)
{
	return &item_of(owner, id)->node;
}

static uint64_t bytes_of(void *owner, uint32_t id)
{
	return item_of(owner, id)->bytes;
}

static uint64_t hash_of(void *owner, uint32_t id)
{
	return item_of(owner, id)->number * 0x9e3779b97f4a7c15u;
}

static uint32_t no_parent(void *owner, uint32_t id)
{
	(void)owner;
	(void)id;
	return 0;
}

/* ---- items ---- */

static uint32_t *bucket(const struct tier *t, uint32_t number)
{
	return &t->buckets[number & (t->n_items - 1)];
}

/* 0: not there. */
static uint32_t find(const struct tier *t, uint32_t number)
{
	uint32_t id = *bucket(t, number);

	while (id && item_of(t, id)->number != number)
		id = item_of(t, id)->next;
	return id;
}

static void enter(struct tier *t, uint32_t id)
{
	uint32_t *first = bucket(t, item_of(t, id)->number);

	item_of(t, id)->next = *first;
	*first = id;
}

static void leave(struct tier *t, uint32_t id)
{
	uint32_t *link = bucket(t, item_of(t, id)->number);

	while (*link != id)
		link = &item_of(t, *link)->next;
	*link = item_of(t, id)->next;
}

/* A power of two, so that a bucket is found by the number's low bits. */
static int grow(struct tier *t)
{
	const uint32_t n = t->n_items ? 2 * t->n_items : FIRST_ITEMS;
	struct item *items;
	uint32_t *buckets;

	if (n > EVICT_ITEMS_MAX / 2)
		return -ENOMEM;
	items = reallocarray(t->items, n, sizeof *items);
	if (!items)
		return -ENOMEM;
	t->items = items;
	buckets = calloc(n, sizeof *buckets);
	if (!buckets)
		return -ENOMEM;
	free(t->buckets);
	t->buckets = buckets;
	for (uint32_t id = t->n_items ? t->n_items : 1; id < n; id++) {
		items[id] = (struct item){.next = t->free};
		t->free = id;
		t->n_free++;
	}
	t->n_items = n;
	for (uint32_t id = 1; id < n; id++)
		if (items[id].state == FILLING || items[id].state == FILLED)
			enter(t, id);
	return 0;
}

static void give_back(struct tier *t, uint32_t id)
{
	struct item *i = item_of(t, id);

	pool_release(t->pool, i->at, i->bytes);
	free(i->note);
	*i = (struct item){.next = t->free};
	t->free = id;
	t->n_free++;
}

/* Nobody finds it any more. */
static void drop(struct tier *t, uint32_t id, bool for_room)
{
	struct item *i = item_of(t, id);

	leave(t, id);
	if (i->state == FILLED && for_room)
		evict_dropped(&t->evict, id);
	else
		evict_remove(&t->evict, id);
	t->stats.n_frames -= i->state == FILLED;
	i->state = FORGOTTEN;
	if (!i->n_users)
		give_back(t, id);
}

static bool may_go(void *arg, uint32_t id)
{
	return !item_of(arg, id)->n_users;
}

/* ---- public ---- */

int tier_new(CUdeviceptr range, uint64_t room_bytes, struct tier **out)
{
	struct tier *t = calloc(1, sizeof *t);
	const struct evict_items items = {
		.node = node_of, .bytes = bytes_of, .hash = hash_of, .parent = no_parent, .owner = t};
	int r;

	if (!t)
		return -ENOMEM;
	r = pool_over((void *)(uintptr_t)range, room_bytes, 0, &t->pool);
	if (!r)
		r = evict_init(&t->evict, &items, GHOSTS);
	if (!r)
		r = grow(t);
	if (r)
		tier_free(t);
	else
		*out = t;
	return r;
}

struct tier *tier_free(struct tier *t)
{
	if (!t)
		return NULL;
	for (uint32_t id = 1; id < t->n_items; id++) {
		assert(!t->items[id].n_users);
		free(t->items[id].note);
	}
	evict_fini(&t->evict);
	pool_free(t->pool);
	free(t->items);
	free(t->buckets);
	free(t);
	return NULL;
}

static void drop_behind(struct tier *t, uint64_t limit_bytes)
{
	size_t len;
	void *range;

	pool_range(t->pool, &range, &len);
	for (uint32_t id = 1; id < t->n_items; id++) {
		const struct item *i = item_of(t, id);
		const uint64_t end = (uint64_t)((const char *)i->at - (const char *)range) + i->bytes;

		if ((i->state == FILLED || i->state == FILLING) && end > limit_bytes) {
			t->stats.n_evicted++;
			drop(t, id, true);
		}
	}
}

int tier_set_limit(struct tier *t, uint64_t limit_bytes)
{
	int r;

	limit_bytes -= limit_bytes % POOL_PAGE_BYTES;
	if (limit_bytes < t->limit_bytes)
		drop_behind(t, limit_bytes);
	r = pool_set_limit(t->pool, limit_bytes);
	t->shrinking = r == -EBUSY;
	if (!r)
		t->limit_bytes = limit_bytes;
	return r;
}

uint64_t tier_limit(const struct tier *t)
{
	return t->limit_bytes;
}

static void hold(struct tier *t, uint32_t id, struct tier_frame *out)
{
	struct item *i = item_of(t, id);

	i->n_users++;
	*out = (struct tier_frame){
		.at = (CUdeviceptr)(uintptr_t)i->at, .bytes = i->bytes, .id = id, .note = i->note};
}

bool tier_find(struct tier *t, uint32_t number, struct tier_frame *out)
{
	const uint32_t id = find(t, number);

	if (!id || item_of(t, id)->state != FILLED) {
		t->stats.n_misses++;
		return false;
	}
	t->stats.n_hits++;
	evict_touch(&t->evict, id);
	hold(t, id, out);
	return true;
}

int tier_reserve(struct tier *t, uint32_t number, uint32_t bytes, struct tier_frame *out)
{
	uint32_t id;
	void *at;
	int r;

	if (find(t, number))
		return -EEXIST;
	if (t->shrinking)
		return -EBUSY;
	if (!bytes || bytes > t->limit_bytes)
		return -ENOSPC;
	if (!t->free && grow(t))
		return -ENOMEM;
	while ((r = pool_alloc(t->pool, bytes, &at)) == -ENOSPC) {
		id = evict_victim(&t->evict, may_go, t);
		if (!id)
			return -ENOSPC;
		t->stats.n_evicted++;
		drop(t, id, true);
	}
	if (r)
		return r;
	id = t->free;
	t->free = item_of(t, id)->next;
	t->n_free--;
	*item_of(t, id) = (struct item){.state = FILLING, .number = number, .bytes = bytes, .at = at};
	enter(t, id);
	hold(t, id, out);
	return 0;
}

void tier_trim(struct tier *t, struct tier_frame *f, uint32_t bytes)
{
	struct item *i = item_of(t, f->id);

	/* The policy has been told nothing of its size yet. */
	assert(i->n_users == 1 && !i->note && i->state != FILLED);
	pool_shrink(t->pool, i->at, i->bytes, bytes);
	i->bytes = f->bytes = bytes;
}

bool tier_filled(struct tier *t, const struct tier_frame *f, void *note)
{
	struct item *i = item_of(t, f->id);

	i->note = note;
	if (i->state != FILLING)
		return false;
	i->state = FILLED;
	t->stats.n_frames++;
	t->stats.n_filled++;
	evict_insert(&t->evict, f->id);
	return true;
}

void tier_release(struct tier *t, const struct tier_frame *f)
{
	struct item *i = item_of(t, f->id);

	assert(i->n_users);
	if (--i->n_users)
		return;
	if (i->state == FILLING)
		drop(t, f->id, false);
	else if (i->state == FORGOTTEN)
		give_back(t, f->id);
}

void tier_forget(struct tier *t, uint32_t number)
{
	const uint32_t id = find(t, number);

	if (!id)
		return;
	t->stats.n_forgotten++;
	drop(t, id, false);
}

void tier_get_stats(const struct tier *t, struct tier_stats *out)
{
	struct pool_stats pool;

	pool_get_stats(t->pool, &pool);
	*out = t->stats;
	out->limit_bytes = t->limit_bytes;
	out->used_bytes = pool.used_bytes;
}
