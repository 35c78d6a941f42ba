/* The real daemon, with real client processes. What one process puts, another gets, across eviction, restarts
 * and kills. */
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

#include "tests/integration/engine.h"
#include "tools/private-daemon.h"

enum { SINKS = 4, WINDOW = 128 };

/* 8 bits with one step for 256 values that fill the range evenly: half a step at most, of 1/127 of the range.
 */
static const double PLAIN_ERROR_MAX = 0.02;

static struct private_daemon daemon_start(const struct private_daemon_options *options)
{
	struct private_daemon d;

	assert_int_equal(private_daemon_start(&d, options), 0);
	return d;
}

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

static long status_number(const struct private_daemon *d, const char *group, const char *key)
{
	json_t *status = control(d, "{\"command\":\"status\"}");
	const json_t *value = json_object_get(json_object_get(status, group), key);
	const long n = (long)json_integer_value(value);

	assert_true(json_is_integer(value));
	json_decref(status);
	return n;
}

/* Runs fn in a process of its own and wants it to end well. */
static void in_process(
	void (*fn)(const char *socket, uint32_t arg), const struct private_daemon *d, uint32_t arg)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		fn(d->socket, arg);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void put_and_sync(const char *socket, uint32_t n_tokens)
{
	struct cistern_completion done;
	struct engine e;

	engine_open(&e, socket, 1);
	engine_prefill(&e, 1, n_tokens);
	MUST_EQUAL(engine_lookup(&e, n_tokens), 0);
	done = engine_put(&e, n_tokens);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, (n_tokens + E_CHUNK - 1) / E_CHUNK);
	MUST(done.bytes > 0);
	done = engine_wait(&e, cistern_sync(e.c, 3));
	MUST_EQUAL(done.status, 0);
	engine_close(&e);
}

static void get_and_compare(const char *socket, uint32_t n_tokens)
{
	struct cistern_completion done;
	struct engine e;

	engine_open(&e, socket, 5);
	engine_keys(&e, 1, n_tokens);
	engine_wipe(&e);
	MUST_EQUAL(engine_lookup(&e, n_tokens), (n_tokens + E_CHUNK - 1) / E_CHUNK);
	done = engine_get(&e, n_tokens, 0);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, (n_tokens + E_CHUNK - 1) / E_CHUNK);
	MUST_EQUAL(done.n_layers, E_LAYERS);
	MUST(engine_error(&e, 1, 0, SINKS) == 0);
	MUST(engine_error(&e, 1, n_tokens - WINDOW, n_tokens) == 0);
	MUST(engine_error(&e, 1, SINKS, n_tokens - WINDOW) < PLAIN_ERROR_MAX);
	MUST(engine_error(&e, 1, SINKS, n_tokens - WINDOW) > 0);
	MUST(engine_is_wiped(&e, n_tokens)); /* the token after the last is nobody's to touch */
	engine_close(&e);
}

static void one_puts_another_gets(void **state)
{
	const struct private_daemon_options options = {0};
	struct private_daemon d = daemon_start(&options);
	json_t *answer;

	(void)state;
	in_process(put_and_sync, &d, 600);
	in_process(get_and_compare, &d, 600);
	assert_int_equal(status_number(&d, "cache", "in_pool"), 3);
	assert_int_equal(status_number(&d, "cache", "on_disk"), 3);
	/* From disk. */
	answer = control(&d, "{\"command\":\"drop-pool\"}");
	assert_int_equal(json_integer_value(json_object_get(answer, "dropped")), 3);
	json_decref(answer);
	assert_int_equal(status_number(&d, "cache", "in_pool"), 0);
	in_process(get_and_compare, &d, 600);
	assert_int_equal(status_number(&d, "cache", "fetched"), 3);
	/* From disk, after a clean restart and after a kill. */
	assert_int_equal(private_daemon_end(&d, SIGTERM), 0);
	assert_int_equal(access(d.socket, F_OK), -1);
	assert_int_equal(private_daemon_restart(&d), 0);
	in_process(get_and_compare, &d, 600);
	assert_int_equal(private_daemon_end(&d, SIGKILL), SIGKILL);
	assert_int_equal(private_daemon_restart(&d), 0);
	in_process(get_and_compare, &d, 600);
	private_daemon_stop(&d);
}

static void partial_hits(void **state)
{
	const struct private_daemon_options options = {.no_store = 1};
	struct private_daemon d = daemon_start(&options);
	struct cistern_completion done;
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 3);
	engine_prefill(&e, 1, 512);
	assert_int_equal(engine_put(&e, 512).n_chunks, 2);
	engine_wipe(&e);
	engine_keys(&e, 1, 1024); /* the same sequence, further on */
	assert_int_equal(engine_lookup(&e, 1024), 2);
	done = engine_get(&e, 1024, 0);
	assert_int_equal(done.status, 0);
	assert_int_equal(done.n_chunks, 2);
	assert_true(engine_error(&e, 1, 0, 512) < PLAIN_ERROR_MAX);
	for (uint32_t t = 512; t < 1024; t++)
		assert_true(engine_is_wiped(&e, t));
	engine_keys(&e, 2, 512);
	assert_int_equal(engine_lookup(&e, 512), 0);
	done = engine_get(&e, 512, 0);
	assert_int_equal(done.status, 0);
	assert_int_equal(done.n_chunks, 0);
	assert_int_equal(engine_wait(&e, cistern_sync(e.c, 1)).status, -ENOTSUP);
	engine_close(&e);
	private_daemon_stop(&d);
}

static void layer_by_layer(void **state)
{
	const struct private_daemon_options options = {.no_store = 1, .daemon_lines = ""};
	struct private_daemon d = daemon_start(&options);
	const uint32_t n = 700;
	struct cistern_completion done;
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 3);
	engine_prefill(&e, 4, n);
	assert_int_equal(engine_put(&e, n).status, 0);
	engine_wipe(&e);
	done = engine_get(&e, n, CISTERN_LAYERWISE);
	assert_int_equal(done.status, 0);
	assert_int_equal(done.n_chunks, 3);
	assert_int_equal(done.n_layers, E_LAYERS);
	assert_true(engine_error(&e, 4, 0, n) < PLAIN_ERROR_MAX);
	engine_close(&e);
	private_daemon_stop(&d);
}

static void pin_remove_prefetch(void **state)
{
	const struct private_daemon_options options = {0};
	struct private_daemon d = daemon_start(&options);
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 2);
	engine_prefill(&e, 1, 1024);
	assert_int_equal(engine_put(&e, 1024).n_chunks, 4);
	assert_int_equal(engine_wait(&e, cistern_sync(e.c, 1)).status, 0);
	assert_int_equal(engine_wait(&e, cistern_pin(e.c, e.model_id, e.keys, 2, 1)).n_chunks, 2);
	json_decref(control(&d, "{\"command\":\"drop-pool\"}"));
	assert_int_equal(engine_wait(&e, cistern_prefetch(e.c, e.model_id, e.keys, 4, 1)).n_chunks, 4);
	assert_int_equal(status_number(&d, "cache", "in_pool"), 4);
	assert_int_equal(engine_wait(&e, cistern_unpin(e.c, e.model_id, e.keys, 3, 1)).n_chunks, 2);
	/* The middle goes: what is behind it is there, but no prefix any more. */
	assert_int_equal(engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys + 1, 1, 1)).n_chunks, 1);
	assert_int_equal(engine_lookup(&e, 1024), 1);
	assert_int_equal(engine_get(&e, 1024, 0).n_chunks, 1);
	assert_int_equal(engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys, 4, 1)).n_chunks, 3);
	assert_int_equal(engine_lookup(&e, 1024), 0);
	engine_close(&e);
	/* Forgotten for good: also after a kill. */
	private_daemon_end(&d, SIGKILL);
	assert_int_equal(private_daemon_restart(&d), 0);
	engine_open(&e, d.socket, 2);
	engine_keys(&e, 1, 1024);
	assert_int_equal(engine_lookup(&e, 1024), 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* A pool much smaller than what is put: with a store everything is there all the same; without, the newest.
 */
static void a_small_pool(void **state)
{
	for (int with_store = 0; with_store < 2; with_store++) {
		const struct private_daemon_options options = {
			.pool_bytes = 1 << 20, .no_store = !with_store};
		struct private_daemon d = daemon_start(&options);
		uint32_t n_found = 0;
		struct engine e;

		(void)state;
		engine_open(&e, d.socket, 2);
		for (uint32_t s = 0; s < 8; s++) {
			engine_prefill(&e, s, 1024);
			assert_int_equal(engine_put(&e, 1024).status, 0);
		}
		assert_true(status_number(&d, "cache", "evicted") > 0);
		for (uint32_t s = 0; s < 8; s++) {
			engine_wipe(&e);
			engine_keys(&e, s, 1024);
			n_found += engine_lookup(&e, 1024);
			const struct cistern_completion done = engine_get(&e, 1024, 0);

			assert_int_equal(done.status, 0);
			assert_int_equal(done.n_chunks, engine_lookup(&e, 1024));
			assert_true(engine_error(&e, s, 0, done.n_chunks * E_CHUNK) < PLAIN_ERROR_MAX);
		}
		if (with_store)
			assert_int_equal(n_found, 8 * 4);
		else
			assert_true(n_found > 0 && n_found < 8 * 4);
		engine_close(&e);
		assert_int_equal(private_daemon_end(&d, SIGTERM), 0);
		private_daemon_stop(&d);
	}
}

/* Engines that are killed with work in flight: the daemon goes on, and forgets their sessions. */
static void clients_are_killed(void **state)
{
	const struct private_daemon_options options = {0};
	struct private_daemon d = daemon_start(&options);
	json_t *status;

	(void)state;
	for (int i = 0; i < 10; i++) {
		const pid_t pid = fork();
		struct engine e;

		assert_true(pid >= 0);
		if (!pid) {
			engine_open(&e, d.socket, 1);
			for (uint32_t s = 100;; s++) {
				engine_prefill(&e, s, 1024);
				engine_put(&e, 1024);
				engine_get(&e, 1024, 0);
			}
		}
		usleep(20000 + 7000 * (useconds_t)i);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	for (int waited = 0; waited < 200; waited++) {
		status = control(&d, "{\"command\":\"status\"}");
		const size_t n = json_array_size(json_object_get(status, "sessions"));

		json_decref(status);
		if (!n)
			break;
		assert_true(waited < 199);
		usleep(10000);
	}
	in_process(put_and_sync, &d, 300);
	assert_int_equal(private_daemon_end(&d, SIGTERM), 0);
	private_daemon_stop(&d);
}

/* A bit that rots on the disk is found out: the chunk is dropped, its bytes are never handed out. */
static void rot_on_the_disk(void **state)
{
	const struct private_daemon_options options = {0};
	struct private_daemon d = daemon_start(&options);
	struct cistern_completion done;
	char command[600];
	struct engine e;

	(void)state;
	in_process(put_and_sync, &d, 512);
	assert_int_equal(private_daemon_end(&d, SIGTERM), 0);
	/* Every 4 KiB page of every segment but the first gets its byte 2000 turned over. */
	snprintf(command, sizeof command,
		"for f in %s/*; do python3 - \"$f\" <<'EOP'\nimport "
		"sys\np=sys.argv[1]\nd=bytearray(open(p,'rb').read())\n"
		"for i in range(4096+2000,len(d),4096): d[i]^=1\nopen(p,'wb').write(d)\nEOP\ndone",
		d.store);
	assert_int_equal(system(command), 0);
	assert_int_equal(private_daemon_restart(&d), 0);
	engine_open(&e, d.socket, 1);
	engine_keys(&e, 1, 512);
	engine_wipe(&e);
	done = engine_get(&e, 512, 0);
	assert_int_equal(done.n_chunks, 0);
	assert_true(done.status == 0 || done.status == -EBADMSG);
	for (uint32_t t = 0; t < 512; t++)
		assert_true(engine_is_wiped(&e, t));
	assert_int_equal(engine_lookup(&e, 512), 0);
	/* And it can be put again. */
	engine_prefill(&e, 1, 512);
	assert_int_equal(engine_put(&e, 512).n_chunks, 2);
	assert_int_equal(engine_get(&e, 512, 0).n_chunks, 2);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* SIGTERM while engines are at work: exit status 0, nothing left behind. */
static void stopped_under_load(void **state)
{
	const struct private_daemon_options options = {0};
	struct private_daemon d = daemon_start(&options);
	struct engine e;

	(void)state;
	engine_open(&e, d.socket, 1);
	engine_prefill(&e, 1, 2048);
	const struct cistern_run run = {.memory_id = e.memory_id,
		.n_tokens = 2048,
		.keys = e.keys,
		.n_chunks = 8,
		.n_blocks = 128,
		.blocks = e.blocks};
	assert_int_equal(cistern_put(e.c, &run, NULL, 1), 0);
	assert_int_equal(cistern_submit(e.c), 1);
	assert_int_equal(private_daemon_end(&d, SIGTERM), 0);
	assert_int_equal(access(d.socket, F_OK), -1);
	/* The client is told. */
	struct cistern_completion done;
	int r;

	do
		r = cistern_wait(e.c, &done, 1, 5000);
	while (r > 0);
	assert_int_equal(r, -ENOTCONN);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* What cisternd says to a bad configuration: one line, with file, line and key; exit status 2. */
static void bad_configuration(void **state)
{
	static const struct {
		const char *text, *wanted;
	} cases[] = {
		{"[daemon]\nchunk_tokenz = 256\n", "conf:2: [daemon] chunk_tokenz"},
		{"[pool]\nsize = lots\n", "conf:2: [pool] size"},
		{"[policy]\n\ntarget_ratio = -3\n", "conf:3: [policy] target_ratio"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char folder[] = "/tmp/cistern-XXXXXX", path[64], command[700], output[1024] = "",
		     program[600];
		FILE *f;
		size_t n;

		assert_non_null(mkdtemp(folder));
		snprintf(path, sizeof path, "%s/conf", folder);
		f = fopen(path, "w");
		fputs(cases[i].text, f);
		fclose(f);
		snprintf(program, sizeof program, "%s", getenv("CISTERND"));
		snprintf(command, sizeof command, "%s --config %s 2>&1", program, path);
		f = popen(command, "r");
		n = fread(output, 1, sizeof output - 1, f);
		assert_int_equal(WEXITSTATUS(pclose(f)), 2);
		if (!strstr(output, cases[i].wanted) || strchr(output, '\n') != output + n - 1)
			fail_msg("said: %s", output);
		unlink(path);
		rmdir(folder);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_puts_another_gets),
		cmocka_unit_test(partial_hits),
		cmocka_unit_test(layer_by_layer),
		cmocka_unit_test(pin_remove_prefetch),
		cmocka_unit_test(a_small_pool),
		cmocka_unit_test(clients_are_killed),
		cmocka_unit_test(rot_on_the_disk),
		cmocka_unit_test(stopped_under_load),
		cmocka_unit_test(bad_configuration),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
