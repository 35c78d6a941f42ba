/*
 * Two threads, a request ring and an answer ring, each side asleep on its doorbell whenever it has nothing to
 * do. A lost wake-up would leave both asleep: the sleeps below time out, and that is a failure.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "shm/doorbell.h"
#include "shm/ring.h"

enum { N_REQUESTS = 80000, N_ENTRIES = 16, SLEEP_MS = 5000 };

struct link {
	struct wire_ring *shared;
	int ringer, sleeper;
};

static void link_init(struct link *l)
{
	size_t len = ring_bytes(N_ENTRIES, sizeof(uint64_t));

	l->shared = aligned_alloc(WIRE_CACHE_LINE, (len + WIRE_CACHE_LINE - 1) & -(size_t)WIRE_CACHE_LINE);
	assert_non_null(l->shared);
	memset(l->shared, 0, len);
	assert_int_equal(doorbell_new(&l->ringer, &l->sleeper), 0);
}

static void link_fini(struct link *l)
{
	close(l->ringer);
	close(l->sleeper);
	free(l->shared);
}

struct world {
	struct link requests, answers;
	const char *fault; /* of the server; read after the join */
	uint32_t n_server_sleeps;
};

/* Sleeps until the doorbell rings. False: it did not. */
static bool doze(int sleeper)
{
	struct pollfd p = {.fd = sleeper, .events = POLLIN};

	return poll(&p, 1, SLEEP_MS) == 1 && doorbell_drain(sleeper) == 0;
}

/* Answers every request with its complement. Stays asleep on a full answer ring until the client has made
 * room. */
static void *serve(void *arg)
{
	struct world *w = arg;
	struct ring_consumer in;
	struct ring_producer out;
	uint64_t n_done = 0, value = 0;
	bool held = false; /* value waits for room */

	ring_consumer_init(&in, w->requests.shared, N_ENTRIES, sizeof(uint64_t));
	ring_producer_init(&out, w->answers.shared, N_ENTRIES, sizeof(uint64_t));
	while (n_done < N_REQUESTS) {
		bool full = false;

		while (held || ring_pop(&in, &value) == 1) {
			uint64_t answer = ~value;

			held = ring_push(&out, &answer) != 0;
			if (held) {
				full = true;
				break;
			}
			n_done++;
		}
		ring_release(&in);
		if (ring_publish(&out))
			doorbell_ring(w->answers.ringer);
		if (n_done == N_REQUESTS)
			break;
		if (full) {
			/* Once more after the publish, and only then to sleep. */
			uint64_t answer = ~value;

			held = ring_push(&out, &answer) != 0;
			if (!held) {
				n_done++;
				continue;
			}
		} else if (ring_sleep(&in) != 1) {
			continue;
		}
		w->n_server_sleeps++;
		if (!doze(w->requests.sleeper)) {
			w->fault = full ? "the server slept on, full" : "the server slept on, empty";
			break;
		}
		ring_wake(&in);
	}
	if (ring_publish(&out))
		doorbell_ring(w->answers.ringer);
	return NULL;
}

/* Takes every answer that is there and checks it. */
static uint64_t take(struct world *w, struct ring_consumer *in, uint64_t next)
{
	uint64_t value;

	while (ring_pop(in, &value) == 1)
		assert_int_equal(value, ~next++);
	if (ring_release(in))
		assert_int_equal(doorbell_ring(w->requests.ringer), 0);
	return next;
}

/* batch: requests between two publishes; lag: answers that are left in their ring, so that it fills. */
static void run(uint32_t batch, uint32_t lag)
{
	struct world w = {0};
	struct ring_producer out;
	struct ring_consumer in;
	uint64_t next_out = 0, next_in = 0;
	pthread_t server;

	link_init(&w.requests);
	link_init(&w.answers);
	ring_producer_init(&out, w.requests.shared, N_ENTRIES, sizeof(uint64_t));
	ring_consumer_init(&in, w.answers.shared, N_ENTRIES, sizeof(uint64_t));
	assert_int_equal(pthread_create(&server, NULL, serve, &w), 0);

	while (next_in < N_REQUESTS) {
		bool full = false;

		for (uint32_t i = 0; i < batch && next_out < N_REQUESTS && !full; i++) {
			full = ring_push(&out, &next_out) != 0;
			next_out += !full;
		}
		if (ring_publish(&out))
			assert_int_equal(doorbell_ring(w.requests.ringer), 0);
		if (!full && next_out < N_REQUESTS && next_out - next_in < lag)
			continue;
		next_in = take(&w, &in, next_in);
		if ((!full && next_out < N_REQUESTS && next_out - next_in < lag) || next_in == N_REQUESTS)
			continue;
		if (ring_sleep(&in) == 1) {
			assert_true(doze(w.answers.sleeper));
			ring_wake(&in);
		}
	}
	pthread_join(server, NULL);
	if (w.fault)
		fail_msg("%s", w.fault);
	assert_true(w.n_server_sleeps > 0);
	link_fini(&w.requests);
	link_fini(&w.answers);
}

static void test_one_at_a_time(void **state)
{
	(void)state;
	run(1, 1);
}

static void test_batches(void **state)
{
	(void)state;
	run(5, 11);
}

static void test_answers_pile_up(void **state)
{
	(void)state;
	run(N_ENTRIES, 4 * N_ENTRIES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_at_a_time),
		cmocka_unit_test(test_batches),
		cmocka_unit_test(test_answers_pile_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
