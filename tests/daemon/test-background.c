/* The background thread: tasks come back in order, once, also those that it was stopped before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "runtime/daemon/learn/background.h"

enum { TASKS = 200 };

struct count {
	struct task task;
	uint32_t number;
	uint64_t work; /* steps */
	pthread_t on;
	bool ran, done, rested;
};

static uint32_t n_done, n_run;

static void run(struct task *task, struct background *b)
{
	struct count *c = (struct count *)task;
	volatile uint64_t sum = 0;

	for (uint64_t i = 0; i < c->work; i++)
		sum += i;
	c->on = pthread_self();
	c->ran = true;
	c->rested = background_rest(b);
	assert_non_null(background_codec(b));
}

static void done(struct task *task, bool ran)
{
	struct count *c = (struct count *)task;

	assert_int_equal(c->number, n_done++);
	assert_false(c->done);
	assert_true(ran == c->ran);
	n_run += ran;
	c->done = true;
}

static void wait_for(struct background *b, uint32_t n)
{
	while (n_done < n) {
		struct pollfd p = {.fd = background_fd(b), .events = POLLIN};

		assert_int_equal(poll(&p, 1, 30000), 1);
		background_reap(b);
	}
}

static void init(struct count c[TASKS], uint64_t work)
{
	n_done = n_run = 0;
	for (uint32_t i = 0; i < TASKS; i++)
		c[i] = (struct count){.task = {.run = run, .done = done}, .number = i, .work = work};
}

static void all_in_order(void **state)
{
	static struct count c[TASKS];
	struct background *b;

	(void)state;
	init(c, 100);
	assert_int_equal(background_new(1, false, kernels_cpu(), &b), 0);
	for (uint32_t i = 0; i < TASKS; i++) {
		background_submit(b, &c[i].task);
		if (i % 17 == 0)
			background_reap(b);
	}
	assert_true(background_n_busy(b) > 0 || n_done == TASKS);
	wait_for(b, TASKS);
	assert_int_equal(background_n_busy(b), 0);
	for (uint32_t i = 0; i < TASKS; i++) {
		assert_true(c[i].ran && c[i].rested);
		assert_true(pthread_equal(c[i].on, c[0].on) && !pthread_equal(c[i].on, pthread_self()));
	}
	assert_null(background_free(b));
}

/* Stopped in the middle of a rest that would take minutes: the rest ends, what was not begun comes back as
 * not run, and so does what is handed over later. */
static void stopped(void **state)
{
	static struct count c[TASKS];
	struct background *b;

	(void)state;
	init(c, 3000000);
	assert_int_equal(background_new(1e-5, false, kernels_cpu(), &b), 0);
	/* Some while the thread is at the first: it takes its list before they are there. A daemon once
	 * waited for them for ever. */
	background_submit(b, &c[0].task);
	usleep(20000);
	for (uint32_t i = 1; i + 1 < TASKS; i++)
		background_submit(b, &c[i].task);
	background_stop(b);
	background_stop(b);
	background_submit(b, &c[TASKS - 1].task);
	background_reap(b);
	assert_int_equal(n_done, TASKS);
	assert_true(n_run <= 1);
	for (uint32_t i = 0; i < TASKS; i++)
		assert_true(c[i].done && (!c[i].ran || !c[i].rested));
	background_free(b);
}

/* The share is kept by construction: the time that passes is at least what the work takes divided by it. */
static void within_its_share(void **state)
{
	static struct count c[TASKS];
	struct timespec from, to;
	struct background *b;
	double passed_ns;

	(void)state;
	init(c, 3000000);
	assert_int_equal(background_new(0.2, false, kernels_cpu(), &b), 0);
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (uint32_t i = 0; i < 10; i++)
		background_submit(b, &c[i].task);
	wait_for(b, 10);
	clock_gettime(CLOCK_MONOTONIC, &to);
	passed_ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
	assert_true(background_cpu_ns(b) > 0);
	/* A rest under a millisecond is not taken: one each for ten tasks. */
	assert_true(passed_ns + 2 * 10 * 1e6 >= (double)background_cpu_ns(b) / 0.2);
	background_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_in_order),
		cmocka_unit_test(stopped),
		cmocka_unit_test(within_its_share),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
