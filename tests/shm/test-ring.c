#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>

#include "shm/ring.h"

enum { N = 8 };

struct pair {
	struct wire_ring *shared;
	struct ring_producer producer;
	struct ring_consumer consumer;
};

/* A ring of N eight-byte entries whose indices start at start, followed by bytes that must stay as they
 * are. */
static void pair_init(struct pair *p, uint32_t start)
{
	size_t len = ring_bytes(N, sizeof(uint64_t));

	assert_int_equal(len, sizeof(struct wire_ring) + N * sizeof(uint64_t));
	p->shared = aligned_alloc(WIRE_CACHE_LINE, len + WIRE_CACHE_LINE);
	assert_non_null(p->shared);
	memset(p->shared, 0, len);
	memset((uint8_t *)p->shared + len, 0xa5, WIRE_CACHE_LINE);
	atomic_store(&p->shared->head, start);
	atomic_store(&p->shared->tail, start);
	ring_producer_init(&p->producer, p->shared, N, sizeof(uint64_t));
	ring_consumer_init(&p->consumer, p->shared, N, sizeof(uint64_t));
}

static void pair_fini(struct pair *p)
{
	const uint8_t *after = (const uint8_t *)p->shared + ring_bytes(N, sizeof(uint64_t));

	for (int i = 0; i < WIRE_CACHE_LINE; i++)
		assert_int_equal(after[i], 0xa5);
	free(p->shared);
}

static void push(struct pair *p, uint64_t value, int expected)
{
	assert_int_equal(ring_push(&p->producer, &value), expected);
}

static void pop(struct pair *p, uint64_t expected)
{
	uint64_t value = 0;

	assert_int_equal(ring_pop(&p->consumer, &value), 1);
	assert_int_equal(value, expected);
}

static void pop_nothing(struct pair *p)
{
	uint64_t value = 77;

	assert_int_equal(ring_pop(&p->consumer, &value), 0);
	assert_int_equal(value, 77);
}

static void test_entries_show_when_published(void **state)
{
	struct pair p;

	(void)state;
	pair_init(&p, 0);
	pop_nothing(&p);
	push(&p, 1, 0);
	push(&p, 2, 0);
	assert_int_equal(ring_unpublished(&p.producer), 2);
	pop_nothing(&p);
	assert_false(ring_publish(&p.producer));
	assert_int_equal(ring_unpublished(&p.producer), 0);
	pop(&p, 1);
	pop(&p, 2);
	pop_nothing(&p);
	pair_fini(&p);
}

/* The room of an entry comes back when it is released, not when it is popped. */
static void test_full(void **state)
{
	struct pair p;

	(void)state;
	pair_init(&p, 0);
	for (uint64_t i = 0; i < N; i++)
		push(&p, i, 0);
	push(&p, 99, -EAGAIN);
	ring_publish(&p.producer);
	pop(&p, 0);
	push(&p, 99, -EAGAIN);
	assert_true(ring_release(&p.consumer)); /* it was full: the producer may be waiting */
	push(&p, N, 0);
	push(&p, 99, -EAGAIN);
	assert_false(ring_release(&p.consumer)); /* nothing popped since */
	pop(&p, 1);
	pop(&p, 2);
	assert_false(ring_release(&p.consumer)); /* entry N was not published: it was not full */
	ring_publish(&p.producer);
	for (uint64_t i = 3; i <= N; i++)
		pop(&p, i);
	pop_nothing(&p);
	pair_fini(&p);
}

static void test_indices_wrap(void **state)
{
	static const uint32_t starts[] = {
		0, 5, UINT32_MAX, UINT32_MAX - 1, UINT32_MAX - N, UINT32_MAX - 2 * N};

	(void)state;
	for (size_t s = 0; s < sizeof(starts) / sizeof(starts[0]); s++) {
		struct pair p;
		uint64_t next_in = 0, next_out = 0;

		pair_init(&p, starts[s]);
		for (int round = 0; round < 7; round++) {
			for (int i = 0; i < 1 + round; i++)
				push(&p, next_in++, 0);
			ring_publish(&p.producer);
			while (next_out < next_in)
				pop(&p, next_out++);
			ring_release(&p.consumer);
		}
		for (uint64_t i = 0; i < N; i++)
			push(&p, i, 0);
		push(&p, 99, -EAGAIN);
		pop_nothing(&p);
		pair_fini(&p);
	}
}

static void test_wakeup_is_asked_for_once(void **state)
{
	struct pair p;

	(void)state;
	pair_init(&p, 3);
	assert_int_equal(ring_sleep(&p.consumer), 1);
	push(&p, 1, 0);
	assert_true(ring_publish(&p.producer));
	assert_false(ring_publish(&p.producer)); /* nothing new */
	push(&p, 2, 0);
	assert_false(ring_publish(&p.producer));      /* rung already */
	assert_int_equal(ring_sleep(&p.consumer), 0); /* not empty: no sleep */
	push(&p, 3, 0);
	assert_false(ring_publish(&p.producer));
	pop(&p, 1);
	pop(&p, 2);
	pop(&p, 3);
	assert_int_equal(ring_sleep(&p.consumer), 1);
	ring_wake(&p.consumer);
	push(&p, 4, 0);
	assert_false(ring_publish(&p.producer));
	pair_fini(&p);
}

/* Whatever the other process writes into its index: an error, or entries that lie inside the ring. */
static void test_lying_producer(void **state)
{
	static const struct {
		uint32_t start, tail;
		int n; /* entries that may be popped, or the error */
	} cases[] = {
		{0, N, N},
		{0, N + 1, -EPROTO},
		{0, UINT32_MAX, -EPROTO},
		{0, 0x80000000u, -EPROTO},
		{100, 99, -EPROTO},
		{100, 0, -EPROTO},
		{UINT32_MAX, N - 1, N},
		{UINT32_MAX, N, -EPROTO},
		{UINT32_MAX, UINT32_MAX - 1, -EPROTO},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct pair p;
		uint64_t value;
		uint32_t n = 77;
		int n_popped = 0, r;

		pair_init(&p, cases[i].start);
		atomic_store(&p.shared->tail, cases[i].tail);
		if (cases[i].n < 0) {
			assert_int_equal(ring_available(&p.consumer, &n), -EPROTO);
			assert_int_equal(n, 77);
			assert_int_equal(ring_sleep(&p.consumer), -EPROTO);
		}
		while ((r = ring_pop(&p.consumer, &value)) > 0)
			n_popped++;
		assert_int_equal(cases[i].n < 0 ? r : n_popped, cases[i].n);
		ring_release(&p.consumer);
		pair_fini(&p);
	}
}

static void test_lying_consumer(void **state)
{
	static const struct {
		uint32_t start, head; /* the ring is full: tail is start + N */
		int n;                /* entries that may be pushed, or the error */
	} cases[] = {
		{0, 0, 0},
		{0, 1, 1},
		{0, N, N},
		{0, N + 1, -EPROTO},
		{0, UINT32_MAX, -EPROTO},
		{0, 0x80000000u, -EPROTO},
		{UINT32_MAX, N - 1, N},
		{UINT32_MAX, N, -EPROTO},
		{UINT32_MAX, UINT32_MAX - 1, -EPROTO},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct pair p;
		uint64_t value = 0;
		int n_pushed = 0, r;

		pair_init(&p, cases[i].start);
		for (int e = 0; e < N; e++)
			push(&p, 0, 0);
		ring_publish(&p.producer);
		atomic_store(&p.shared->head, cases[i].head);
		while ((r = ring_push(&p.producer, &value)) == 0)
			n_pushed++;
		assert_int_equal(cases[i].n < 0 ? r : n_pushed, cases[i].n);
		ring_publish(&p.producer);
		pair_fini(&p);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_entries_show_when_published),
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_indices_wrap),
		cmocka_unit_test(test_wakeup_is_asked_for_once),
		cmocka_unit_test(test_lying_producer),
		cmocka_unit_test(test_lying_consumer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
