/* Engines on the GPU that end without a word, at every stage: what they had open is closed, their memory
 * comes back, the next engine starts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/cuda/scene.h"

enum { N = 1500 };

static const struct {
	const char *what;
	bool slow; /* the GPU takes its time, so that death comes amid the work */
} stages[] = {
	{"attached, nothing registered", false},
	{"memory registered, before the first request", false},
	{"memory by descriptors, and events", false},
	{"put handed in, and not ready", true},
	{"put at work", true},
	{"puts without end", false},
	{"get handed in, and not ready", true},
	{"get at work", true},
	{"gets without end", false},
	{"being unregistered", true},
};

enum { N_STAGES = sizeof stages / sizeof *stages };

static void attach_alone(const char *socket)
{
	const struct cistern_options options = {.socket_path = socket};
	struct gpu_engine g = {.host = {.size_bytes = 1 << 20}};
	struct cistern *c;

	gpu_engine_begin(&g);
	gpu_engine_allocate(&g, CISTERN_MEMORY_CUDA_IPC, 1);
	MUST_EQUAL(cistern_connect(&options, &c), 0);
	scene_say();
	pause();
}

static void without_end(struct gpu_engine *g, bool gets)
{
	for (uint32_t i = 0;; i++) {
		engine_keys(&g->host, gets ? 1 : 1000 + i, N);
		MUST_EQUAL(
			(gets ? engine_get(&g->host, N, CISTERN_LAYERWISE) : engine_put(&g->host, N)).status,
			0);
		if (i == 2)
			scene_say();
	}
}

static void live_until(const char *socket, uint32_t stage)
{
	struct cistern_run run;
	struct gpu_engine g;

	if (!stage)
		attach_alone(socket);
	gpu_engine_open(&g, socket, stage, stage & 1 ? CISTERN_MEMORY_CUDA_IPC : CISTERN_MEMORY_CUDA_VMM,
		stage == 2 ? E_LAYERS : 1);
	if (stage >= 2)
		gpu_engine_events(&g);
	engine_keys(&g.host, stage < 6 ? 100 + stage : 1, N);
	if (stage == 5 || stage == 8)
		without_end(&g, stage == 8);
	run = gpu_engine_run(&g, N);
	if (stage == 3 || stage == 6) {
		for (int i = 0; i < 1000; i++)
			gpu_engine_fill(&g, 1);
		CU(g.driver->cuEventRecord(g.ready, g.stream));
		run.ready_event = g.ready_id;
	}
	if (stage >= 3 && stage != 9) {
		run.released_event = g.released_id;
		run.first_event = g.groups_id;
		run.n_events = G_GROUPS;
		MUST_EQUAL(
			stage < 6 ? cistern_put(g.host.c, &run, NULL, 1) : cistern_get(g.host.c, &run, 1), 0);
		MUST_EQUAL(cistern_submit(g.host.c), 1);
	}
	scene_say();
	if (stage == 9)
		cistern_unregister_memory(g.host.c, g.host.memory_id);
	pause();
}

static void put_one(const char *socket, uint32_t arg)
{
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	engine_prefill(&g.host, arg, N);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	MUST_EQUAL(engine_put(&g.host, N).status, 0);
	gpu_engine_close(&g);
}

static void get_one(const char *socket, uint32_t arg)
{
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 3, CISTERN_MEMORY_CUDA_IPC, 1);
	engine_keys(&g.host, arg, N);
	MUST_EQUAL(engine_get(&g.host, N, 0).n_chunks, (N + E_CHUNK - 1) / E_CHUNK);
	gpu_engine_download(&g);
	gpu_engine_wait(&g);
	MUST(engine_error(&g.host, arg, 0, N) < 0.02);
	gpu_engine_close(&g);
}

static void slow_down(const struct cuda_double *d, long us)
{
	d->set_delay_us((unsigned)us);
}

static void at_every_stage(void **state)
{
	struct private_daemon d = scene_daemon(NULL);
	const bool is_emulated = scene_has_double();
	long before;

	(void)state;
	scene_in_process(put_one, &d, 1);
	scene_until(&d, "mapped", "allocations", 0);
	for (uint32_t stage = 0; stage < N_STAGES; stage++) {
		pid_t pid;
		long took_ms;
		int fd;

		scene_until(&d, "mapped", "allocations", 0);
		before = scene_taken_bytes() - scene_number(&d, "staging", "bytes");
		if (is_emulated && stages[stage].slow)
			scene_knob(slow_down, 3000);
		pid = scene_start(live_until, &d, stage, &fd);
		scene_await(fd);
		scene_kill(pid);
		close(fd);
		took_ms = scene_until(&d, "mapped", "allocations", 0);
		took_ms += scene_until(&d, "mapped", "events", 0);
		print_message("%s: closed after %ld ms\n", stages[stage].what, took_ms);
		scene_until(&d, "staging", "lent_bytes", 0);
		if (is_emulated) {
			scene_knob(slow_down, 0);
			assert_int_equal(scene_taken_bytes() - scene_number(&d, "staging", "bytes"), before);
		}
		scene_in_process(get_one, &d, 1);
	}
	private_daemon_stop(&d);
}

/* Many at once, again and again, while others work. */
static void in_a_crowd(void **state)
{
	struct private_daemon d = scene_daemon(NULL);

	(void)state;
	scene_in_process(put_one, &d, 1);
	for (int round = 0; round < 3; round++) {
		enum { MANY = 4 };
		pid_t pids[MANY];
		int fds[MANY];

		for (uint32_t i = 0; i < MANY; i++)
			pids[i] = scene_start(live_until, &d, i & 1 ? 5 : 8, &fds[i]);
		for (uint32_t i = 0; i < MANY; i++)
			scene_await(fds[i]);
		scene_in_process(get_one, &d, 1);
		for (uint32_t i = 0; i < MANY; i++) {
			scene_kill(pids[i]);
			close(fds[i]);
		}
		scene_until(&d, "mapped", "allocations", 0);
		scene_until(&d, "staging", "lent_bytes", 0);
	}
	scene_in_process(get_one, &d, 1);
	private_daemon_stop(&d);
}

/* Staging memory goes back when nobody has needed it for a while. */
static void staging_is_given_back(void **state)
{
	struct private_daemon d = scene_daemon(NULL);
	long before = scene_taken_bytes();

	(void)state;
	scene_in_process(put_one, &d, 1);
	assert_true(scene_number(&d, "staging", "bytes") > 0);
	scene_until(&d, "staging", "bytes", 0);
	if (before >= 0)
		assert_int_equal(scene_taken_bytes(), before);
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(at_every_stage),
		cmocka_unit_test(in_a_crowd),
		cmocka_unit_test(staging_is_given_back),
	};

	return scene_run(tests, sizeof tests / sizeof *tests);
}
