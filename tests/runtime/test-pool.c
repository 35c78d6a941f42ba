#include "runtime/pool.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { PAGE = POOL_PAGE_BYTES };

static void limits(void **state)
{
	struct pool *p = NULL;
	struct pool_stats stats;
	void *a, *b, *range;
	size_t len;

	(void)state;
	assert_int_equal(pool_new(0, &p), -EINVAL);
	assert_int_equal(pool_new(PAGE - 1, &p), -EINVAL);
	assert_int_equal(pool_new((uint64_t)PAGE << 32, &p), -EINVAL);
	assert_null(p);
	assert_null(pool_free(NULL));

	assert_int_equal(pool_new(10 * PAGE + 17, &p), 0);
	pool_range(p, &range, &len);
	assert_int_equal(len, 10 * PAGE);
	assert_int_equal((uintptr_t)range % PAGE, 0);

	assert_int_equal(pool_alloc(p, 0, &a), -EINVAL);
	assert_int_equal(pool_alloc(p, 11 * PAGE, &a), -ENOSPC);
	assert_int_equal(pool_alloc(p, SIZE_MAX, &a), -ENOSPC);
	assert_int_equal(pool_alloc(p, 9 * PAGE + 1, &a), 0);
	assert_ptr_equal(a, range);
	assert_int_equal(pool_alloc(p, 1, &b), -ENOSPC);
	memset(a, 0xa5, len);

	pool_get_stats(p, &stats);
	assert_int_equal(stats.limit_bytes, 10 * PAGE);
	assert_int_equal(stats.used_bytes, 10 * PAGE);
	assert_int_equal(stats.largest_free_bytes, 0);
	assert_int_equal(stats.n_extents, 1);

	pool_release(p, a, 9 * PAGE + 1);
	pool_get_stats(p, &stats);
	assert_int_equal(stats.used_bytes, 0);
	assert_int_equal(stats.largest_free_bytes, 10 * PAGE);
	pool_free(p);
}

/* Over memory that the CPU cannot touch, with a limit that moves. */
static void limit_moves(void **state)
{
	char *const range = (char *)(uintptr_t)0x7000000000;
	struct pool *p = NULL;
	struct pool_stats stats;
	void *a, *b, *c;

	(void)state;
	assert_int_equal(pool_over(range, 8 * PAGE, 9 * PAGE, &p), -EINVAL);
	assert_int_equal(pool_over(range, 8 * PAGE, 0, &p), 0);
	assert_int_equal(pool_alloc(p, PAGE, &a), -ENOSPC);
	assert_int_equal(pool_set_limit(p, 4 * PAGE), 0);
	assert_int_equal(pool_alloc(p, 2 * PAGE, &a), 0);
	assert_int_equal(pool_alloc(p, PAGE, &b), 0);
	assert_ptr_equal(a, range);
	assert_ptr_equal(b, range + 2 * PAGE);
	assert_int_equal(pool_alloc(p, 2 * PAGE, &c), -ENOSPC);
	assert_int_equal(pool_set_limit(p, 6 * PAGE), 0); /* what was free before it is joined */
	assert_int_equal(pool_alloc(p, 3 * PAGE, &c), 0);
	assert_int_equal(pool_set_limit(p, 5 * PAGE), -EBUSY);
	pool_release(p, c, 3 * PAGE);
	assert_int_equal(pool_set_limit(p, 2 * PAGE), -EBUSY);
	assert_int_equal(pool_set_limit(p, 3 * PAGE), 0);
	pool_get_stats(p, &stats);
	assert_int_equal(stats.limit_bytes, 3 * PAGE);
	assert_int_equal(stats.used_bytes, 3 * PAGE);
	assert_int_equal(stats.largest_free_bytes, 0);
	pool_release(p, b, PAGE);
	assert_int_equal(pool_set_limit(p, 8 * PAGE), 0);
	assert_int_equal(pool_alloc(p, 6 * PAGE, &b), 0);
	pool_release(p, a, 2 * PAGE);
	assert_int_equal(pool_set_limit(p, 0), -EBUSY);
	pool_release(p, b, 6 * PAGE);
	assert_int_equal(pool_set_limit(p, 0), 0);
	assert_int_equal(pool_set_limit(p, 9 * PAGE), -EINVAL);
	pool_free(p);

	assert_int_equal(pool_new(8 * PAGE, &p), 0);
	assert_int_equal(pool_set_limit(p, 4 * PAGE), -EINVAL);
	pool_free(p);
}

/* Half of the pool is free and yet nothing longer than a page fits, until neighbours come free and merge. */
static void fragmentation(void **state)
{
	enum { N = 64 };
	struct pool *p;
	struct pool_stats stats;
	void *page[N], *pair;

	(void)state;
	assert_int_equal(pool_new(N * PAGE, &p), 0);
	for (int i = 0; i < N; i++)
		assert_int_equal(pool_alloc(p, PAGE, &page[i]), 0);
	for (int i = 0; i < N; i += 2)
		pool_release(p, page[i], PAGE);
	pool_get_stats(p, &stats);
	assert_int_equal(stats.used_bytes, N / 2 * PAGE);
	assert_int_equal(stats.largest_free_bytes, PAGE);
	assert_int_equal(pool_alloc(p, PAGE + 1, &pair), -ENOSPC);

	pool_release(p, page[31], PAGE);
	assert_int_equal(pool_alloc(p, 3 * PAGE, &pair), 0);
	assert_ptr_equal(pair, page[30]);
	pool_release(p, pair, 3 * PAGE);
	for (int i = 1; i < N; i += 2)
		if (i != 31)
			pool_release(p, page[i], PAGE);
	pool_get_stats(p, &stats);
	assert_int_equal(stats.largest_free_bytes, N * PAGE);
	assert_int_equal(stats.n_extents, 0);
	pool_free(p);
}

/* The shortest hole that fits is taken, though a longer one lies lower. */
static void best_fit(void **state)
{
	struct pool *p;
	void *hole5, *wall1, *hole3, *wall2, *a;

	(void)state;
	assert_int_equal(pool_new(100 * PAGE, &p), 0);
	assert_int_equal(pool_alloc(p, 5 * PAGE, &hole5), 0);
	assert_int_equal(pool_alloc(p, PAGE, &wall1), 0);
	assert_int_equal(pool_alloc(p, 3 * PAGE, &hole3), 0);
	assert_int_equal(pool_alloc(p, PAGE, &wall2), 0);
	pool_release(p, hole5, 5 * PAGE);
	pool_release(p, hole3, 3 * PAGE);
	assert_int_equal(pool_alloc(p, 3 * PAGE, &a), 0);
	assert_ptr_equal(a, hole3);
	assert_int_equal(pool_alloc(p, 2 * PAGE, &a), 0);
	assert_ptr_equal(a, hole5);
	pool_free(p);
}

/* ---- against a model: an array with one byte a page, searched from the start each time ---- */

enum { MODEL_PAGES = 300 };

struct model {
	bool used[MODEL_PAGES];
	uint32_t largest;
};

/* First page of the shortest run of free pages that holds n, the lowest such; MODEL_PAGES for none. */
static uint32_t model_find(struct model *m, uint32_t n)
{
	uint32_t best = MODEL_PAGES, best_len = UINT32_MAX;

	m->largest = 0;
	for (uint32_t i = 0; i < MODEL_PAGES;) {
		uint32_t end = i;

		while (end < MODEL_PAGES && !m->used[end])
			end++;
		if (end - i >= n && end - i < best_len) {
			best = i;
			best_len = end - i;
		}
		if (end - i > m->largest)
			m->largest = end - i;
		i = end + 1;
	}
	return best;
}

static void against_model(void **state)
{
	unsigned seed = (unsigned)time(NULL);
	struct model m = {0};
	struct held {
		char *addr;
		size_t len;
	} held[MODEL_PAGES];
	uint32_t n_held = 0;
	struct pool *p;
	void *range;
	size_t range_len;

	(void)state;
	print_message("seed %u\n", seed);
	assert_int_equal(pool_new(MODEL_PAGES * PAGE, &p), 0);
	pool_range(p, &range, &range_len);
	for (int step = 0; step < 20000; step++) {
		struct pool_stats stats;
		uint64_t n_used = 0;

		/* The balance tips every 2000 steps, so that the pool runs full and empty. */
		if (rand_r(&seed) % 8 < (step / 2000 % 2 ? 3 : 5)) {
			size_t len = (size_t)rand_r(&seed) % (rand_r(&seed) % 4 ? 4 * PAGE : 40 * PAGE) + 1;
			uint32_t n = (uint32_t)((len + PAGE - 1) / PAGE);
			uint32_t expected = model_find(&m, n);
			void *addr;
			int r = pool_alloc(p, len, &addr);

			if (expected == MODEL_PAGES) {
				assert_int_equal(r, -ENOSPC);
			} else {
				assert_int_equal(r, 0);
				assert_ptr_equal(addr, (char *)range + (size_t)expected * PAGE);
				memset(&m.used[expected], true, n);
				held[n_held++] = (struct held){addr, len};
			}
		} else if (n_held) {
			struct held *h = &held[(uint32_t)rand_r(&seed) % n_held];
			size_t first = (size_t)(h->addr - (char *)range) / PAGE;
			const size_t n = (h->len + PAGE - 1) / PAGE;

			if (rand_r(&seed) % 3 == 0) {
				const size_t shorter = (size_t)rand_r(&seed) % h->len + 1;
				const size_t left = (shorter + PAGE - 1) / PAGE;

				pool_shrink(p, h->addr, h->len, shorter);
				memset(&m.used[first + left], false, n - left);
				h->len = shorter;
			} else {
				pool_release(p, h->addr, h->len);
				memset(&m.used[first], false, n);
				*h = held[--n_held];
			}
		}
		model_find(&m, 1);
		for (uint32_t i = 0; i < MODEL_PAGES; i++)
			n_used += m.used[i];
		pool_get_stats(p, &stats);
		assert_int_equal(stats.used_bytes, n_used * PAGE);
		assert_int_equal(stats.largest_free_bytes, (uint64_t)m.largest * PAGE);
		assert_int_equal(stats.n_extents, n_held);
	}
	pool_free(p);
}

/* ---- several threads ---- */

struct worker {
	pthread_t thread;
	struct pool *pool;
	unsigned seed;
	uint64_t n_foreign; /* bytes found changed by another */
};

static void *worker_run(void *arg)
{
	struct worker *w = arg;

	for (int i = 0; i < 2000; i++) {
		size_t len = ((size_t)rand_r(&w->seed) % 8 + 1) * PAGE;
		void *addr;

		if (pool_alloc(w->pool, len, &addr) < 0)
			continue;
		for (size_t at = 0; at < len; at += PAGE)
			memcpy((char *)addr + at, &w, sizeof w);
		for (size_t at = 0; at < len; at += PAGE)
			w->n_foreign += memcmp((char *)addr + at, &w, sizeof w) != 0;
		pool_release(w->pool, addr, len);
	}
	return NULL;
}

static void threads(void **state)
{
	struct worker w[3];
	struct pool *p;
	struct pool_stats stats;

	(void)state;
	assert_int_equal(pool_new(16 * PAGE, &p), 0);
	for (unsigned i = 0; i < 3; i++) {
		w[i] = (struct worker){.pool = p, .seed = i + 1};
		assert_int_equal(pthread_create(&w[i].thread, NULL, worker_run, &w[i]), 0);
	}
	for (unsigned i = 0; i < 3; i++) {
		pthread_join(w[i].thread, NULL);
		assert_int_equal(w[i].n_foreign, 0);
	}
	pool_get_stats(p, &stats);
	assert_int_equal(stats.largest_free_bytes, 16 * PAGE);
	pool_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(limits),
		cmocka_unit_test(limit_moves),
		cmocka_unit_test(fragmentation),
		cmocka_unit_test(best_fit),
		cmocka_unit_test(against_model),
		cmocka_unit_test(threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
