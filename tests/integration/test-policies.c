/* Policies of a running daemon: changed by command and by signal, kept over a restart, refused with a reason.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/hex.h"
#include "policy/fields.h"
#include "tests/integration/engine.h"
#include "tools/private-daemon.h"

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

/* The value of a field now. */
static double value(const struct private_daemon *d, const char *name_space, const char *field)
{
	char request[200];
	json_t *answer;
	double number;

	snprintf(request, sizeof request, "{\"command\":\"policy-get\",\"namespace\":\"%s\"}", name_space);
	answer = control(d, request);
	number = json_number_value(json_object_get(
		json_object_get(json_array_get(json_object_get(answer, "policies"), 0), "policy"), field));
	json_decref(answer);
	return number;
}

static long version(const struct private_daemon *d, const char *name_space)
{
	char request[200];
	json_t *answer;
	long n;

	snprintf(request, sizeof request, "{\"command\":\"policy-get\",\"namespace\":\"%s\"}", name_space);
	answer = control(d, request);
	n = (long)json_integer_value(
		json_object_get(json_array_get(json_object_get(answer, "policies"), 0), "version"));
	json_decref(answer);
	return n;
}

/* The last event of a kind; its text in out. Returns its uid. */
static long last_event(const struct private_daemon *d, const char *kind, char *out, size_t size)
{
	json_t *answer = control(d, "{\"command\":\"events\",\"from\":0}"), *item;
	long uid = -2;
	size_t i;

	out[0] = 0;
	json_array_foreach(json_object_get(answer, "events"), i, item)
	{
		const json_t *who = json_object_get(item, "uid");

		if (strcmp(json_string_value(json_object_get(item, "kind")), kind))
			continue;
		snprintf(out, size, "%s", json_string_value(json_object_get(item, "text")));
		uid = json_is_null(who) ? -1 : (long)json_integer_value(who);
	}
	json_decref(answer);
	return uid;
}

static void expect_refusal(const struct private_daemon *d, const char *request, const char *why)
{
	json_t *answer = control(d, request);
	const char *error = json_string_value(json_object_get(answer, "error"));

	assert_false(json_is_true(json_object_get(answer, "ok")));
	if (!error || !strstr(error, why))
		fail_msg("%s: expected '%s' in '%s'", request, why, error ? error : "");
	json_decref(answer);
}

static void set_get_reset(void **state)
{
	const struct private_daemon_options options = {.no_store = 1,
		.policy_lines = "target_ratio = 12",
		.more = "[namespace b]\n[policy b]\nmax_error = 0.5"};
	struct private_daemon d;
	char text[300];
	json_t *answer;

	(void)state;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	assert_true(value(&d, "default", "target_ratio") == 12);
	assert_true(value(&d, "b", "target_ratio") == 12 && value(&d, "b", "max_error") == 0.5);
	assert_int_equal(version(&d, "default"), 1);

	answer = control(&d,
		"{\"command\":\"policy-set\",\"set\":{\"mode\":\"fidelity\",\"target_ratio\":\"20\","
		"\"alarm_error\":\"1%\"}}");
	assert_true(json_is_true(json_object_get(answer, "ok")));
	assert_int_equal(json_integer_value(json_object_get(answer, "version")), 2);
	json_decref(answer);
	assert_true(
		value(&d, "default", "target_ratio") == 20 && value(&d, "default", "alarm_error") == 0.01);
	assert_true(value(&d, "b", "target_ratio") == 12);
	assert_int_equal(version(&d, "b"), 1);
	assert_int_equal(last_event(&d, "policy", text, sizeof text), (long)getuid());
	assert_string_equal(
		text, "version 2: mode ratio -> fidelity, target_ratio 12 -> 20, alarm_error 0 -> 0.01");

	/* All or nothing: what is right in a request that is refused does not happen. */
	expect_refusal(&d,
		"{\"command\":\"policy-set\",\"set\":{\"target_ratio\":30,\"window_tokens\":\"many\"}}",
		"window_tokens: \"many\" is not a whole number");
	assert_true(value(&d, "default", "target_ratio") == 20);
	assert_int_equal(version(&d, "default"), 2);
	last_event(&d, "policy", text, sizeof text);
	assert_string_equal(text, "refused: window_tokens: \"many\" is not a whole number");
	expect_refusal(&d, "{\"command\":\"policy-set\",\"namespace\":\"c\",\"set\":{\"target_ratio\":30}}",
		"no such namespace");
	expect_refusal(&d, "{\"command\":\"policy-set\",\"set\":{\"target_ratoi\":30}}",
		"target_ratoi: unknown field; did you mean target_ratio?");
	expect_refusal(&d, "{\"command\":\"policy-set\",\"set\":{\"target_ratio\":[3]}}", "\"set\" is not");
	expect_refusal(&d, "{\"command\":\"policy-set\",\"set\":{}}", "\"set\" is not");
	expect_refusal(
		&d, "{\"command\":\"policy-set\",\"set\":{\"preset\":\"huge\"}}", "preset: \"huge\" is none");
	expect_refusal(&d, "{\"command\":\"policy-set\",\"set\":{\"mode\":\"pressure\",\"target_ratio\":50}}",
		"pressure_ratio: 40 is below target_ratio, 50");
	expect_refusal(&d, "{\"command\":\"policy-reset\",\"fields\":[\"raito\"]}", "raito: unknown field");
	expect_refusal(&d, "{\"command\":\"policy-save\"}", "policy_file");

	json_decref(control(&d, "{\"command\":\"policy-reset\",\"fields\":[\"target_ratio\"]}"));
	assert_true(
		value(&d, "default", "target_ratio") == 12 && value(&d, "default", "alarm_error") == 0.01);
	json_decref(control(&d, "{\"command\":\"policy-reset\"}"));
	assert_true(value(&d, "default", "alarm_error") == 0);
	json_decref(control(
		&d, "{\"command\":\"policy-set\",\"set\":{\"preset\":\"compact\",\"max_error\":0.3}}"));
	assert_true(value(&d, "default", "target_ratio") == 32 && value(&d, "default", "max_error") == 0.3);
	private_daemon_stop(&d);
}

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
}

static void saved_and_read_again(void **state)
{
	char lines[400], file[320], text[300];
	struct private_daemon_options options = {.no_store = 1, .daemon_lines = lines};
	struct private_daemon d = {0};

	(void)state;
	/* The folder is known once the daemon has one. */
	assert_int_equal(private_folder(&d), 0);
	snprintf(file, sizeof file, "%s-policies", d.folder);
	snprintf(lines, sizeof lines, "policy_file = %s", file);
	private_daemon_stop(&d);
	assert_int_equal(private_daemon_start(&d, &options), 0);
	json_decref(control(
		&d, "{\"command\":\"policy-set\",\"set\":{\"target_ratio\":24,\"max_error\":\"5%\"}}"));
	json_decref(control(&d, "{\"command\":\"policy-save\"}"));
	last_event(&d, "policy", text, sizeof text);
	assert_non_null(strstr(text, "saved to"));
	private_daemon_end(&d, SIGTERM);
	assert_int_equal(private_daemon_restart(&d), 0);
	assert_true(value(&d, "default", "target_ratio") == 24 && value(&d, "default", "max_error") == 0.05);
	assert_int_equal(unlink(file), 0);
	private_daemon_stop(&d);
}

/* Waits until the daemon has taken a signal: its event log has grown past n. */
static void wait_for_event(const struct private_daemon *d, const char *kind, const char *part)
{
	char text[300] = "";

	for (int i = 0; i < 500; i++) {
		last_event(d, kind, text, sizeof text);
		if (strstr(text, part))
			return;
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
	fail_msg("no event with '%s'; the last one is '%s'", part, text);
}

static void signal_reads_the_file_anew(void **state)
{
	const struct private_daemon_options options = {.no_store = 1, .policy_lines = "target_ratio = 12"};
	struct private_daemon d;
	char path[320], config[600], bad[700];

	(void)state;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	snprintf(path, sizeof path, "%s/cistern.conf", d.folder);
	snprintf(config, sizeof config,
		"[daemon]\nsocket = %s\n[policy]\ntarget_ratio = 28\n[policy default]\nsink_tokens = 9\n",
		d.socket);
	write_file(path, config);
	assert_int_equal(kill(d.pid, SIGHUP), 0);
	wait_for_event(&d, "policy", "policies reloaded");
	assert_true(value(&d, "default", "target_ratio") == 28 && value(&d, "default", "sink_tokens") == 9);
	assert_int_equal(version(&d, "default"), 2);

	snprintf(bad, sizeof bad, "%swindow_tokens = -3\n", config);
	write_file(path, bad);
	assert_int_equal(kill(d.pid, SIGHUP), 0);
	wait_for_event(
		&d, "policy", "cistern.conf:7: [policy default] window_tokens: \"-3\" is not a whole number");
	assert_true(value(&d, "default", "target_ratio") == 28);
	assert_int_equal(version(&d, "default"), 2);
	private_daemon_stop(&d);
}

/* ---- under load ---- */

enum { CALLS = 1000, TOKENS = 1024, SEED = 11 };

/* Puts and removes until told to stop; any call that fails ends the process with an error. */
static void load(const char *socket, int stop)
{
	struct engine e;
	char byte;

	engine_open(&e, socket, 1);
	for (uint32_t i = 0; read(stop, &byte, 1) != 1; i++) {
		struct cistern_completion done;

		engine_prefill(&e, i % 7, TOKENS);
		done = engine_put(&e, TOKENS);
		MUST_EQUAL(done.status, 0);
		MUST_EQUAL(done.n_chunks, TOKENS / E_CHUNK);
		done = engine_get(&e, TOKENS, 0);
		MUST_EQUAL(done.status, 0);
		MUST_EQUAL(done.n_chunks, TOKENS / E_CHUNK);
		done = engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys, TOKENS / E_CHUNK, 9));
		MUST_EQUAL(done.status, 0);
	}
	engine_close(&e);
}

static uint64_t random_state = SEED;

static uint32_t random_below(uint32_t n)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(random_state >> 33) % n;
}

/* A request with one to three fields, each wrong one time in five. valid: whether all are right. */
static void random_request(char *out, size_t size, bool *valid)
{
	static const char *const wrong[] = {
		"\"\"", "-1", "\"nan\"", "1e99", "\"x\"", "\"1%%\"", "99999999999"};
	size_t n_fields, len = 0;
	const struct policy_field *fields = policy_fields(&n_fields);
	const size_t n = 1 + random_below(3), first = random_below((uint32_t)n_fields);

	*valid = true;
	len += (size_t)snprintf(out, size, "{\"command\":\"policy-set\",\"set\":{");
	for (size_t i = 0; i < n; i++) {
		const struct policy_field *f = &fields[(first + i) % n_fields];

		len += (size_t)snprintf(out + len, size - len, "%s\"%s\":", i ? "," : "", f->name);
		if (!random_below(5)) {
			*valid = false;
			len += (size_t)snprintf(out + len, size - len, "%s",
				wrong[random_below(sizeof wrong / sizeof *wrong)]);
		} else if (f->kind == POLICY_CHOICE) {
			len += (size_t)snprintf(out + len, size - len, "\"%s\"",
				f->choices[random_below((uint32_t)f->max + 1)]);
		} else {
			/* Whole numbers where they are wanted, and ratios that pressure allows. */
			const double most = f->kind == POLICY_COUNT ? 300 : 30;
			const double top = f->max > most ? most : f->max;
			const double bottom = !strcmp(f->name, "pressure_ratio") ? 30 : f->min;
			double x = bottom + (top > bottom ? (top - bottom) * random_below(1000) / 1000 : 0);

			if (f->kind == POLICY_COUNT)
				x = (double)(uint32_t)x;
			len += (size_t)snprintf(out + len, size - len, "%.9g", x);
		}
	}
	snprintf(out + len, size - len, "}}");
}

/* What each version said, of what shows in every chunk made under it. */
struct said {
	double sink_tokens, window_tokens, max_error;
};

static void note_version(struct said *said, const json_t *answer)
{
	const json_t *p = json_object_get(answer, "policy");

	said[json_integer_value(json_object_get(answer, "version"))] =
		(struct said){.sink_tokens = json_number_value(json_object_get(p, "sink_tokens")),
			.window_tokens = json_number_value(json_object_get(p, "window_tokens")),
			.max_error = json_number_value(json_object_get(p, "max_error"))};
}

/* Whether the sequence's last chunk shows a window of so many tokens: those are window or sink, others are
 * not. */
static bool has_window(const json_t *decision, double n_tokens)
{
	const json_t *run;
	double t = 0;
	size_t i;

	json_array_foreach(json_object_get(decision, "classes"), i, run)
	{
		const char *name = json_string_value(json_array_get(run, 0));
		const double end = t + json_number_value(json_array_get(run, 1));
		const bool is_window = !strcmp(name, "window");

		if (is_window ? t < E_CHUNK - n_tokens : strcmp(name, "sink") && end > E_CHUNK - n_tokens)
			return false;
		t = end;
	}
	return t == E_CHUNK;
}

static double n_by_position(const json_t *decision)
{
	const json_t *sink;
	double n = 0;
	size_t i;

	json_array_foreach(json_object_get(decision, "sinks"), i, sink) n +=
		!strcmp(json_string_value(json_object_get(sink, "reason")), "position");
	return n;
}

/* One of the load's chunks was made under one policy, the one whose version it names, and its frame names the
 * same. Returns whether there was a frame to look at: the load removes what it put. */
static bool expect_one_policy(const struct private_daemon *d, const char *key, const struct said *said)
{
	char request[200];
	json_t *answer;
	const json_t *decision, *frame;
	const struct said *s;
	double position;
	bool found;

	snprintf(request, sizeof request, "{\"command\":\"inspect\",\"key\":\"%s\"}", key);
	answer = control(d, request);
	decision = json_object_get(answer, "decision");
	frame = json_object_get(answer, "frame");
	s = &said[json_integer_value(json_object_get(decision, "policy_version"))];
	position = json_number_value(json_object_get(decision, "position"));
	if (position == 0)
		assert_true(n_by_position(decision) == fmin(E_CHUNK, s->sink_tokens));
	if (position == TOKENS - E_CHUNK)
		assert_true(has_window(decision, fmin(E_CHUNK, s->window_tokens)));
	found = json_is_object(frame);
	if (found) {
		assert_int_equal(json_integer_value(json_object_get(frame, "policy_version")),
			json_integer_value(json_object_get(decision, "policy_version")));
		for (size_t plane = 0; plane < 2 && s->max_error > 0; plane++)
			assert_true(json_number_value(json_array_get(json_object_get(frame, "worst_error"),
					    plane)) <= s->max_error * 1.000001);
	}
	json_decref(answer);
	return found;
}

/* Of the chunks encoded last, a few. Returns of how many the frame was still there. */
static int expect_whole_policies(const struct private_daemon *d, const struct said *said, long newest)
{
	json_t *answer = control(d, "{\"command\":\"decisions\"}"), *chunk;
	int n_found = 0;
	size_t i;

	json_array_foreach(json_object_get(answer, "chunks"), i, chunk)
	{
		const long version = (long)json_integer_value(json_object_get(chunk, "policy_version"));

		assert_true(version >= 1 && version <= newest);
		if (i < 6)
			n_found +=
				expect_one_policy(d, json_string_value(json_object_get(chunk, "key")), said);
	}
	json_decref(answer);
	return n_found;
}

static void many_changes_under_load(void **state)
{
	const struct private_daemon_options options = {.no_store = 1};
	struct said *said = calloc(CALLS + 2, sizeof *said);
	struct private_daemon d;
	int stop[2], status, n_valid = 0, n_frames = 0;
	pid_t pid;

	(void)state;
	print_message("seed %d\n", SEED);
	assert_non_null(said);
	said[1] = (struct said){.sink_tokens = 4, .window_tokens = 128, .max_error = 0.5};
	assert_int_equal(private_daemon_start(&d, &options), 0);
	assert_int_equal(pipe2(stop, O_NONBLOCK), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		load(d.socket, stop[0]);
		_exit(0);
	}
	for (int i = 0; i < CALLS; i++) {
		char request[600];
		json_t *answer;
		bool valid;

		random_request(request, sizeof request, &valid);
		answer = control(&d, request);
		if (valid)
			note_version(said, answer);
		if (json_is_true(json_object_get(answer, "ok")) != valid)
			fail_msg("%s: %s", request, json_string_value(json_object_get(answer, "error")));
		if (!valid) {
			const char *why = json_string_value(json_object_get(answer, "error"));
			const size_t len = strcspn(why, ":");
			char field[40] = "";

			assert_true(len < sizeof field && why[len] == ':');
			memcpy(field, why, len);
			assert_non_null(policy_field(field));
			assert_non_null(strstr(request, field));
		}
		n_valid += valid;
		json_decref(answer);
		if (i % 5 == 0)
			n_frames += expect_whole_policies(&d, said, 1 + n_valid);
	}
	print_message("%d frames looked at, %d changes made\n", n_frames, n_valid);
	assert_true(n_frames > 20);
	free(said);
	assert_int_equal(version(&d, "default"), 1 + n_valid);
	assert_int_equal(write(stop[1], "x", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close(stop[0]);
	close(stop[1]);
	private_daemon_stop(&d);
}

/* ---- no chunk sees half a policy ---- */

enum { PAIRS = 40 };

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Of the load's chunks, whose run has four: the first shows sinks, and each its version. */
static void check_decisions(const struct private_daemon *d, const uint32_t *wanted)
{
	json_t *answer = control(d, "{\"command\":\"decisions\"}"), *item;
	size_t i, n = 0;

	json_array_foreach(json_object_get(answer, "chunks"), i, item)
	{
		const long version = (long)json_integer_value(json_object_get(item, "policy_version"));

		if (json_integer_value(json_object_get(item, "position")))
			continue;
		assert_true(version > 0 && version < 2 + PAIRS);
		assert_int_equal(json_integer_value(json_object_get(item, "sinks")), wanted[version]);
		n++;
	}
	assert_true(n > 10);
	json_decref(answer);
}

/* sink_tokens and window_tokens are always set together: n and 2 n. The run is one chunk, so a frame shows
 * both. */
static void no_chunk_sees_half_a_policy(void **state)
{
	const struct private_daemon_options options = {
		.no_store = 1, .policy_lines = "sink_search = off\nsink_tokens = 1\nwindow_tokens = 2"};
	struct private_daemon d;
	struct engine e;
	int stop[2], status;
	uint32_t wanted[2 * PAIRS + 2] = {0, 1};
	pid_t pid;

	(void)state;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	assert_int_equal(pipe2(stop, O_NONBLOCK), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		load(d.socket, stop[0]);
		_exit(0);
	}
	engine_open(&e, d.socket, 2);
	for (uint32_t i = 0; i < PAIRS; i++) {
		const uint32_t n = 1 + random_below(60);
		const uint64_t began = now_ms();
		char request[300], key[65];
		json_t *answer;
		const json_t *frame;
		long given;

		snprintf(request, sizeof request,
			"{\"command\":\"policy-set\",\"set\":{\"sink_tokens\":%u,\"window_tokens\":%u}}", n,
			2 * n);
		answer = control(&d, request);
		given = (long)json_integer_value(json_object_get(answer, "version"));
		assert_true(given == 2 + (long)i);
		wanted[given] = n;
		json_decref(answer);
		/* Of the chunks that are begun from here on, the first is made under the new policy. */
		engine_prefill(&e, 100 + i, E_CHUNK);
		assert_int_equal(engine_put(&e, E_CHUNK).status, 0);
		assert_true(now_ms() - began < 2000);
		hex_write(e.keys[0].bytes, 32, key);
		snprintf(request, sizeof request, "{\"command\":\"inspect\",\"key\":\"%s\"}", key);
		answer = control(&d, request);
		frame = json_object_get(answer, "frame");
		assert_int_equal(json_integer_value(json_object_get(frame, "policy_version")), given);
		assert_int_equal(json_integer_value(json_object_get(frame, "raw_tokens")), 3 * n);
		json_decref(answer);
	}
	check_decisions(&d, wanted);
	engine_close(&e);
	assert_int_equal(write(stop[1], "x", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close(stop[0]);
	close(stop[1]);
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(set_get_reset),
		cmocka_unit_test(saved_and_read_again), cmocka_unit_test(signal_reads_the_file_anew),
		cmocka_unit_test(no_chunk_sees_half_a_policy), cmocka_unit_test(many_changes_under_load)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
