/* The daemon and engines whose caches lie on the GPU, each a process of its own. */
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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/cuda/double/double.h"
#include "tests/cuda/engine.h"
#include "tools/private-daemon.h"

enum { SINKS = 4, WINDOW = 128, SKIPPED = 77, N = 600 };

/* As in tests/integration/test-daemon.c: half a step of 8 bits. */
static const double PLAIN_ERROR_MAX = 0.02;

static struct private_daemon start(const char *more)
{
	const struct private_daemon_options options = {.no_store = 1, .daemon_lines = more};
	struct private_daemon d;

	assert_int_equal(private_daemon_start(&d, &options), 0);
	return d;
}

/* Runs fn in a process of its own, with a driver of its own, and wants it to end well. */
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
	struct private_daemon d = start("");

	(void)state;
	for (uint32_t kind = 0; kind < 4; kind++) {
		in_process(put, &d, kind);
		in_process(get, &d, kind);
	}
	private_daemon_stop(&d);
}

/* Whether there is a GPU that can be used; asked in a process of its own, for a driver does not survive a
 * fork. */
static bool have_gpu(void)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		char why[256] = "";
		struct cuda_driver *driver;
		int n = 0;

		if (driver_load(&driver, why, sizeof why) || driver->cuDeviceGetCount(&n) || !n) {
			printf("skipped: %s\n", why[0] ? why : "there is no GPU");
			fflush(stdout);
			_exit(1);
		}
		_exit(0);
	}
	return waitpid(pid, &status, 0) == pid && !status;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_puts_another_gets),
	};
	char folder[] = "/tmp/cistern-double-XXXXXX", file[64];
	int status;

	if (!mkdtemp(folder))
		return 1;
	/* Nothing to a real driver. */
	snprintf(file, sizeof file, "%s/device", folder);
	setenv("CISTERN_DOUBLE_DEVICE", file, 1);
	status = have_gpu() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIPPED;
	unlink(file);
	rmdir(folder);
	return status;
}
