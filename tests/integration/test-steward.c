/* Chunks that are kept already: settled when the window has left them, coarsened when the pool fills; with
 * sinks, bounds, restarts and kills, and with others who read and remove them all the while. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/hex.h"
#include "tests/integration/low-rank.h"
#include "tools/private-daemon.h"

enum { SINKS = 4, WINDOW = 128, SHORT = 4 * E_CHUNK, LONG = 6 * E_CHUNK, LAST = 3, WAIT_MS = 20000 };

/* Of the worst token at 16x. */
static const double ERROR_MAX = 0.5;

static char transform[64] = "/tmp/test-steward-XXXXXX";

static json_t *control(const struct private_daemon *d, const char *request)
{
	json_t *object;
	char *answer;

	MUST_EQUAL(cistern_control(d->socket, request, &answer, 10000), 0);
	object = json_loads(answer, 0, NULL);
	free(answer);
	must(object, "an answer", 0);
	return object;
}

/* A figure of status: group.key or group.sub.key. */
static double figure(const struct private_daemon *d, const char *group, const char *sub, const char *key)
{
	json_t *status = control(d, "{\"command\":\"status\"}");
	const json_t *o = json_object_get(status, group), *v;
	double n;

	if (sub)
		o = json_object_get(o, sub);
	v = json_object_get(o, key);
	n = json_is_true(v) ? 1 : json_number_value(v);
	json_decref(status);
	return n;
}

static double settled(const struct private_daemon *d)
{
	return figure(d, "upkeep", "settled", "chunks");
}

static double violations(const struct private_daemon *d)
{
	json_t *status = control(d, "{\"command\":\"status\"}"), *item;
	double n = 0;
	size_t i;

	json_array_foreach(json_object_get(status, "fidelity"), i, item) n +=
		json_number_value(json_object_get(item, "bound_violations"));
	json_decref(status);
	return n;
}

static void wait_for(const struct private_daemon *d, double (*is)(const struct private_daemon *d), double n)
{
	for (int waited = 0; is(d) < n; waited += 10) {
		if (waited > WAIT_MS)
			fail_msg("is %g, not %g", is(d), n);
		usleep(10000);
	}
}

static json_t *inspect(const struct private_daemon *d, const struct engine *e, uint32_t chunk)
{
	char key[65], request[200];

	hex_write(e->keys[chunk].bytes, 32, key);
	snprintf(request, sizeof request, "{\"command\":\"inspect\",\"key\":\"%s\"}", key);
	return control(d, request);
}

static long raw_tokens(const struct private_daemon *d, const struct engine *e, uint32_t chunk)
{
	json_t *answer = inspect(d, e, chunk);
	const long n =
		(long)json_integer_value(json_object_get(json_object_get(answer, "frame"), "raw_tokens"));

	json_decref(answer);
	return n;
}

static void put(struct engine *e, uint32_t sequence, uint32_t n_tokens)
{
	struct cistern_completion done;

	low_rank_prefill(e, 1, sequence, n_tokens);
	done = engine_put(e, n_tokens);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, n_tokens / E_CHUNK);
}

/* Gets it all, with the first tokens and the last ones bit for bit; worst error of the others. */
static double get(struct engine *e, uint32_t sequence, uint32_t n_tokens)
{
	struct cistern_completion done;

	engine_wipe(e);
	low_rank_keys(e, 1, sequence, n_tokens);
	done = engine_get(e, n_tokens, 0);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, n_tokens / E_CHUNK);
	MUST(low_rank_error(e, 1, sequence, 0, SINKS) == 0);
	return low_rank_error(e, 1, sequence, 0, n_tokens);
}

static struct private_daemon start(struct private_daemon_options options)
{
	struct private_daemon d;

	options.transform = transform;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	return d;
}

/* Attention that rests on one token of a sequence, as an engine sees it that is n_tokens far. */
static void observe(struct engine *e, uint32_t n_tokens, uint32_t sink)
{
	static float sums[E_TOKENS_MAX];
	const struct cistern_observation o = {.kind = CISTERN_SUMS, .n_queries = 4, .sums = sums};
	const struct cistern_run run = {.memory_id = e->memory_id,
		.n_tokens = n_tokens,
		.keys = e->keys,
		.n_chunks = n_tokens / E_CHUNK,
		.n_blocks = n_tokens / E_BLOCK,
		.blocks = e->blocks};

	for (uint32_t t = 0; t < n_tokens; t++)
		sums[t] = 4 * 0.8f / (float)n_tokens;
	sums[sink] = 4 * 0.2f;
	MUST_EQUAL(engine_wait(e, cistern_observe(e->c, &run, &o, 5)).status, 0);
}

/* A chunk's window is kept until its successors come, then searched with what attention they have shown, and
 * coded; what is on disk after a restart is the new frame. */
static void the_window_moves_on(void **state)
{
	struct private_daemon d = start((struct private_daemon_options){0});
	const uint32_t sink = SHORT - 30;
	uint16_t before[E_WIDTH];
	json_t *answer, *found = NULL, *item;
	struct engine e;
	double bytes;
	size_t i;

	(void)state;
	engine_open(&e, d.socket, 1);
	put(&e, 1, SHORT);
	assert_int_equal(raw_tokens(&d, &e, LAST), WINDOW);
	get(&e, 1, SHORT);
	assert_true(low_rank_error(&e, 1, 1, SHORT - WINDOW, SHORT) == 0);
	bytes = figure(&d, "cache", NULL, "frame_bytes");

	/* One chunk more is not enough attention, and enough tokens. */
	low_rank_prefill(&e, 1, 1, LONG);
	observe(&e, LONG, sink);
	put(&e, 1, LONG);
	wait_for(&d, settled, 1);
	assert_int_equal(raw_tokens(&d, &e, LAST), 1);
	assert_int_equal(raw_tokens(&d, &e, LAST - 1), 0);
	assert_true(
		figure(&d, "upkeep", "settled", "freed_bytes") > 0.8 * WINDOW * E_LAYERS * E_WIDTH * 4 / 2);
	assert_true(figure(&d, "cache", NULL, "frame_bytes") <
		    bytes + 2.5 * E_CHUNK * E_LAYERS * E_WIDTH * 4 / 2);
	answer = inspect(&d, &e, LAST);
	json_array_foreach(json_object_get(json_object_get(answer, "decision"), "sinks"), i,
		item) if (json_integer_value(json_object_get(item, "position")) == sink) found = item;
	assert_non_null(found);
	assert_string_equal(json_string_value(json_object_get(found, "reason")), "attention");
	assert_int_equal(
		json_integer_value(json_object_get(json_object_get(answer, "decision"), "settled")), WINDOW);
	json_decref(answer);
	for (int i_start = 0; i_start < 3; i_start++) {
		const double worst = get(&e, 1, LONG);

		assert_true(worst > 0 && worst <= ERROR_MAX);
		assert_true(low_rank_error(&e, 1, 1, sink, sink + 1) == 0);
		assert_true(low_rank_error(&e, 1, 1, SHORT - WINDOW, sink) > 0);
		assert_true(low_rank_error(&e, 1, 1, LONG - WINDOW, LONG) == 0);
		/* To the bit what it was, whoever keeps it. */
		if (i_start)
			assert_memory_equal(before, engine_token(&e, 1, 0, SHORT - 20), sizeof before);
		memcpy(before, engine_token(&e, 1, 0, SHORT - 20), sizeof before);
		if (i_start < 2) {
			assert_int_equal(engine_wait(&e, cistern_sync(e.c, 1)).status, 0);
			engine_close(&e);
			assert_int_equal(
				private_daemon_end(&d, i_start ? SIGKILL : SIGTERM), i_start ? SIGKILL : 0);
			assert_int_equal(private_daemon_restart(&d), 0);
			engine_open(&e, d.socket, 1);
		}
	}
	assert_true(violations(&d) == 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* Off means off; on again, who reads the chunk and its successors brings it up. So does who reads after a
 * restart what was put before: nothing is remembered but what the frames say. */
static void brought_up_by_a_reader(void **state)
{
	struct private_daemon d =
		start((struct private_daemon_options){.policy_lines = "window_settle = off"});
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 1);
	put(&e, 2, SHORT);
	put(&e, 2, LONG);
	get(&e, 2, LONG);
	usleep(100000);
	assert_true(settled(&d) == 0);
	assert_int_equal(engine_wait(&e, cistern_sync(e.c, 1)).status, 0);
	engine_close(&e);
	assert_int_equal(private_daemon_end(&d, SIGKILL), SIGKILL);
	assert_int_equal(private_daemon_restart(&d), 0);
	engine_open(&e, d.socket, 1);
	json_decref(control(&d, "{\"command\":\"policy-set\",\"set\":{\"window_settle\":\"on\"}}"));
	/* The chunk alone, and with a successor that is too short for what its window may have been. */
	get(&e, 2, SHORT);
	assert_true(low_rank_error(&e, 1, 2, SHORT - WINDOW, SHORT) == 0);
	usleep(100000);
	assert_true(settled(&d) == 0);
	get(&e, 2, LONG);
	wait_for(&d, settled, 1);
	assert_int_equal(settled(&d), 1);
	assert_true(get(&e, 2, LONG) <= ERROR_MAX);
	assert_true(low_rank_error(&e, 1, 2, SHORT - WINDOW, SHORT) > 0);
	assert_true(low_rank_error(&e, 1, 2, LONG - WINDOW, LONG) == 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* Killed while chunks are settled, and written anew: what was on the disk is there, in the old form or the
 * new. */
static void killed_while_settling(void **state)
{
	enum { ROUNDS = 16 };
	struct private_daemon d = start((struct private_daemon_options){0});
	double n = 0;

	(void)state;
	for (uint32_t round = 0; round < ROUNDS; round++) {
		struct engine e;

		engine_open(&e, d.socket, 1);
		for (uint32_t s = 0; s < 3; s++)
			put(&e, 100 + 3 * round + s, SHORT);
		assert_int_equal(engine_wait(&e, cistern_sync(e.c, 1)).status, 0);
		for (uint32_t s = 0; s < 3; s++)
			put(&e, 100 + 3 * round + s, LONG);
		usleep(700 * round);
		n += settled(&d);
		assert_int_equal(private_daemon_end(&d, SIGKILL), SIGKILL);
		engine_close(&e);
		assert_int_equal(private_daemon_restart(&d), 0);
		engine_open(&e, d.socket, 1);
		for (uint32_t s = 0; s < 3; s++)
			assert_true(get(&e, 100 + 3 * round + s, SHORT) <= ERROR_MAX);
		engine_close(&e);
	}
	print_message("%g chunks had been settled before the kills\n", n);
	assert_true(n > 0);
	private_daemon_stop(&d);
}

/* ---- classes by what encoding shows ---- */

static int n_of_class(
	const struct private_daemon *d, const struct engine *e, uint32_t chunk, const char *name)
{
	json_t *answer = inspect(d, e, chunk), *run;
	int n = 0;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(answer, "frame"), "classes"), i,
		run) if (!strcmp(json_string_value(json_array_get(run, 0)), name)) n +=
		(int)json_integer_value(json_array_get(run, 1));
	json_decref(answer);
	return n;
}

/* Shares of the tokens that are coded, when they are put and when they leave the window. */
static void ranked_by_fit(void **state)
{
	struct private_daemon d = start((struct private_daemon_options){.no_store = 1,
		.policy_lines = "class_by = fit\nsalient_share = 0.1\nredundant_share = 0.25\n"
				"sink_search = off"});
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 1);
	put(&e, 3, SHORT);
	assert_int_equal(n_of_class(&d, &e, 1, "salient"), E_CHUNK / 10);
	assert_int_equal(n_of_class(&d, &e, 1, "redundant"), E_CHUNK / 4);
	assert_int_equal(n_of_class(&d, &e, LAST, "salient"), (E_CHUNK - WINDOW) / 10);
	put(&e, 3, LONG);
	wait_for(&d, settled, 1);
	assert_int_equal(n_of_class(&d, &e, LAST, "salient"), 2 * ((E_CHUNK - WINDOW) / 10));
	assert_int_equal(n_of_class(&d, &e, LAST, "redundant"), E_CHUNK / 4);
	assert_true(get(&e, 3, LONG) <= ERROR_MAX);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* ---- pressure ---- */

static double coarsened(const struct private_daemon *d)
{
	return figure(d, "upkeep", "coarsened", "chunks");
}

static bool was_told(const struct private_daemon *d, const char *text)
{
	json_t *answer = control(d, "{\"command\":\"events\",\"from\":0}"), *item;
	bool told = false;
	size_t i;

	json_array_foreach(json_object_get(answer, "events"), i, item) told =
		told || strstr(json_string_value(json_object_get(item, "text")), text);
	json_decref(answer);
	return told;
}

static long rung_of(const struct private_daemon *d, const struct engine *e, uint32_t chunk)
{
	json_t *answer = inspect(d, e, chunk);
	const long n = (long)json_integer_value(json_object_get(json_object_get(answer, "frame"), "rung"));

	json_decref(answer);
	return n;
}

static double pressure(const struct private_daemon *d)
{
	return figure(d, "upkeep", NULL, "pressure");
}

static double relief(const struct private_daemon *d)
{
	return 1 - pressure(d);
}

/* When the pool is too full, the coldest chunks become coarser and what was used last does not; nothing is
 * dropped; when there is room again, it ends. Both are told. */
static void cold_chunks_become_coarser(void **state)
{
	enum { N = 16, CHUNKS = SHORT / E_CHUNK };
	struct private_daemon d = start((struct private_daemon_options){.no_store = 1,
		.pool_bytes = 3 << 20,
		.policy_lines = "target_ratio = 4\npressure_ratio = 40\npressure_from = 0.3\n"
				"pressure_rate = 1000\nwindow_tokens = 0\nmax_error = 0.6\n"
				"sink_search = off"});
	double before, after;
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 1);
	for (uint32_t s = 0; s < N; s++)
		put(&e, s, SHORT);
	for (uint32_t s = 0; s < N; s++)
		get(&e, s, SHORT);
	before = figure(&d, "pool", NULL, "used_bytes");
	assert_true(before > 0.35 * (3 << 20) && pressure(&d) == 0);
	json_decref(control(&d, "{\"command\":\"policy-set\",\"set\":{\"mode\":\"pressure\"}}"));
	wait_for(&d, coarsened, 2 * CHUNKS);
	usleep(200000); /* and no more than half: the fuller the pool the coarser, and it has room again */
	after = figure(&d, "pool", NULL, "used_bytes");
	print_message("%g chunks coarser, %g of %g bytes\n", coarsened(&d), after, before);
	assert_true(coarsened(&d) <= N / 2 * CHUNKS);
	assert_true(after < 0.95 * before && pressure(&d) == 1);
	assert_true(was_told(&d, "cold chunks are made coarser"));
	for (uint32_t s = 0; s < N; s++) {
		low_rank_keys(&e, 1, s, SHORT);
		for (uint32_t c = 0; c < CHUNKS; c++) {
			const long rung = rung_of(&d, &e, c);

			assert_true(s < 2 ? rung >= 2 : s < N / 2 + 1 || rung == 0);
		}
	}
	assert_true(figure(&d, "cache", NULL, "dropped") == 0);
	for (uint32_t s = 0; s < N; s++)
		assert_true(get(&e, s, SHORT) <= 0.6);
	for (uint32_t s = 0; s < N * 2 / 3; s++) {
		low_rank_keys(&e, 1, s, SHORT);
		assert_int_equal(
			engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys, CHUNKS, 9)).status, 0);
	}
	wait_for(&d, relief, 1);
	assert_true(was_told(&d, "cold chunks stay as they are"));
	assert_true(violations(&d) == 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* A bound that coarser rungs would pass is kept: some chunks become a little coarser, or none. */
static void the_bound_holds(void **state)
{
	const double bound = 0.12;
	struct private_daemon d = start((struct private_daemon_options){.no_store = 1,
		.pool_bytes = 2 << 20,
		.policy_lines = "mode = pressure\ntarget_ratio = 4\npressure_ratio = 40\n"
				"pressure_from = 0.2\npressure_rate = 1000\nwindow_tokens = 0\n"
				"max_error = 0.12"});
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 1);
	for (uint32_t s = 0; s < 12; s++)
		put(&e, s, SHORT);
	for (int waited = 0; coarsened(&d) + figure(&d, "upkeep", "coarsened", "in_vain") < 8; waited += 10) {
		assert_true(waited < WAIT_MS);
		usleep(10000);
	}
	for (uint32_t s = 0; s < 12; s++)
		assert_true(get(&e, s, SHORT) <= bound + 1e-3);
	assert_true(violations(&d) == 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* Puts, reads or removes what others do the same to, until told to stop. */
static void crowd(const char *socket, uint32_t what, int stop)
{
	struct cistern_completion done;
	struct engine e;
	uint64_t n = 0;
	char byte;

	engine_open(&e, socket, what);
	for (uint32_t i = what; read(stop, &byte, 1) != 1; i = i * 5 + 1, n++) {
		const uint32_t sequence = i / 8 % 14, n_tokens = i / 2 % 2 ? SHORT : LONG;

		if (what == 0) {
			put(&e, sequence, n_tokens);
			continue;
		}
		engine_wipe(&e);
		low_rank_keys(&e, 1, sequence, n_tokens);
		if (what == 1) {
			done = engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys + i % 4, 2, 9));
			MUST_EQUAL(done.status, 0);
			usleep(20000);
			continue;
		}
		done = engine_get(&e, n_tokens, i % 3 ? 0 : CISTERN_LAYERWISE);
		MUST_EQUAL(done.status, 0);
		if (done.n_chunks)
			MUST(low_rank_error(&e, 1, sequence, 0, done.n_chunks * E_CHUNK) <= 0.7);
	}
	MUST(n > 10);
	engine_close(&e);
}

static void under_load(void **state)
{
	enum { CROWD = 5, SECONDS = 6, MOST_SECONDS = 60 };
	struct private_daemon d = start((struct private_daemon_options){.pool_bytes = 3 << 20,
		.policy_lines = "mode = pressure\ntarget_ratio = 6\npressure_ratio = 40\n"
				"pressure_from = 0.3\npressure_rate = 1000\nmax_error = 0.7"});
	int stop[2], status;
	pid_t pids[CROWD];

	(void)state;
	assert_int_equal(pipe2(stop, O_NONBLOCK), 0);
	fflush(NULL);
	for (uint32_t i = 0; i < CROWD; i++) {
		pids[i] = fork();
		assert_true(pids[i] >= 0);
		if (!pids[i]) {
			crowd(d.socket, i, stop[0]);
			_exit(0);
		}
	}
	/* A slow build takes longer to fill the pool than others to empty it. */
	for (int s = 0; s < SECONDS || (s < MOST_SECONDS && !(settled(&d) > 0 && coarsened(&d) > 0)); s++)
		sleep(1);
	for (uint32_t i = 0; i < CROWD; i++)
		assert_int_equal(write(stop[1], "x", 1), 1);
	for (uint32_t i = 0; i < CROWD; i++) {
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_int_equal(status, 0);
	}
	print_message("settled %g, coarsened %g, given up %g, in vain %g and %g\n", settled(&d),
		coarsened(&d), figure(&d, "upkeep", NULL, "given_up"),
		figure(&d, "upkeep", "settled", "in_vain"), figure(&d, "upkeep", "coarsened", "in_vain"));
	assert_true(settled(&d) > 0 && coarsened(&d) > 0);
	assert_true(violations(&d) == 0);
	close(stop[0]);
	close(stop[1]);
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_window_moves_on),
		cmocka_unit_test(brought_up_by_a_reader),
		cmocka_unit_test(killed_while_settling),
		cmocka_unit_test(ranked_by_fit),
		cmocka_unit_test(cold_chunks_become_coarser),
		cmocka_unit_test(the_bound_holds),
		cmocka_unit_test(under_load),
	};
	const int fd = mkstemp(transform);
	int r;

	MUST(fd >= 0);
	close(fd);
	low_rank_transform(1, transform);
	r = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(transform);
	return r;
}
