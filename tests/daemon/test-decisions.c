/* What the governor remembers of chunks: bounded tables of decisions and of attention. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/governor/attention.h"
#include "runtime/daemon/governor/record.h"

static struct index_key key_of(uint32_t i)
{
	struct index_key id = {{0}, {0}};

	memcpy(id.key, &i, sizeof i);
	id.key[31] = 7;
	return id;
}

static struct record *record_of(uint32_t i, uint32_t n_findings)
{
	struct record *r = record_new(16);

	assert_non_null(r);
	r->id = key_of(i);
	r->position = i;
	r->n_findings = n_findings;
	for (uint32_t k = 0; k < n_findings; k++)
		r->findings[k].token = (uint16_t)k;
	return r;
}

static void the_last_decisions_are_kept(void **state)
{
	struct records *all = records_new();
	struct index_key id;

	(void)state;
	assert_null(records_at(all, 0));
	for (uint32_t i = 0; i < RECORDS_KEPT + 10; i++)
		records_add(all, record_of(i, i % 16));
	for (uint32_t i = 0; i < RECORDS_KEPT + 10; i++) {
		const struct record *r;

		id = key_of(i);
		r = records_find(all, &id);
		assert_int_equal(r != NULL, i >= 10);
		assert_true(!r || (r->position == i && r->n_findings == i % 16));
	}
	assert_int_equal(records_at(all, 0)->position, RECORDS_KEPT + 9);
	assert_int_equal(records_at(all, RECORDS_KEPT - 1)->position, 10);
	/* Of one chunk the newest decision alone. */
	records_add(all, record_of(100, 3));
	id = key_of(100);
	assert_int_equal(records_find(all, &id)->n_findings, 3);
	assert_ptr_equal(records_find_prefix(all, id.key, 4), records_find(all, &id));
	id.key[3] ^= 1;
	assert_null(records_find_prefix(all, id.key, 4));
	records_free(all);
}

static void attention_is_kept_for_so_many_chunks(void **state)
{
	struct attention *a = attention_new();
	float drawing[8], asked[8] = {0};
	struct index_key id;

	(void)state;
	for (uint32_t i = 0; i < ATTENTION_KEPT + 5; i++) {
		for (int t = 0; t < 8; t++)
			drawing[t] = (float)i;
		id = key_of(i);
		assert_int_equal(attention_set(a, &id, drawing, asked, 8), 0);
	}
	id = key_of(4);
	assert_null(attention_seen(a, &id, 8));
	id = key_of(5);
	assert_true(attention_seen(a, &id, 8)[7] == 5);
	/* A chunk of another length is another chunk; a second look replaces the first and pushes nobody out.
	 */
	assert_null(attention_seen(a, &id, 7));
	drawing[0] = 42;
	assert_int_equal(attention_set(a, &id, drawing, asked, 8), 0);
	assert_true(attention_seen(a, &id, 8)[0] == 42);
	id = key_of(6);
	assert_non_null(attention_seen(a, &id, 8));
	attention_free(a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(the_last_decisions_are_kept),
		cmocka_unit_test(attention_is_kept_for_so_many_chunks)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
