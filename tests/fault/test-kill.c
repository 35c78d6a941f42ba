/*
 * Kills, and crowds.
 *
 * test-kill daemon N: N times, clients put, sync, get and remove, the daemon is killed with SIGKILL at some
 * moment, is started again, and everything that was acknowledged as synced is asked for and compared with
 * what it was before, bit for bit; what was removed is not there. test-kill clients N: N clients are killed
 * with SIGKILL at some moment of their life; the others notice nothing, and at the end the daemon has no
 * descriptor, no shared memory and no byte of the pool more than before. test-kill crowd N SECONDS: see
 * crowd.h.
 *
 * Each prints its seed and its counts; exit status 0 if all held.
 */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/fault/crowd.h"
#include "tests/integration/engine.h"

enum { WORKERS = 2, LEDGER_MAX = 1 << 18, GONE = 7, WRONG = 42, OLD_ONES = 12 };

/* What clients were promised. Shared between processes; an entry's state is written last. */
struct promise {
	uint32_t sequence, n_tokens;
	uint64_t hash; /* of the engine's memory after a GET, before the SYNC */
	_Atomic int state;
};
enum { UNWRITTEN, SYNCED, BEING_REMOVED, REMOVED };

struct ledger {
	_Atomic uint32_t n;
	_Atomic uint32_t next_sequence;
	struct promise promises[LEDGER_MAX];
};

static struct ledger *ledger;
static uint64_t n_verified, n_chunks_verified, n_removed_verified;

static uint64_t hash_of(const struct engine *e)
{
	const uint64_t *words = (const uint64_t *)(const void *)e->kv;
	uint64_t h = 0xcbf29ce484222325u;

	for (size_t i = 0; i < e->size_bytes / 8; i++)
		h = (h ^ words[i]) * 0x100000001b3u;
	return h;
}

/* Like engine_wait, but the daemon may go. */
static struct cistern_completion await(struct engine *e, int queued)
{
	struct cistern_completion done = {.status = queued};
	int r;

	if (queued)
		_exit(queued == -ENOTCONN ? GONE : WRONG);
	do {
		r = cistern_wait(e->c, &done, 1, 30000);
		if (r == -ENOTCONN)
			_exit(GONE);
		if (r != 1)
			_exit(WRONG);
	} while (done.flags & CISTERN_MORE);
	return done;
}

static struct cistern_run run_of(const struct engine *e, uint32_t n_tokens)
{
	return (struct cistern_run){.memory_id = e->memory_id,
		.n_tokens = n_tokens,
		.keys = e->keys,
		.n_chunks = (n_tokens + E_CHUNK - 1) / E_CHUNK,
		.n_blocks = (n_tokens + E_BLOCK - 1) / E_BLOCK,
		.blocks = e->blocks};
}

/* ---- the daemon is killed ---- */

static void put_one(struct engine *e, unsigned *seed)
{
	const uint32_t sequence = atomic_fetch_add(&ledger->next_sequence, 1);
	const uint32_t n_tokens = 256 + (uint32_t)rand_r(seed) % 1024;
	const struct cistern_run run = run_of(e, n_tokens);
	struct promise *p;
	uint64_t hash;

	engine_prefill(e, sequence, n_tokens);
	if (await(e, cistern_put(e->c, &run, NULL, 1)).status)
		_exit(WRONG);
	engine_wipe(e);
	if (await(e, cistern_get(e->c, &run, 2)).n_chunks != run.n_chunks)
		_exit(WRONG);
	hash = hash_of(e);
	if (await(e, cistern_sync(e->c, 3)).status)
		_exit(WRONG);
	p = &ledger->promises[atomic_fetch_add(&ledger->n, 1)];
	p->sequence = sequence;
	p->n_tokens = n_tokens;
	p->hash = hash;
	atomic_store(&p->state, SYNCED);
}

static void remove_one(struct engine *e, unsigned *seed)
{
	const uint32_t n = atomic_load(&ledger->n);
	struct promise *p = n ? &ledger->promises[(uint32_t)rand_r(seed) % n] : NULL;
	int synced = SYNCED;

	if (!p || !atomic_compare_exchange_strong(&p->state, &synced, BEING_REMOVED))
		return;
	engine_keys(e, p->sequence, p->n_tokens);
	if (await(e, cistern_remove(e->c, e->model_id, e->keys, (p->n_tokens + E_CHUNK - 1) / E_CHUNK, 4))
			.status)
		_exit(WRONG);
	atomic_store(&p->state, REMOVED);
}

static void worker(const char *socket, unsigned seed)
{
	struct engine e;

	/* It may be gone before we have come. */
	if (!freopen("/dev/null", "w", stderr))
		_exit(WRONG);
	engine_open(&e, socket, 3);
	for (;;) {
		put_one(&e, &seed);
		if (rand_r(&seed) % 4 == 0)
			remove_one(&e, &seed);
	}
}

static int verify_one(struct engine *e, struct promise *p)
{
	const struct cistern_run run = run_of(e, p->n_tokens);
	const int state = atomic_load(&p->state);
	struct cistern_completion done;

	/* Of one that was about to be removed any part may be there. */
	if (state != SYNCED && state != REMOVED)
		return 0;
	engine_keys(e, p->sequence, p->n_tokens);
	if (state == REMOVED) {
		n_removed_verified++;
		for (uint32_t i = 0; i < run.n_chunks; i++) {
			done = engine_wait(e, cistern_lookup(e->c, e->model_id, &e->keys[i], 1, 1));
			if (done.status || done.n_chunks) {
				fprintf(stderr, "sequence %u: chunk %u was removed and is back\n",
					p->sequence, i);
				return 1;
			}
		}
		return 0;
	}
	engine_wipe(e);
	done = engine_wait(e, cistern_get(e->c, &run, 1));
	n_verified++;
	n_chunks_verified += done.n_chunks;
	if (done.status || done.n_chunks != run.n_chunks) {
		fprintf(stderr, "sequence %u: %u of %u chunks, status %d: it was synced\n", p->sequence,
			done.n_chunks, run.n_chunks, done.status);
		return 1;
	}
	if (hash_of(e) != p->hash) {
		fprintf(stderr, "sequence %u: not the bytes that were there before\n", p->sequence);
		return 1;
	}
	return 0;
}

/* All since first, and some of the older ones. */
static int verify(const struct private_daemon *d, uint32_t first, unsigned *seed)
{
	const uint32_t n = atomic_load(&ledger->n);
	struct engine e;
	int n_faults = 0;

	engine_open(&e, d->socket, 3);
	for (uint32_t i = first; i < n; i++)
		n_faults += verify_one(&e, &ledger->promises[i]);
	for (int i = 0; i < OLD_ONES && first; i++)
		n_faults += verify_one(&e, &ledger->promises[(uint32_t)rand_r(seed) % first]);
	engine_close(&e);
	return n_faults;
}

static json_t *control(const struct private_daemon *d, const char *request)
{
	json_t *object;
	char *answer;

	MUST_EQUAL(cistern_control(d->socket, request, &answer, 20000), 0);
	object = json_loads(answer, 0, NULL);
	free(answer);
	MUST(object);
	return object;
}

static long number(const struct private_daemon *d, const char *group, const char *key)
{
	json_t *status = control(d, "{\"command\":\"status\"}");
	const long n = (long)json_integer_value(json_object_get(json_object_get(status, group), key));

	json_decref(status);
	return n;
}

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int kill_daemon(int n_kills, unsigned seed)
{
	const struct private_daemon_options options = {
		.pool_bytes = 64 << 20, .store_lines = "size = 16G", .workers = 2};
	double slowest = 0, all = 0;
	struct private_daemon d;
	int n_faults = 0;
	uint32_t first;

	MUST_EQUAL(private_daemon_start(&d, &options), 0);
	for (int kill_number = 0; kill_number < n_kills; kill_number++) {
		pid_t pids[WORKERS];
		double start;

		first = atomic_load(&ledger->n);
		fflush(NULL);
		for (int i = 0; i < WORKERS; i++) {
			pids[i] = fork();
			if (pids[i] == 0)
				worker(d.socket, (unsigned)rand_r(&seed) + (unsigned)i);
		}
		usleep((useconds_t)rand_r(&seed) % 200000);
		MUST_EQUAL(private_daemon_end(&d, SIGKILL), SIGKILL);
		for (int i = 0; i < WORKERS; i++) {
			int status;

			waitpid(pids[i], &status, 0);
			/* 99: it came too late to attach. */
			if (!WIFEXITED(status) ||
				(WEXITSTATUS(status) != GONE && WEXITSTATUS(status) != 99)) {
				fprintf(stderr, "kill %d: a client ended with %d\n", kill_number, status);
				n_faults++;
			}
		}
		start = now_s();
		MUST_EQUAL(private_daemon_restart(&d), 0);
		all += now_s() - start;
		if (now_s() - start > slowest)
			slowest = now_s() - start;
		n_faults += verify(&d, first, &seed);
		if (kill_number % 100 == 99)
			printf("%d kills, %u sequences synced, %d faults\n", kill_number + 1,
				(unsigned)atomic_load(&ledger->n), n_faults);
		fflush(stdout);
	}
	/* At last, all of them. */
	n_faults += verify(&d, 0, &seed);
	json_decref(control(&d, "{\"command\":\"drop-pool\"}"));
	printf("%d kills of the daemon: %u sequences acknowledged as synced; %llu checked (%llu chunks) bit "
	       "for bit, %llu "
	       "removed ones looked for; %d faults; %ld records in the store, %ld dropped as torn; restart "
	       "%.0f ms on "
	       "average, %.0f at most; pool after drop-pool: %ld bytes\n",
		n_kills, (unsigned)atomic_load(&ledger->n), (unsigned long long)n_verified,
		(unsigned long long)n_chunks_verified, (unsigned long long)n_removed_verified, n_faults,
		number(&d, "store", "records"), number(&d, "store", "dropped"), all / n_kills * 1000,
		slowest * 1000, number(&d, "pool", "used_bytes"));
	n_faults += number(&d, "pool", "used_bytes") != 0;
	private_daemon_stop(&d);
	return n_faults;
}

/* ---- clients are killed ---- */

static void victim(const char *socket, unsigned seed)
{
	struct engine e;

	engine_open(&e, socket, seed);
	for (;;) {
		const uint32_t sequence = (uint32_t)rand_r(&seed) % 64, n_tokens = 256 * (1 + sequence % 6);
		const struct cistern_run run = run_of(&e, n_tokens);
		const uint32_t n_chunks = run.n_chunks;

		engine_prefill(&e, sequence, n_tokens);
		/* Queued and left in flight, for the end to come at any moment. */
		for (int i = rand_r(&seed) % 6; i >= 0; i--)
			switch (rand_r(&seed) % 8) {
			case 0: cistern_get(e.c, &run, 1); break;
			case 1: cistern_pin(e.c, e.model_id, e.keys, n_chunks, 2); break;
			case 2: cistern_prefetch(e.c, e.model_id, e.keys, n_chunks, 3); break;
			case 3: cistern_remove(e.c, e.model_id, e.keys, n_chunks, 4); break;
			case 4: cistern_sync(e.c, 5); break;
			default: cistern_put(e.c, &run, NULL, 6); break;
			}
		cistern_submit(e.c);
		for (struct cistern_completion done[8]; cistern_poll(e.c, done, 8) > 0;)
			;
		if (rand_r(&seed) % 16 == 0) {
			engine_close(&e);
			engine_open(&e, socket, seed);
		}
	}
}

static int an_honest_one(const struct private_daemon *d, uint32_t sequence)
{
	struct cistern_completion done;
	struct engine e;
	int n_faults;

	engine_open(&e, d->socket, 1);
	engine_prefill(&e, sequence, 700);
	done = engine_put(&e, 700);
	n_faults = done.status || done.n_chunks != 3;
	engine_wipe(&e);
	done = engine_get(&e, 700, 0);
	n_faults += done.status || done.n_chunks != 3 || engine_error(&e, sequence, 0, 700) > 0.02;
	done = engine_wait(&e, cistern_remove(e.c, e.model_id, e.keys, 3, 1));
	n_faults += done.status || done.n_chunks != 3;
	engine_close(&e);
	return n_faults;
}

static size_t n_sessions(const struct private_daemon *d)
{
	json_t *status = control(d, "{\"command\":\"status\"}");
	const size_t n = json_array_size(json_object_get(status, "sessions"));

	json_decref(status);
	return n;
}

/* Until no session is left and nothing is on its way to the disk. Returns how many sessions there still were.
 */
static size_t wait_until_alone(const struct private_daemon *d)
{
	size_t n_left = n_sessions(d);

	for (int waited = 0; n_left && waited < 5000; waited += 5, n_left = n_sessions(d))
		usleep(5000);
	for (int waited = 0; number(d, "store", "writing_bytes") && waited < 5000; waited += 5)
		usleep(5000);
	return n_left;
}

/* Once what was just closed is. */
static struct process_size settled_size(const struct private_daemon *d)
{
	struct process_size least = process_size(d->pid);

	for (int i = 0; i < 50; i++) {
		struct process_size s;

		usleep(5000);
		s = process_size(d->pid);
		if (s.n_fds - s.n_segments < least.n_fds - least.n_segments)
			least = s;
	}
	return least;
}

static int kill_clients(int n_kills, unsigned seed)
{
	const struct private_daemon_options options = {.pool_bytes = 32 << 20, .workers = 2};
	struct process_size before, after;
	struct private_daemon d;
	long at_third = 0, pool_bytes;
	int n_faults = 0;
	size_t n_left;

	MUST_EQUAL(private_daemon_start(&d, &options), 0);
	n_faults += an_honest_one(&d, 5000);
	wait_until_alone(&d);
	before = settled_size(&d);
	for (int i = 0; i < n_kills; i++) {
		pid_t pid;

		fflush(NULL);
		pid = fork();
		if (pid == 0)
			victim(d.socket, (unsigned)rand_r(&seed));
		usleep((useconds_t)rand_r(&seed) % 20000);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		if (i % 25 == 24)
			n_faults += an_honest_one(&d, 5001 + (uint32_t)i);
		if (i % 100 == 99) {
			after = process_size(d.pid);
			printf("%d kills: %ld KiB resident, %d descriptors, %d of them of segments, %d "
			       "shared memories\n",
				i + 1, after.resident_kib, after.n_fds, after.n_segments, after.n_memfds);
			if (!at_third && i >= n_kills / 3)
				at_third = after.resident_kib;
		}
	}
	n_faults += an_honest_one(&d, 4999);
	n_left = wait_until_alone(&d);
	/* A session that is gone keeps its memory until its work in flight has ended. */
	for (int waited = 0; process_size(d.pid).n_memfds != before.n_memfds && waited < 5000; waited += 5)
		usleep(5000);
	json_decref(control(&d, "{\"command\":\"drop-pool\"}"));
	pool_bytes = number(&d, "pool", "used_bytes");
	after = settled_size(&d);
	/* The store keeps some of its files open; those are not counted. */
	before.n_fds -= before.n_segments;
	after.n_fds -= after.n_segments;
	printf("%d kills of clients: %d faults; sessions left %zu; descriptors %d before, %d after, and %d "
	       "of segments; shared memories %d before, %d after; pool after drop-pool %ld bytes; resident "
	       "%ld KiB before, %ld at a third, %ld after\n",
		n_kills, n_faults, n_left, before.n_fds, after.n_fds, after.n_segments, before.n_memfds,
		after.n_memfds, pool_bytes, before.resident_kib, at_third, after.resident_kib);
	n_faults += n_left != 0;
	n_faults += after.n_fds != before.n_fds;
	/* Within so few nothing is warm. */
	n_faults += n_kills >= 1000 && after.resident_kib > at_third + at_third / 20 + 4096;
	n_faults += after.n_memfds != before.n_memfds;
	n_faults += pool_bytes != 0;
	if (n_faults)
		printf("now: %zu sessions, %ld bytes in the pool\n", n_sessions(&d),
			number(&d, "pool", "used_bytes"));
	private_daemon_stop(&d);
	return n_faults;
}

static int crowd(int n_clients, int seconds)
{
	const struct private_daemon_options options = {
		.pool_bytes = 8 << 20, .workers = 2, .store_lines = "size = 64M\nsegment_size = 4M"};
	struct private_daemon d;
	int n_faults;

	MUST_EQUAL(private_daemon_start(&d, &options), 0);
	n_faults = crowd_run(&d, n_clients, seconds);
	printf("pool evicted %ld, store evicted %ld, moved %ld, fetched %ld, lost %ld, errors %ld\n",
		number(&d, "cache", "evicted"), number(&d, "store", "evicted"), number(&d, "store", "moved"),
		number(&d, "cache", "fetched"), number(&d, "store", "lost"), number(&d, "store", "errors"));
	private_daemon_stop(&d);
	return n_faults;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	const int n = argc > 2 ? atoi(argv[2]) : 10;
	const unsigned seed = (unsigned)time(NULL);
	int n_faults = 2;

	ledger = mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (ledger == MAP_FAILED)
		return 1;
	printf("seed %u\n", seed);
	if (!strcmp(what, "daemon"))
		n_faults = kill_daemon(n, seed);
	else if (!strcmp(what, "clients"))
		n_faults = kill_clients(n, seed);
	else if (!strcmp(what, "crowd") && argc > 3)
		n_faults = crowd(n, atoi(argv[3]));
	else
		fprintf(stderr, "test-kill daemon N | clients N | crowd N SECONDS\n");
	if (n_faults)
		printf("%d faults\n", n_faults);
	return n_faults != 0;
}
