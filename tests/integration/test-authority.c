/* Who decides: admins and nobody else may change policies, a put may ask for a preset of its own, and what
 * cannot be saved or read again changes nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hex.h"
#include "tests/integration/engine.h"
#include "tests/runtime/made-up-cache.h"
#include "tools/private-daemon.h"

enum { CHUNKS = 4, STRANGER = 65534, ADMIN = 12345 };

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

static void expect(const struct private_daemon *d, const char *request, const char *part)
{
	char *answer;

	assert_int_equal(cistern_control(d->socket, request, &answer, 10000), 0);
	if (!strstr(answer, part))
		fail_msg("%s: no '%s' in %s", request, part, answer);
	free(answer);
}

/* ---- admins ---- */

/* What a control command comes to for another user. */
static int as_user(const struct private_daemon *d, uid_t uid, const char *request)
{
	const pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (!pid) {
		char *answer;

		if (setuid(uid))
			_exit(255);
		_exit(-cistern_control(d->socket, request, &answer, 5000));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return -WEXITSTATUS(status);
}

static void admins_alone(void **state)
{
	static const char set[] = "{\"command\":\"policy-set\",\"set\":{\"target_ratio\":20}}";
	char lines[64];
	const struct private_daemon_options options = {.no_store = 1, .daemon_lines = lines};
	struct private_daemon d;

	(void)state;
	if (geteuid() != 0) {
		print_message("skipped: only root can become somebody else\n");
		skip();
	}
	snprintf(lines, sizeof lines, "admins = 77, %d", ADMIN);
	assert_int_equal(private_daemon_start(&d, &options), 0);
	assert_int_equal(chmod(d.folder, 0755), 0);
	fflush(NULL);
	assert_int_equal(as_user(&d, STRANGER, set), -EACCES);
	assert_int_equal(as_user(&d, STRANGER, "{\"command\":\"policy-save\"}"), -EACCES);
	expect(&d, "{\"command\":\"policy-get\"}", "\"version\":1");
	assert_int_equal(as_user(&d, ADMIN, set), 0);
	expect(&d, "{\"command\":\"policy-get\"}", "\"version\":2");
	expect(&d, "{\"command\":\"events\",\"from\":0}", "\"uid\":12345");
	private_daemon_stop(&d);
}

/* ---- presets of a put ---- */

static void put_with(struct engine *e, uint32_t sequence, uint32_t preset)
{
	const struct cistern_run run = {.memory_id = e->memory_id,
		.n_tokens = CHUNKS * E_CHUNK,
		.keys = e->keys,
		.n_chunks = CHUNKS,
		.n_blocks = CHUNKS * E_CHUNK / E_BLOCK,
		.blocks = e->blocks,
		.preset = preset};
	struct cistern_completion done;

	engine_prefill(e, sequence, CHUNKS * E_CHUNK);
	done = engine_wait(e, cistern_put(e->c, &run, NULL, 5));
	assert_int_equal(done.status, 0);
	assert_int_equal(done.n_chunks, CHUNKS);
}

static json_t *inspect(const struct private_daemon *d, const struct engine *e, uint32_t chunk)
{
	char key[65], request[200];

	hex_write(e->keys[chunk].bytes, 32, key);
	snprintf(request, sizeof request, "{\"command\":\"inspect\",\"key\":\"%s\"}", key);
	return control(d, request);
}

static long frame_number(const json_t *answer, const char *key)
{
	return (long)json_integer_value(json_object_get(json_object_get(answer, "frame"), key));
}

static long n_window(const json_t *answer)
{
	const json_t *run;
	long n = 0;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(answer, "decision"), "classes"), i,
		run) if (!strcmp(json_string_value(json_array_get(run, 0)), "window")) n +=
		(long)json_integer_value(json_array_get(run, 1));
	return n;
}

/* A transform whose rungs are called 4x, 8x and 12x, for the engine's model. What it makes of the engine's
 * values does not matter here. */
static void write_transform(const char *path)
{
	struct world *w = world_new(ROPE_HALF);
	struct geometry g = w->g;
	struct transform t = *w->t;
	void *data;
	size_t len;

	strcpy(g.name, "test-engine");
	geometry_fingerprint(&g, t.fingerprint);
	assert_int_equal(transform_serialise(&t, 1000, NULL, &data, &len), 0);
	assert_int_equal(file_write(path, data, len), 0);
	free(data);
	world_free(w);
}

static void a_put_may_ask_for_a_preset(void **state)
{
	static const struct {
		uint32_t preset;
		const char *name;
		long sinks, window, rung;
	} cases[] = {
		{0, "", 2, 16, 0},
		{CISTERN_PRESET_ARCHIVAL, "archival", 8, 256, 1},
		{CISTERN_PRESET_BALANCED, "balanced", 4, 128, 2},
		{CISTERN_PRESET_COMPACT, "compact", 4, 64, 2},
		{0, "", 2, 16, -1},
	};
	char transform[300];
	const struct private_daemon_options options = {.no_store = 1,
		.transform = transform,
		.policy_lines = "target_ratio = 4\nsink_search = off\nsink_tokens = 2\nwindow_tokens = 16\n"
				"max_error = 0"};
	struct private_daemon files, d;
	struct engine e;

	(void)state;
	assert_int_equal(private_folder(&files), 0);
	snprintf(transform, sizeof transform, "%s/transform", files.folder);
	write_transform(transform);
	assert_int_equal(private_daemon_start(&d, &options), 0);
	engine_open(&e, d.socket, 1);
	for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		json_t *first, *last;

		put_with(&e, i, cases[i].preset);
		first = inspect(&d, &e, 0);
		last = inspect(&d, &e, CHUNKS - 1);
		assert_string_equal(
			json_string_value(json_object_get(json_object_get(first, "decision"), "preset")),
			cases[i].name);
		/* One version: the preset is laid over the namespace's policy, and changes it for nobody
		 * else. */
		assert_int_equal(frame_number(first, "policy_version"), 1);
		assert_true(frame_number(last, "raw_tokens") >= cases[i].window);
		assert_int_equal(n_window(last), cases[i].window);
		assert_int_equal(
			json_array_size(json_object_get(json_object_get(first, "decision"), "sinks")),
			cases[i].sinks);
		/* Before anything was measured the rung is the one that is called so; -1: no longer. */
		if (cases[i].rung >= 0 && frame_number(first, "rung") != cases[i].rung)
			fail_msg("%s: rung %ld", cases[i].name, frame_number(first, "rung"));
		json_decref(first);
		json_decref(last);
	}
	engine_close(&e);
	private_daemon_stop(&d);
	private_daemon_stop(&files);
}

/* ---- what fails ---- */

static void what_cannot_be_saved_or_read(void **state)
{
	const struct private_daemon_options options = {
		.no_store = 1, .daemon_lines = "policy_file = /proc/no-such/policies"};
	struct private_daemon d;
	char path[320];

	(void)state;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	expect(&d, "{\"command\":\"policy-set\",\"set\":{\"target_ratio\":20}}", "\"ok\":true");
	expect(&d, "{\"command\":\"policy-save\"}", "/proc/no-such/policies: No such file or directory");
	expect(&d, "{\"command\":\"policy-get\"}", "\"target_ratio\":20");
	snprintf(path, sizeof path, "%s/cistern.conf", d.folder);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(kill(d.pid, SIGHUP), 0);
	for (int i = 0; i < 500; i++) {
		json_t *answer = control(&d, "{\"command\":\"events\",\"from\":0}"), *event;
		const char *text;

		event = json_array_get(json_object_get(answer, "events"),
			json_array_size(json_object_get(answer, "events")) - 1);
		text = json_string_value(json_object_get(event, "text"));
		if (strstr(text, "reload refused, the policies stay as they are") &&
			strstr(text, "No such file or directory")) {
			json_decref(answer);
			break;
		}
		json_decref(answer);
		assert_true(i < 499);
		usleep(10000);
	}
	expect(&d, "{\"command\":\"policy-get\"}", "\"target_ratio\":20");
	expect(&d, "{\"command\":\"policy-get\"}", "\"version\":2");
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(admins_alone),
		cmocka_unit_test(a_put_may_ask_for_a_preset), cmocka_unit_test(what_cannot_be_saved_or_read)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
