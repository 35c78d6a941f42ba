/* Work in the background gets its share of the GPU's time, and no more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runtime/cuda/share.h"

enum { MS = 1000000 };

/* Work without end in pieces of busy_ns, for so long: how much of the time it had, in percent. */
static double sustained(uint32_t percent, uint64_t busy_ns, uint64_t for_ns)
{
	uint64_t now = 7 * (uint64_t)MS, start = now, busy = 0;
	struct share s;

	share_init(&s, percent, now);
	while (now - start < for_ns) {
		now += share_wait(&s, now);
		assert_int_equal(share_wait(&s, now), 0);
		now += busy_ns;
		busy += busy_ns;
		share_take(&s, busy_ns);
	}
	return 100 * (double)busy / (double)(now - start);
}

static void keeps_to_its_share(void **state)
{
	(void)state;
	for (uint32_t percent = 1; percent < 100; percent += 7) {
		/* What had been saved up is gone after the first tenth of a second. */
		const double had = sustained(percent, 6 * MS, 100000ull * MS);

		assert_true(had <= percent * 1.001 + 0.11);
		assert_true(had >= percent * 0.99);
	}
	assert_true(sustained(100, 6 * MS, 1000ull * MS) == 100);
}

static void what_comes_now_and_then_does_not_wait(void **state)
{
	uint64_t now = 1;
	struct share s;

	(void)state;
	share_init(&s, 10, now);
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(share_wait(&s, now), 0);
		share_take(&s, 50 * MS);
		now += 510ull * MS;
	}
	/* However long nothing came, no more than so much is saved up. */
	now += UINT64_MAX / 2;
	assert_int_equal(share_wait(&s, now), 0);
	share_take(&s, SHARE_SAVED_NS);
	assert_int_not_equal(share_wait(&s, now), 0);
	/* A clock that stands, or goes back, gives nothing. */
	assert_int_not_equal(share_wait(&s, now - 5000ull * MS), 0);
	assert_int_not_equal(share_wait(&s, now), 0);
	assert_int_equal(share_wait(&s, now + 1 * MS), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keeps_to_its_share),
		cmocka_unit_test(what_comes_now_and_then_does_not_wait),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
