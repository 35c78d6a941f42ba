#include "policy/evict.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

enum {
	SMALL_SHARE = 10, /* one part in so many of the cache's bytes */
	GHOST_WAYS = 4,   /* places where one hash may be remembered */
	CHILDREN_MAX = UINT16_MAX,
};

static struct evict_node *node_of(const struct evict_items *items, uint32_t id)
{
	return items->node(items->owner, id);
}

/* ---- lists ---- */

static void link_newest(struct evict_list *l, const struct evict_items *items, uint32_t id, uint32_t queue)
{
	struct evict_node *n = node_of(items, id);

	assert(n->queue == EVICT_OUT && id < EVICT_ITEMS_MAX);
	n->queue = queue & 3;
	n->newer = 0;
	n->older = l->newest & (EVICT_ITEMS_MAX - 1);
	if (l->newest)
		node_of(items, l->newest)->newer = id & (EVICT_ITEMS_MAX - 1);
	else
		l->oldest = id;
	l->newest = id;
	l->n++;
}

static void unlink_node(struct evict_list *l, const struct evict_items *items, uint32_t id)
{
	struct evict_node *n = node_of(items, id);
	const uint32_t newer = n->newer, older = n->older;

	if (newer)
		node_of(items, newer)->older = older & (EVICT_ITEMS_MAX - 1);
	else
		l->newest = older;
	if (older)
		node_of(items, older)->newer = newer & (EVICT_ITEMS_MAX - 1);
	else
		l->oldest = newer;
	n->queue = EVICT_OUT;
	n->newer = n->older = 0;
	l->n--;
}

void evict_list_add(struct evict_list *l, const struct evict_items *items, uint32_t id)
{
	link_newest(l, items, id, EVICT_LIST);
}

void evict_list_remove(struct evict_list *l, const struct evict_items *items, uint32_t id)
{
	assert(node_of(items, id)->queue == EVICT_LIST);
	unlink_node(l, items, id);
}

/* ---- who was here ---- */

static uint64_t *ghost_set(const struct evict *e, uint64_t hash)
{
	return e->ghosts + (hash & (e->n_ghosts - 1) & ~(size_t)(GHOST_WAYS - 1));
}

static void remember(struct evict *e, uint64_t hash)
{
	uint64_t *set = ghost_set(e, hash);
	int oldest = 0;

	e->clock++;
	for (int i = 1; i < GHOST_WAYS; i++)
		if (e->clock - (uint32_t)set[i] > e->clock - (uint32_t)set[oldest])
			oldest = i;
	set[oldest] = (hash & ~(uint64_t)UINT32_MAX) | e->clock;
}

/* Whether it was dropped less than a cacheful ago; forgotten in the same breath. */
static bool recall(struct evict *e, uint64_t hash)
{
	uint64_t *set = ghost_set(e, hash);

	for (int i = 0; i < GHOST_WAYS; i++)
		if (set[i] >> 32 == hash >> 32 && set[i] && e->clock - (uint32_t)set[i] <= evict_count(e)) {
			set[i] = 0;
			return true;
		}
	return false;
}

/* ---- public ---- */

int evict_init(struct evict *e, const struct evict_items *items, size_t n_ghosts)
{
	size_t n = GHOST_WAYS;

	while (n < n_ghosts)
		n *= 2;
	*e = (struct evict){.items = *items, .n_ghosts = n};
	e->ghosts = calloc(n, sizeof *e->ghosts);
	return e->ghosts ? 0 : -ENOMEM;
}

void evict_fini(struct evict *e)
{
	free(e->ghosts);
	*e = (struct evict){0};
}

static void enter(struct evict *e, uint32_t id, uint32_t queue)
{
	link_newest(&e->queues[queue], &e->items, id, queue);
	e->queues[queue].bytes += e->items.bytes(e->items.owner, id);
}

static void leave(struct evict *e, uint32_t id)
{
	const uint32_t queue = node_of(&e->items, id)->queue;

	unlink_node(&e->queues[queue], &e->items, id);
	e->queues[queue].bytes -= e->items.bytes(e->items.owner, id);
}

static struct evict_node *parent_node(const struct evict *e, uint32_t id)
{
	const uint32_t parent = e->items.parent(e->items.owner, id);

	return parent ? node_of(&e->items, parent) : NULL;
}

static bool is_queued(const struct evict *e, uint32_t id)
{
	const uint32_t queue = node_of(&e->items, id)->queue;

	return queue == EVICT_SMALL || queue == EVICT_MAIN;
}

void evict_insert(struct evict *e, uint32_t id)
{
	struct evict_node *parent = parent_node(e, id);
	const bool returns = recall(e, e->items.hash(e->items.owner, id));

	enter(e, id, returns || (parent && parent->queue == EVICT_MAIN) ? EVICT_MAIN : EVICT_SMALL);
	if (parent && parent->n_children < CHILDREN_MAX)
		parent->n_children++;
}

void evict_touch(struct evict *e, uint32_t id)
{
	if (!is_queued(e, id))
		return;
	leave(e, id);
	enter(e, id, EVICT_MAIN);
}

void evict_resized(struct evict *e, uint32_t id, uint64_t before)
{
	if (is_queued(e, id))
		e->queues[node_of(&e->items, id)->queue].bytes += e->items.bytes(e->items.owner, id) - before;
}

void evict_remove(struct evict *e, uint32_t id)
{
	struct evict_node *parent;

	if (!is_queued(e, id))
		return;
	leave(e, id);
	parent = parent_node(e, id);
	if (parent && parent->n_children < CHILDREN_MAX) {
		assert(parent->n_children);
		parent->n_children--;
	}
}

void evict_dropped(struct evict *e, uint32_t id)
{
	if (node_of(&e->items, id)->queue == EVICT_SMALL)
		remember(e, e->items.hash(e->items.owner, id));
	evict_remove(e, id);
}

/* The oldest of a queue that may go and has no child here, or 0. *any: the oldest that may go, whatever hangs
 * on it. */
static uint32_t search(
	const struct evict *e, uint32_t queue, bool (*may_go)(void *, uint32_t), void *arg, uint32_t *any)
{
	for (uint32_t id = e->queues[queue].oldest; id; id = node_of(&e->items, id)->newer) {
		if (may_go && !may_go(arg, id))
			continue;
		if (!node_of(&e->items, id)->n_children)
			return id;
		if (!*any)
			*any = id;
	}
	return 0;
}

uint32_t evict_victim(const struct evict *e, bool (*may_go)(void *arg, uint32_t id), void *arg)
{
	const bool small_first = e->queues[EVICT_SMALL].bytes > evict_bytes(e) / SMALL_SHARE;
	uint32_t any = 0, id;

	id = search(e, small_first ? EVICT_SMALL : EVICT_MAIN, may_go, arg, &any);
	if (!id)
		id = search(e, small_first ? EVICT_MAIN : EVICT_SMALL, may_go, arg, &any);
	return id ? id : any;
}

uint32_t evict_next_cold(const struct evict *e, struct evict_walk *w, double share)
{
	if (!w->queue)
		*w = (struct evict_walk){.queue = EVICT_SMALL};
	for (; w->queue <= EVICT_MAIN; *w = (struct evict_walk){.queue = w->queue + 1}) {
		const struct evict_list *l = &e->queues[w->queue];
		const bool begins = !w->id || node_of(&e->items, w->id)->queue != w->queue;
		const uint32_t id = begins ? l->oldest : node_of(&e->items, w->id)->newer;

		if (begins)
			w->bytes = 0;
		if (!id)
			continue;
		w->id = id;
		w->bytes += e->items.bytes(e->items.owner, id);
		if ((double)w->bytes <= share * (double)l->bytes)
			return id;
	}
	*w = (struct evict_walk){0};
	return 0;
}

uint64_t evict_bytes(const struct evict *e)
{
	return e->queues[EVICT_SMALL].bytes + e->queues[EVICT_MAIN].bytes;
}

size_t evict_count(const struct evict *e)
{
	return (size_t)e->queues[EVICT_SMALL].n + e->queues[EVICT_MAIN].n;
}
