/* OBSERVE: attention that an engine shows decides which tokens are kept bit for bit, and is explained. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hex.h"
#include "tests/integration/engine.h"
#include "tools/private-daemon.h"

enum { TOKENS = 4 * E_CHUNK, SINK = 300, OTHER = 700, QUERIES = 4 };

static struct private_daemon d;

static int start(void **state)
{
	const struct private_daemon_options options = {.no_store = 1};

	(void)state;
	return private_daemon_start(&d, &options);
}

static int stop(void **state)
{
	(void)state;
	private_daemon_stop(&d);
	return 0;
}

static struct cistern_run run_of(const struct engine *e)
{
	return (struct cistern_run){.memory_id = e->memory_id,
		.n_tokens = TOKENS,
		.keys = e->keys,
		.n_chunks = TOKENS / E_CHUNK,
		.n_blocks = TOKENS / E_BLOCK,
		.blocks = e->blocks};
}

static struct cistern_completion observe(struct engine *e, const struct cistern_observation *o)
{
	const struct cistern_run run = run_of(e);

	return engine_wait(e, cistern_observe(e->c, &run, o, 5));
}

static json_t *inspect(const struct engine *e, uint32_t chunk)
{
	char key[65], request[200], *answer;
	json_t *object;

	hex_write(e->keys[chunk].bytes, 32, key);
	snprintf(request, sizeof request, "{\"command\":\"inspect\",\"key\":\"%s\"}", key);
	assert_int_equal(cistern_control(d.socket, request, &answer, 10000), 0);
	object = json_loads(answer, 0, NULL);
	free(answer);
	assert_true(json_is_true(json_object_get(object, "ok")));
	return object;
}

/* What is said of the sink at this position; NULL: it is not one. Borrowed from the answer. */
static const json_t *sink_at(const json_t *answer, uint32_t position)
{
	const json_t *item;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(answer, "decision"), "sinks"), i,
		item) if (json_integer_value(json_object_get(item, "position")) ==
			  (json_int_t)position) return item;
	return NULL;
}

/* Puts, gets, and wants SINK bit-exact for the reason that attention rested on it, and OTHER coded. */
static void expect_protected(struct engine *e, uint32_t sequence)
{
	struct cistern_completion done = engine_put(e, TOKENS);
	json_t *answer;
	const json_t *sink;

	assert_int_equal(done.status, 0);
	answer = inspect(e, SINK / E_CHUNK);
	sink = sink_at(answer, SINK);
	assert_non_null(sink);
	assert_string_equal(json_string_value(json_object_get(sink, "reason")), "attention");
	assert_true(json_number_value(json_object_get(sink, "score")) >=
		    json_number_value(json_object_get(sink, "threshold")));
	assert_int_equal(
		json_integer_value(json_object_get(json_object_get(answer, "frame"), "policy_version")), 1);
	json_decref(answer);
	answer = inspect(e, OTHER / E_CHUNK);
	assert_null(sink_at(answer, OTHER));
	json_decref(answer);
	engine_wipe(e);
	done = engine_get(e, TOKENS, 0);
	assert_int_equal(done.status, 0);
	assert_true(engine_error(e, sequence, SINK, SINK + 1) == 0);
	assert_true(engine_error(e, sequence, OTHER, OTHER + 1) > 0);
}

static void sums_protect(void **state)
{
	static float sums[TOKENS];
	const struct cistern_observation o = {.kind = CISTERN_SUMS, .n_queries = QUERIES, .sums = sums};
	struct cistern_completion done;
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 1);
	engine_prefill(&e, 1, TOKENS);
	/* A fifth of all attention on one token; the rest on all alike. */
	for (int t = 0; t < TOKENS; t++)
		sums[t] = QUERIES * 0.8f / TOKENS;
	sums[SINK] = QUERIES * 0.2f;
	done = observe(&e, &o);
	assert_int_equal(done.status, 0);
	assert_int_equal(done.n_chunks, 3); /* the last holds the queries */
	expect_protected(&e, 1);
	engine_close(&e);
}

/* Queries that look where the key of SINK points, in one layer. */
static void queries_protect(void **state)
{
	static uint16_t values[QUERIES][E_HEADS][E_DIM];
	const uint32_t positions[QUERIES] = {1019, 1020, 1021, 1022};
	const struct cistern_observation o = {.kind = CISTERN_QUERIES,
		.n_queries = QUERIES,
		.n_heads = E_HEADS,
		.first_layer = 1,
		.n_layers = 1,
		.scale = 4,
		.positions = positions,
		.values = values};
	struct cistern_completion done;
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 2);
	engine_prefill(&e, 2, TOKENS);
	for (int q = 0; q < QUERIES; q++)
		memcpy(values[q], engine_token(&e, 1, 0, SINK), sizeof values[q]);
	done = observe(&e, &o);
	assert_int_equal(done.status, 0);
	assert_int_equal(done.n_chunks, 3);
	expect_protected(&e, 2);
	engine_close(&e);
}

static void refused(void **state)
{
	static uint16_t values[QUERIES * 2 * E_HEADS * E_DIM]; /* room for more heads than there are */
	static float sums[TOKENS];
	const uint32_t rising[QUERIES] = {1, 2, 3, 4}, falling[QUERIES] = {4, 3, 2, 1},
		       far[QUERIES] = {1, 2, 3, TOKENS};
	const struct {
		const char *what;
		struct cistern_observation o;
	} cases[] = {
		{"nothing", {0}},
		{"no queries", {.kind = CISTERN_SUMS, .sums = sums}},
		{"more queries than tokens", {.kind = CISTERN_SUMS, .n_queries = TOKENS + 1, .sums = sums}},
		{"no sums", {.kind = CISTERN_SUMS, .n_queries = 1}},
		{"an unknown kind", {.kind = 3, .n_queries = 1, .sums = sums}},
		{"positions that fall", {CISTERN_QUERIES, QUERIES, E_HEADS, 0, 1, 0, falling, values, NULL}},
		{"positions past the end", {CISTERN_QUERIES, QUERIES, E_HEADS, 0, 1, 0, far, values, NULL}},
		{"no heads", {CISTERN_QUERIES, QUERIES, 0, 0, 1, 0, rising, values, NULL}},
		{"heads that do not divide",
			{CISTERN_QUERIES, QUERIES, E_HEADS + 1, 0, 1, 0, rising, values, NULL}},
		{"no layers", {CISTERN_QUERIES, QUERIES, E_HEADS, 0, 0, 0, rising, values, NULL}},
		{"layers past the last",
			{CISTERN_QUERIES, QUERIES, E_HEADS, E_LAYERS, 1, 0, rising, values, NULL}},
		{"a scale that is none",
			{CISTERN_QUERIES, QUERIES, E_HEADS, 0, 1, NAN, rising, values, NULL}},
	};
	struct cistern_completion done;
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 3);
	engine_prefill(&e, 3, TOKENS);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		done = observe(&e, &cases[i].o);
		if (done.status != -EINVAL)
			fail_msg("%s: %d", cases[i].what, done.status);
	}
	/* And the connection serves as before. */
	done = engine_put(&e, TOKENS);
	assert_int_equal(done.status, 0);
	engine_close(&e);
}

/* Values that are no numbers: nothing is learned from them, and nothing breaks. */
static void garbage(void **state)
{
	static uint16_t values[QUERIES][E_HEADS][E_DIM];
	const uint32_t positions[QUERIES] = {1019, 1020, 1021, 1022};
	const struct cistern_observation o = {
		CISTERN_QUERIES, QUERIES, E_HEADS, 0, 1, 0, positions, values, NULL};
	static float sums[TOKENS];
	const struct cistern_observation s = {.kind = CISTERN_SUMS, .n_queries = QUERIES, .sums = sums};
	struct cistern_completion done;
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 4);
	engine_prefill(&e, 4, TOKENS);
	for (uint32_t t = 0; t < TOKENS; t++) {
		engine_token(&e, 0, 0, t)[t % E_WIDTH] = 0x7e00; /* NaN */
		sums[t] = t % 2 ? NAN : -1e30f;
	}
	memset(values, 0x7c, sizeof values);
	done = observe(&e, &o);
	assert_int_equal(done.status, 0);
	done = observe(&e, &s);
	assert_int_equal(done.status, 0);
	done = engine_put(&e, TOKENS);
	assert_int_equal(done.status, 0);
	engine_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(sums_protect), cmocka_unit_test(queries_protect),
		cmocka_unit_test(refused), cmocka_unit_test(garbage)};

	return cmocka_run_group_tests(tests, start, stop);
}
