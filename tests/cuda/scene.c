#include "tests/cuda/scene.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SKIPPED = 77, PATIENCE_MS = 20000 };

static int said = -1; /* in an engine's process */

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- processes ---- */

pid_t scene_start(scene_fn *fn, const struct private_daemon *d, uint32_t arg, int *fd)
{
	int ends[2];
	pid_t pid;

	assert_int_equal(pipe(ends), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		close(ends[0]);
		said = ends[1];
		fn(d ? d->socket : NULL, arg);
		_exit(0);
	}
	close(ends[1]);
	*fd = ends[0];
	return pid;
}

void scene_say(void)
{
	MUST_EQUAL(write(said, "x", 1), 1);
}

void scene_await(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char c;

	assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
	assert_int_equal(read(fd, &c, 1), 1);
}

void scene_end(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

void scene_kill(pid_t pid)
{
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

void scene_in_process(scene_fn *fn, const struct private_daemon *d, uint32_t arg)
{
	int fd;

	scene_end(scene_start(fn, d, arg, &fd));
	close(fd);
}

/* ---- the daemon ---- */

struct private_daemon scene_daemon(const char *more)
{
	char lines[1000];
	const struct private_daemon_options options = {.no_store = 1, .daemon_lines = lines};
	struct private_daemon d;

	/* Emulated, a moment's work takes seconds. */
	snprintf(lines, sizeof lines, "device_share = 100\n%s", more ? more : "");
	assert_int_equal(private_daemon_start(&d, &options), 0);
	return d;
}

json_t *scene_control(const struct private_daemon *d, const char *request)
{
	json_t *object;
	char *answer;

	assert_int_equal(cistern_control(d->socket, request, &answer, 10000), 0);
	object = json_loads(answer, 0, NULL);
	free(answer);
	assert_non_null(object);
	return object;
}

long scene_number(const struct private_daemon *d, const char *group, const char *key)
{
	json_t *status = scene_control(d, "{\"command\":\"status\"}");
	const json_t *value = json_object_get(json_object_get(status, "device"), group);
	long n;

	if (key)
		value = json_object_get(value, key);
	assert_true(json_is_integer(value));
	n = (long)json_integer_value(value);
	json_decref(status);
	return n;
}

long scene_until(const struct private_daemon *d, const char *group, const char *key, long wanted)
{
	const uint64_t start = now_ms();
	long n;

	while ((n = scene_number(d, group, key)) != wanted) {
		if (now_ms() - start > PATIENCE_MS)
			fail_msg("%s.%s stays %ld, and is not %ld", group, key, n, wanted);
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
	}
	return (long)(now_ms() - start);
}

/* ---- the double ---- */

static struct cuda_driver *load(void)
{
	struct cuda_driver *driver;
	char why[256] = "";
	int n = 0;

	if (driver_load(&driver, why, sizeof why) || driver->cuDeviceGetCount(&n) || !n) {
		printf("skipped: %s\n", why[0] ? why : "there is no GPU");
		fflush(stdout);
		return NULL;
	}
	return driver;
}

struct answer {
	long taken_bytes;
	bool loaded, has_double;
};

/* Loads the driver elsewhere, does what is to be done with its double, and tells. */
static struct answer ask(void (*fn)(const struct cuda_double *d, long value), long value)
{
	struct answer a = {0};
	int ends[2], status;
	pid_t pid;

	if (pipe(ends))
		abort();
	fflush(NULL);
	pid = fork();
	if (!pid) {
		const struct cuda_driver *driver = load();
		const struct cuda_double *d = driver ? double_find(driver->library) : NULL;

		a.loaded = driver;
		a.has_double = d;
		if (d) {
			struct double_counts counts;

			d->counts(&counts);
			a.taken_bytes = (long)counts.taken_bytes;
			if (fn)
				fn(d, value);
		}
		_exit(write(ends[1], &a, sizeof a) != sizeof a);
	}
	close(ends[1]);
	if (read(ends[0], &a, sizeof a) != sizeof a || waitpid(pid, &status, 0) != pid)
		abort();
	close(ends[0]);
	return a;
}

long scene_taken_bytes(void)
{
	const struct answer a = ask(NULL, 0);

	return a.has_double ? a.taken_bytes : -1;
}

bool scene_has_double(void)
{
	return ask(NULL, 0).has_double;
}

void scene_knob(void (*fn)(const struct cuda_double *d, long value), long value)
{
	assert_true(ask(fn, value).has_double);
}

int scene_run(const struct CMUnitTest *tests, size_t n)
{
	char folder[] = "/tmp/cistern-double-XXXXXX", file[64];
	int status = SKIPPED;

	if (!mkdtemp(folder))
		return 1;
	/* Nothing to a real driver. */
	snprintf(file, sizeof file, "%s/device", folder);
	setenv("CISTERN_DOUBLE_DEVICE", file, 1);
	if (ask(NULL, 0).loaded)
		status = _cmocka_run_group_tests("engines on the GPU", tests, n, NULL, NULL);
	unlink(file);
	rmdir(folder);
	return status;
}
