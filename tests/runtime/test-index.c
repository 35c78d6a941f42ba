#include "runtime/index.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static struct index_key key_of(uint32_t owner, uint32_t key)
{
	struct index_key id = {0};

	memcpy(id.owner, &owner, sizeof owner);
	memcpy(id.key, &key, sizeof key);
	return id;
}

static struct index_entry *add(struct index *x, uint32_t owner, uint32_t key)
{
	struct index_key id = key_of(owner, key);

	assert_null(index_find(x, &id));
	return index_add(x, &id);
}

static struct index_entry *find(struct index *x, uint32_t owner, uint32_t key)
{
	struct index_key id = key_of(owner, key);

	return index_find(x, &id);
}

/* The same key under another owner is another chunk: no tenant sees another's. */
static void owners_are_apart(void **state)
{
	struct index *x = index_new();
	struct index_entry *a = add(x, 1, 7), *b = add(x, 2, 7);

	(void)state;
	assert_ptr_not_equal(a, b);
	assert_ptr_equal(find(x, 1, 7), a);
	assert_ptr_equal(find(x, 2, 7), b);
	assert_null(find(x, 3, 7));
	index_remove(x, a);
	assert_null(find(x, 1, 7));
	assert_ptr_equal(find(x, 2, 7), b);
	assert_null(index_free(x));
	assert_null(index_free(NULL));
}

static void remove_odd(void *arg, struct index_entry *e)
{
	uint32_t key;

	memcpy(&key, e->id.key, sizeof key);
	if (key % 2)
		index_remove(arg, e);
}

static void count_one(void *arg, struct index_entry *e)
{
	(void)e;
	++*(size_t *)arg;
}

static void grows(void **state)
{
	enum { N = 5000 };
	struct index *x = index_new();
	size_t n = 0;

	(void)state;
	for (uint32_t i = 0; i < N; i++)
		add(x, 0, i)->n_tokens = i;
	assert_int_equal(index_count(x), N);
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(find(x, 0, i)->n_tokens, i);
	index_each(x, remove_odd, x);
	assert_int_equal(index_count(x), N / 2);
	index_each(x, count_one, &n);
	assert_int_equal(n, N / 2);
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(find(x, 0, i) != NULL, i % 2 == 0);
	index_free(x);
}

static void victims(void **state)
{
	struct index *x = index_new();
	struct index_entry *e[6];
	char record;

	(void)state;
	assert_null(index_victim(x));
	for (uint32_t i = 0; i < 6; i++) {
		e[i] = add(x, 0, i);
		e[i]->record = i == 5 ? NULL : &record;
		index_touch(x, e[i]);
	}
	/* e[5] has no record, so it is on no list. Oldest first: 0 1 2 3 4. */
	assert_ptr_equal(index_victim(x), e[0]);
	index_touch(x, e[0]);
	assert_ptr_equal(index_victim(x), e[1]);
	e[1]->n_pins = 1;
	assert_ptr_equal(index_victim(x), e[2]);
	e[2]->n_users = 1;
	assert_ptr_equal(index_victim(x), e[3]);
	e[3]->writing = true;
	assert_ptr_equal(index_victim(x), e[4]);
	e[4]->dead = true;
	assert_ptr_equal(index_victim(x), e[0]);
	index_untrack(x, e[0]);
	index_untrack(x, e[0]);
	assert_null(index_victim(x));

	/* What was skipped kept its age. */
	e[2]->n_users = 0;
	assert_ptr_equal(index_victim(x), e[2]);
	e[1]->n_pins = 0;
	assert_ptr_equal(index_victim(x), e[1]);
	index_remove(x, e[1]);
	assert_ptr_equal(index_victim(x), e[2]);
	/* Its record has gone: a touch takes it off the list. */
	e[2]->record = NULL;
	index_touch(x, e[2]);
	assert_null(index_victim(x));
	index_free(x);
}

/* Random adds, touches and removals against an array with the time of each key's last touch. */
static void against_model(void **state)
{
	enum { N = 600 };
	unsigned seed = (unsigned)time(NULL);
	struct index *x = index_new();
	uint64_t touched[N] = {0}; /* 0: not there */
	size_t n = 0;
	char record;

	(void)state;
	print_message("seed %u\n", seed);
	for (uint64_t now = 1; now <= 20000; now++) {
		uint32_t key = (uint32_t)rand_r(&seed) % N, oldest = N;
		struct index_entry *e = find(x, 9, key), *victim;

		assert_int_equal(e != NULL, touched[key] != 0);
		if (!e) {
			e = add(x, 9, key);
			e->record = &record;
			n++;
		} else if (rand_r(&seed) % 2) {
			index_remove(x, e);
			touched[key] = 0;
			n--;
			e = NULL;
		}
		if (e) {
			index_touch(x, e);
			touched[key] = now;
		}
		assert_int_equal(index_count(x), n);
		for (uint32_t i = 0; i < N; i++)
			if (touched[i] && (oldest == N || touched[i] < touched[oldest]))
				oldest = i;
		victim = index_victim(x);
		assert_ptr_equal(victim, oldest == N ? NULL : find(x, 9, oldest));
	}
	index_free(x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(owners_are_apart),
		cmocka_unit_test(grows),
		cmocka_unit_test(victims),
		cmocka_unit_test(against_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
