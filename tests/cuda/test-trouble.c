/* What may go wrong between the daemon, an engine and the GPU: handles that are none, memory that was freed
 * and given out anew, events that were destroyed, a GPU that is full, a driver call that does not come back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/cuda/scene.h"

enum { N = 600 };

static void serve(const char *socket, uint32_t sequence)
{
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	engine_prefill(&g.host, sequence, N);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	MUST_EQUAL(engine_put(&g.host, N).status, 0);
	gpu_engine_fill(&g, 0x55);
	gpu_engine_wait(&g);
	MUST_EQUAL(engine_get(&g.host, N, 0).n_chunks, 3);
	gpu_engine_download(&g);
	gpu_engine_wait(&g);
	MUST(engine_error(&g.host, sequence, 0, N) < 0.02);
	gpu_engine_close(&g);
}

/* ---- descriptions that lie ---- */

/* Leaves a handle that was good as long as the process lived. */
static void leave_handle(const char *path, uint32_t arg)
{
	struct gpu_engine g = {.host = {.size_bytes = 1 << 20}};
	CUipcMemHandle handle;
	FILE *f;

	(void)arg;
	gpu_engine_begin(&g);
	gpu_engine_allocate(&g, CISTERN_MEMORY_CUDA_IPC, 1);
	CU(g.driver->cuIpcGetMemHandle(&handle, g.parts[0]));
	f = fopen(path, "w");
	MUST(f && fwrite(&handle, sizeof handle, 1, f) == 1 && fclose(f) == 0);
}

static void lie(const char *socket, uint32_t arg)
{
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_device_part parts[2];
	struct cistern_plane planes[2];
	struct cistern_memory memory;
	struct cistern_model model;
	float inv_freq[E_DIM / 2];
	CUipcEventHandle event;
	struct gpu_engine g, shared;
	CUipcMemHandle handle;
	CUevent own;
	char path[300];
	uint32_t id;
	FILE *f;

	(void)arg;
	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	CU(g.driver->cuIpcGetMemHandle(&handle, g.parts[0]));
	shared = g;
	gpu_engine_allocate(&shared, CISTERN_MEMORY_CUDA_VMM, 1);
	engine_describe(&model, planes, inv_freq, layouts);
	const struct cistern_memory good = {.model_id = g.host.model_id,
		.fd = -1,
		.size_bytes = g.host.size_bytes,
		.block_tokens = E_BLOCK,
		.n_blocks = E_BLOCKS,
		.layouts = layouts,
		.kind = CISTERN_MEMORY_CUDA_IPC,
		.n_parts = 1,
		.parts = parts};
	struct cistern_device_part part = {.address = g.parts[0], .size_bytes = g.host.size_bytes, .fd = -1};

	memcpy(part.handle, &handle, 64);
	static const struct {
		const char *what;
		int wanted;
	} cases[] = {
		{"as it is registered already", 0},
		{"a handle of zeros", -EINVAL},
		{"a handle of noise", -EINVAL},
		{"a handle of a process that is gone", -EINVAL},
		{"an event's handle", -EINVAL},
		{"a part that begins too late", -EINVAL},
		{"a part that begins outside", -EINVAL},
		{"a part whose end is past all numbers", -EINVAL},
		{"an empty part beside one that is as large as it says", -EINVAL},
		{"a layout across two parts", -EINVAL},
		{"another GPU's", -ENODEV},
		{"a file for a descriptor", -EINVAL},
		{"a descriptor's allocation larger than it is", -EINVAL},
		{"a descriptor's part outside it", -EINVAL},
		{"a descriptor as it should be", 0},
	};

	CU(g.driver->cuEventCreate(&own, CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS));
	CU(g.driver->cuIpcGetEventHandle(&event, own));
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		int fd = -1, r;

		memory = good;
		parts[0] = parts[1] = part;
		if (i >= 11) {
			memory.kind = CISTERN_MEMORY_CUDA_VMM;
			memset(parts[0].handle, 0, 64);
			parts[0].allocation_bytes = shared.allocation_bytes;
			parts[0].address = shared.parts[0];
			CU(g.driver->cuMemExportToShareableHandle(
				&fd, shared.handles[0], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
			parts[0].fd = fd;
		}
		switch (i) {
		case 1: memset(parts[0].handle, 0, 64); break;
		case 2:
			for (int k = 0; k < 64; k++)
				parts[0].handle[k] = (uint8_t)(k * 37 + 11);
			break;
		case 3:
			snprintf(path, sizeof path, "%s.handle", socket);
			f = fopen(path, "r");
			MUST(f && fread(parts[0].handle, 64, 1, f) == 1 && fclose(f) == 0);
			break;
		case 4: memcpy(parts[0].handle, &event, 64); break;
		case 5: parts[0].offset_bytes = 1 << 20; break;
		case 6: parts[0].offset_bytes = 1ull << 40; break;
		case 7: parts[0].offset_bytes = UINT64_MAX - 4; break;
		case 8:
			memory.n_parts = 2;
			parts[1].size_bytes = 0;
			break;
		case 9:
			memory.n_parts = 2;
			parts[0].size_bytes = g.host.size_bytes / 4;
			parts[1].size_bytes = g.host.size_bytes - parts[0].size_bytes;
			break;
		case 10: memory.uuid[3] = 0x5a; break;
		case 11: parts[0].fd = open(socket, O_PATH); break;
		case 12: parts[0].allocation_bytes *= 64; break;
		case 13: parts[0].offset_bytes = shared.allocation_bytes; break;
		}
		r = cistern_register_memory(g.host.c, &memory, &id);
		if (r != cases[i].wanted)
			fprintf(stderr, "%s: %d, not %d: %s\n", cases[i].what, r, cases[i].wanted,
				cistern_error(g.host.c));
		MUST_EQUAL(r, cases[i].wanted);
		if (!r)
			MUST_EQUAL(cistern_unregister_memory(g.host.c, id), 0);
		if (fd >= 0)
			close(fd);
		if (i == 11)
			close(parts[0].fd);
	}
	MUST_EQUAL(cistern_register_events(g.host.c, &handle, 1, &id), -EINVAL);
	MUST_EQUAL(cistern_register_events(g.host.c, &event, 1, &id), 0);
	MUST_EQUAL(cistern_unregister_events(g.host.c, id), 0);
	/* The same allocation twice, by either kind of name: both serve. */
	for (uint32_t by_fd = 0; by_fd < 2; by_fd++) {
		struct gpu_engine e = by_fd ? shared : g;
		uint32_t ids[2];

		for (int i = 0; i < 2; i++) {
			MUST_EQUAL(gpu_engine_register(&e), 0);
			ids[i] = e.host.memory_id;
		}
		for (uint32_t i = 0; i < 2; i++) {
			e.host.memory_id = ids[i];
			engine_keys(&e.host, 60 + 2 * by_fd + i, N);
			MUST_EQUAL(engine_put(&e.host, N).status, 0);
			MUST_EQUAL(cistern_unregister_memory(e.host.c, ids[i]), 0);
		}
	}
	gpu_engine_free_memory(&shared);
	gpu_engine_close(&g);
}

static void lies(void **state)
{
	struct private_daemon d = scene_daemon(NULL);
	char path[310];

	(void)state;
	/* The first argument is where to leave it. */
	struct private_daemon elsewhere = d;
	snprintf(path, sizeof path, "%s.handle", d.socket);
	snprintf(elsewhere.socket, sizeof elsewhere.socket, "%.290s", path);
	scene_in_process(leave_handle, &elsewhere, 0);
	scene_in_process(lie, &d, 0);
	unlink(path);
	scene_until(&d, "mapped", "allocations", 0);
	scene_in_process(serve, &d, 1);
	private_daemon_stop(&d);
}

/* A chunk that staging could never hold is refused when its model's memory is registered. */
static void too_large(const char *socket, uint32_t arg)
{
	const struct cistern_options options = {.socket_path = socket};
	struct cistern_plane plane = {.n_heads = 64, .dim = 128, .dtype = CISTERN_F16};
	struct cistern_model model = {.name = "large", .n_layers = 1, .n_planes = 1, .planes = &plane};
	struct cistern_layout layout = {.block_stride = 16384, .token_stride = 16384, .head_stride = 256};
	struct cistern_device_part part = {.size_bytes = 16384};
	struct cistern_memory memory = {.size_bytes = 16384,
		.block_tokens = 1,
		.n_blocks = 1,
		.layouts = &layout,
		.kind = CISTERN_MEMORY_CUDA_IPC,
		.n_parts = 1,
		.parts = &part};
	struct cistern *c;
	uint32_t id;

	(void)arg;
	MUST_EQUAL(cistern_connect(&options, &c), 0);
	MUST_EQUAL(cistern_register_model(c, &model, &memory.model_id), 0);
	MUST_EQUAL(cistern_register_memory(c, &memory, &id), -ENOSPC);
	cistern_close(c);
}

static void chunk_over_staging(void **state)
{
	struct private_daemon d = scene_daemon("device_staging = 4M\n");

	(void)state;
	scene_in_process(too_large, &d, 0);
	scene_in_process(serve, &d, 1);
	assert_true(scene_number(&d, "staging", "bytes") <= 4 << 20);
	private_daemon_stop(&d);
}

/* ---- memory that is not what it was ---- */

static void reallocate(const char *socket, uint32_t arg)
{
	struct cistern_completion done;
	struct gpu_engine g;
	CUdeviceptr before;
	uint32_t old_id;

	(void)arg;
	setenv("CISTERN_DOUBLE_REUSE", "1", 1);
	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	engine_prefill(&g.host, 1, N);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	MUST_EQUAL(engine_put(&g.host, N).status, 0);
	/* Freed and allocated anew, and nobody told the daemon. */
	old_id = g.host.memory_id;
	before = g.parts[0];
	gpu_engine_free_memory(&g);
	gpu_engine_allocate(&g, CISTERN_MEMORY_CUDA_IPC, 1);
	if (g.parts[0] != before) {
		printf("the address was not given out again: nothing to see here\n");
		fflush(stdout);
		return;
	}
	gpu_engine_fill(&g, 0x55);
	gpu_engine_wait(&g);
	MUST_EQUAL(gpu_engine_register(&g), 0);
	done = engine_get(&g.host, N, 0);
	MUST_EQUAL(done.status, 0);
	MUST_EQUAL(done.n_chunks, 3);
	gpu_engine_download(&g);
	gpu_engine_wait(&g);
	MUST(engine_error(&g.host, 1, 0, N) < 0.02);
	/* By the old name there is nothing any more. */
	MUST(g.host.memory_id != old_id);
	g.host.memory_id = old_id;
	engine_keys(&g.host, 2, N);
	done = engine_put(&g.host, N);
	MUST_EQUAL(done.status, -ESTALE);
	MUST_EQUAL(done.n_chunks, 0);
	MUST_EQUAL(cistern_unregister_memory(g.host.c, old_id), 0);
	gpu_engine_close(&g);
}

static void address_given_out_again(void **state)
{
	struct private_daemon d = scene_daemon(NULL);

	(void)state;
	scene_in_process(reallocate, &d, 0);
	if (scene_has_double())
		assert_int_equal(scene_number(&d, "mapped", "stale"), 1);
	scene_until(&d, "mapped", "allocations", 0);
	private_daemon_stop(&d);
}

/* An engine destroys its events while the daemon is at work with them, and goes on, or ends. */
static void destroy_events(const char *socket, uint32_t ends)
{
	struct cistern_run run;
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	gpu_engine_events(&g);
	engine_prefill(&g.host, 7 + ends, N);
	gpu_engine_upload(&g);
	CU(g.driver->cuEventRecord(g.ready, g.stream));
	run = gpu_engine_run(&g, N);
	run.ready_event = g.ready_id;
	run.released_event = g.released_id;
	MUST_EQUAL(cistern_put(g.host.c, &run, NULL, 1), 0);
	MUST_EQUAL(cistern_submit(g.host.c), 1);
	CU(g.driver->cuEventDestroy(g.ready));
	CU(g.driver->cuEventDestroy(g.released));
	if (ends)
		return;
	/* Whatever becomes of it, it comes to an end. */
	engine_wait(&g.host, 0);
	gpu_engine_close(&g);
}

static void slow_down(const struct cuda_double *d, long us)
{
	d->set_delay_us((unsigned)us);
}

static void events_are_destroyed(void **state)
{
	struct private_daemon d = scene_daemon(NULL);
	const bool is_emulated = scene_has_double();

	(void)state;
	if (is_emulated)
		scene_knob(slow_down, 5000);
	scene_in_process(destroy_events, &d, 0);
	scene_in_process(destroy_events, &d, 1);
	if (is_emulated)
		scene_knob(slow_down, 0);
	scene_until(&d, "mapped", "events", 0);
	scene_in_process(serve, &d, 1);
	private_daemon_stop(&d);
}

/* ---- a GPU that is full ---- */

static void set_total(const struct cuda_double *d, long bytes)
{
	d->set_total_bytes((uint64_t)bytes);
}

static void put_in_vain(const char *socket, uint32_t arg)
{
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	engine_prefill(&g.host, arg, N);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	scene_say();
	for (int i = 0; i < 1000; i++) {
		struct cistern_completion done;

		engine_keys(&g.host, arg + 100 + (uint32_t)i, N);
		done = engine_put(&g.host, N);
		if (done.status == -ENOSPC) {
			MUST_EQUAL(done.n_chunks, 0);
			gpu_engine_close(&g);
			return;
		}
		MUST_EQUAL(done.status, 0);
		usleep(10000);
	}
	MUST(!"there was room all the time");
}

static void put_at_last(const char *socket, uint32_t sequence)
{
	struct cistern_completion done = {.status = -ENOSPC};
	struct gpu_engine g;

	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	engine_prefill(&g.host, sequence, N);
	gpu_engine_upload(&g);
	gpu_engine_wait(&g);
	for (int i = 0; i < 2000 && done.status == -ENOSPC; i++) {
		done = engine_put(&g.host, N);
		usleep(10000);
	}
	MUST_EQUAL(done.status, 0);
	gpu_engine_close(&g);
}

static void memory_runs_out(void **state)
{
	struct private_daemon d;
	long taken;
	pid_t pid;
	int fd;

	(void)state;
	if (!scene_has_double()) {
		print_message("needs the double: a real GPU is not to be filled\n");
		return;
	}
	d = scene_daemon(NULL);
	taken = scene_taken_bytes();
	scene_knob(set_total, taken + ((long)E_LAYERS * 2 * E_BLOCKS * E_BLOCK * E_WIDTH * 2) + (64 << 10));
	pid = scene_start(put_in_vain, &d, 1, &fd);
	scene_await(fd);
	scene_end(pid);
	close(fd);
	assert_true(scene_number(&d, "staging", "refused") > 0);
	/* There is room again: the daemon asks again after a while. */
	scene_knob(set_total, 1l << 32);
	scene_in_process(put_at_last, &d, 50);
	scene_in_process(serve, &d, 1);
	private_daemon_stop(&d);
}

/* ---- a call that does not come back ---- */

static pid_t stuck_pid;

static void hang_next(const struct cuda_double *d, long ms)
{
	d->refuse((int)stuck_pid, "cuIpcOpenMemHandle", 1, (int)-ms);
}

static void attach(const char *socket, uint32_t arg)
{
	struct gpu_engine g;

	(void)arg;
	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	gpu_engine_close(&g);
}

static bool log_says(const struct private_daemon *d, const char *what)
{
	static char text[1 << 16];
	FILE *f = fopen(d->log, "r");
	size_t len;

	assert_non_null(f);
	len = fread(text, 1, sizeof text - 1, f);
	fclose(f);
	text[len] = 0;
	return strstr(text, what);
}

static void one_call_hangs(void **state)
{
	struct private_daemon d;
	json_t *status, *lane;
	bool named = false;
	size_t i;
	pid_t pid;
	int fd;

	(void)state;
	if (!scene_has_double()) {
		print_message("needs the double: a real driver's calls come back\n");
		return;
	}
	d = scene_daemon(NULL);
	stuck_pid = d.pid;
	scene_knob(hang_next, 4000);
	pid = scene_start(attach, &d, 0, &fd);
	/* Until it is at it. */
	while (scene_number(&d, "mapped", "allocations") == 0)
		usleep(1000);
	/* Others come, work and go meanwhile. */
	for (uint32_t n = 0; n < 3; n++)
		scene_in_process(serve, &d, 10 + n);
	for (int tries = 0; tries < 1000 && !named; tries++) {
		status = scene_control(&d, "{\"command\":\"status\"}");
		json_array_foreach(json_object_get(json_object_get(status, "device"), "lanes"), i, lane)
			named |= json_is_true(json_object_get(lane, "stuck")) &&
				 !strcmp(json_string_value(json_object_get(lane, "doing")), "open memory");
		json_decref(status);
		usleep(5000);
	}
	assert_true(named);
	assert_true(log_says(&d, "is stuck: open memory has not come back"));
	/* The engine gives up; what was opened for it is closed once the call has come back. */
	scene_kill(pid);
	close(fd);
	scene_in_process(serve, &d, 20);
	scene_until(&d, "mapped", "allocations", 0);
	private_daemon_stop(&d);
}

/* And does not keep the daemon from ending. */
static void one_call_hangs_for_good(void **state)
{
	struct private_daemon d;
	pid_t pid;
	int fd;

	(void)state;
	if (!scene_has_double()) {
		print_message("needs the double: a real driver's calls come back\n");
		return;
	}
	d = scene_daemon(NULL);
	stuck_pid = d.pid;
	scene_knob(hang_next, 120000);
	pid = scene_start(attach, &d, 0, &fd);
	while (scene_number(&d, "mapped", "allocations") == 0)
		usleep(1000);
	assert_int_equal(WEXITSTATUS(private_daemon_end(&d, SIGTERM)), EXIT_FAILURE);
	private_daemon_stop(&d);
	scene_kill(pid);
	close(fd);
}

/* ---- limits ---- */

static void stay(const char *socket, uint32_t arg)
{
	struct gpu_engine g;

	(void)arg;
	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_CUDA_IPC, 1);
	scene_say();
	pause();
}

static void find_no_room(const char *socket, uint32_t arg)
{
	struct gpu_engine g;

	(void)arg;
	gpu_engine_open(&g, socket, 1, CISTERN_MEMORY_MEMFD, 0);
	gpu_engine_allocate(&g, CISTERN_MEMORY_CUDA_IPC, 1);
	MUST_EQUAL(gpu_engine_register(&g), -ENOSPC);
	gpu_engine_close(&g);
}

static void no_more_is_mapped_than_may_be(void **state)
{
	struct private_daemon d = scene_daemon("device_map = 1M\n");
	pid_t pid;
	int fd;

	(void)state;
	pid = scene_start(stay, &d, 0, &fd);
	scene_await(fd);
	scene_in_process(find_no_room, &d, 0);
	assert_int_equal(scene_number(&d, "mapped", "allocations"), 1);
	scene_kill(pid);
	close(fd);
	scene_until(&d, "mapped", "allocations", 0);
	scene_in_process(serve, &d, 1);
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lies),
		cmocka_unit_test(chunk_over_staging),
		cmocka_unit_test(address_given_out_again),
		cmocka_unit_test(events_are_destroyed),
		cmocka_unit_test(memory_runs_out),
		cmocka_unit_test(one_call_hangs),
		cmocka_unit_test(one_call_hangs_for_good),
		cmocka_unit_test(no_more_is_mapped_than_may_be),
	};

	return scene_run(tests, sizeof tests / sizeof *tests);
}
