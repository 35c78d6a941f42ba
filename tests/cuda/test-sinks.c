/* A daemon with an engine on the GPU decides as one with an engine in shared memory does, given the same
 * keys and values: which tokens are sinks, by what scores, and why. Its search works from statistics that are
 * computed on the GPU, and says what of it crosses the bus. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/formula.h"
#include "tests/cuda/scene.h"
#include "tests/integration/low-rank.h"

/* The first chunks of a model are lessons, for which the host has the layers themselves. */
enum { KIND = 1, PUTS = 14, LESSONS = 8, OUTLIER = 40, DEATHS = 6 };

/* One layer of three is searched: two planes in f16. Statistics: three floats a head, two heads a plane. */
enum { LAYER_BYTES = 2 * E_WIDTH * 2, STATISTICS_BYTES = 2 * E_HEADS * 3 * 4 };

static char transform_path[64];

static int make_transform(void **state)
{
	(void)state;
	snprintf(transform_path, sizeof transform_path, "/tmp/cistern-test-sinks-%d", (int)getpid());
	low_rank_transform(KIND, transform_path);
	return 0;
}

static int drop_transform(void **state)
{
	(void)state;
	return unlink(transform_path);
}

/* Chunks of one put each: whole ones, odd ones, one of too few tokens to be worth measuring. */
static uint32_t tokens_of(uint32_t sequence)
{
	static const uint32_t lengths[PUTS] = {[LESSONS + 1] = 201, [LESSONS + 2] = 30, [LESSONS + 3] = 133};

	return sequence < PUTS && lengths[sequence] ? lengths[sequence] : E_CHUNK;
}

static void prefill(struct engine *e, uint32_t sequence)
{
	low_rank_prefill(e, KIND, sequence, tokens_of(sequence));
	if (tokens_of(sequence) < OUTLIER)
		return;
	for (uint32_t l = 0; l < E_LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t f = 0; f < E_WIDTH; f++) {
				uint16_t *x = &engine_token(e, l, p, OUTLIER + sequence)[f];

				*x = f16_from_f32(12 * f16_to_f32(*x));
			}
}

/* A call of the driver that fails: the n-th of the daemon's from the first chunk on that is measured. */
struct fault {
	const char *call; /* NULL: none */
	unsigned n;
	pid_t pid;
};

static struct fault fault;

static void put_on_gpu(const char *socket, uint32_t first)
{
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, E_LAYERS);
	for (uint32_t s = first; s < PUTS; s++) {
		prefill(&g.host, s);
		gpu_engine_upload(&g);
		gpu_engine_wait(&g);
		if (fault.call && s == LESSONS)
			double_find(g.driver->library)->refuse((int)fault.pid, fault.call, fault.n, 2);
		MUST_EQUAL(engine_put(&g.host, tokens_of(s)).n_chunks, 1);
	}
	gpu_engine_close(&g);
}

static void put_on_host(const char *socket, uint32_t first)
{
	struct engine e;

	engine_open(&e, socket, 3);
	for (uint32_t s = first; s < PUTS; s++) {
		prefill(&e, s);
		MUST_EQUAL(engine_put(&e, tokens_of(s)).n_chunks, 1);
	}
	engine_close(&e);
}

/* What was decided for the i-th chunk, the newest first; without the rung, which follows what frames came to.
 */
static json_t *decision(const struct private_daemon *d, size_t i, const json_t *chunks)
{
	const char *key = json_string_value(json_object_get(json_array_get(chunks, i), "key"));
	char request[200];
	json_t *answer, *decision;

	assert_non_null(key);
	snprintf(request, sizeof request, "{\"command\":\"inspect\",\"key\":\"%s\"}", key);
	answer = scene_control(d, request);
	decision = json_incref(json_object_get(answer, "decision"));
	json_decref(answer);
	assert_non_null(decision);
	json_object_del(decision, "rung");
	return decision;
}

static bool has_unusual(const json_t *decision)
{
	const json_t *sinks = json_object_get(decision, "sinks");
	bool has = false;
	json_t *sink;
	size_t i;

	json_array_foreach(sinks, i, sink) has |=
		!strcmp(json_string_value(json_object_get(sink, "reason")), "unusual");
	return has;
}

static void compare(const struct private_daemon *gpu, const struct private_daemon *host)
{
	json_t *chunks = scene_control(host, "{\"command\":\"decisions\"}");
	const json_t *list = json_object_get(chunks, "chunks");
	size_t n_unusual = 0;

	assert_int_equal(json_array_size(list), PUTS);
	for (size_t i = 0; i < PUTS; i++) {
		json_t *wanted = decision(host, i, list), *got = decision(gpu, i, list);

		if (!json_equal(wanted, got))
			fail_msg("%zu:\n%s\n%s", i, json_dumps(got, 0), json_dumps(wanted, 0));
		n_unusual += i < PUTS - LESSONS && has_unusual(got);
		json_decref(wanted);
		json_decref(got);
	}
	assert_true(n_unusual >= PUTS - LESSONS - 1); /* all but the short one */
	json_decref(chunks);
}

static void start(struct private_daemon *d)
{
	const struct private_daemon_options options = {
		.no_store = 1, .transform = transform_path, .daemon_lines = "device_share = 100\n"};

	assert_int_equal(private_daemon_start(d, &options), 0);
}

static void decisions_are_the_hosts(void **state)
{
	struct private_daemon gpu, host;
	long copied = 0, measured = 0;

	(void)state;
	start(&gpu);
	start(&host);
	scene_in_process(put_on_gpu, &gpu, 0);
	scene_in_process(put_on_host, &host, 0);
	assert_int_equal(scene_number(&gpu, "codec", "chunks"), PUTS);
	compare(&gpu, &host);
	for (uint32_t s = 0; s < PUTS; s++)
		if (s < LESSONS || s == LESSONS + 2)
			copied += tokens_of(s);
		else
			measured += tokens_of(s);
	assert_int_equal(scene_number(&gpu, "search", "copied"), LESSONS + 1);
	assert_int_equal(scene_number(&gpu, "search", "measured"), PUTS - LESSONS - 1);
	/* The statistics' room is rounded up, plane by plane. */
	assert_in_range(scene_number(&gpu, "search", "to_host_bytes"),
		copied * LAYER_BYTES + measured * STATISTICS_BYTES,
		copied * LAYER_BYTES + measured * STATISTICS_BYTES + (PUTS - LESSONS) * 512);
	assert_int_equal(scene_number(&host, "search", "to_host_bytes"), 0);
	print_message("%ld bytes to the host: %ld of layers, and statistics in the place of %ld\n",
		scene_number(&gpu, "search", "to_host_bytes"), copied * LAYER_BYTES, measured * LAYER_BYTES);
	scene_until(&gpu, "staging", "lent_bytes", 0);
	private_daemon_stop(&gpu);
	private_daemon_stop(&host);
}

/* Nothing is searched for: nothing crosses the bus. */
static void no_search(void **state)
{
	const struct private_daemon_options options = {.no_store = 1,
		.transform = transform_path,
		.daemon_lines = "device_share = 100\n",
		.policy_lines = "sink_search = off\n"};
	struct private_daemon d;

	(void)state;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	scene_in_process(put_on_gpu, &d, LESSONS);
	assert_int_equal(scene_number(&d, "codec", "chunks"), PUTS - LESSONS);
	assert_int_equal(scene_number(&d, "search", "copied"), 0);
	assert_int_equal(scene_number(&d, "search", "measured"), 0);
	assert_int_equal(scene_number(&d, "search", "to_host_bytes"), 0);
	private_daemon_stop(&d);
}

/* What fails on the GPU, the host does, of a copy: the decisions stay what they are. In the order of the
 * daemon's calls for a chunk: those for statistics come behind those for its gather. */
static void host_instead(void **state)
{
	static const struct fault faults[] = {{.call = "cuLaunchKernel", .n = 2},
		{.call = "cuMemcpyDtoHAsync", .n = 1}, {.call = "cuEventRecord", .n = 3}};
	struct private_daemon host;

	(void)state;
	if (!scene_has_double()) {
		print_message("needs the double: a real driver's calls do not fail\n");
		return;
	}
	start(&host);
	scene_in_process(put_on_host, &host, 0);
	for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
		struct private_daemon gpu;

		print_message("%s\n", faults[i].call);
		start(&gpu);
		fault = faults[i];
		fault.pid = gpu.pid;
		scene_in_process(put_on_gpu, &gpu, 0);
		fault.call = NULL;
		assert_int_equal(scene_number(&gpu, "codec", "chunks"), PUTS);
		assert_int_equal(scene_number(&gpu, "search", "copied"), LESSONS + 2);
		assert_int_equal(scene_number(&gpu, "search", "measured"), PUTS - LESSONS - 2);
		compare(&gpu, &host);
		private_daemon_stop(&gpu);
	}
	private_daemon_stop(&host);
}

/* ---- engines that die meanwhile ---- */

static void put_and_wait_for_death(const char *socket, uint32_t sequence)
{
	struct cistern_run run;
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, E_LAYERS);
	prefill(&g.host, sequence);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	run = gpu_engine_run(&g, tokens_of(sequence));
	MUST_EQUAL(cistern_put(g.host.c, &run, NULL, 1), 0);
	MUST_EQUAL(cistern_submit(g.host.c), 1);
	scene_say();
	pause();
}

static void slow_down(const struct cuda_double *d, long us)
{
	d->set_delay_us((unsigned)us);
}

static void engines_die(void **state)
{
	const bool is_emulated = scene_has_double();
	struct private_daemon d;

	(void)state;
	start(&d);
	scene_in_process(put_on_gpu, &d, 0);
	if (is_emulated)
		scene_knob(slow_down, 2000);
	for (uint32_t i = 0; i < DEATHS; i++) {
		int fd;
		const pid_t pid = scene_start(put_and_wait_for_death, &d, PUTS + i, &fd);

		scene_await(fd);
		usleep(i * 4000);
		scene_kill(pid);
		close(fd);
		scene_until(&d, "mapped", "allocations", 0);
		scene_until(&d, "staging", "lent_bytes", 0);
	}
	if (is_emulated)
		scene_knob(slow_down, 0);
	scene_in_process(put_on_gpu, &d, PUTS - 1);
	assert_int_equal(private_daemon_end(&d, SIGTERM), 0);
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(decisions_are_the_hosts, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(no_search, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(host_instead, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(engines_die, make_transform, drop_transform),
	};

	return scene_run(tests, sizeof tests / sizeof *tests);
}
