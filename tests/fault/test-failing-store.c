/* The cache on a disk that fails, fills up, or is too small for what comes: it serves from the pool, says
 * what state it is in, and goes on by itself; and a store that is turned over and over keeps what is used. */
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

#include "base/log.h"
#include "runtime/daemon/cache.h"
#include "tests/fault/disk.h"

enum { FRAME = 30000, POOL = 2 << 20, SEGMENT = 256 << 10 };

struct world {
	struct pool *pool;
	struct store *store;
	struct cache *cache;
	uint64_t limit_bytes;
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
	uint8_t key[32] = {1};
	struct index_key id;

	memcpy(key + 4, &i, sizeof i);
	index_key_make(&id, nobody, nobody, key);
	return id;
}

static void turn(struct world *w)
{
	struct pollfd p = {.fd = store_fd(w->store), .events = POLLIN};
	const int ms = cache_tick(w->cache);

	if (cache_n_busy(w->cache) || ms >= 0)
		poll(&p, 1, ms >= 0 && ms < 20 ? ms : 20);
	cache_reap(w->cache);
}

static void settle(struct world *w)
{
	while (cache_n_busy(w->cache))
		turn(w);
}

static void await(struct world *w, struct told *t)
{
	for (int i = 0; !t->n && i < 5000; i++)
		turn(w);
	assert_int_equal(t->n, 1);
}

static void put(struct world *w, uint32_t i)
{
	const struct index_key id = key_of(i);
	struct index_entry *e = cache_reserve(w->cache, &id);
	const struct store_record what = {.n_tokens = 256};
	struct told t = {.wait.fn = tell};
	uint8_t *frame = malloc(FRAME);

	assert_non_null(e);
	memset(frame, (int)i, FRAME);
	cache_fill(w->cache, e, &what, frame, FRAME, &t.wait);
	await(w, &t);
	assert_int_equal(t.status, 0);
	cache_release(w->cache, e);
	cache_reap(w->cache);
}

/* Gets it as a request would; false: it is not there. */
static bool get(struct world *w, uint32_t i)
{
	const struct index_key id = key_of(i);
	struct index_entry *e = cache_find(w->cache, &id);
	struct told t = {.wait.fn = tell};

	if (!e)
		return false;
	cache_hold(e);
	cache_fetch(w->cache, e, &t.wait);
	await(w, &t);
	assert_int_equal(t.status, 0);
	for (size_t k = 0; k < FRAME; k += 997)
		assert_int_equal(((const uint8_t *)cache_frame(e))[k], (uint8_t)i);
	cache_release(w->cache, e);
	return true;
}

static int sync_now(struct world *w)
{
	struct told t = {.wait.fn = tell};

	cache_sync(w->cache, &t.wait);
	await(w, &t);
	return t.status;
}

static void open_cache(struct world *w)
{
	const struct store_config config = {
		.directory = w->folder, .limit_bytes = w->limit_bytes, .segment_bytes = SEGMENT};

	w->cache = cache_new(w->pool, NULL);
	assert_non_null(w->cache);
	assert_int_equal(store_open(&config, cache_found, w->cache, &w->store), 0);
	cache_attach(w->cache, w->store);
}

static void close_cache(struct world *w)
{
	settle(w);
	w->store = store_close(w->store);
	cache_attach(w->cache, NULL);
	w->cache = cache_free(w->cache);
}

static void open_world(struct world *w, uint64_t limit_bytes)
{
	*w = (struct world){.limit_bytes = limit_bytes};
	strcpy(w->folder,
		access("/dev/shm", W_OK) ? "/tmp/failing-store-XXXXXX" : "/dev/shm/failing-store-XXXXXX");
	assert_non_null(mkdtemp(w->folder));
	assert_int_equal(pool_new(POOL, &w->pool), 0);
	open_cache(w);
}

static void close_world(struct world *w)
{
	char command[128];

	close_cache(w);
	pool_free(w->pool);
	snprintf(command, sizeof command, "rm -r %s", w->folder);
	assert_int_equal(system(command), 0);
}

static struct cache_stats stats_of(struct world *w)
{
	struct cache_stats s;

	cache_get_stats(w->cache, &s);
	return s;
}

/* Everything that was put in bad times is written when times are better, and is there after a restart. */
static void fails_and_recovers(void **state)
{
	static const struct disk_faults kinds[] = {
		{.write_error = 1, .error = EIO},
		{.write_error = 1, .error = EROFS, .no_space = 1},
		{.write_error = 1, .error = ENOSPC},
		{.sync_error = 1},
	};

	(void)state;
	for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
		struct world w;
		int waited = 0;

		open_world(&w, 64 << 20);
		put(&w, 1);
		settle(&w);
		assert_int_equal(sync_now(&w), 0);
		assert_int_equal(stats_of(&w).store_state, CACHE_STORE_GOOD);

		disk_misbehave(&kinds[kind], kind);
		for (uint32_t i = 2; i < 30; i++)
			put(&w, i);
		assert_true(sync_now(&w) < 0);
		assert_int_equal(stats_of(&w).store_state, CACHE_STORE_FAILING);
		assert_int_not_equal(stats_of(&w).store_error, 0);
		for (uint32_t i = 1; i < 30; i++)
			assert_true(get(&w, i));
		for (uint32_t i = 30; i < 40; i++)
			put(&w, i);
		assert_true(sync_now(&w) < 0);

		disk_misbehave(NULL, 0);
		for (uint32_t i = 40; i < 42; i++)
			put(&w, i);
		while ((stats_of(&w).store_state != CACHE_STORE_GOOD || stats_of(&w).n_unwritten) &&
			waited++ < 5000)
			turn(&w);
		assert_int_equal(stats_of(&w).store_state, CACHE_STORE_GOOD);
		assert_int_equal(sync_now(&w), 0);
		assert_int_equal(stats_of(&w).n_lost, 0);
		close_cache(&w);
		open_cache(&w);
		for (uint32_t i = 1; i < 42; i++)
			assert_true(get(&w, i));
		close_world(&w);
	}
}

/* While the disk fails, the pool alone serves: what has no room there is lost, which is told; nothing is
 * stuck. */
static void fails_for_good(void **state)
{
	const struct disk_faults faults = {.write_error = 1, .error = EIO, .no_space = 1};
	struct world w;
	uint32_t n_there = 0;

	(void)state;
	open_world(&w, 64 << 20);
	disk_misbehave(&faults, 1);
	for (uint32_t i = 0; i < 300; i++)
		put(&w, i);
	for (uint32_t i = 0; i < 300; i++)
		n_there += get(&w, i);
	assert_true(n_there > 40 && n_there < POOL / FRAME + 1);
	assert_true(stats_of(&w).n_lost >= 300 - n_there - 64);
	assert_true(sync_now(&w) < 0);
	disk_misbehave(NULL, 0);
	close_world(&w);
}

/* Many times what fits: it never takes more than it may, goes on, and keeps what is asked for again and
 * again. */
static void turned_over_and_over(void **state)
{
	enum { HOT = 20, COLD = 1200 };
	struct world w;
	struct store_stats store;
	uint32_t n_hot = 0;

	(void)state;
	open_world(&w, 4 << 20);
	for (uint32_t i = 0; i < HOT; i++) {
		put(&w, i);
		assert_true(get(&w, i));
	}
	for (uint32_t i = 0; i < COLD; i++) {
		put(&w, 1000 + i);
		(void)get(&w, i % HOT);
		store_get_stats(w.store, &store);
		assert_true(store.used_bytes <= store.limit_bytes);
	}
	settle(&w);
	for (uint32_t i = 0; i < HOT; i++)
		n_hot += get(&w, i);
	assert_int_equal(n_hot, HOT);
	assert_true(stats_of(&w).n_disk_evicted > COLD / 2);
	assert_true(stats_of(&w).n_moved > 0);
	assert_int_equal(stats_of(&w).n_write_errors, 0);
	assert_int_equal(sync_now(&w), 0);
	/* Half of the store and more is in use, not a corner of it. */
	store_get_stats(w.store, &store);
	print_message("live %llu of %llu KiB, %llu moved for %llu written\n",
		(unsigned long long)store.live_bytes >> 10, (unsigned long long)store.limit_bytes >> 10,
		(unsigned long long)stats_of(&w).n_moved, (unsigned long long)store.n_writes);
	assert_true(store.live_bytes > store.limit_bytes / 2);
	close_cache(&w);
	open_cache(&w);
	/* What was used how often is not written down; but all that is found is whole. */
	n_hot = 0;
	for (uint32_t i = 0; i < HOT; i++)
		n_hot += get(&w, i);
	assert_true(n_hot > HOT / 2);
	for (uint32_t i = 0; i < COLD; i++)
		(void)get(&w, 1000 + i);
	close_world(&w);
}

/* Removals and purges hold while records are being moved about them, also over restarts. */
static void removed_amid_moves(void **state)
{
	const uint8_t nobody[16] = {0};
	struct world w;

	(void)state;
	open_world(&w, 2 << 20);
	for (uint32_t round = 0; round < 12; round++) {
		const uint32_t first = 1000 * round;

		for (uint32_t i = 0; i < 60; i++) {
			const struct index_key id = key_of(first + i - 3);
			struct index_entry *e;

			put(&w, first + i);
			e = i > 3 && i % 3 == 0 ? cache_peek(w.cache, &id) : NULL;
			if (e) {
				struct told t = {.wait.fn = tell};

				cache_remove(w.cache, e, &t.wait);
				await(&w, &t);
				assert_int_equal(t.status, 0);
			}
		}
		if (round % 4 == 3) {
			struct told t = {.wait.fn = tell};

			cache_purge(w.cache, nobody, &t.wait);
			await(&w, &t);
			assert_int_equal(t.status, 0);
			assert_int_equal(stats_of(&w).n_entries, 0);
		}
		close_cache(&w);
		open_cache(&w);
		if (round % 4 == 3)
			assert_int_equal(stats_of(&w).n_entries, 0);
		for (uint32_t i = 6; i < 60; i += 3) {
			const struct index_key id = key_of(first + i - 3);

			assert_null(cache_peek(w.cache, &id));
		}
	}
	close_world(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fails_and_recovers),
		cmocka_unit_test(fails_for_good),
		cmocka_unit_test(turned_over_and_over),
		cmocka_unit_test(removed_amid_moves),
	};

	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
