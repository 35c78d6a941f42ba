/* Frames in the GPU's memory, as far as they are book-keeping: the range here is never touched. */
#include "runtime/cuda/tier.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { PAGE = 4096 };
static const CUdeviceptr RANGE = 0x700000000000;

static struct tier *make(uint64_t room_pages, uint64_t limit_pages)
{
	struct tier *t;

	assert_int_equal(tier_new(RANGE, room_pages * PAGE, &t), 0);
	assert_int_equal(tier_set_limit(t, limit_pages * PAGE), 0);
	return t;
}

static void fill(struct tier *t, uint32_t number, uint32_t bytes)
{
	struct tier_frame f;

	assert_int_equal(tier_reserve(t, number, bytes, &f), 0);
	tier_filled(t, &f, NULL);
	tier_release(t, &f);
}

static bool has(struct tier *t, uint32_t number)
{
	struct tier_frame f;
	const bool found = tier_find(t, number, &f);

	if (found)
		tier_release(t, &f);
	return found;
}

static void life_of_a_frame(void **state)
{
	struct tier *t = make(16, 8);
	struct tier_frame f, g;
	struct tier_stats s;

	(void)state;
	assert_false(tier_find(t, 5, &f));
	assert_int_equal(tier_reserve(t, 5, 2 * PAGE - 1, &f), 0);
	assert_int_equal(f.at % PAGE, 0);
	assert_true(f.at >= RANGE && f.at + f.bytes <= RANGE + 8 * PAGE);
	assert_false(tier_find(t, 5, &g)); /* it is not filled yet */
	assert_int_equal(tier_reserve(t, 5, PAGE, &g), -EEXIST);
	tier_filled(t, &f, NULL);
	assert_true(tier_find(t, 5, &g));
	assert_int_equal(g.at, f.at);
	assert_int_equal(g.bytes, 2 * PAGE - 1);
	tier_release(t, &f);

	/* Made anew while somebody reads it: the reader's copy stays where it is, and nobody else finds it.
	 */
	tier_forget(t, 5);
	assert_false(has(t, 5));
	assert_int_equal(tier_reserve(t, 5, PAGE, &f), 0);
	assert_true(f.at != g.at);
	tier_get_stats(t, &s);
	assert_int_equal(s.used_bytes, 3 * PAGE);
	tier_release(t, &g);
	tier_get_stats(t, &s);
	assert_int_equal(s.used_bytes, PAGE);

	/* Forgotten while it is filled: it never was. */
	tier_forget(t, 5);
	tier_filled(t, &f, NULL);
	assert_false(has(t, 5));
	tier_release(t, &f);
	/* Filling was given up. */
	assert_int_equal(tier_reserve(t, 6, PAGE, &f), 0);
	tier_release(t, &f);
	assert_false(has(t, 6));
	tier_get_stats(t, &s);
	assert_int_equal(s.used_bytes, 0);
	assert_int_equal(s.n_frames, 0);
	assert_int_equal(s.n_forgotten, 2);
	tier_forget(t, 77);
	assert_int_equal(tier_reserve(t, 7, 0, &f), -ENOSPC);
	assert_int_equal(tier_reserve(t, 7, 9 * PAGE, &f), -ENOSPC);
	tier_free(t);
}

/* Reserved larger than needed: the rest goes back while it is filled, also when it has been forgotten. */
static void room_is_trimmed(void **state)
{
	struct tier *t = make(16, 8);
	struct tier_frame a, b, c, f;
	struct tier_stats s;

	(void)state;
	assert_int_equal(tier_reserve(t, 1, 3 * PAGE + 1, &a), 0);
	assert_int_equal(tier_reserve(t, 2, 4 * PAGE, &b), 0);
	assert_int_equal(tier_reserve(t, 3, PAGE, &c), -ENOSPC);
	tier_trim(t, &a, 3 * PAGE + 1);
	assert_int_equal(tier_reserve(t, 3, PAGE, &c), -ENOSPC);
	tier_trim(t, &a, PAGE + 1);
	assert_int_equal(a.bytes, PAGE + 1);
	tier_get_stats(t, &s);
	assert_int_equal(s.used_bytes, 6 * PAGE);
	tier_filled(t, &a, NULL);
	tier_release(t, &a);
	/* What went back is joined to what lies behind it, once that is free. */
	assert_true(tier_find(t, 1, &f));
	assert_int_equal(tier_reserve(t, 3, 3 * PAGE, &c), -ENOSPC);
	assert_int_equal(f.at, a.at);
	assert_int_equal(f.bytes, PAGE + 1);
	tier_forget(t, 2);
	tier_trim(t, &b, 1);
	tier_get_stats(t, &s);
	assert_int_equal(s.used_bytes, 3 * PAGE);
	tier_filled(t, &b, NULL);
	assert_false(has(t, 2));
	tier_release(t, &b);
	assert_int_equal(tier_reserve(t, 3, 6 * PAGE, &c), 0);
	assert_int_equal(c.at, a.at + 2 * PAGE);
	/* While the limit waits for it. */
	assert_int_equal(tier_set_limit(t, 4 * PAGE), -EBUSY);
	tier_trim(t, &c, 2 * PAGE);
	assert_int_equal(tier_set_limit(t, 4 * PAGE), 0);
	tier_release(t, &c);
	tier_release(t, &f);
	tier_get_stats(t, &s);
	assert_int_equal(s.used_bytes, 2 * PAGE);
	tier_free(t);
}

/* What was used stays, what was not goes; what is held never does. */
static void room_is_made(void **state)
{
	struct tier *t = make(64, 20);
	struct tier_frame held, f;
	struct tier_stats s;

	(void)state;
	for (uint32_t i = 1; i <= 20; i++)
		fill(t, i, PAGE);
	for (uint32_t i = 1; i <= 10; i++)
		assert_true(has(t, i));
	for (uint32_t i = 101; i <= 108; i++)
		fill(t, i, PAGE);
	for (uint32_t i = 1; i <= 10; i++)
		assert_true(has(t, i));
	tier_get_stats(t, &s);
	assert_int_equal(s.n_evicted, 8);
	assert_int_equal(s.used_bytes, 20 * PAGE);
	assert_true(tier_find(t, 1, &held));
	assert_int_equal(tier_reserve(t, 200, 20 * PAGE, &f), -ENOSPC);
	assert_true(has(t, 1));
	assert_false(has(t, 2)); /* that much was tried */
	tier_release(t, &held);
	assert_int_equal(tier_reserve(t, 200, 20 * PAGE, &f), 0);
	tier_release(t, &f);
	tier_free(t);
}

static void the_limit_moves(void **state)
{
	struct tier *t = make(64, 16);
	struct tier_frame last, f;
	struct tier_stats s;

	(void)state;
	assert_int_equal(tier_set_limit(t, 65 * PAGE), -EINVAL);
	for (uint32_t i = 1; i <= 16; i++)
		fill(t, i, PAGE);
	for (uint32_t i = 1;; i++) {
		assert_true(tier_find(t, i, &last));
		if (last.at == RANGE + 15 * PAGE)
			break;
		tier_release(t, &last);
	}
	/* One behind the new limit is being read: nothing new comes in before the limit holds. */
	assert_int_equal(tier_set_limit(t, 4 * PAGE), -EBUSY);
	assert_int_equal(tier_limit(t), 16 * PAGE);
	tier_get_stats(t, &s);
	assert_int_equal(s.n_frames, 4);
	assert_int_equal(tier_reserve(t, 300, PAGE, &f), -EBUSY);
	tier_release(t, &last);
	assert_int_equal(tier_set_limit(t, 4 * PAGE), 0);
	tier_get_stats(t, &s);
	assert_int_equal(s.limit_bytes, 4 * PAGE);
	assert_int_equal(s.used_bytes, 4 * PAGE);
	fill(t, 300, PAGE);
	assert_int_equal(tier_set_limit(t, 0), 0);
	assert_int_equal(tier_reserve(t, 301, PAGE, &f), -ENOSPC);
	assert_int_equal(tier_set_limit(t, 64 * PAGE), 0);
	fill(t, 302, 64 * PAGE);
	tier_get_stats(t, &s);
	assert_int_equal(s.used_bytes, 64 * PAGE);
	tier_free(t);
}

/* Against a list of what must be true: a filled frame is found where it was put until it is forgotten or had
 * to go, no two overlap, the limit holds. */
static void many_at_random(void **state)
{
	enum { NUMBERS = 900, ROOM = 512, STEPS = 60000 };
	const unsigned seed = (unsigned)time(NULL);
	static CUdeviceptr at[NUMBERS];
	static uint32_t bytes[NUMBERS];
	struct tier *t = make(ROOM, ROOM / 2);
	uint64_t limit = ROOM / 2 * PAGE;

	(void)state;
	printf("seed %u\n", seed);
	srand(seed);
	for (int step = 0; step < STEPS; step++) {
		const uint32_t n = (uint32_t)rand() % NUMBERS;
		const int what = rand() % 100;
		struct tier_frame f;

		if (what < 55) {
			if (tier_find(t, n + 1, &f)) {
				assert_int_equal(f.at, at[n]);
				assert_int_equal(f.bytes, bytes[n]);
				assert_true(f.at + f.bytes <= RANGE + limit);
				tier_release(t, &f);
				continue;
			}
			bytes[n] = 1 + (uint32_t)rand() % (6 * PAGE);
			if (tier_reserve(t, n + 1, bytes[n], &f) == 0) {
				at[n] = f.at;
				if (rand() % 2) {
					bytes[n] = 1 + (uint32_t)rand() % bytes[n];
					tier_trim(t, &f, bytes[n]);
				}
				tier_filled(t, &f, NULL);
				tier_release(t, &f);
			}
		} else if (what < 95) {
			tier_forget(t, n + 1);
			assert_false(has(t, n + 1));
		} else {
			limit = (uint64_t)(rand() % (ROOM + 1)) * PAGE;
			assert_int_equal(tier_set_limit(t, limit), 0);
		}
		if (step % 1000 == 0) {
			static uint8_t taken[ROOM];
			struct tier_stats s;
			uint64_t pages = 0;

			memset(taken, 0, sizeof taken);
			for (uint32_t i = 0; i < NUMBERS; i++) {
				if (!tier_find(t, i + 1, &f))
					continue;
				for (uint64_t p = (f.at - RANGE) / PAGE;
					p < (f.at - RANGE + f.bytes + PAGE - 1) / PAGE; p++) {
					assert_false(taken[p]);
					taken[p] = 1;
					pages++;
				}
				tier_release(t, &f);
			}
			tier_get_stats(t, &s);
			assert_int_equal(s.used_bytes, pages * PAGE);
			assert_true(s.used_bytes <= limit);
		}
	}
	tier_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(life_of_a_frame),
		cmocka_unit_test(room_is_trimmed),
		cmocka_unit_test(room_is_made),
		cmocka_unit_test(the_limit_moves),
		cmocka_unit_test(many_at_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
