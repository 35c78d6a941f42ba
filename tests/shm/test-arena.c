#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shm/arena.h"

static void test_sizes(void **state)
{
	static const struct {
		uint64_t arena_bytes, len_bytes;
		int r;
	} cases[] = {
		{4096, 1, 0},
		{4096, 4096, 0},
		{4096, 4097, -ENOSPC},
		{4096, UINT64_MAX, -ENOSPC},
		{4096, UINT64_MAX - 63, -ENOSPC},
		{5000, 4992, 0},
		{5000, 4993, -ENOSPC},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct arena a;
		uint64_t offset = 77;

		assert_int_equal(arena_init(&a, cases[i].arena_bytes, 4), 0);
		assert_int_equal(arena_alloc(&a, cases[i].len_bytes, &offset), cases[i].r);
		assert_int_equal(offset, cases[i].r ? 77 : 0);
		arena_fini(&a);
	}
}

static void test_requests_end_out_of_order(void **state)
{
	struct arena a;
	uint64_t at[4], offset;

	(void)state;
	assert_int_equal(arena_init(&a, 4096, 4), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(arena_alloc(&a, 1000, &at[i]), 0); /* takes 1024 */
	assert_int_equal(arena_alloc(&a, 1, &offset), -EAGAIN);
	arena_release(&a, at[2], 1000);
	assert_int_equal(arena_alloc(&a, 1025, &offset), -EAGAIN);
	arena_release(&a, at[1], 1000); /* merges with what lies behind it */
	assert_int_equal(arena_alloc(&a, 2048, &offset), 0);
	assert_int_equal(offset, at[1]);
	arena_release(&a, at[0], 1000);
	arena_release(&a, offset, 2048); /* merges with what lies before it */
	arena_release(&a, at[3], 1000);
	assert_int_equal(a.n_free, 1);
	assert_int_equal(arena_alloc(&a, 4096, &offset), 0);
	arena_fini(&a);
}

enum { UNITS = 512, LIVE = 40 };

/* Against a map of single units: no two allocations overlap, -EAGAIN is never said while a gap is long
 * enough, and all comes back. */
static void test_random(void **state)
{
	unsigned seed = (unsigned)time(NULL);
	uint8_t used[UNITS] = {0};
	struct arena_range live[LIVE];
	uint32_t n_live = 0;
	struct arena a;

	(void)state;
	printf("seed %u\n", seed);
	srand(seed);
	assert_int_equal(arena_init(&a, UNITS * ARENA_ALIGN, LIVE), 0);
	for (int step = 0; step < 20000; step++) {
		if (n_live < LIVE && rand() % 2) {
			struct arena_range r = {.len_bytes = (uint64_t)(rand() % 3000 + 1)};
			uint64_t n_units = (r.len_bytes + ARENA_ALIGN - 1) / ARENA_ALIGN, gap = 0,
				 longest = 0;

			for (uint32_t u = 0; u < UNITS; u++) {
				gap = used[u] ? 0 : gap + 1;
				longest = gap > longest ? gap : longest;
			}
			if (arena_alloc(&a, r.len_bytes, &r.offset) < 0) {
				assert_true(longest < n_units);
				continue;
			}
			assert_int_equal(r.offset % ARENA_ALIGN, 0);
			assert_true(r.offset + r.len_bytes <= UNITS * ARENA_ALIGN);
			for (uint64_t u = 0; u < n_units; u++)
				assert_int_equal(used[r.offset / ARENA_ALIGN + u]++, 0);
			live[n_live++] = r;
		} else if (n_live) {
			uint32_t i = (uint32_t)rand() % n_live;

			arena_release(&a, live[i].offset, live[i].len_bytes);
			memset(used + live[i].offset / ARENA_ALIGN, 0,
				(live[i].len_bytes + ARENA_ALIGN - 1) / ARENA_ALIGN);
			live[i] = live[--n_live];
		}
	}
	while (n_live) {
		n_live--;
		arena_release(&a, live[n_live].offset, live[n_live].len_bytes);
	}
	assert_int_equal(a.n_free, 1);
	assert_int_equal(a.free[0].len_bytes, UNITS * ARENA_ALIGN);
	arena_fini(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_requests_end_out_of_order),
		cmocka_unit_test(test_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
