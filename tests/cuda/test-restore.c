/* A daemon with a transform, engines on the GPU and engines on the host beside them: what is put by the one
 * is got by the other, encoded and decoded on the GPU where it lies there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "policy/calibrate.h"
#include "tests/cuda/scene.h"
#include "tests/integration/low-rank.h"

/* Emulated, a moment's work takes seconds. */
#define WHOLE_GPU "device_share = 100\n"

enum { SINKS = 4, WINDOW = 128, N = 700, N_CHUNKS = 3, KIND = 1, SEQUENCES = 4 };

/* Low-rank values with noise, at 16x: as in tests/integration/test-learn.c. */
static const double ERROR_MAX = 0.25;

static char transform_path[64];

/* ---- a transform for the test engine's model, from a sequence of its own ---- */

static struct geometry engine_geometry(void)
{
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_plane planes[2];
	struct cistern_model model;
	float inv_freq[E_DIM / 2];
	struct geometry g = {.n_layers = E_LAYERS, .n_planes = 2, .tp_size = 1};

	engine_describe(&model, planes, inv_freq, layouts);
	snprintf(g.name, sizeof g.name, "%s", model.name);
	for (int i = 0; i < 2; i++)
		g.planes[i] =
			(struct plane){.n_heads = E_HEADS, .dim = E_DIM, .dtype = DTYPE_F16, .rope_scale = 1};
	g.planes[0].rope_kind = ROPE_HALF;
	g.planes[0].rope_dim = E_DIM;
	memcpy(g.planes[0].inv_freq, inv_freq, sizeof inv_freq);
	return g;
}

static void gather_features(
	const struct geometry *g, const struct engine *e, uint32_t plane, uint32_t n, float *x)
{
	const struct kernels *k = kernels_cpu();
	const struct kv_run run = {e->blocks, E_BLOCK, 0};
	static float table[E_TOKENS_MAX * E_DIM];
	uint64_t positions[E_TOKENS_MAX];
	uint16_t tokens[E_TOKENS_MAX];
	const struct rope_table rope = {table, table + E_TOKENS_MAX * E_DIM / 2};

	for (uint32_t t = 0; t < n; t++) {
		positions[t] = t;
		tokens[t] = (uint16_t)t;
	}
	k->rope_fill(&g->planes[0], positions, n, table, table + E_TOKENS_MAX * E_DIM / 2);
	for (uint32_t l = 0; l < E_LAYERS; l++) {
		const struct kv_pages pages = {
			.base = (uint8_t *)(e->kv + (size_t)(l * 2 + plane) * E_BLOCKS * E_BLOCK * E_WIDTH),
			.block_stride = E_BLOCK * E_WIDTH * 2,
			.token_stride = E_WIDTH * 2,
			.head_stride = E_DIM * 2};

		k->gather(&g->planes[plane], &pages, &run, tokens, n, plane ? NULL : &rope, NULL, NULL,
			x + l * E_WIDTH, E_LAYERS * E_WIDTH);
	}
}

static int make_transform(void **state)
{
	const struct geometry g = engine_geometry();
	struct engine e = {.size_bytes = (size_t)E_LAYERS * 2 * E_BLOCKS * E_BLOCK * E_WIDTH * 2};
	static float x[E_TOKENS_MAX * E_LAYERS * E_WIDTH];
	struct calibrate_options options;
	struct calibrate *c;
	char why[200] = "";
	void *data;
	size_t len;
	FILE *file;

	(void)state;
	e.kv = calloc(1, e.size_bytes);
	for (uint32_t i = 0; i < E_BLOCKS; i++)
		e.blocks[i] = i;
	calibrate_options_init(&options);
	assert_int_equal(calibrate_new(&g, &options, &c, why, sizeof why), 0);
	for (uint32_t sequence = 1000; sequence < 1004; sequence++) {
		low_rank_prefill(&e, KIND, sequence, E_TOKENS_MAX);
		for (uint32_t part = 0; part < calibrate_n_parts(c); part++) {
			struct transform_part p;

			calibrate_part(c, part, &p);
			assert_int_equal(p.n_layers, E_LAYERS);
			gather_features(&g, &e, p.plane, E_TOKENS_MAX, x);
			assert_int_equal(calibrate_add(c, part, x, E_LAYERS * E_WIDTH, E_TOKENS_MAX), 0);
		}
	}
	for (uint32_t part = 0; part < calibrate_n_parts(c); part++)
		assert_int_equal(calibrate_learn(c, part), 0);
	assert_int_equal(calibrate_finish(c, "test", &data, &len, NULL), 0);
	snprintf(transform_path, sizeof transform_path, "/tmp/cistern-test-transform-%d", (int)getpid());
	file = fopen(transform_path, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(data, 1, len, file), len);
	fclose(file);
	calibrate_free(c);
	free(data);
	free(e.kv);
	return 0;
}

static int drop_transform(void **state)
{
	(void)state;
	return unlink(transform_path);
}

static void check(const struct engine *e, uint32_t sequence)
{
	MUST(low_rank_error(e, KIND, sequence, 0, SINKS) == 0);
	MUST(low_rank_error(e, KIND, sequence, N - WINDOW, N) == 0);
	MUST(low_rank_error(e, KIND, sequence, SINKS, N - WINDOW) < ERROR_MAX);
	MUST(low_rank_error(e, KIND, sequence, SINKS, N - WINDOW) > 0);
	MUST(engine_is_wiped(e, N));
}

static void put_on_gpu(const char *socket, uint32_t sequence)
{
	struct cistern_completion done;
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 1, sequence % 2 ? CISTERN_MEMORY_CUDA_IPC : CISTERN_MEMORY_CUDA_VMM, 1);
	low_rank_prefill(&g.host, KIND, sequence, N);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	done = engine_put(&g.host, N);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, N_CHUNKS);
	gpu_engine_close(&g);
}

static void get_on_gpu(const char *socket, uint32_t sequence)
{
	struct cistern_completion done;
	struct gpu_engine g;

	gpu_engine_open(
		&g, socket, 5, sequence % 2 ? CISTERN_MEMORY_CUDA_VMM : CISTERN_MEMORY_CUDA_IPC, E_LAYERS);
	low_rank_keys(&g.host, KIND, sequence, N);
	gpu_engine_fill(&g, 0x55);
	gpu_engine_wait(&g);
	done = engine_get(&g.host, N, sequence & 1 ? CISTERN_LAYERWISE : 0);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, N_CHUNKS);
	MUST_EQUAL(done.n_layers, E_LAYERS);
	gpu_engine_download(&g);
	gpu_engine_wait(&g);
	check(&g.host, sequence);
	gpu_engine_close(&g);
}

static void put_on_host(const char *socket, uint32_t sequence)
{
	struct engine e;

	engine_open(&e, socket, 3);
	low_rank_prefill(&e, KIND, sequence, N);
	MUST_EQUAL(engine_put(&e, N).n_chunks, N_CHUNKS);
	engine_close(&e);
}

static void get_on_host(const char *socket, uint32_t sequence)
{
	struct cistern_completion done;
	struct engine e;

	engine_open(&e, socket, 7);
	low_rank_keys(&e, KIND, sequence, N);
	engine_wipe(&e);
	done = engine_get(&e, N, 0);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, N_CHUNKS);
	check(&e, sequence);
	engine_close(&e);
}

static void remove_on_host(const char *socket, uint32_t sequence)
{
	struct engine e;

	engine_open(&e, socket, 3);
	low_rank_keys(&e, KIND, sequence, N);
	MUST_EQUAL(engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys, N_CHUNKS, 5)).n_chunks, N_CHUNKS);
	engine_close(&e);
}

static void each_reads_the_other(void **state)
{
	const struct private_daemon_options options = {
		.no_store = 1, .transform = transform_path, .daemon_lines = WHOLE_GPU};
	struct private_daemon d;

	(void)state;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	for (uint32_t sequence = 0; sequence < SEQUENCES; sequence++) {
		const long encoded = scene_number(&d, "codec", "chunks"),
			   restored = scene_number(&d, "codec", "restored");

		if (sequence < SEQUENCES / 2) {
			scene_in_process(put_on_gpu, &d, sequence);
			assert_true(scene_number(&d, "codec", "chunks") == encoded + N_CHUNKS);
		} else {
			scene_in_process(put_on_host, &d, sequence);
			assert_true(scene_number(&d, "codec", "chunks") == encoded);
		}
		scene_in_process(get_on_gpu, &d, sequence);
		assert_true(scene_number(&d, "codec", "restored") == restored + N_CHUNKS);
		scene_in_process(get_on_host, &d, sequence);
		scene_in_process(get_on_gpu, &d, sequence);
	}
	private_daemon_stop(&d);
}

/* An engine that is told by events alone: one for each group of layers, recorded in order. */
static void get_by_events(const char *socket, uint32_t sequence)
{
	struct cistern_completion c[8];
	struct cistern_run run;
	struct gpu_engine g;
	uint32_t n_layers = 0;
	bool ended = false;

	gpu_engine_open(&g, socket, 5, CISTERN_MEMORY_CUDA_IPC, 1);
	gpu_engine_events(&g);
	low_rank_keys(&g.host, KIND, sequence, N);
	gpu_engine_fill(&g, 0x55);
	CU(g.driver->cuEventRecord(g.ready, g.stream));
	run = gpu_engine_run(&g, N);
	run.ready_event = g.ready_id;
	run.first_event = g.groups_id;
	run.n_events = 1;
	MUST_EQUAL(cistern_get(g.host.c, &run, 99), 0);
	while (!ended) {
		const int n = cistern_wait(g.host.c, c, 8, 10000);

		MUST(n > 0);
		for (int i = 0; i < n; i++) {
			MUST_EQUAL(c[i].user_data, 99);
			if (!(c[i].flags & CISTERN_MORE)) {
				MUST_EQUAL(c[i].status, 0);
				MUST_EQUAL(c[i].n_chunks, N_CHUNKS);
				ended = true;
				continue;
			}
			MUST(!ended && c[i].n_layers > n_layers);
			n_layers = c[i].n_layers;
			/* From here on the engine's stream may wait for it. */
			CU(g.driver->cuStreamWaitEvent(g.stream, g.groups[0], 0));
			gpu_engine_download(&g);
		}
	}
	MUST_EQUAL(n_layers, E_LAYERS);
	gpu_engine_wait(&g);
	check(&g.host, sequence);
	gpu_engine_close(&g);
}

static void by_events(void **state)
{
	const struct private_daemon_options options = {
		.no_store = 1, .transform = transform_path, .daemon_lines = WHOLE_GPU};
	struct private_daemon d;

	(void)state;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	scene_in_process(put_on_gpu, &d, 1);
	scene_in_process(get_by_events, &d, 1);
	assert_true(scene_number(&d, "codec", "restored") == N_CHUNKS);
	private_daemon_stop(&d);
}

/* With a pool on the GPU: what was put or restored is there soon after, and restored from there. When the
 * chunk goes, so does its image. */
static void from_the_pool(void **state)
{
	const struct private_daemon_options options = {
		.no_store = 1, .transform = transform_path, .daemon_lines = WHOLE_GPU "device_pool = 64M\n"};
	struct private_daemon d;

	(void)state;
	assert_int_equal(private_daemon_start(&d, &options), 0);
	scene_until(&d, "pool", "size_bytes", 64 << 20);
	scene_in_process(put_on_gpu, &d, 0);
	scene_in_process(put_on_host, &d, 1);
	scene_until(&d, "pool", "frames", N_CHUNKS);
	scene_in_process(get_on_gpu, &d, 0);
	assert_true(scene_number(&d, "pool", "hits") == N_CHUNKS);
	scene_in_process(get_on_gpu, &d, 1);
	assert_true(scene_number(&d, "pool", "hits") == N_CHUNKS);
	scene_until(&d, "pool", "frames", 2 * N_CHUNKS);
	scene_in_process(get_on_gpu, &d, 1);
	assert_true(scene_number(&d, "pool", "hits") == 2 * N_CHUNKS);
	/* After some idle seconds only the pool has memory. */
	assert_true(scene_number(&d, "codec", "idle_bytes") > 0);
	scene_until(&d, "codec", "idle_bytes", 0);
	scene_in_process(get_on_gpu, &d, 0);
	scene_in_process(remove_on_host, &d, 1);
	assert_true(scene_number(&d, "pool", "frames") == N_CHUNKS);
	private_daemon_stop(&d);
}

/* Whatever call of the driver fails while a chunk is encoded, the host's codec has it then; the same with one
 * that is restored. */
static void host_instead(void **state)
{
	static const char *const faults[] = {"cuStreamSynchronize:2:2", "cuStreamSynchronize:3:2",
		"cuMemcpyDtoHAsync_v2:5:2", "cuMemAlloc_v2:6:2", "cuMemHostAlloc:3:2"};
	const struct private_daemon_options options = {
		.no_store = 1, .transform = transform_path, .daemon_lines = WHOLE_GPU};

	(void)state;
	for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
		struct private_daemon d;

		print_message("%s\n", faults[i]);
		setenv("CISTERN_DOUBLE_FAIL", faults[i], 1);
		assert_int_equal(private_daemon_start(&d, &options), 0);
		unsetenv("CISTERN_DOUBLE_FAIL");
		scene_in_process(put_on_gpu, &d, 0);
		scene_in_process(get_on_gpu, &d, 0);
		scene_in_process(get_on_host, &d, 0);
		private_daemon_stop(&d);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(each_reads_the_other, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(by_events, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(from_the_pool, make_transform, drop_transform),
		cmocka_unit_test_setup_teardown(host_instead, make_transform, drop_transform),
	};

	return scene_run(tests, sizeof tests / sizeof *tests);
}
