#include "runtime/daemon/cache/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* How long a chunk waits for others to be written rather than drive out what is not on disk yet; once that
 * was too short, how long none waits. */
enum { WAIT_MS = 50, SLOW_MS = 1000 };

struct candidates {
	struct cache *c;
	const struct cache_share *share; /* NULL: of all */
	bool unwritten;                  /* also what waits to be written */
};

static bool may_go(void *arg, uint32_t id)
{
	const struct candidates *w = arg;
	const struct index_entry *e = index_at(w->c->index, id);

	/* What is on disk in another form is not given up for a moment's wait. */
	if (e->on_disk.flags == ON_DISK_REPLACING && !w->c->failing)
		return false;
	if (e->on_disk.queue == EVICT_LIST && !w->unwritten)
		return false;
	return !e->n_pins && is_idle(e) && (!w->share || share_of(w->c, e) == w->share);
}

/* Takes one out of the pool, of one namespace or of all. False: none can go. */
static bool evict_one(struct cache *c, const struct cache_share *share, bool unwritten)
{
	struct candidates which = {.c = c, .share = share, .unwritten = unwritten};
	const uint32_t id = evict_victim(&c->in_pool, may_go, &which);
	struct index_entry *e;

	if (!id)
		return false;
	e = index_at(c->index, id);
	c->stats.n_evicted++;
	if (!e->page) {
		forget_replaced(c, e);
		/* It waited for the disk, and can wait no longer. */
		c->stats.n_lost += e->on_disk.queue == EVICT_LIST;
		c->stats.n_dropped++;
	}
	drop_record(c, e, true);
	if (!e->page)
		kill_entry(c, e);
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

int make_room(struct cache *c, const struct cache_share *share, size_t len_bytes, bool unwritten, void **addr)
{
	int r;

	if (share->pool_quota && pages_of(len_bytes) > share->pool_quota)
		return -ENOMEM;
	while (share->pool_quota && share->pool_bytes + pages_of(len_bytes) > share->pool_quota)
		if (!evict_one(c, share, unwritten))
			return will_have_room(c) ? -ENOSPC : -ENOMEM;
	while ((r = pool_alloc(c->pool, len_bytes, addr)) == -ENOSPC)
		if (!evict_one(c, NULL, unwritten))
			return will_have_room(c) ? -ENOSPC : -ENOMEM;
	return r;
}

static void fill_now(struct cache *c, const struct need *n, void *record)
{
	const size_t len = record_bytes(n->frame_bytes);

	store_draft(record, &n->what);
	memcpy((uint8_t *)record + STORE_HEADER_BYTES, n->frame, n->frame_bytes);
	memset((uint8_t *)record + len, 0, pages_of(len) - len); /* it goes to disk too */
	c->stats.n_filled++;
	if (!n->entry->dead)
		link_parent(c, n->entry, n->what.parent);
	set_record(c, n->entry, record);
	if (!n->entry->dead)
		queue_write(c, n->entry);
}

/* Without a store, with one that fails, and after long enough, what is not written makes room too. */
static bool may_take_unwritten(struct cache *c, struct need *n)
{
	const uint64_t now = cache_now_ms();

	if (!c->store || c->failing || (c->full && !c->reclaim.active) || now < c->slow_ms)
		return true;
	if (!n->since_ms)
		n->since_ms = now;
	if (now - n->since_ms < WAIT_MS)
		return false;
	c->slow_ms = now + SLOW_MS;
	return true;
}

uint64_t needs_deadline_ms(const struct cache *c)
{
	return c->needs && c->needs->since_ms ? c->needs->since_ms + WAIT_MS : UINT64_MAX;
}

/* -ENOSPC: there is no room now. With any other outcome the need has been dealt with. */
static int serve(struct cache *c, struct need *n)
{
	struct index_entry *e = n->entry;
	void *record;
	int r = make_room(c, share_of(c, e), record_bytes(n->frame_bytes), false, &record);

	if (r && may_take_unwritten(c, n))
		r = make_room(c, share_of(c, e), record_bytes(n->frame_bytes), true, &record);
	else if (r == -ENOMEM && c->unwritten.n)
		r = -ENOSPC;
	if (r == -ENOSPC)
		return r;
	if (n->frame) {
		if (!r)
			fill_now(c, n, record);
		free(n->frame);
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
void serve_needs(struct cache *c)
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

int add_need(struct cache *c, const struct need *need)
{
	struct need *n = malloc(sizeof *n);

	if (!n)
		return -ENOMEM;
	*n = *need;
	n->next = NULL;
	*c->needs_end = n;
	c->needs_end = &n->next;
	serve_needs(c);
	return 0;
}
