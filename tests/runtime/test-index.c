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

	memcpy(&key, e->key, sizeof key);
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
		add(x, 0, i)->frame_bytes = i;
	assert_int_equal(index_count(x), N);
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(find(x, 0, i)->frame_bytes, i);
	index_each(x, remove_odd, x);
	assert_int_equal(index_count(x), N / 2);
	index_each(x, count_one, &n);
	assert_int_equal(n, N / 2);
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(find(x, 0, i) != NULL, i % 2 == 0);
	index_free(x);
}

/* Numbers name entries as long as they are not given back, and what was detached is found no more. */
static void numbers(void **state)
{
	struct index *x = index_new();
	struct index_entry *a = add(x, 1, 1), *b = add(x, 1, 2), *again;
	const uint32_t number = index_number(x, a);
	struct index_key id;

	(void)state;
	assert_int_not_equal(number, 0);
	assert_ptr_equal(index_at(x, number), a);
	assert_ptr_equal(index_at(x, index_number(x, b)), b);
	index_detach(x, a);
	assert_true(a->dead);
	assert_null(find(x, 1, 1));
	again = add(x, 1, 1);
	assert_ptr_not_equal(again, a);
	assert_ptr_equal(index_at(x, number), a);
	index_give_back(x, a);
	assert_ptr_equal(find(x, 1, 1), again);
	index_id(x, b, &id);
	assert_ptr_equal(index_find(x, &id), b);
	assert_int_equal(index_count(x), 2);
	index_free(x);
}

/* Many at once are the same as one after the other. */
static void found_together(void **state)
{
	enum { N = 300 };
	struct index *x = index_new();
	const struct index_key owner = key_of(7, 0);
	struct index_entry *found[N];
	uint8_t keys[N][32] = {{0}};

	(void)state;
	for (uint32_t i = 0; i < N; i++) {
		memcpy(keys[i], &i, sizeof i);
		if (i % 3)
			add(x, 7, i);
		else
			add(x, 8, i);
	}
	index_find_many(x, owner.owner, (const uint8_t(*)[32])keys, N, found);
	for (uint32_t i = 0; i < N; i++)
		assert_ptr_equal(found[i], i % 3 ? find(x, 7, i) : NULL);
	index_find_many(x, key_of(9, 0).owner, (const uint8_t(*)[32])keys, N, found);
	for (uint32_t i = 0; i < N; i++)
		assert_null(found[i]);
	index_free(x);
}

static void owners_and_transforms(void **state)
{
	const uint8_t name_space[16] = "a namespace", fingerprint[16] = "a model", zero[16] = {0};
	struct index *x = index_new();
	struct index_entry *a = add(x, 1, 1), *b = add(x, 1, 2);

	(void)state;
	index_name_owner(x, a, name_space, fingerprint, 17);
	assert_memory_equal(index_owner(x, b->owner)->name_space, name_space, 16);
	assert_int_equal(index_owner(x, b->owner)->tag, 17);
	assert_memory_equal(index_transform(x, a), zero, 16);
	index_set_transform(x, a, name_space);
	index_set_transform(x, b, fingerprint);
	assert_memory_equal(index_transform(x, a), name_space, 16);
	assert_memory_equal(index_transform(x, b), fingerprint, 16);
	index_set_transform(x, b, name_space);
	assert_int_equal(a->transform, b->transform);
	index_set_transform(x, b, zero);
	assert_memory_equal(index_transform(x, b), zero, 16);
	index_free(x);
}

static void locations(void **state)
{
	struct index_entry e = {.segment = 3, .page = 9, .frame_bytes = 4096 - STORE_HEADER_BYTES};

	(void)state;
	assert_int_equal(index_location(&e).len_pages, 1);
	assert_int_equal(index_location(&e).offset, 9 * 4096);
	e.frame_bytes++;
	assert_int_equal(index_location(&e).len_pages, 2);
	e.page = 0;
	assert_int_equal(index_location(&e).len_pages, 0);
}

/* Random adds and removals against an array. */
static void against_model(void **state)
{
	enum { N = 600 };
	unsigned seed = (unsigned)time(NULL);
	struct index *x = index_new();
	bool there[N] = {false};
	size_t n = 0;

	(void)state;
	print_message("seed %u\n", seed);
	for (uint64_t now = 1; now <= 20000; now++) {
		uint32_t key = (uint32_t)rand_r(&seed) % N;
		struct index_entry *e = find(x, 9, key);

		assert_int_equal(e != NULL, there[key]);
		if (!e) {
			add(x, 9, key);
			n++;
		} else {
			index_remove(x, e);
			n--;
		}
		there[key] = !there[key];
		assert_int_equal(index_count(x), n);
	}
	/* What was given back is used again. */
	assert_true(index_memory_bytes(x) < 2 << 20);
	index_free(x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(owners_are_apart),
		cmocka_unit_test(grows),
		cmocka_unit_test(numbers),
		cmocka_unit_test(found_together),
		cmocka_unit_test(owners_and_transforms),
		cmocka_unit_test(locations),
		cmocka_unit_test(against_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
