/* The life of sessions and of tenants: reconnecting after the daemon's death, deaths that a socket does not
 * tell of, limits, quotas, purges. */
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
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/integration/engine.h"
#include "tools/private-daemon.h"

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

	assert_int_equal(cistern_control(d->socket, request, &answer, 20000), 0);
	object = json_loads(answer, 0, NULL);
	free(answer);
	assert_non_null(object);
	return object;
}

static size_t n_sessions(const struct private_daemon *d)
{
	json_t *status = control(d, "{\"command\":\"status\"}");
	const size_t n = json_array_size(json_object_get(status, "sessions"));

	json_decref(status);
	return n;
}

/* A number of a namespace's in the status. */
static long share(const struct private_daemon *d, const char *name, const char *key)
{
	json_t *status = control(d, "{\"command\":\"status\"}"), *item;
	long n = -1;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(status, "cache"), "namespaces"), i, item)
	{
		if (!strcmp(json_string_value(json_object_get(item, "name")), name))
			n = (long)json_integer_value(json_object_get(item, key));
	}
	json_decref(status);
	return n;
}

/* An engine of another tenant than "default". */
static void open_as(struct engine *e, const struct private_daemon *d, const char *name_space)
{
	const struct cistern_options options = {.socket_path = d->socket, .name_space = name_space};
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_plane planes[2];
	struct cistern_model model;
	float inv_freq[E_DIM / 2];
	struct cistern_memory memory = {.block_tokens = E_BLOCK, .n_blocks = E_BLOCKS, .layouts = layouts};

	engine_open(e, d->socket, 1);
	cistern_close(e->c);
	assert_int_equal(cistern_connect(&options, &e->c), 0);
	engine_describe(&model, planes, inv_freq, layouts);
	assert_int_equal(cistern_register_model(e->c, &model, &e->model_id), 0);
	memory.model_id = e->model_id;
	memory.fd = e->fd;
	memory.size_bytes = e->size_bytes;
	assert_int_equal(cistern_register_memory(e->c, &memory, &e->memory_id), 0);
}

static void put_and_sync(struct engine *e, uint32_t sequence, uint32_t n_tokens)
{
	engine_prefill(e, sequence, n_tokens);
	assert_int_equal(engine_put(e, n_tokens).status, 0);
	assert_int_equal(engine_wait(e, cistern_sync(e->c, 1)).status, 0);
}

/* The daemon dies and comes back: calls say so, one call sets everything up again, ids stay good, what was
 * synced is there, and what was in flight is simply over. */
static void reconnected(void **state)
{
	const struct private_daemon_options options = {0};
	struct private_daemon d = daemon_start(&options);
	struct cistern_completion done;
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_plane planes[2];
	struct cistern_model model;
	float inv_freq[E_DIM / 2];
	struct cistern_memory second = {.block_tokens = E_BLOCK, .n_blocks = E_BLOCKS, .layouts = layouts};
	struct engine e;
	uint32_t first_id;
	uint64_t before, after;

	(void)state;
	engine_open(&e, d.socket, 2);
	/* The first memory goes again, so that the daemon's numbers will be others the second time. */
	first_id = e.memory_id;
	engine_describe(&model, planes, inv_freq, layouts);
	second.model_id = e.model_id;
	second.fd = e.fd;
	second.size_bytes = e.size_bytes;
	assert_int_equal(cistern_register_memory(e.c, &second, &e.memory_id), 0);
	assert_int_equal(cistern_unregister_memory(e.c, first_id), 0);
	put_and_sync(&e, 1, 1000);
	engine_wipe(&e);
	assert_int_equal(engine_get(&e, 1000, 0).n_chunks, 4);
	memcpy(&before, e.kv, sizeof before);

	engine_prefill(&e, 2, 512);
	assert_int_equal(cistern_nop(e.c, 77), 0);
	assert_int_equal(private_daemon_end(&d, SIGKILL), SIGKILL);
	while (cistern_wait(e.c, &done, 1, 10000) >= 0)
		;
	assert_int_equal(cistern_poll(e.c, &done, 1), -ENOTCONN);
	assert_int_equal(cistern_nop(e.c, 1), -ENOTCONN);
	assert_int_equal(cistern_register_model(e.c, &model, &first_id), -ENOTCONN);
	/* Nobody is there yet; and still it can be tried again. */
	assert_int_equal(cistern_reconnect(e.c), -ECONNREFUSED);
	assert_int_equal(cistern_nop(e.c, 1), -ENOTCONN);
	assert_int_equal(private_daemon_restart(&d), 0);
	assert_int_equal(cistern_reconnect(e.c), 0);
	assert_int_equal(cistern_poll(e.c, &done, 1), 0); /* no word of what was in flight */

	engine_keys(&e, 1, 1000);
	assert_int_equal(engine_lookup(&e, 1000), 4);
	engine_wipe(&e);
	assert_int_equal(engine_get(&e, 1000, 0).n_chunks, 4);
	memcpy(&after, e.kv, sizeof after);
	assert_int_equal(before, after);
	assert_true(engine_error(&e, 1, 0, 1000) < 0.02);
	/* One that stands is given up for a new one. */
	assert_int_equal(cistern_reconnect(e.c), 0);
	put_and_sync(&e, 3, 300);
	assert_int_equal(cistern_unregister_memory(e.c, e.memory_id), 0);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* A client that starts a child which inherits the socket, and dies: the socket stays open, and the daemon
 * lets go of the session all the same. */
static void death_is_noticed(void **state)
{
	const struct private_daemon_options options = {0};
	struct private_daemon d = daemon_start(&options);
	struct timespec t[2];
	int ready[2], status, hold[2];
	double ms;
	pid_t pid;
	char byte;

	(void)state;
	assert_int_equal(pipe(ready), 0);
	assert_int_equal(pipe(hold), 0);
	pid = fork();
	if (!pid) {
		struct engine e;

		engine_open(&e, d.socket, 1);
		if (fork() == 0) {
			/* Keeps everything open until the test is over. */
			close(hold[1]);
			(void)!write(ready[1], "x", 1);
			(void)!read(hold[0], &byte, 1);
			_exit(0);
		}
		pause();
	}
	close(hold[0]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(n_sessions(&d), 1);
	clock_gettime(CLOCK_MONOTONIC, &t[0]);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	for (int i = 0; n_sessions(&d) && i < 5000; i++)
		usleep(1000);
	clock_gettime(CLOCK_MONOTONIC, &t[1]);
	assert_int_equal(n_sessions(&d), 0);
	ms = (double)(t[1].tv_sec - t[0].tv_sec) * 1e3 + (double)(t[1].tv_nsec - t[0].tv_nsec) / 1e6;
	print_message("noticed within %.1f ms\n", ms);
	close(hold[1]);
	close(ready[0]);
	close(ready[1]);
	private_daemon_stop(&d);
}

static void limits(void **state)
{
	const struct private_daemon_options options = {
		.daemon_lines = "max_clients = 2\nmax_requests = 4\nmax_memory = 2M"};
	struct private_daemon d = daemon_start(&options);
	const struct cistern_options socket = {.socket_path = d.socket};
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_plane planes[2];
	struct cistern_model model;
	float inv_freq[E_DIM / 2];
	struct cistern_memory more = {.block_tokens = E_BLOCK, .n_blocks = E_BLOCKS, .layouts = layouts};
	struct cistern_completion done[64];
	struct cistern *others[16] = {0};
	struct engine e;
	int n_done = 0, n_refused = 0;
	uint32_t id;

	(void)state;
	/* One memory of nearly 1 MB fits twice, and not three times. */
	engine_open(&e, d.socket, 1);
	engine_describe(&model, planes, inv_freq, layouts);
	more.model_id = e.model_id;
	more.fd = e.fd;
	more.size_bytes = e.size_bytes;
	assert_int_equal(cistern_register_memory(e.c, &more, &id), 0);
	assert_int_equal(cistern_register_memory(e.c, &more, &id), -ENOSPC);
	assert_non_null(strstr(cistern_error(e.c), "max_memory"));
	assert_int_equal(cistern_unregister_memory(e.c, e.memory_id), 0);
	assert_int_equal(cistern_register_memory(e.c, &more, &e.memory_id), 0);

	/* More requests than may be in flight: they wait their turn, and all are done. */
	engine_prefill(&e, 1, 512);
	assert_int_equal(engine_put(&e, 512).status, 0);
	for (int i = 0; i < 48; i++)
		assert_int_equal(cistern_lookup(e.c, e.model_id, e.keys, 2, (uint64_t)i), 0);
	while (n_done < 48) {
		const int n = cistern_wait(e.c, done, 64, 10000);

		assert_true(n > 0);
		for (int i = 0; i < n; i++)
			assert_int_equal(done[i].n_chunks, 2);
		n_done += n;
	}

	/* Beyond max_clients and the few kept for operators nobody gets in, and those who are in are served.
	 */
	for (int i = 0; i < 16; i++)
		n_refused += cistern_connect(&socket, &others[i]) != 0;
	assert_int_equal(n_refused, 16 - 1 - 8);
	assert_int_equal(engine_lookup(&e, 512), 2);
	for (int i = 0; i < 16; i++)
		cistern_close(others[i]);
	engine_close(&e);
	private_daemon_stop(&d);
}

/* A tenant over its part gives up its own, and nobody else's. */
static void quotas(void **state)
{
	const struct private_daemon_options options = {.pool_bytes = 16 << 20,
		.more = "[namespace small]\nuids = any\npool_quota = 1M\nstore_quota = 2M"};
	struct private_daemon d = daemon_start(&options);
	struct engine large, small;
	uint32_t n_left = 0;

	(void)state;
	engine_open(&large, d.socket, 1);
	open_as(&small, &d, "small");
	for (uint32_t s = 0; s < 4; s++)
		put_and_sync(&large, s, 1024);
	for (uint32_t s = 0; s < 40; s++) {
		engine_prefill(&small, s, 1024);
		assert_int_equal(engine_put(&small, 1024).status, 0);
		assert_true(share(&d, "small", "pool_bytes") <= 1 << 20);
		assert_true(share(&d, "small", "store_bytes") <= 2 << 20);
	}
	for (uint32_t s = 0; s < 40; s++) {
		engine_keys(&small, s, 1024);
		n_left += engine_lookup(&small, 1024);
	}
	assert_true(n_left > 0 && n_left < 40 * 4);
	for (uint32_t s = 0; s < 4; s++) {
		engine_keys(&large, s, 1024);
		assert_int_equal(engine_lookup(&large, 1024), 4);
	}
	engine_close(&large);
	engine_close(&small);
	private_daemon_stop(&d);
}

/* Purged, acknowledged, killed at once: it does not come back, in either tier, and others' chunks stay. What
 * is put after it is as good as ever. */
static void purged(void **state)
{
	const struct private_daemon_options options = {.more = "[namespace tenant]\nuids = any"};
	struct private_daemon d = daemon_start(&options);
	struct engine own, other;
	json_t *answer;

	(void)state;
	engine_open(&own, d.socket, 1);
	open_as(&other, &d, "tenant");
	for (uint32_t s = 0; s < 5; s++) {
		put_and_sync(&own, s, 700);
		put_and_sync(&other, s, 700);
	}
	answer = control(&d, "{\"command\":\"purge\",\"namespace\":\"tenant\"}");
	assert_true(json_is_true(json_object_get(answer, "ok")));
	assert_int_equal(json_integer_value(json_object_get(answer, "purged")), 15);
	json_decref(answer);
	assert_int_equal(private_daemon_end(&d, SIGKILL), SIGKILL);
	assert_int_equal(private_daemon_restart(&d), 0);
	assert_int_equal(cistern_reconnect(own.c), 0);
	assert_int_equal(cistern_reconnect(other.c), 0);
	for (uint32_t s = 0; s < 5; s++) {
		engine_keys(&own, s, 700);
		assert_int_equal(engine_lookup(&own, 700), 3);
		for (uint32_t i = 0; i < 3; i++) {
			engine_keys(&other, s, 700);
			memmove(other.keys, other.keys + i, sizeof other.keys[0]);
			assert_int_equal(engine_lookup(&other, 256), 0);
		}
	}
	put_and_sync(&other, 1, 700);
	assert_int_equal(private_daemon_end(&d, SIGKILL), SIGKILL);
	assert_int_equal(private_daemon_restart(&d), 0);
	assert_int_equal(cistern_reconnect(other.c), 0);
	engine_keys(&other, 1, 700);
	assert_int_equal(engine_lookup(&other, 700), 3);
	answer = control(&d, "{\"command\":\"purge\"}");
	assert_false(json_is_true(json_object_get(answer, "ok")));
	json_decref(answer);
	engine_close(&own);
	engine_close(&other);
	private_daemon_stop(&d);
}

/* After an engine is started again with another layout or type, under the same name, the old one's chunks are
 * not for it: a clean miss, never the wrong bytes. The same geometry in other strides is the same model. */
static void another_geometry_is_a_miss(void **state)
{
	const struct private_daemon_options options = {0};
	struct private_daemon d = daemon_start(&options);
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_plane planes[2];
	struct cistern_model model;
	float inv_freq[E_DIM / 2];
	struct engine e;
	uint32_t id;

	(void)state;
	engine_open(&e, d.socket, 1);
	put_and_sync(&e, 1, 512);
	engine_describe(&model, planes, inv_freq, layouts);
	for (int i = 0; i < 5; i++) {
		const uint32_t own = e.model_id;

		engine_describe(&model, planes, inv_freq, layouts);
		switch (i) {
		case 0: planes[0].dtype = CISTERN_BF16; break;
		case 1: planes[1].n_heads++; break;
		case 2: inv_freq[3] *= 2; break;
		case 3: model.n_layers--; break;
		case 4: model.tp_size = 2; break;
		}
		assert_int_equal(cistern_register_model(e.c, &model, &id), 0);
		assert_int_not_equal(id, own);
		e.model_id = id;
		assert_int_equal(engine_lookup(&e, 512), 0);
		e.model_id = own;
		assert_int_equal(engine_lookup(&e, 512), 2);
	}
	engine_close(&e);
	private_daemon_stop(&d);
}

/* What is on disk is known before the first LOOKUP, also after a kill: the index, and how much there is. */
static void accounts_after_restart(void **state)
{
	const struct private_daemon_options options = {.store_lines = "size = 8M\nsegment_size = 1M"};
	struct private_daemon d = daemon_start(&options);
	char command[400], line[64] = "";
	struct engine e;
	json_t *status;
	long used = 0;
	FILE *f;

	(void)state;
	engine_open(&e, d.socket, 1);
	/* Far more than fits: whatever goes, the limit holds and the sums are right. */
	for (uint32_t s = 0; s < 60; s++) {
		engine_prefill(&e, s, 1024);
		assert_int_equal(engine_put(&e, 1024).status, 0);
	}
	assert_int_equal(private_daemon_end(&d, SIGKILL), SIGKILL);
	assert_int_equal(private_daemon_restart(&d), 0);
	/* Making room goes on right after the start; the two are asked until nothing came in between. */
	for (int i = 0; i < 200; i++) {
		status = control(&d, "{\"command\":\"status\"}");
		used = (long)json_integer_value(
			json_object_get(json_object_get(status, "store"), "used_bytes"));
		assert_true(
			json_integer_value(json_object_get(json_object_get(status, "cache"), "chunks")) > 0);
		json_decref(status);
		assert_true(used > 1 << 20 && used <= 8 << 20);
		snprintf(command, sizeof command,
			"du -sb --apparent-size %s/segment-* | awk '{s += $1} END {print s}'", d.store);
		f = popen(command, "r");
		assert_non_null(f);
		assert_non_null(fgets(line, sizeof line, f));
		pclose(f);
		if (atol(line) == used)
			break;
		usleep(10000);
	}
	assert_int_equal(atol(line), used);
	engine_close(&e);
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reconnected),
		cmocka_unit_test(death_is_noticed),
		cmocka_unit_test(limits),
		cmocka_unit_test(quotas),
		cmocka_unit_test(purged),
		cmocka_unit_test(another_geometry_is_a_miss),
		cmocka_unit_test(accounts_after_restart),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
