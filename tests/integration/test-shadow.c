/* What compression costs attention, measured by a running daemon: the figure is the true one, memory is
 * bounded and comes back, the alarm is raised and ends, and nothing outlives its chunk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hex.h"
#include "kernels/formula.h"
#include "shm/stats/view.h"
#include "tests/integration/engine.h"
#include "tools/private-daemon.h"

enum { CHUNKS = 4, TOKENS = CHUNKS * E_CHUNK, BEHIND = CHUNKS - 1, QUERIES = 4, WAIT_MS = 20000 };
enum { CHUNK_BYTES = E_LAYERS * 2 * E_WIDTH * 2 * E_CHUNK };

/* ---- asking ---- */

static json_t *control(const struct private_daemon *d, const char *request)
{
	json_t *object;
	char *answer;

	assert_int_equal(cistern_control(d->socket, request, &answer, 10000), 0);
	object = json_loads(answer, 0, NULL);
	free(answer);
	assert_non_null(object);
	return object;
}

static void set(const struct private_daemon *d, const char *fields)
{
	char request[300];
	json_t *answer;

	snprintf(request, sizeof request, "{\"command\":\"policy-set\",\"set\":{%s}}", fields);
	answer = control(d, request);
	if (!json_is_true(json_object_get(answer, "ok")))
		fail_msg("%s: %s", fields, json_string_value(json_object_get(answer, "error")));
	json_decref(answer);
}

/* A figure of status' "shadow". */
static double shadow(const struct private_daemon *d, const char *key)
{
	json_t *status = control(d, "{\"command\":\"status\"}");
	const double n = json_number_value(json_object_get(json_object_get(status, "shadow"), key));

	json_decref(status);
	return n;
}

/* And of what attention lost in the one namespace and model; booleans are 0 and 1. */
static double attention(const struct private_daemon *d, const char *key)
{
	json_t *status = control(d, "{\"command\":\"status\"}");
	const json_t *value = json_object_get(
		json_object_get(json_array_get(json_object_get(status, "fidelity"), 0), "attention"), key);
	const double n = json_is_boolean(value) ? json_is_true(value) : json_number_value(value);

	json_decref(status);
	return n;
}

/* A field of the statistics page, in its group's first record. */
static double page_field(const struct private_daemon *d, enum stats_group_id group, const char *id)
{
	struct stats_snapshot snapshot = {0};
	const struct stats_field *field;
	struct stats_view view;
	const char *why = "";
	int page, alive;
	double n = -1;

	assert_int_equal(cistern_statistics(d->socket, &page, &alive, 5000), 0);
	assert_int_equal(stats_view_map(page, &view, &why), 0);
	assert_int_equal(stats_snapshot_take(&view, &snapshot), 0);
	field = stats_view_field(&view, group, id);
	assert_non_null(field);
	if (snapshot.n[group])
		n = field->unit == STATS_REAL
			    ? stats_real(stats_record(&view, &snapshot, group, 0), field)
			    : (double)stats_number(stats_record(&view, &snapshot, group, 0), field);
	stats_snapshot_fini(&snapshot);
	stats_view_fini(&view);
	close(page);
	close(alive);
	return n;
}

static double on_page(const struct private_daemon *d, const char *id)
{
	return page_field(d, strncmp(id, "shadow", 6) ? STATS_CACHE : STATS_DAEMON, id);
}

static void wait_for(const struct private_daemon *d,
	double (*figure)(const struct private_daemon *, const char *), const char *key, double wanted)
{
	for (int waited = 0; figure(d, key) != wanted; waited += 10) {
		if (waited > WAIT_MS)
			fail_msg("%s is %g, not %g", key, figure(d, key), wanted);
		usleep(10000);
	}
}

static void last_alarm(const struct private_daemon *d, char *out, size_t size)
{
	json_t *answer = control(d, "{\"command\":\"events\",\"from\":0}"), *item;
	size_t i;

	out[0] = 0;
	json_array_foreach(json_object_get(answer, "events"), i,
		item) if (!strcmp(json_string_value(json_object_get(item, "kind")), "alarm"))
		snprintf(out, size, "%s", json_string_value(json_object_get(item, "text")));
	json_decref(answer);
}

/* ---- the engine ---- */

static uint16_t values[E_LAYERS][QUERIES][E_HEADS][E_DIM];
static const uint32_t positions[QUERIES] = {TOKENS - 9, TOKENS - 6, TOKENS - 4, TOKENS - 1};

static void make_queries(uint32_t seed)
{
	uint16_t *value = &values[0][0][0][0];

	for (size_t i = 0; i < sizeof values / sizeof *value; i++) {
		seed = seed * 1664525u + 1013904223u;
		value[i] = f16_from_f32((float)(seed >> 16) / 32768 - 1);
	}
}

static void put(struct engine *e, uint32_t sequence)
{
	struct cistern_completion done;

	engine_prefill(e, sequence, TOKENS);
	done = engine_put(e, TOKENS);
	assert_int_equal(done.status, 0);
	assert_int_equal(done.n_chunks, CHUNKS);
}

static void observe(struct engine *e)
{
	const struct cistern_observation o = {.kind = CISTERN_QUERIES,
		.n_queries = QUERIES,
		.n_heads = E_HEADS,
		.n_layers = E_LAYERS,
		.positions = positions,
		.values = values};
	const struct cistern_run run = {.memory_id = e->memory_id,
		.n_tokens = TOKENS,
		.keys = e->keys,
		.n_chunks = CHUNKS,
		.n_blocks = TOKENS / E_BLOCK,
		.blocks = e->blocks};
	const struct cistern_completion done = engine_wait(e, cistern_observe(e->c, &run, &o, 5));

	assert_int_equal(done.status, 0);
}

/* ---- the truth ---- */

/* A sequence's chunks of one plane and layer, as they lie in the engine's memory now. */
struct copy {
	float x[E_LAYERS][2][TOKENS][E_WIDTH];
};

static struct copy *copy_of(const struct engine *e)
{
	struct copy *c = malloc(sizeof *c);

	assert_non_null(c);
	for (uint32_t l = 0; l < E_LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t t = 0; t < TOKENS; t++)
				for (uint32_t f = 0; f < E_WIDTH; f++)
					c->x[l][p][t][f] = f16_to_f32(engine_token(e, l, p, t)[f]);
	return c;
}

static void output(const struct copy *c, uint32_t layer, uint32_t head, uint32_t query, uint32_t chunk,
	double out[E_DIM])
{
	double weights[E_CHUNK], sum = 0;

	for (uint32_t t = 0; t < E_CHUNK; t++) {
		double score = 0;

		for (uint32_t d = 0; d < E_DIM; d++)
			score += (double)f16_to_f32(values[layer][query][head][d]) *
				 (double)c->x[layer][0][chunk * E_CHUNK + t][head * E_DIM + d];
		weights[t] = exp(score / sqrt(E_DIM));
		sum += weights[t];
	}
	for (uint32_t d = 0; d < E_DIM; d++) {
		out[d] = 0;
		for (uint32_t t = 0; t < E_CHUNK; t++)
			out[d] += weights[t] / sum *
				  (double)c->x[layer][1][chunk * E_CHUNK + t][head * E_DIM + d];
	}
}

/* The chunk's error: mean over layers and heads. */
static double expected(const struct copy *original, const struct copy *restored, uint32_t chunk)
{
	double mean = 0;

	for (uint32_t l = 0; l < E_LAYERS; l++)
		for (uint32_t h = 0; h < E_HEADS; h++) {
			double error = 0, power = 0;

			for (uint32_t q = 0; q < QUERIES; q++) {
				double o[E_DIM], changed[E_DIM];

				output(original, l, h, q, chunk, o);
				output(restored, l, h, q, chunk, changed);
				for (uint32_t d = 0; d < E_DIM; d++) {
					error += (changed[d] - o[d]) * (changed[d] - o[d]);
					power += o[d] * o[d];
				}
			}
			mean += sqrt(error / power) / (E_LAYERS * E_HEADS);
		}
	return mean;
}

static void expect_inspected(
	const struct private_daemon *d, const struct engine *e, uint32_t chunk, double error)
{
	char key[65], request[200];
	json_t *answer;
	double mean;

	hex_write(e->keys[chunk].bytes, 32, key);
	snprintf(request, sizeof request, "{\"command\":\"inspect\",\"key\":\"%s\"}", key);
	answer = control(d, request);
	mean = json_number_value(json_object_get(
		json_object_get(json_object_get(answer, "decision"), "attention"), "mean_error"));
	if (fabs(mean / error - 1) > 2e-3)
		fail_msg("chunk %u: %g, not %g", chunk, mean, error);
	json_decref(answer);
}

/* What the daemon says of the sequence's chunks is what comes of what it restores. */
static void expect_the_truth(const struct private_daemon *d, struct engine *e)
{
	struct copy *original = copy_of(e), *restored;
	struct cistern_completion done;
	double mean = 0;

	wait_for(d, attention, "chunks", BEHIND);
	engine_wipe(e);
	done = engine_get(e, TOKENS, 0);
	assert_true(done.status == 0 && done.n_chunks == CHUNKS);
	restored = copy_of(e);
	for (uint32_t c = 0; c < BEHIND; c++) {
		const double error = expected(original, restored, c);

		assert_true(error > 1e-4);
		expect_inspected(d, e, c, error);
		mean += error / BEHIND;
	}
	assert_true(fabs(attention(d, "mean_error") / mean - 1) < 2e-3);
	assert_true(attention(d, "worst_error") >= attention(d, "mean_error"));
	free(original);
	free(restored);
}

/* ---- the tests ---- */

static struct private_daemon start(const char *policy, const char *daemon_lines, int no_store)
{
	const struct private_daemon_options options = {
		.no_store = no_store, .policy_lines = policy, .daemon_lines = daemon_lines};
	struct private_daemon d;

	assert_int_equal(private_daemon_start(&d, &options), 0);
	return d;
}

static void put_then_shown(void **state)
{
	struct private_daemon d = start("shadow = 100%\nattention_share = 0\nshadow_seconds = 600", NULL, 1);
	struct engine e;

	(void)state;
	make_queries(1);
	engine_open(&e, d.socket, 1);
	put(&e, 1);
	assert_true(shadow(&d, "chunks") == CHUNKS);
	assert_true(shadow(&d, "used_bytes") >= CHUNKS * CHUNK_BYTES);
	observe(&e);
	expect_the_truth(&d, &e);
	/* Compared four times, the chunks that queries stand behind have served; the last one has none. */
	for (int i = 2; i <= 4; i++) {
		observe(&e);
		wait_for(&d, attention, "chunks", i * BEHIND);
	}
	wait_for(&d, shadow, "chunks", 1);
	observe(&e);
	assert_true(attention(&d, "chunks") == 4 * BEHIND);
	engine_close(&e);
	private_daemon_stop(&d);
}

static void shown_then_put(void **state)
{
	struct private_daemon d = start("attention_share = 100%", NULL, 1);
	struct engine e;

	(void)state;
	make_queries(2);
	engine_open(&e, d.socket, 2);
	engine_prefill(&e, 2, TOKENS);
	observe(&e);
	assert_true(shadow(&d, "waiting_queries") == BEHIND);
	put(&e, 2);
	assert_true(shadow(&d, "waiting_queries") == 0);
	expect_the_truth(&d, &e);
	/* Originals were kept for as long as that took. */
	wait_for(&d, shadow, "used_bytes", 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

static void memory_is_bounded_and_comes_back(void **state)
{
	struct private_daemon d = start("shadow = 1\nshadow_seconds = 5", "shadow_memory = 1M", 1);
	double taken;
	struct engine e;

	(void)state;
	make_queries(3);
	engine_open(&e, d.socket, 3);
	for (uint32_t i = 0; i < 8; i++) {
		put(&e, 10 + i);
		observe(&e);
		assert_true(shadow(&d, "used_bytes") <= 1 << 20);
	}
	taken = shadow(&d, "taken");
	assert_true(shadow(&d, "limit_bytes") == 1 << 20);
	assert_true(taken >= CHUNKS && taken <= 8 * CHUNKS && shadow(&d, "refused") > 0);
	wait_for(&d, shadow, "used_bytes", 0);
	assert_true(shadow(&d, "chunks") == 0);
	/* And there is room again. */
	put(&e, 100);
	assert_true(shadow(&d, "taken") == taken + CHUNKS);
	engine_close(&e);
	private_daemon_stop(&d);

	d = start("shadow = 1\nattention_share = 1", "shadow_memory = 0", 1);
	engine_open(&e, d.socket, 3);
	put(&e, 1);
	observe(&e);
	assert_true(shadow(&d, "used_bytes") == 0 && shadow(&d, "taken") == 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

static void alarm_comes_and_goes(void **state)
{
	struct private_daemon d = start("shadow = 1", NULL, 1);
	char text[300];
	struct engine e;

	(void)state;
	make_queries(4);
	engine_open(&e, d.socket, 4);
	put(&e, 1);
	set(&d, "\"alarm_attention\":\"0.01%\"");
	observe(&e);
	wait_for(&d, attention, "chunks", BEHIND);
	assert_true(attention(&d, "alarm") == 0); /* three say too little */
	last_alarm(&d, text, sizeof text);
	assert_string_equal(text, "");
	observe(&e);
	wait_for(&d, attention, "alarm", 1);
	last_alarm(&d, text, sizeof text);
	assert_non_null(strstr(text, "the mean error of attention outputs is "));
	assert_non_null(strstr(text, "above alarm_attention, 0.0001"));
	/* Watchers see the same. */
	wait_for(&d, on_page, "alarm_attention", 1);
	wait_for(&d, on_page, "attention_chunks", 2 * BEHIND);
	assert_true(on_page(&d, "attention_error_mean") == attention(&d, "mean_error"));
	assert_true(on_page(&d, "attention_error_max") == attention(&d, "worst_error"));
	assert_true(on_page(&d, "alarm_error") == 0 && on_page(&d, "bound_violations") == 0);
	assert_true(on_page(&d, "shadow_chunks") == CHUNKS && on_page(&d, "shadow_limit_bytes") == 256 << 20);
	assert_true(on_page(&d, "shadow_used_bytes") >= CHUNKS * CHUNK_BYTES);
	/* Of chunks that are kept bit for bit nothing is lost: with them the mean falls. */
	set(&d, "\"alarm_attention\":0.002,\"window_tokens\":4096");
	for (uint32_t i = 0; attention(&d, "alarm") == 1; i++) {
		assert_true(i < 40);
		put(&e, 20 + i);
		observe(&e);
		wait_for(&d, shadow, "compared", 2 * BEHIND + (i + 1) * BEHIND);
	}
	last_alarm(&d, text, sizeof text);
	assert_non_null(strstr(text, " again, alarm_attention is 0.0020"));
	assert_true(attention(&d, "mean_error") <= 0.0019);
	/* Raised again, and gone with the bound. */
	set(&d, "\"alarm_attention\":0.0001");
	assert_true(attention(&d, "alarm") == 1);
	set(&d, "\"alarm_attention\":0");
	assert_true(attention(&d, "alarm") == 0);
	wait_for(&d, on_page, "alarm_attention", 0);
	last_alarm(&d, text, sizeof text);
	assert_non_null(strstr(text, "the alarm has ended with its bound, alarm_attention"));
	engine_close(&e);
	private_daemon_stop(&d);
}

/* The other alarm: what frames say of themselves. */
static void errors_raise_theirs(void **state)
{
	struct private_daemon d = start("alarm_error = 0.1%", NULL, 1);
	char text[300];
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 8);
	for (uint32_t i = 0; i < 32 / CHUNKS; i++) {
		last_alarm(&d, text, sizeof text);
		assert_string_equal(text, ""); /* so few chunks say too little */
		put(&e, 1 + i);
	}
	last_alarm(&d, text, sizeof text);
	assert_non_null(strstr(text, "the mean error of coded tokens is "));
	assert_non_null(strstr(text, "above alarm_error, 0.0010"));
	wait_for(&d, on_page, "alarm_error", 1);
	set(&d, "\"alarm_error\":\"50%\"");
	last_alarm(&d, text, sizeof text);
	assert_non_null(strstr(text, " again, alarm_error is 0.5000"));
	wait_for(&d, on_page, "alarm_error", 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

static void nothing_outlives_its_chunk(void **state)
{
	struct private_daemon d = start("shadow = 1\nattention_share = 1", NULL, 1);
	struct engine e;
	json_t *answer;

	(void)state;
	make_queries(5);
	engine_open(&e, d.socket, 5);
	put(&e, 1);
	assert_true(shadow(&d, "chunks") == CHUNKS);
	assert_int_equal(engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys, 2, 9)).status, 0);
	assert_true(shadow(&d, "chunks") == CHUNKS - 2);
	answer = control(&d, "{\"command\":\"purge\",\"namespace\":\"other\"}");
	json_decref(answer);
	assert_true(shadow(&d, "chunks") == CHUNKS - 2);
	engine_prefill(&e, 2, TOKENS);
	observe(&e);
	assert_true(shadow(&d, "waiting_queries") == BEHIND);
	assert_int_equal(engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys, 1, 9)).status, 0);
	assert_true(shadow(&d, "waiting_queries") == BEHIND - 1);
	answer = control(&d, "{\"command\":\"purge\",\"namespace\":\"default\"}");
	assert_true(json_is_true(json_object_get(answer, "ok")));
	json_decref(answer);
	assert_true(shadow(&d, "used_bytes") == 0 && shadow(&d, "waiting_queries") == 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

static void dropped_under_pressure(void **state)
{
	struct private_daemon d = start("shadow = 1\nshadow_seconds = 600", NULL, 1);
	struct engine e;

	(void)state;
	make_queries(6);
	engine_open(&e, d.socket, 6);
	put(&e, 1);
	assert_true(shadow(&d, "chunks") == CHUNKS);
	/* What is full at nothing is under pressure always. */
	set(&d, "\"mode\":\"pressure\",\"pressure_from\":0");
	wait_for(&d, shadow, "used_bytes", 0);
	assert_true(shadow(&d, "dropped") == CHUNKS);
	put(&e, 2);
	assert_true(shadow(&d, "taken") == CHUNKS);
	set(&d, "\"pressure_from\":0.9");
	put(&e, 3);
	assert_true(shadow(&d, "taken") == 2 * CHUNKS);
	engine_close(&e);
	private_daemon_stop(&d);
}

static void over_a_restart(void **state)
{
	struct private_daemon d = start("shadow = 1", NULL, 0);
	struct engine e;

	(void)state;
	make_queries(7);
	engine_open(&e, d.socket, 7);
	put(&e, 1);
	observe(&e);
	wait_for(&d, attention, "chunks", BEHIND);
	assert_int_equal(engine_wait(&e, cistern_sync(e.c, 9)).status, 0);
	engine_close(&e);
	/* Killed with shadows there, and ended with comparisons under way. */
	for (int i = 0; i < 2; i++) {
		private_daemon_end(&d, i ? SIGTERM : SIGKILL);
		assert_int_equal(private_daemon_restart(&d), 0);
		assert_true(shadow(&d, "chunks") == 0 && shadow(&d, "used_bytes") == 0);
		assert_true(attention(&d, "chunks") == 0);
		engine_open(&e, d.socket, 7);
		/* A chunk whose original is gone is never compared with what was restored of it. */
		engine_keys(&e, 1, TOKENS);
		assert_int_equal(engine_get(&e, TOKENS, 0).n_chunks, CHUNKS);
		observe(&e);
		assert_true(attention(&d, "chunks") == 0);
		put(&e, 50 + (uint32_t)i);
		observe(&e);
		engine_close(&e);
	}
	wait_for(&d, attention, "chunks", BEHIND);
	private_daemon_stop(&d);
}

static void refused(void **state)
{
	static const struct {
		const char *fields, *why;
	} cases[] = {
		{"\"shadow\":\"101%\"", "shadow: 101% is not 0 to 1 share"},
		{"\"shadow\":-0.1", "shadow: -0.1 is not 0 to 1 share"},
		{"\"shadow\":\"some\"", "shadow: \\\"some\\\" is not a number"},
		{"\"shadow_seconds\":0", "shadow_seconds: 0 is not 1 to 86400 seconds"},
		{"\"shadow_seconds\":\"1.5\"", "shadow_seconds: \\\"1.5\\\" is not a whole number"},
		{"\"attention_share\":2", "attention_share: 2 is not 0 to 1 share"},
		{"\"alarm_attention\":\"nan\"", "alarm_attention: \\\"nan\\\" is not a number"},
	};
	struct private_daemon d = start("", NULL, 1);

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char request[200], *answer;

		snprintf(request, sizeof request, "{\"command\":\"policy-set\",\"set\":{%s}}",
			cases[i].fields);
		assert_int_equal(cistern_control(d.socket, request, &answer, 10000), 0);
		if (!strstr(answer, cases[i].why))
			fail_msg("%s: %s", cases[i].fields, answer);
		free(answer);
	}
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(put_then_shown), cmocka_unit_test(shown_then_put),
		cmocka_unit_test(memory_is_bounded_and_comes_back), cmocka_unit_test(alarm_comes_and_goes),
		cmocka_unit_test(errors_raise_theirs), cmocka_unit_test(nothing_outlives_its_chunk),
		cmocka_unit_test(dropped_under_pressure), cmocka_unit_test(over_a_restart),
		cmocka_unit_test(refused)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
