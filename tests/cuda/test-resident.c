/* Images in the daemon's pool on the GPU: what is encoded there stays there, without a way over the bus; what
 * found no room comes over it; and whatever ends a put in between, no room is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/formula.h"
#include "tests/cuda/scene.h"
#include "tests/integration/low-rank.h"

enum { SINKS = 4, WINDOW = 128, N = 700, N_CHUNKS = 3, KIND = 1, SLAB = 64 << 20, LOUD = 1000, BATCH = 4 };

/* Emulated, a moment's work takes seconds. */
#define WITH_POOL "device_share = 100\ndevice_pool = 64M\n"

/* Low-rank values with noise, at 16x: as in tests/integration/test-learn.c. */
static const double ERROR_MAX = 0.25;

static char transform_path[64];

static int make_transform(void **state)
{
	(void)state;
	snprintf(transform_path, sizeof transform_path, "/tmp/cistern-test-transform-%d", (int)getpid());
	low_rank_transform(KIND, transform_path);
	return 0;
}

static int drop_transform(void **state)
{
	(void)state;
	return unlink(transform_path);
}

/* ---- engines ---- */

static void open_engine(struct gpu_engine *g, const char *socket, uint32_t order)
{
	gpu_engine_open(g, socket, order, order % 2 ? CISTERN_MEMORY_CUDA_IPC : CISTERN_MEMORY_CUDA_VMM, 1);
}

/* Sequences from LOUD on have larger values than the transform knows, which take more bits. */
static void amplify(struct gpu_engine *g, uint32_t sequence, float by)
{
	for (size_t i = 0; sequence >= LOUD && i < g->host.size_bytes / 2; i++)
		g->host.kv[i] = f16_from_f32(by * f16_to_f32(g->host.kv[i]));
}

static void put_of(struct gpu_engine *g, uint32_t sequence)
{
	struct cistern_completion done;

	low_rank_prefill(&g->host, KIND, sequence, N);
	amplify(g, sequence, 4);
	gpu_engine_upload(g);
	gpu_engine_wait(g);
	done = engine_put(&g->host, N);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, N_CHUNKS);
}

static void get_of(struct gpu_engine *g, uint32_t sequence)
{
	struct cistern_completion done;

	low_rank_keys(&g->host, KIND, sequence, N);
	gpu_engine_fill(g, 0x55);
	gpu_engine_wait(g);
	done = engine_get(&g->host, N, 0);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, N_CHUNKS);
	gpu_engine_download(g);
	gpu_engine_wait(g);
	MUST(engine_is_wiped(&g->host, N));
	amplify(g, sequence, 1.0f / 4);
	MUST(low_rank_error(&g->host, KIND, sequence, 0, SINKS) == 0);
	MUST(low_rank_error(&g->host, KIND, sequence, N - WINDOW, N) == 0);
	MUST(low_rank_error(&g->host, KIND, sequence, SINKS, N - WINDOW) < ERROR_MAX);
}

static void put_one(const char *socket, uint32_t sequence)
{
	struct gpu_engine g;

	open_engine(&g, socket, sequence);
	put_of(&g, sequence);
	gpu_engine_close(&g);
}

static void get_one(const char *socket, uint32_t sequence)
{
	struct gpu_engine g;

	open_engine(&g, socket, sequence + 1);
	get_of(&g, sequence);
	gpu_engine_close(&g);
}

static void put_some(const char *socket, uint32_t first)
{
	struct gpu_engine g;

	open_engine(&g, socket, first);
	for (uint32_t i = first; i < first + BATCH; i++)
		put_of(&g, i);
	gpu_engine_close(&g);
}

static void ask(const char *socket, const char *request)
{
	char *answer;

	MUST_EQUAL(cistern_control(socket, request, &answer, 10000), 0);
	MUST(strstr(answer, "\"ok\": true") || strstr(answer, "\"ok\":true"));
	free(answer);
}

/* The same chunks from the pool on the GPU and, that being empty, from their frames: the same bits. */
static void get_both_ways(const char *socket, uint32_t sequence)
{
	struct gpu_engine g;
	uint8_t *first;

	open_engine(&g, socket, 5);
	get_of(&g, sequence);
	first = malloc(g.host.size_bytes);
	MUST(first);
	memcpy(first, g.host.kv, g.host.size_bytes);
	ask(socket, "{\"command\":\"pool-resize\",\"bytes\":0}");
	get_of(&g, sequence);
	MUST(memcmp(first, g.host.kv, g.host.size_bytes) == 0);
	free(first);
	gpu_engine_close(&g);
}

/* Hands many puts in, and waits to be killed. */
static void put_until_killed(const char *socket, uint32_t round)
{
	struct gpu_engine g;

	open_engine(&g, socket, round);
	low_rank_prefill(&g.host, KIND, 1, N);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	for (uint32_t i = 0; i < BATCH; i++) {
		struct cistern_run run;

		low_rank_keys(&g.host, KIND, 100 + round * BATCH + i, N);
		run = gpu_engine_run(&g, N);
		MUST_EQUAL(cistern_put(g.host.c, &run, NULL, i), 0);
		MUST_EQUAL(cistern_submit(g.host.c), 1);
	}
	scene_say();
	pause();
}

/* Pins all that it puts, until the daemon's memory is full. */
static void put_until_full(const char *socket, uint32_t most)
{
	struct cistern_completion done = {0};
	struct gpu_engine g;

	open_engine(&g, socket, 1);
	low_rank_prefill(&g.host, KIND, 1, E_CHUNK);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	for (uint32_t i = 0; i < most && !done.status; i++) {
		low_rank_keys(&g.host, KIND, i, E_CHUNK);
		done = engine_put(&g.host, E_CHUNK);
		if (!done.status)
			MUST_EQUAL(engine_wait(
					   &g.host, cistern_pin(g.host.c, g.host.model_id, g.host.keys, 1, 7))
					   .n_chunks,
				1);
	}
	MUST_EQUAL(done.status, -ENOSPC);
	gpu_engine_close(&g);
}

/* One of the driver's calls fails, here or elsewhere on the way. */
static void put_perhaps(const char *socket, uint32_t sequence)
{
	struct cistern_completion done;
	struct gpu_engine g;

	open_engine(&g, socket, sequence);
	low_rank_prefill(&g.host, KIND, sequence, N);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	done = engine_put(&g.host, N);
	MUST(!done.status || done.status == -EIO);
	gpu_engine_close(&g);
}

/* ---- the daemon ---- */

static struct private_daemon start(const struct private_daemon_options *more)
{
	struct private_daemon_options options = more ? *more : (struct private_daemon_options){0};
	struct private_daemon d;

	options.no_store = 1;
	options.transform = transform_path;
	options.daemon_lines = WITH_POOL;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	scene_until(&d, "pool", "size_bytes", SLAB);
	return d;
}

static void resize(const struct private_daemon *d, long bytes)
{
	char request[100];
	json_t *answer;

	snprintf(request, sizeof request, "{\"command\":\"pool-resize\",\"bytes\":%ld}", bytes);
	answer = scene_control(d, request);
	assert_true(json_is_true(json_object_get(answer, "ok")));
	assert_int_equal(json_integer_value(json_object_get(answer, "size_bytes")), bytes);
	json_decref(answer);
}

static long pool_of(const struct private_daemon *d, const char *key)
{
	return scene_number(d, "pool", key);
}

/* Once all puts have ended and their chunks are gone: nothing is taken, and nothing held. */
static void nothing_is_held(const struct private_daemon *d)
{
	scene_until(d, "staging", "lent_bytes", 0);
	scene_until(d, "codec", "busy", 0);
	json_decref(scene_control(d, "{\"command\":\"purge\",\"namespace\":\"default\"}"));
	scene_until(d, "pool", "used_bytes", 0);
	assert_int_equal(pool_of(d, "frames"), 0);
	resize(d, 0);
}

/* ---- tests ---- */

static void made_there(void **state)
{
	struct private_daemon d = start(NULL);
	long used_bytes;

	(void)state;
	for (uint32_t sequence = 0; sequence < 3; sequence++) {
		scene_in_process(put_one, &d, sequence);
		/* At once: the put has ended, and there is nothing to wait for. */
		assert_int_equal(pool_of(&d, "frames"), (sequence + 1) * N_CHUNKS);
		assert_int_equal(pool_of(&d, "placed"), (sequence + 1) * N_CHUNKS);
		scene_in_process(get_one, &d, sequence);
		assert_int_equal(pool_of(&d, "hits"), (sequence + 1) * N_CHUNKS);
	}
	assert_int_equal(pool_of(&d, "uploaded"), 0);
	assert_int_equal(pool_of(&d, "outgrown"), 0);
	used_bytes = pool_of(&d, "used_bytes");
	scene_in_process(get_both_ways, &d, 2);
	assert_int_equal(pool_of(&d, "hits"), 4 * N_CHUNKS);
	assert_int_equal(pool_of(&d, "misses"), N_CHUNKS);
	/* They took no more than they needed: as much as over the bus. */
	resize(&d, SLAB);
	for (uint32_t sequence = 0; sequence < 3; sequence++)
		scene_in_process(get_one, &d, sequence);
	scene_until(&d, "pool", "uploaded", 3l * N_CHUNKS);
	assert_int_equal(pool_of(&d, "used_bytes"), used_bytes);
	nothing_is_held(&d);
	private_daemon_stop(&d);
}

/* Larger than was foretold: over the bus, and once that is known, made there. */
static void larger_than_foretold(void **state)
{
	/* One rung for all while the pool in RAM is empty. */
	const struct private_daemon_options options = {.policy_lines = "mode = pressure\n"};
	struct private_daemon d = start(&options);
	long outgrown;

	(void)state;
	scene_in_process(put_one, &d, 0);
	assert_int_equal(pool_of(&d, "placed"), N_CHUNKS);
	scene_in_process(put_one, &d, LOUD);
	outgrown = pool_of(&d, "outgrown");
	assert_true(outgrown > 0);
	scene_until(&d, "pool", "uploaded", outgrown);
	assert_int_equal(pool_of(&d, "frames"), 2 * N_CHUNKS);
	scene_in_process(get_one, &d, LOUD);
	assert_int_equal(pool_of(&d, "hits"), N_CHUNKS);
	scene_in_process(put_one, &d, LOUD + 1);
	assert_int_equal(pool_of(&d, "outgrown"), outgrown);
	assert_int_equal(pool_of(&d, "placed"), 3 * N_CHUNKS - outgrown);
	scene_in_process(get_one, &d, LOUD + 1);
	nothing_is_held(&d);
	private_daemon_stop(&d);
}

/* No pool, or none any more: chunks are put all the same, and come there when they are restored. */
static void without_a_pool(void **state)
{
	struct private_daemon d = start(NULL);

	(void)state;
	resize(&d, 0);
	scene_in_process(put_one, &d, 0);
	assert_int_equal(pool_of(&d, "frames"), 0);
	resize(&d, SLAB);
	scene_in_process(get_one, &d, 0);
	scene_until(&d, "pool", "uploaded", N_CHUNKS);
	assert_int_equal(pool_of(&d, "placed"), 0);
	assert_int_equal(pool_of(&d, "outgrown"), 0);
	nothing_is_held(&d);
	private_daemon_stop(&d);
}

static void slow_down(const struct cuda_double *d, long us)
{
	d->set_delay_us((unsigned)us);
}

/* The engine dies while its chunks are being encoded, sooner and later. */
static void engines_die(void **state)
{
	enum { ROUNDS = 4 };
	struct private_daemon d = start(NULL);
	const bool is_emulated = scene_has_double();

	(void)state;
	for (uint32_t round = 0; round < ROUNDS; round++) {
		pid_t pid;
		int fd;

		if (is_emulated && round % 2)
			scene_knob(slow_down, 2000);
		pid = scene_start(put_until_killed, &d, round, &fd);
		scene_await(fd);
		nanosleep(&(struct timespec){.tv_nsec = 8000000 * round}, NULL);
		scene_kill(pid);
		close(fd);
		scene_until(&d, "mapped", "allocations", 0);
		if (is_emulated)
			scene_knob(slow_down, 0);
		scene_until(&d, "staging", "lent_bytes", 0);
		scene_until(&d, "codec", "busy", 0);
		print_message("round %u: %ld chunks placed, %ld uploaded\n", round, pool_of(&d, "placed"),
			pool_of(&d, "uploaded"));
	}
	nothing_is_held(&d);
	resize(&d, SLAB);
	scene_in_process(put_one, &d, 1);
	scene_in_process(get_one, &d, 1);
	private_daemon_stop(&d);
}

/* The pool's size is changed while chunks are put: back and forth, to nothing and more. */
static void resized_meanwhile(void **state)
{
	static const long slabs[] = {1, 2, 1, 2, 0};
	struct private_daemon d = start(NULL);
	int fds[2];
	pid_t pids[2];

	(void)state;
	for (uint32_t i = 0; i < 2; i++)
		pids[i] = scene_start(put_some, &d, i * BATCH, &fds[i]);
	for (int i = 0; i < 30; i++) {
		resize(&d, slabs[i % 5] * SLAB);
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	}
	for (uint32_t i = 0; i < 2; i++) {
		scene_end(pids[i]);
		close(fds[i]);
	}
	resize(&d, SLAB);
	print_message("%ld placed, %ld uploaded, %ld outgrown\n", pool_of(&d, "placed"),
		pool_of(&d, "uploaded"), pool_of(&d, "outgrown"));
	for (uint32_t sequence = 0; sequence < 2 * BATCH; sequence++)
		scene_in_process(get_one, &d, sequence);
	scene_until(&d, "pool", "frames", 2l * BATCH * N_CHUNKS);
	nothing_is_held(&d);
	private_daemon_stop(&d);
}

/* Encoded, but the pool in RAM cannot take the frame: then the image goes too. */
static void refused_by_the_cache(void **state)
{
	const struct private_daemon_options options = {.pool_bytes = 1 << 20};
	struct private_daemon d = start(&options);

	(void)state;
	scene_in_process(put_until_full, &d, 100);
	assert_int_equal(pool_of(&d, "outgrown"), 0);
	assert_true(scene_number(&d, "codec", "chunks") > pool_of(&d, "placed"));
	assert_int_equal(pool_of(&d, "placed"), pool_of(&d, "frames"));
	nothing_is_held(&d);
	private_daemon_stop(&d);
}

/* The driver fails at this and that: the host's codec has the chunk, if it is the GPU's that failed, and the
 * room goes back. */
static void the_driver_fails(void **state)
{
	static const char *const faults[] = {"cuStreamSynchronize:2:2", "cuStreamSynchronize:3:2",
		"cuMemcpyDtoHAsync_v2:5:2", "cuMemAlloc_v2:6:2", "cuMemHostAlloc:3:2",
		"cuStreamWaitEvent:4:2", "cuEventRecord:4:2", "cuLaunchKernel:10:2", "cuLaunchKernel:20:2"};

	(void)state;
	if (!scene_has_double())
		skip();
	for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
		struct private_daemon d;

		setenv("CISTERN_DOUBLE_FAIL", faults[i], 1);
		d = start(NULL);
		unsetenv("CISTERN_DOUBLE_FAIL");
		scene_in_process(put_perhaps, &d, 0);
		print_message("%s: %ld placed\n", faults[i], pool_of(&d, "placed"));
		scene_in_process(put_one, &d, 1);
		scene_in_process(get_one, &d, 1);
		assert_true(pool_of(&d, "placed") > 0);
		nothing_is_held(&d);
		private_daemon_stop(&d);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(made_there, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(larger_than_foretold, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(without_a_pool, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(engines_die, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(resized_meanwhile, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(refused_by_the_cache, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(the_driver_fails, make_transform, drop_transform),
	};

	return scene_run(tests, sizeof tests / sizeof *tests);
}
