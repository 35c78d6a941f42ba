#include "runtime/daemon/cache/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void removed(struct cache *c, struct cache_op *op)
{
	if (op->op.status < 0)
		note_write(c, op->op.status);
	if (op->wait)
		op->wait->fn(op->wait, op->op.status);
	free(op);
}

void cache_remove(struct cache *c, struct index_entry *e, struct cache_wait *wait)
{
	const struct index_owner *owner = index_owner(c->index, e->owner);
	const bool on_disk = c->store && (e->page || e->writing || e->on_disk.flags == ON_DISK_REPLACING);
	struct cache_op *op = NULL;

	c->stats.n_removed++;
	if (on_disk)
		op = op_new(NULL, STORE_REMOVE, wait, removed);
	/* The record may be in use: it goes with its last user. The tombstone goes out at once; a write that
	 * is in flight was submitted before it and so is older. */
	if (op) {
		memcpy(op->op.record.name_space, owner->name_space, 16);
		memcpy(op->op.record.fingerprint, owner->fingerprint, 16);
		memcpy(op->op.record.key, e->key, 32);
		submit(c, op);
	}
	kill_entry(c, e);
	if (!op && wait)
		wait->fn(wait, on_disk ? -ENOMEM : 0);
}

struct purge {
	struct cache *cache;
	const uint8_t *name_space;
	size_t n;
};

static void purge_one(void *arg, struct index_entry *e)
{
	struct purge *p = arg;

	/* One that is being encoded came after the purge, as far as anybody can tell. */
	if (!e->record && !e->page)
		return;
	if (memcmp(index_owner(p->cache->index, e->owner)->name_space, p->name_space, 16) != 0)
		return;
	p->n++;
	kill_entry(p->cache, e);
}

size_t cache_purge(struct cache *c, const uint8_t name_space[16], struct cache_wait *wait)
{
	struct purge p = {.cache = c, .name_space = name_space};
	struct cache_op *op = c->store ? op_new(NULL, STORE_PURGE, wait, removed) : NULL;

	if (op) {
		memcpy(op->op.record.name_space, name_space, 16);
		submit(c, op);
	}
	index_each(c->index, purge_one, &p);
	c->stats.n_removed += p.n;
	serve_needs(c);
	if (!op && wait)
		wait->fn(wait, c->store ? -ENOMEM : 0);
	return p.n;
}

struct drop {
	struct cache *cache;
	size_t n;
};

static void drop_copy(void *arg, struct index_entry *e)
{
	struct drop *d = arg;

	if (!e->record || !e->page || !is_idle(e))
		return;
	drop_record(d->cache, e, false);
	d->n++;
}

size_t cache_drop_pool(struct cache *c)
{
	struct drop d = {.cache = c};

	index_each(c->index, drop_copy, &d);
	serve_needs(c);
	return d.n;
}
