/* Samples of an observation's queries: only those behind a chunk, each with the same chance, the right ones
 * copied; and those that wait for their chunk, bounded and given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/daemon/shadow/queries.h"

enum { QUERIES = 40, HEADS = 2, DIM = 4, LAYERS = 3, QUERY = HEADS * DIM };

static const struct geometry geometry = {
	.n_layers = LAYERS + 1, .n_planes = 1, .planes = {{.n_heads = 1, .dim = DIM, .dtype = DTYPE_F16}}};
static const struct wire_observation head = {
	.kind = WIRE_QUERIES, .n_queries = QUERIES, .n_heads = HEADS, .first_layer = 1, .n_layers = LAYERS};

/* Positions 0, 10, 20, ...; each element says whose it is. */
static struct {
	uint32_t positions[QUERIES];
	uint16_t values[LAYERS][QUERIES][QUERY];
} data;

static int set_up(void **state)
{
	(void)state;
	for (uint32_t q = 0; q < QUERIES; q++) {
		data.positions[q] = 10 * q;
		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t i = 0; i < QUERY; i++)
				data.values[l][q][i] = (uint16_t)(1000 * l + 10 * q + i);
	}
	return 0;
}

static struct query_sample *sample(struct budget *b, uint64_t end, uint64_t draw)
{
	return query_sample_new(b, &geometry, &head, (const uint8_t *)data.positions, end, draw);
}

static void those_behind_alone(void **state)
{
	struct budget b = {.limit_bytes = 1 << 20};
	uint32_t n_times[QUERIES] = {0};

	(void)state;
	for (uint64_t draw = 0; draw < 2700; draw++) {
		struct query_sample *s = sample(&b, 125, draw);

		assert_non_null(s);
		assert_int_equal(s->queries.n_queries, QUERIES_SAMPLED);
		query_sample_fill(s, &geometry, &head, (const uint8_t *)&data);
		for (uint32_t i = 0; i < QUERIES_SAMPLED; i++) {
			const uint32_t q = s->picked[i];

			assert_true(q < QUERIES && data.positions[q] >= 125);
			assert_true(!i || q > s->picked[i - 1]);
			for (uint32_t l = 0; l < LAYERS; l++)
				assert_memory_equal(s->data + (l * QUERIES_SAMPLED + i) * QUERY * 2,
					data.values[l][q], QUERY * 2);
			n_times[q]++;
		}
		query_sample_free(s);
	}
	/* 27 stand behind; over all starts each is taken equally often. */
	for (uint32_t q = 13; q < QUERIES; q++)
		assert_int_equal(n_times[q], 2700 * QUERIES_SAMPLED / 27);
	assert_int_equal(b.used_bytes, 0);
}

static void few_or_none(void **state)
{
	struct budget b = {.limit_bytes = 1 << 20};
	struct query_sample *s = sample(&b, 371, 12345);

	(void)state;
	assert_int_equal(s->queries.n_queries, 2);
	assert_true(s->picked[0] == 38 && s->picked[1] == 39);
	assert_true(s->queries.first_layer == 1 && s->queries.n_layers == LAYERS);
	assert_true(s->queries.scale == 0.5f); /* 1 / sqrt(dim) */
	query_sample_free(s);
	assert_null(sample(&b, 391, 0));
	assert_int_equal(b.n_refused, 0);
	/* A sample takes an eighth of the memory at most: then it has fewer queries, or is none. */
	b.limit_bytes = 8 * 3 * LAYERS * QUERY * 2;
	s = sample(&b, 0, 7);
	assert_int_equal(s->queries.n_queries, 3);
	query_sample_free(s);
	b.limit_bytes = LAYERS * QUERY * 2;
	assert_null(sample(&b, 0, 7));
	b.limit_bytes = 0;
	assert_null(sample(&b, 0, 7));
	assert_int_equal(b.used_bytes, 0);
}

static struct query_sample *waits(struct budget *b, uint32_t i, uint64_t until_ms)
{
	struct query_sample *s = sample(b, 0, i);

	assert_non_null(s);
	memcpy(s->id.key, &i, sizeof i);
	s->until_ms = until_ms;
	s->name_space[0] = (uint8_t)(i % 2);
	return s;
}

static void waiting(void **state)
{
	const uint8_t odd[16] = {1};
	struct budget b = {.limit_bytes = 1 << 24};
	struct waiting_queries w = {0};
	struct query_sample *s, *again;
	struct index_key id = {{0}, {0}};

	(void)state;
	for (uint32_t i = 0; i < QUERIES_WAITING_MAX; i++)
		assert_true(waiting_queries_add(&w, waits(&b, i, i)));
	assert_false(waiting_queries_add(&w, waits(&b, 5000, 1)));
	/* A newer one of the same chunk is in the place of the older. */
	again = waits(&b, 3, 7777);
	assert_true(waiting_queries_add(&w, again));
	id.key[0] = 3;
	assert_true(waiting_queries_has(&w, &id));
	s = waiting_queries_take(&w, &id);
	assert_ptr_equal(s, again);
	assert_false(waiting_queries_has(&w, &id));
	assert_null(waiting_queries_take(&w, &id));
	query_sample_free(s);
	waiting_queries_expire(&w, 99);
	assert_int_equal(w.n, QUERIES_WAITING_MAX - 100);
	waiting_queries_forget(&w, odd);
	assert_int_equal(w.n, (QUERIES_WAITING_MAX - 100) / 2);
	id.key[0] = 101;
	assert_false(waiting_queries_has(&w, &id));
	id.key[0] = 100;
	assert_true(waiting_queries_has(&w, &id));
	waiting_queries_expire(&w, UINT64_MAX);
	assert_true(w.n == 0 && !w.first);
	assert_int_equal(b.used_bytes, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(those_behind_alone),
		cmocka_unit_test(few_or_none), cmocka_unit_test(waiting)};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
