/* The cache alone, with a small pool and no store or a real one: who gets room, who waits, who is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/daemon/cache.h"

enum { FRAME = 60000, POOL = 4 * 65536, ROOM = 4 };

struct world {
	struct pool *pool;
	struct store *store;
	struct cache *cache;
	char folder[64];
};

struct told {
	struct cache_wait wait;
	int n, status;
};

static void tell(struct cache_wait *wait, int status)
{
	struct told *t = (struct told *)wait;

	t->n++;
	t->status = status;
}

static struct index_key key_of(uint32_t i)
{
	const uint8_t nobody[16] = {0};
	uint8_t key[32] = {0};
	struct index_key id;

	memcpy(key, &i, sizeof i);
	index_key_make(&id, nobody, nobody, key);
	return id;
}

/* Begins to put chunk i: a frame of FRAME bytes, each i. The hold is the caller's. */
static struct index_entry *fill(struct world *w, uint32_t i, struct told *t)
{
	const struct index_key id = key_of(i);
	struct index_entry *e = cache_reserve(w->cache, &id);
	uint8_t *frame = malloc(FRAME);
	struct store_record what = {0};

	assert_non_null(e);
	assert_non_null(frame);
	memset(frame, (int)i, FRAME);
	*t = (struct told){.wait.fn = tell};
	what.n_tokens = 256;
	cache_fill(w->cache, e, &what, frame, FRAME, &t->wait);
	return e;
}

static void put(struct world *w, uint32_t i)
{
	struct told t;
	struct index_entry *e = fill(w, i, &t);

	assert_int_equal(t.n, 1);
	assert_int_equal(t.status, 0);
	cache_release(w->cache, e);
}

static struct index_entry *find(struct world *w, uint32_t i)
{
	const struct index_key id = key_of(i);

	return cache_find(w->cache, &id);
}

/* Until the store has nothing of ours any more. */
static void settle(struct world *w)
{
	while (cache_n_busy(w->cache)) {
		struct pollfd p = {.fd = store_fd(w->store), .events = POLLIN};

		assert_int_equal(poll(&p, 1, 10000), 1);
		cache_reap(w->cache);
	}
}

static void open_store(struct world *w)
{
	struct store_config config = {
		.directory = w->folder, .limit_bytes = 64 << 20, .segment_bytes = 4 << 20};

	assert_int_equal(store_open(&config, cache_found, w->cache, &w->store), 0);
	cache_attach(w->cache, w->store);
}

static void open_world(struct world *w, int with_store)
{
	*w = (struct world){.folder = "/tmp/test-cache-XXXXXX"};
	assert_int_equal(pool_new(POOL, &w->pool), 0);
	w->cache = cache_new(w->pool, NULL);
	assert_non_null(w->cache);
	if (!with_store)
		return;
	assert_non_null(mkdtemp(w->folder));
	open_store(w);
}

/* As after a restart. */
static void reopen(struct world *w)
{
	settle(w);
	store_close(w->store);
	cache_attach(w->cache, NULL);
	cache_free(w->cache);
	w->cache = cache_new(w->pool, NULL);
	assert_non_null(w->cache);
	open_store(w);
}

static void close_world(struct world *w)
{
	char command[128];

	if (w->store) {
		settle(w);
		store_close(w->store);
		snprintf(command, sizeof command, "rm -r %s", w->folder);
		assert_int_equal(system(command), 0);
		cache_attach(w->cache, NULL);
	}
	cache_free(w->cache);
	pool_free(w->pool);
}

/* Without a store the pool is all there is: the least recently used goes. */
static void the_oldest_goes(void **state)
{
	struct cache_stats stats;
	struct world w;

	(void)state;
	open_world(&w, 0);
	for (uint32_t i = 0; i < ROOM; i++)
		put(&w, i);
	assert_non_null(find(&w, 0)); /* so that 1 is the oldest now */
	put(&w, ROOM);
	assert_null(find(&w, 1));
	for (uint32_t i = 0; i <= ROOM; i++)
		if (i != 1)
			assert_int_equal(((const uint8_t *)cache_frame(find(&w, i)))[FRAME - 1], i);
	cache_get_stats(w.cache, &stats);
	assert_int_equal(stats.n_entries, ROOM);
	assert_int_equal(stats.n_dropped, 1);
	close_world(&w);
}

/* What is held is not evicted: who needs its room waits, in order, until it is let go. */
static void who_needs_room_waits(void **state)
{
	struct index_entry *held[ROOM], *late[2];
	struct told t[2];
	struct world w;

	(void)state;
	open_world(&w, 0);
	for (uint32_t i = 0; i < ROOM; i++) {
		put(&w, i);
		held[i] = find(&w, i);
		cache_hold(held[i]);
	}
	late[0] = fill(&w, 10, &t[0]);
	late[1] = fill(&w, 11, &t[1]);
	assert_int_equal(t[0].n + t[1].n, 0);
	cache_release(w.cache, held[2]);
	assert_int_equal(t[0].n, 1);
	assert_int_equal(t[0].status, 0);
	assert_int_equal(t[1].n, 0);
	cache_release(w.cache, held[3]);
	assert_int_equal(t[1].n, 1);
	assert_null(find(&w, 2));
	assert_null(find(&w, 3));
	assert_non_null(find(&w, 0));
	for (int i = 0; i < 2; i++) {
		cache_release(w.cache, held[i]);
		cache_release(w.cache, late[i]);
	}
	close_world(&w);
}

/* When all of the pool is pinned, nothing will come free by itself: refused, not left waiting. The same for
 * what is larger than the pool. */
static void what_can_never_be_is_refused(void **state)
{
	struct index_entry *e;
	const struct index_key id = key_of(21);
	const struct store_record what = {0};
	struct told t;
	struct world w;

	(void)state;
	open_world(&w, 0);
	for (uint32_t i = 0; i < ROOM; i++) {
		put(&w, i);
		find(&w, i)->n_pins = 1;
	}
	e = fill(&w, 20, &t);
	assert_int_equal(t.n, 1);
	assert_int_equal(t.status, -ENOSPC);
	cache_abandon(w.cache, e);
	assert_null(find(&w, 20));

	e = cache_reserve(w.cache, &id);
	t = (struct told){.wait.fn = tell};
	cache_fill(w.cache, e, &what, malloc(POOL), POOL, &t.wait);
	assert_int_equal(t.status, -ENOSPC);
	cache_abandon(w.cache, e);
	assert_non_null(find(&w, 0));
	close_world(&w);
}

/* Removed while it is read: nobody finds it any more, the reader keeps what it has, its key can be put anew.
 */
static void removed_while_in_use(void **state)
{
	struct index_entry *e;
	struct world w;

	(void)state;
	open_world(&w, 0);
	put(&w, 5);
	e = find(&w, 5);
	cache_hold(e);
	cache_remove(w.cache, e, NULL);
	assert_null(find(&w, 5));
	assert_int_equal(((const uint8_t *)cache_frame(e))[17], 5);
	put(&w, 5);
	assert_true(find(&w, 5) != e);
	cache_release(w.cache, e);
	assert_non_null(find(&w, 5));
	close_world(&w);
}

/* With a store: eviction loses nothing, two who want the same record are served by one read. */
static void back_from_disk(void **state)
{
	struct cache_stats stats;
	struct told t[2] = {{.wait.fn = tell}, {.wait.fn = tell}};
	struct index_entry *e;
	struct world w;

	(void)state;
	open_world(&w, 1);
	for (uint32_t i = 0; i < 3 * ROOM; i++) {
		put(&w, i);
		settle(&w);
	}
	e = find(&w, 0);
	assert_non_null(e);
	assert_null(e->record);
	cache_hold(e);
	cache_hold(e);
	cache_fetch(w.cache, e, &t[0].wait);
	cache_fetch(w.cache, e, &t[1].wait);
	assert_int_equal(t[0].n + t[1].n, 0);
	settle(&w);
	assert_int_equal(t[0].n, 1);
	assert_int_equal(t[1].n, 1);
	assert_int_equal(t[0].status | t[1].status, 0);
	for (size_t i = 0; i < FRAME; i += 997)
		assert_int_equal(((const uint8_t *)cache_frame(e))[i], 0);
	cache_get_stats(w.cache, &stats);
	assert_int_equal(stats.n_fetched, 1);
	assert_int_equal(stats.n_dropped, 0);
	assert_int_equal(stats.n_entries, 3 * ROOM);
	cache_release(w.cache, e);
	cache_release(w.cache, e);
	assert_true(cache_drop_pool(w.cache) > 0);
	cache_get_stats(w.cache, &stats);
	assert_int_equal(stats.n_in_pool, 0);
	close_world(&w);
}

static void replace(struct world *w, struct index_entry *e, int value, size_t len, int expected)
{
	const uint8_t transform[16] = {(uint8_t)value};
	uint8_t *frame = malloc(len);

	assert_non_null(frame);
	memset(frame, value, len);
	assert_int_equal(cache_replace(w->cache, e, frame, len, transform), expected);
	if (expected)
		free(frame);
}

static void expect(struct world *w, struct index_entry *e, int value, size_t len)
{
	struct told t = {.wait.fn = tell};

	cache_hold(e);
	cache_fetch(w->cache, e, &t.wait);
	settle(w);
	assert_int_equal(t.n, 1);
	assert_int_equal(t.status, 0);
	assert_int_equal(e->frame_bytes, len);
	assert_int_equal(cache_transform(w->cache, e)[0], value);
	for (size_t i = 0; i < len; i++)
		assert_int_equal(((const uint8_t *)cache_frame(e))[i], value);
	cache_release(w->cache, e);
}

/* A frame is made anew: not while others read it or it is being written; then it is what everybody gets, from
 * the pool, from disk and after the store was opened again. Removed, neither of the two comes back. */
static void replaced_by_a_better_one(void **state)
{
	struct store_stats stats;
	struct index_entry *e;
	struct told t = {.wait.fn = tell};
	struct world w;
	uint64_t live;
	int waited = 0;

	(void)state;
	open_world(&w, 1);
	e = fill(&w, 1, &t);
	replace(&w, e, 101, 5000, -EBUSY);
	settle(&w);
	cache_hold(e);
	replace(&w, e, 101, 5000, -EBUSY);
	cache_release(w.cache, e);
	e->n_pins = 1;
	store_get_stats(w.store, &stats);
	live = stats.live_bytes;
	replace(&w, e, 101, 5000, 0);
	cache_release(w.cache, e);
	settle(&w);
	/* The store takes note of it with whatever it does next. */
	do {
		cache_sync(w.cache, &t.wait);
		settle(&w);
		store_get_stats(w.store, &stats);
	} while (stats.live_bytes != live - 61440 + 8192 && waited++ < 5);
	assert_int_equal(stats.live_bytes, live - 61440 + 8192);
	assert_ptr_equal(find(&w, 1), e);
	assert_int_equal(e->n_pins, 1);
	e->n_pins = 0;
	expect(&w, e, 101, 5000);
	assert_int_equal(cache_drop_pool(w.cache), 1);
	expect(&w, e, 101, 5000);
	/* Larger than it was, and no room: all as before. */
	cache_hold(e);
	replace(&w, e, 102, POOL, -ENOSPC);
	expect(&w, e, 101, 5000);
	replace(&w, e, 102, FRAME, 0);
	cache_release(w.cache, e);
	settle(&w);
	reopen(&w);
	e = find(&w, 1);
	assert_non_null(e);
	expect(&w, e, 102, FRAME);
	/* Removed while the new one is on its way. */
	cache_hold(e);
	replace(&w, e, 103, 5000, 0);
	cache_remove(w.cache, e, NULL);
	cache_release(w.cache, e);
	settle(&w);
	assert_null(find(&w, 1));
	reopen(&w);
	assert_null(find(&w, 1));
	close_world(&w);
}

struct gone {
	uint32_t numbers[8];
	int n;
};

static void note_gone(void *arg, uint32_t number)
{
	struct gone *g = arg;

	assert_true(g->n < 8);
	g->numbers[g->n++] = number;
}

/* Whoever keeps something by an entry's number is told when its frame is no more: replaced, removed, given up
 * while it was made, and driven out for good; but not when only the pool's copy goes. */
static void frames_that_are_no_more(void **state)
{
	struct gone gone = {.n = 0};
	struct index_entry *e;
	struct index_key id = key_of(9);
	uint32_t number;
	struct world w;

	(void)state;
	open_world(&w, 1);
	cache_tell_gone(w.cache, note_gone, &gone);
	put(&w, 1);
	settle(&w);
	e = find(&w, 1);
	number = index_number(cache_index(w.cache), e);
	cache_hold(e);
	replace(&w, e, 101, POOL, -ENOSPC);
	assert_int_equal(gone.n, 0);
	replace(&w, e, 101, 5000, 0);
	cache_release(w.cache, e);
	assert_int_equal(gone.n, 1);
	assert_int_equal(gone.numbers[0], number);
	settle(&w);
	assert_int_equal(cache_drop_pool(w.cache), 1);
	expect(&w, e, 101, 5000);
	assert_int_equal(gone.n, 1);
	cache_hold(e);
	cache_remove(w.cache, e, NULL);
	assert_int_equal(gone.n, 2);
	assert_int_equal(gone.numbers[1], number);
	cache_release(w.cache, e);
	assert_int_equal(gone.n, 2);
	e = cache_reserve(w.cache, &id);
	assert_non_null(e);
	number = index_number(cache_index(w.cache), e);
	cache_abandon(w.cache, e);
	assert_int_equal(gone.n, 3);
	assert_int_equal(gone.numbers[2], number);
	settle(&w);
	close_world(&w);

	open_world(&w, 0);
	gone.n = 0;
	cache_tell_gone(w.cache, note_gone, &gone);
	for (uint32_t i = 0; i < ROOM; i++)
		put(&w, i);
	number = index_number(cache_index(w.cache), find(&w, 0));
	for (uint32_t i = 1; i < ROOM; i++)
		assert_non_null(find(&w, i));
	put(&w, ROOM);
	assert_int_equal(gone.n, 1);
	assert_int_equal(gone.numbers[0], number);
	close_world(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_oldest_goes),
		cmocka_unit_test(who_needs_room_waits),
		cmocka_unit_test(what_can_never_be_is_refused),
		cmocka_unit_test(removed_while_in_use),
		cmocka_unit_test(back_from_disk),
		cmocka_unit_test(replaced_by_a_better_one),
		cmocka_unit_test(frames_that_are_no_more),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
