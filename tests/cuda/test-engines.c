/* The daemon and engines whose caches lie on the GPU, each a process of its own: what one puts, another gets;
 * events both ways. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/scene.h"

enum { SINKS = 4, WINDOW = 128, N = 600, LATER = 10 };

/* As in tests/integration/test-daemon.c: half a step of 8 bits. */
static const double PLAIN_ERROR_MAX = 0.02;

static const uint32_t kinds[][2] = {{CISTERN_MEMORY_CUDA_IPC, 1}, {CISTERN_MEMORY_CUDA_IPC, E_LAYERS},
	{CISTERN_MEMORY_CUDA_VMM, 1}, {CISTERN_MEMORY_CUDA_VMM, E_LAYERS}};

static void put(const char *socket, uint32_t kind)
{
	struct cistern_completion done;
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 1, kinds[kind][0], kinds[kind][1]);
	engine_prefill(&g.host, kind, N);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	MUST_EQUAL(engine_lookup(&g.host, N), 0);
	done = engine_put(&g.host, N);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, 3);
	MUST(done.bytes > 0);
	gpu_engine_close(&g);
}

static void check(struct gpu_engine *g, uint32_t sequence)
{
	gpu_engine_download(g);
	gpu_engine_wait(g);
	MUST(engine_error(&g->host, sequence, 0, SINKS) == 0);
	MUST(engine_error(&g->host, sequence, N - WINDOW, N) == 0);
	MUST(engine_error(&g->host, sequence, SINKS, N - WINDOW) < PLAIN_ERROR_MAX);
	MUST(engine_error(&g->host, sequence, SINKS, N - WINDOW) > 0);
	MUST(engine_is_wiped(&g->host, N)); /* the token after the last is nobody's to touch */
}

static void get(const char *socket, uint32_t kind)
{
	struct cistern_completion done;
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 5, kinds[kind][0], kinds[kind][1]);
	engine_keys(&g.host, kind, N);
	gpu_engine_fill(&g, 0x55);
	gpu_engine_wait(&g);
	MUST_EQUAL(engine_lookup(&g.host, N), 3);
	done = engine_get(&g.host, N, kind & 1 ? CISTERN_LAYERWISE : 0);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, 3);
	MUST_EQUAL(done.n_layers, E_LAYERS);
	check(&g, kind);
	MUST_EQUAL(cistern_unregister_memory(g.host.c, g.host.memory_id), 0);
	gpu_engine_close(&g);
}

static void one_puts_another_gets(void **state)
{
	struct private_daemon d = scene_daemon(NULL);

	(void)state;
	for (uint32_t kind = 0; kind < 4; kind++) {
		scene_in_process(put, &d, kind);
		scene_in_process(get, &d, kind);
	}
	scene_until(&d, "mapped", "allocations", 0);
	scene_until(&d, "staging", "lent_bytes", 0);
	/* It ends well, also where a leak would not be. */
	assert_int_equal(private_daemon_end(&d, SIGTERM), 0);
	private_daemon_stop(&d);
}

/* What a host's engine put, one on the GPU gets, and the other way round. */
static void host_puts(const char *socket, uint32_t sequence)
{
	struct engine e;

	engine_open(&e, socket, 3);
	engine_prefill(&e, sequence, N);
	MUST_EQUAL(engine_put(&e, N).status, 0);
	engine_close(&e);
}

static void host_gets(const char *socket, uint32_t sequence)
{
	struct engine e;

	engine_open(&e, socket, 3);
	engine_wipe(&e);
	engine_keys(&e, sequence, N);
	MUST_EQUAL(engine_get(&e, N, 0).n_chunks, 3);
	MUST(engine_error(&e, sequence, 0, N) < PLAIN_ERROR_MAX);
	engine_close(&e);
}

static void host_and_gpu(void **state)
{
	struct private_daemon d = scene_daemon(NULL);

	(void)state;
	scene_in_process(host_puts, &d, 1);
	scene_in_process(get, &d, 1);
	scene_in_process(put, &d, 2);
	scene_in_process(host_gets, &d, 2);
	private_daemon_stop(&d);
}

/* ---- events ---- */

static struct cistern_completion next(struct gpu_engine *g)
{
	struct cistern_completion done;

	MUST_EQUAL(cistern_wait(g->host.c, &done, 1, 20000), 1);
	return done;
}

/* Work that takes a while, where the GPU is slow. */
static void dawdle(struct gpu_engine *g, uint8_t byte)
{
	for (int i = 0; i < LATER; i++)
		gpu_engine_fill(g, byte);
}

/* The source is written late, and overwritten as soon as it has been released. */
static void put_between_events(const char *socket, uint32_t arg)
{
	struct cistern_completion done;
	struct cistern_run run;
	struct gpu_engine g;

	(void)arg;
	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	gpu_engine_events(&g);
	engine_prefill(&g.host, 9, N);
	dawdle(&g, 0x11);
	gpu_engine_upload(&g);
	CU(g.driver->cuEventRecord(g.ready, g.stream));
	run = gpu_engine_run(&g, N);
	run.ready_event = g.ready_id;
	run.released_event = g.released_id;
	MUST_EQUAL(cistern_put(g.host.c, &run, NULL, 5), 0);
	MUST(cistern_submit(g.host.c) == 1);
	done = next(&g);
	MUST_EQUAL(done.flags, CISTERN_MORE);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_layers, 0);
	CU(g.driver->cuStreamWaitEvent(g.stream, g.released, 0));
	gpu_engine_fill(&g, 0xee);
	gpu_engine_wait(&g);
	done = next(&g);
	MUST_EQUAL(done.flags, 0);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, 3);
	/* Again: nothing is to be gathered, and the event is recorded all the same. */
	CU(g.driver->cuEventRecord(g.ready, g.stream));
	MUST_EQUAL(cistern_put(g.host.c, &run, NULL, 6), 0);
	MUST_EQUAL(cistern_submit(g.host.c), 1);
	MUST_EQUAL(next(&g).flags, CISTERN_MORE);
	MUST_EQUAL(next(&g).n_chunks, 3);
	MUST_EQUAL(cistern_unregister_events(g.host.c, g.groups_id), 0);
	MUST_EQUAL(cistern_unregister_events(g.host.c, g.ready_id), 0);
	run.ready_event = 0;
	MUST_EQUAL(cistern_put(g.host.c, &run, NULL, 7), -EINVAL);
	gpu_engine_close(&g);
}

/* The destination is in use until late; layers are taken as they come, each behind its event. */
static void get_by_layers(const char *socket, uint32_t n_events)
{
	const size_t layer_bytes = (size_t)2 * E_BLOCKS * E_BLOCK * E_WIDTH * 2;
	struct cistern_completion done;
	struct cistern_run run;
	struct gpu_engine g;
	uint32_t n_told = 0, n_layers = 0;
	uint8_t *seen;

	gpu_engine_open(&g, socket, 2, CISTERN_MEMORY_CUDA_IPC, 1);
	gpu_engine_events(&g);
	engine_keys(&g.host, 9, N);
	seen = calloc(1, g.host.size_bytes);
	MUST(seen);
	dawdle(&g, 0x55);
	CU(g.driver->cuEventRecord(g.ready, g.stream));
	run = gpu_engine_run(&g, N);
	run.ready_event = g.ready_id;
	run.first_event = g.groups_id;
	run.n_events = n_events;
	MUST_EQUAL(cistern_get(g.host.c, &run, 6), 0);
	MUST_EQUAL(cistern_submit(g.host.c), 1);
	for (;;) {
		done = next(&g);
		MUST_EQUAL(done.status, 0);
		if (!(done.flags & CISTERN_MORE))
			break;
		MUST(n_told < n_events && done.n_layers > n_layers);
		CU(g.driver->cuStreamWaitEvent(g.stream, g.groups[n_told], 0));
		CU(g.driver->cuMemcpyDtoHAsync(seen + n_layers * layer_bytes,
			g.parts[0] + n_layers * layer_bytes, (done.n_layers - n_layers) * layer_bytes,
			g.stream));
		gpu_engine_wait(&g);
		n_told++;
		n_layers = done.n_layers;
	}
	MUST_EQUAL(n_layers, E_LAYERS);
	MUST_EQUAL(n_told, n_events);
	MUST_EQUAL(done.n_layers, E_LAYERS);
	check(&g, 9);
	/* What was there behind each event is what is there at the end. */
	MUST(memcmp(seen, g.host.kv, g.host.size_bytes) == 0);
	gpu_engine_close(&g);
	free(seen);
}

static void slow_down(const struct cuda_double *d, long us)
{
	d->set_delay_us((unsigned)us);
}

static void events_both_ways(void **state)
{
	struct private_daemon d = scene_daemon(NULL);
	const bool is_emulated = scene_has_double();

	(void)state;
	if (is_emulated)
		scene_knob(slow_down, 5000);
	scene_in_process(put_between_events, &d, 0);
	for (uint32_t n = 1; n <= E_LAYERS; n++)
		scene_in_process(get_by_layers, &d, n);
	if (is_emulated)
		scene_knob(slow_down, 0);
	scene_until(&d, "mapped", "events", 0);
	private_daemon_stop(&d);
}

/* ---- attention ---- */

static void observe(const char *socket, uint32_t on_gpu)
{
	static uint32_t positions[32];
	static uint16_t values[E_LAYERS * 32 * E_HEADS * E_DIM];
	static float sums[512];
	struct cistern_observation o = {.kind = CISTERN_QUERIES,
		.n_queries = 32,
		.n_heads = E_HEADS,
		.n_layers = E_LAYERS,
		.positions = positions,
		.values = values};
	struct cistern_run run;
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 4, CISTERN_MEMORY_CUDA_IPC, E_LAYERS);
	gpu_engine_events(&g);
	engine_prefill(&g.host, 20 + on_gpu, 512);
	dawdle(&g, 0x22);
	gpu_engine_upload(&g);
	CU(g.driver->cuEventRecord(g.ready, g.stream));
	for (uint32_t i = 0; i < 32; i++)
		positions[i] = i < 16 ? 240 + i : 480 + i;
	for (size_t i = 0; i < sizeof values / sizeof *values; i++)
		values[i] = (uint16_t)(0x3000 + i % 512);
	for (uint32_t i = 0; i < 512; i++)
		sums[i] = i == 300 ? 9 : 0.01f;
	run = gpu_engine_run(&g, 512);
	run.ready_event = g.ready_id;
	MUST_EQUAL(engine_wait(&g.host, cistern_observe(g.host.c, &run, &o, 1)).n_chunks, 1);
	o = (struct cistern_observation){.kind = CISTERN_SUMS, .n_queries = 16, .sums = sums};
	MUST_EQUAL(engine_wait(&g.host, cistern_observe(g.host.c, &run, &o, 2)).n_chunks, 1);
	MUST_EQUAL(engine_put(&g.host, 512).status, 0);
	gpu_engine_close(&g);
}

static void attention_is_seen(void **state)
{
	struct private_daemon d = scene_daemon(NULL);

	(void)state;
	scene_in_process(observe, &d, 1);
	scene_until(&d, "staging", "lent_bytes", 0);
	private_daemon_stop(&d);
}

/* Without a GPU the daemon says so, and shared memory serves. */
static void refused(const char *socket, uint32_t arg)
{
	struct engine e;
	uint8_t handles[64] = {0};
	struct cistern_device_part part = {.size_bytes = 4096};
	struct cistern_layout layouts[E_LAYERS * 2] = {{0}};
	struct cistern_memory memory = {.size_bytes = 4096,
		.block_tokens = 1,
		.n_blocks = 1,
		.layouts = layouts,
		.kind = CISTERN_MEMORY_CUDA_IPC,
		.n_parts = 1,
		.parts = &part};
	uint32_t id;

	(void)arg;
	engine_open(&e, socket, 1);
	memory.model_id = e.model_id;
	MUST_EQUAL(cistern_register_memory(e.c, &memory, &id), -ENODEV);
	MUST_EQUAL(cistern_register_events(e.c, handles, 1, &id), -ENODEV);
	engine_prefill(&e, 1, N);
	MUST_EQUAL(engine_put(&e, N).status, 0);
	engine_close(&e);
}

static void no_device(void **state)
{
	struct private_daemon d = scene_daemon("device = none\n");
	json_t *status = scene_control(&d, "{\"command\":\"status\"}");

	(void)state;
	assert_true(json_is_null(json_object_get(status, "device")));
	json_decref(status);
	scene_in_process(refused, &d, 0);
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_puts_another_gets),
		cmocka_unit_test(host_and_gpu),
		cmocka_unit_test(events_both_ways),
		cmocka_unit_test(attention_is_seen),
		cmocka_unit_test(no_device),
	};

	return scene_run(tests, sizeof tests / sizeof *tests);
}
