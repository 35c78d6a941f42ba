#include "policy/evict.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { ITEMS = 1000 };

struct shelf {
	struct evict_node nodes[ITEMS + 1];
	uint32_t parents[ITEMS + 1];
	struct evict evict;
};

static struct evict_node *node(void *owner, uint32_t id)
{
	return &((struct shelf *)owner)->nodes[id];
}

static uint64_t bytes(void *owner, uint32_t id)
{
	(void)owner;
	return 100 + id % 3;
}

static uint64_t hash(void *owner, uint32_t id)
{
	(void)owner;
	return (id + 1) * 0x9e3779b97f4a7c15u;
}

static uint32_t parent(void *owner, uint32_t id)
{
	return ((struct shelf *)owner)->parents[id];
}

static struct shelf *shelf_new(void)
{
	struct shelf *s = calloc(1, sizeof *s);
	const struct evict_items items = {
		.node = node, .bytes = bytes, .hash = hash, .parent = parent, .owner = s};

	assert_non_null(s);
	assert_int_equal(evict_init(&s->evict, &items, 256), 0);
	return s;
}

static void shelf_free(struct shelf *s)
{
	evict_fini(&s->evict);
	free(s);
}

/* Keeps at most n items: what comes beyond that drives something out. */
static void come(struct shelf *s, uint32_t id, size_t n)
{
	if (s->nodes[id].queue != EVICT_OUT) {
		evict_touch(&s->evict, id);
		return;
	}
	if (evict_count(&s->evict) == n)
		evict_dropped(&s->evict, evict_victim(&s->evict, NULL, NULL));
	evict_insert(&s->evict, id);
}

static void a_scan_passes_by(void **state)
{
	struct shelf *s = shelf_new();

	(void)state;
	for (int round = 0; round < 3; round++)
		for (uint32_t id = 1; id <= 80; id++)
			come(s, id, 100);
	for (uint32_t id = 201; id <= 900; id++)
		come(s, id, 100);
	for (uint32_t id = 1; id <= 80; id++)
		assert_int_not_equal(s->nodes[id].queue, EVICT_OUT);
	shelf_free(s);
}

/* Dropped for want of use, and wanted after all: the second time it goes where use is waited for longer. */
static void who_comes_back_stays(void **state)
{
	struct shelf *s = shelf_new();

	(void)state;
	for (uint32_t id = 1; id <= 101; id++)
		come(s, id, 100);
	assert_int_equal(s->nodes[1].queue, EVICT_OUT);
	come(s, 1, 100);
	assert_int_equal(s->nodes[1].queue, EVICT_MAIN);
	/* One that was removed, not dropped, begins anew. */
	evict_remove(&s->evict, 1);
	come(s, 1, 100);
	assert_int_equal(s->nodes[1].queue, EVICT_SMALL);
	shelf_free(s);
}

static void chains_go_from_their_ends(void **state)
{
	struct shelf *s = shelf_new();

	(void)state;
	for (uint32_t id = 1; id <= 10; id++) {
		s->parents[id] = id - 1;
		evict_insert(&s->evict, id);
	}
	evict_insert(&s->evict, 11);
	for (uint32_t id = 10; id; id--) {
		assert_int_equal(evict_victim(&s->evict, NULL, NULL), id);
		evict_remove(&s->evict, id);
	}
	assert_int_equal(evict_victim(&s->evict, NULL, NULL), 11);
	/* A parent that comes after its child is its parent all the same. */
	s->parents[12] = 13;
	evict_insert(&s->evict, 12);
	evict_insert(&s->evict, 13);
	evict_remove(&s->evict, 11);
	assert_int_equal(evict_victim(&s->evict, NULL, NULL), 12);
	shelf_free(s);
}

static bool is_even(void *arg, uint32_t id)
{
	++*(int *)arg;
	return id % 2 == 0;
}

static bool is_first(void *arg, uint32_t id)
{
	(void)arg;
	return id == 1;
}

static bool is_none(void *arg, uint32_t id)
{
	(void)arg;
	(void)id;
	return false;
}

static void who_may_not_go_stays(void **state)
{
	struct shelf *s = shelf_new();
	int n_asked = 0;

	(void)state;
	for (uint32_t id = 1; id <= 5; id++)
		evict_insert(&s->evict, id);
	assert_int_equal(evict_victim(&s->evict, is_even, &n_asked), 2);
	assert_true(n_asked > 0);
	assert_int_equal(evict_victim(&s->evict, is_none, NULL), 0);
	assert_int_equal(evict_victim(&s->evict, NULL, NULL), 1);
	/* If there is nothing else, a parent goes before its child. */
	s->parents[6] = 1;
	evict_insert(&s->evict, 6);
	assert_int_equal(evict_victim(&s->evict, is_first, NULL), 1);
	assert_int_equal(evict_count(&s->evict), 6);
	shelf_free(s);
}

/* Random traffic: counts and bytes are those of what is in, a victim is in and has no child that is in, and
 * one that may go is found if there is one. */
static void against_model(void **state)
{
	unsigned seed = (unsigned)time(NULL);
	struct shelf *s = shelf_new();

	(void)state;
	print_message("seed %u\n", seed);
	for (uint32_t id = 2; id <= ITEMS; id++)
		s->parents[id] = rand_r(&seed) % 4 ? (uint32_t)rand_r(&seed) % (id - 1) + 1 : 0;
	for (int i = 0; i < 30000; i++) {
		const uint32_t id = (uint32_t)rand_r(&seed) % ITEMS + 1;
		uint64_t sum = 0;
		size_t n = 0;

		if (s->nodes[id].queue == EVICT_OUT)
			evict_insert(&s->evict, id);
		else if (rand_r(&seed) % 3)
			evict_touch(&s->evict, id);
		else
			evict_remove(&s->evict, id);
		if (rand_r(&seed) % 2) {
			const uint32_t victim = evict_victim(&s->evict, NULL, NULL);

			assert_int_equal(victim != 0, evict_count(&s->evict) != 0);
			if (victim) {
				assert_int_not_equal(s->nodes[victim].queue, EVICT_OUT);
				assert_int_equal(s->nodes[victim].n_children, 0);
				evict_dropped(&s->evict, victim);
			}
		}
		for (uint32_t k = 1; i % 100 == 0 && k <= ITEMS; k++) {
			n += s->nodes[k].queue != EVICT_OUT;
			sum += s->nodes[k].queue != EVICT_OUT ? bytes(s, k) : 0;
		}
		if (i % 100 == 0) {
			assert_int_equal(evict_count(&s->evict), n);
			assert_int_equal(evict_bytes(&s->evict), sum);
		}
	}
	shelf_free(s);
}

/* What is new and unused first, then what was used, a share of each; what moves on meanwhile loses the walk
 * its place, and no more. */
static void from_the_coldest(void **state)
{
	struct shelf *s = shelf_new();
	struct evict_walk w = {0};
	uint32_t seen[ITEMS + 1] = {0};

	(void)state;
	assert_int_equal(evict_next_cold(&s->evict, &w, 1), 0);
	for (uint32_t id = 1; id <= 8; id++)
		evict_insert(&s->evict, id);
	for (uint32_t id = 1; id <= 4; id++)
		evict_touch(&s->evict, id);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(evict_next_cold(&s->evict, &w, 1), i < 4 ? 5 + i : i - 3);
	assert_int_equal(evict_next_cold(&s->evict, &w, 1), 0);
	/* Again, with its place used, then gone: what comes may come twice, but comes. */
	assert_int_equal(evict_next_cold(&s->evict, &w, 1), 5);
	evict_touch(&s->evict, 5);
	assert_int_equal(evict_next_cold(&s->evict, &w, 1), 6);
	evict_remove(&s->evict, 6);
	for (uint32_t id; (id = evict_next_cold(&s->evict, &w, 1));)
		seen[id]++;
	for (uint32_t id = 1; id <= 8; id++)
		assert_int_equal(seen[id], id != 6);
	/* Nothing of the warmer half. */
	memset(seen, 0, sizeof seen);
	for (uint32_t id; (id = evict_next_cold(&s->evict, &w, 0.5));)
		seen[id]++;
	assert_int_equal(seen[7] + seen[1] + seen[2], 3);
	assert_int_equal(seen[8] + seen[3] + seen[4] + seen[5], 0);
	shelf_free(s);
}

static void lists(void **state)
{
	struct shelf *s = shelf_new();
	struct evict_list l = {0};

	(void)state;
	for (uint32_t id = 1; id <= 3; id++)
		evict_list_add(&l, &s->evict.items, id);
	evict_list_remove(&l, &s->evict.items, 2);
	assert_int_equal(l.n, 2);
	assert_int_equal(l.oldest, 1);
	assert_int_equal(s->nodes[1].newer, 3);
	/* The policy leaves what is on such a list alone. */
	evict_touch(&s->evict, 1);
	evict_remove(&s->evict, 1);
	assert_int_equal(l.n, 2);
	evict_list_remove(&l, &s->evict.items, 1);
	evict_list_remove(&l, &s->evict.items, 3);
	assert_int_equal(l.oldest | l.newest | l.n, 0);
	shelf_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_scan_passes_by),
		cmocka_unit_test(who_comes_back_stays),
		cmocka_unit_test(chains_go_from_their_ends),
		cmocka_unit_test(who_may_not_go_stays),
		cmocka_unit_test(against_model),
		cmocka_unit_test(from_the_coldest),
		cmocka_unit_test(lists),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
