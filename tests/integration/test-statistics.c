/* The statistics page of a real daemon: what engines did is what watchers read, without asking again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shm/stats/view.h"
#include "tests/integration/engine.h"
#include "tools/private-daemon.h"

struct watch {
	struct private_daemon daemon;
	struct stats_view view;
	int alive;
	struct stats_snapshot snapshot;
};

static void attach(struct watch *w)
{
	const char *why = "";
	int page;

	assert_int_equal(cistern_statistics(w->daemon.socket, &page, &w->alive, 5000), 0);
	assert_int_equal(stats_view_map(page, &w->view, &why), 0);
	close(page);
}

static void start(struct watch *w, const struct private_daemon_options *options)
{
	*w = (struct watch){0};
	assert_int_equal(private_daemon_start(&w->daemon, options), 0);
	attach(w);
}

static void detach(struct watch *w)
{
	close(w->alive);
	stats_snapshot_fini(&w->snapshot);
	stats_view_fini(&w->view);
}

/* The value of a field in the one record there is to be, once it is at least what is awaited; publication may
 * be 50 ms behind. */
static uint64_t await(struct watch *w, enum stats_group_id group, const char *id, uint64_t wanted)
{
	const struct stats_field *field = stats_view_field(&w->view, group, id);
	uint64_t n = 0;

	assert_non_null(field);
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(stats_snapshot_take(&w->view, &w->snapshot), 0);
		n = w->snapshot.n[group] ? stats_number(stats_record(&w->view, &w->snapshot, group, 0), field)
					 : 0;
		if (n >= wanted)
			break;
		usleep(10000);
	}
	return n;
}

static uint64_t now(struct watch *w, const char *id)
{
	return stats_number(stats_record(&w->view, &w->snapshot, STATS_CACHE, 0),
		stats_view_field(&w->view, STATS_CACHE, id));
}

static const char *text(struct watch *w, const char *id)
{
	return stats_text(stats_record(&w->view, &w->snapshot, STATS_CACHE, 0),
		stats_view_field(&w->view, STATS_CACHE, id));
}

static uint64_t n_timed(struct watch *w, const char *id)
{
	return histogram_count(stats_histogram(stats_record(&w->view, &w->snapshot, STATS_CACHE, 0),
		stats_view_field(&w->view, STATS_CACHE, id)));
}

static void what_an_engine_did(void **state)
{
	const struct private_daemon_options options = {0};
	struct watch w;
	struct engine e;
	uint64_t raw;

	(void)state;
	start(&w, &options);
	engine_open(&e, w.daemon.socket, 7);
	engine_prefill(&e, 1, 1000);
	assert_int_equal(engine_lookup(&e, 1000), 0);
	assert_int_equal(engine_put(&e, 1000).status, 0);
	assert_int_equal(engine_get(&e, 1000, 0).n_chunks, 4);
	assert_int_equal(engine_wait(&e, cistern_sync(e.c, 1)).status, 0);
	assert_int_equal(engine_lookup(&e, 1000), 4);
	assert_int_equal(await(&w, STATS_CACHE, "lookups", 2), 2);
	assert_string_equal(text(&w, "name_space"), "default");
	assert_true(text(&w, "model")[0]);
	assert_int_equal(now(&w, "lookup_chunks"), 8);
	assert_int_equal(now(&w, "hit_chunks"), 4);
	assert_int_equal(now(&w, "puts"), 1);
	assert_int_equal(now(&w, "gets"), 1);
	assert_int_equal(now(&w, "failed"), 0);
	assert_int_equal(now(&w, "put_chunks"), 4);
	assert_int_equal(now(&w, "get_chunks"), 4);
	raw = 1000ull * E_LAYERS * 2 * E_WIDTH * 2;
	assert_int_equal(now(&w, "put_raw_bytes"), raw);
	assert_int_equal(now(&w, "get_raw_bytes"), raw);
	assert_int_equal(now(&w, "get_frame_bytes"), now(&w, "put_frame_bytes"));
	assert_int_equal(now(&w, "tokens_sink"), 4);
	assert_int_equal(now(&w, "tokens_window"), 128);
	assert_int_equal(now(&w, "tokens_plain") + now(&w, "tokens_exact"), 1000 - 132);
	assert_int_equal(now(&w, "chunks"), 4);
	assert_int_equal(now(&w, "tokens"), 1000);
	assert_int_equal(now(&w, "raw_bytes"), raw);
	assert_int_equal(now(&w, "pool_chunks"), 4);
	assert_int_equal(await(&w, STATS_CACHE, "store_chunks", 4), 4);
	assert_int_equal(now(&w, "store_bytes"), now(&w, "frame_bytes"));
	assert_int_equal(n_timed(&w, "lookup_ns"), 2);
	assert_int_equal(n_timed(&w, "put_ns"), 1);
	assert_int_equal(n_timed(&w, "encode_ns"), 4);
	assert_int_equal(n_timed(&w, "decode_ns"), 4);
	assert_int_equal(await(&w, STATS_DAEMON, "sessions", 1), 1);
	assert_int_equal(await(&w, STATS_DAEMON, "store_writes", 4), 4);
	assert_int_equal(await(&w, STATS_DAEMON, "store_state", 1), 1);

	/* Removal takes everything out of the levels again, and nothing out of the counters. */
	assert_int_equal(engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys, 4, 1)).n_chunks, 4);
	assert_int_equal(await(&w, STATS_CACHE, "removes", 1), 1);
	assert_int_equal(now(&w, "chunks"), 0);
	assert_int_equal(now(&w, "tokens"), 0);
	assert_int_equal(now(&w, "raw_bytes"), 0);
	assert_int_equal(now(&w, "frame_bytes"), 0);
	assert_int_equal(now(&w, "pool_chunks"), 0);
	assert_int_equal(now(&w, "pool_bytes"), 0);
	assert_int_equal(now(&w, "store_chunks"), 0);
	assert_int_equal(now(&w, "store_bytes"), 0);
	assert_int_equal(now(&w, "put_chunks"), 4);
	engine_close(&e);
	detach(&w);
	private_daemon_stop(&w.daemon);
}

/* Eviction moves chunks between tiers: the sums follow. */
static void levels_follow_eviction_and_restart(void **state)
{
	const struct private_daemon_options options = {.pool_bytes = 1 << 20};
	struct watch w;
	struct engine e;
	uint64_t chunks;

	(void)state;
	start(&w, &options);
	engine_open(&e, w.daemon.socket, 7);
	for (uint32_t sequence = 1; sequence <= 24; sequence++) {
		engine_prefill(&e, sequence, 1024);
		assert_int_equal(engine_put(&e, 1024).n_chunks, 4);
		assert_int_equal(engine_wait(&e, cistern_sync(e.c, 1)).status, 0);
	}
	chunks = 24 * 4;
	assert_int_equal(await(&w, STATS_CACHE, "puts", 24), 24);
	/* The page may be a publication older than the last SYNC's answer. */
	assert_int_equal(await(&w, STATS_CACHE, "store_chunks", chunks), chunks);
	assert_int_equal(now(&w, "chunks"), chunks);
	assert_true(now(&w, "pool_chunks") < chunks);
	assert_int_equal(now(&w, "pool_chunks"), chunks - await(&w, STATS_DAEMON, "evicted", 1));
	engine_close(&e);

	/* A restarted daemon has another page; the old one stays readable, and its socket says so. */
	assert_int_equal(private_daemon_end(&w.daemon, SIGKILL), SIGKILL);
	assert_int_equal(poll(&(struct pollfd){.fd = w.alive, .events = POLLIN}, 1, 5000), 1);
	assert_int_equal(stats_snapshot_take(&w.view, &w.snapshot), 0);
	assert_int_equal(now(&w, "chunks"), chunks);
	detach(&w);
	assert_int_equal(private_daemon_restart(&w.daemon), 0);
	attach(&w);
	assert_int_equal(await(&w, STATS_CACHE, "store_chunks", chunks), chunks);
	assert_int_equal(now(&w, "pool_chunks"), 0);
	assert_string_equal(text(&w, "name_space"), "default");
	assert_string_equal(text(&w, "model"), ""); /* until somebody registers it */
	detach(&w);
	private_daemon_stop(&w.daemon);
}

/* How often a process's main thread has gone to sleep so far. */
static unsigned long n_sleeps(pid_t pid)
{
	unsigned long n = 0;
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof line, f))
		sscanf(line, "voluntary_ctxt_switches: %lu", &n);
	fclose(f);
	return n;
}

/* A watcher stays connected in silence for longer than others may; and an idle daemon sleeps. */
static void watching_wakes_nobody(void **state)
{
	const struct private_daemon_options options = {0};
	struct watch w;
	unsigned long before, after;

	(void)state;
	start(&w, &options);
	/* On a busy machine it takes a while to come to rest. */
	for (after = 0, before = 1; after != before;) {
		before = n_sleeps(w.daemon.pid);
		usleep(1500000);
		after = n_sleeps(w.daemon.pid);
	}
	for (int i = 0; i < 100; i++) {
		assert_int_equal(stats_snapshot_take(&w.view, &w.snapshot), 0);
		usleep(60000);
	}
	assert_int_equal(n_sleeps(w.daemon.pid), before);
	assert_int_equal(poll(&(struct pollfd){.fd = w.alive, .events = POLLIN}, 1, 0), 0);
	detach(&w);
	private_daemon_stop(&w.daemon);
}

static void strangers_are_refused(void **state)
{
	const struct private_daemon_options options = {0};
	struct private_daemon d;
	int status;
	pid_t pid;

	(void)state;
	if (geteuid() != 0) {
		print_message("skipped: only root can become somebody else\n");
		skip();
	}
	assert_int_equal(private_daemon_start(&d, &options), 0);
	assert_int_equal(chmod(d.folder, 0755), 0);
	pid = fork();
	if (!pid) {
		int page, alive;

		if (setuid(65534))
			_exit(1);
		_exit(cistern_statistics(d.socket, &page, &alive, 5000) == -EACCES ? 0 : 2);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	private_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_an_engine_did),
		cmocka_unit_test(levels_follow_eviction_and_restart),
		cmocka_unit_test(watching_wakes_nobody),
		cmocka_unit_test(strangers_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
