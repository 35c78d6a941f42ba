#include "tests/fault/crowd.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/integration/engine.h"

/* See tests/integration/test-daemon.c. */
static const double ERROR_MAX = 0.02;

enum { OWN = 24, SHARED = 12, WRONG = 42 };

struct process_size process_size(pid_t pid)
{
	struct process_size s = {0};
	char path[64], line[512];
	struct dirent *entry;
	DIR *dir;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof line, f))
		sscanf(line, "VmRSS: %ld", &s.resident_kib);
	if (f)
		fclose(f);
	snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, line, sizeof line - 1);

		line[n > 0 ? n : 0] = 0;
		s.n_fds++;
		s.n_segments += strstr(line, "/segment-") != NULL;
	}
	if (dir)
		closedir(dir);
	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof line, f))
		s.n_memfds += strstr(line, "/memfd:") != NULL;
	if (f)
		fclose(f);
	return s;
}

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void wrong(const char *what, uint32_t sequence, long value)
{
	fprintf(stderr, "client %d: sequence %u: %s (%ld)\n", (int)getpid(), sequence, what, value);
	_exit(WRONG);
}

/* One piece of work, of a kind drawn by lot, on a sequence of its own or one that all clients use. */
static void work(struct engine *e, unsigned *seed, uint32_t client)
{
	const bool shared = rand_r(seed) % 3 == 0;
	const uint32_t sequence =
		shared ? (uint32_t)rand_r(seed) % SHARED : 1000 + client * OWN + (uint32_t)rand_r(seed) % OWN;
	/* Of a sequence the length is given too: chunks are put once. */
	const uint32_t n_tokens = 256 * (sequence % 5 + 1), n_chunks = n_tokens / E_CHUNK;
	const int what = rand_r(seed) % 16;
	struct cistern_completion done;

	engine_keys(e, sequence, n_tokens);
	if (what < 5) {
		engine_prefill(e, sequence, n_tokens);
		done = engine_put(e, n_tokens);
		if (done.status && done.status != -ENOSPC)
			wrong("put", sequence, done.status);
	} else if (what < 11) {
		engine_wipe(e);
		done = engine_get(e, n_tokens, what % 2 ? CISTERN_LAYERWISE : 0);
		if (done.status && done.status != -ENOSPC)
			wrong("get", sequence, done.status);
		if (done.n_chunks > n_chunks)
			wrong("more than was asked for", sequence, done.n_chunks);
		if (done.n_chunks && engine_error(e, sequence, 0, done.n_chunks * E_CHUNK) > ERROR_MAX)
			wrong("not what was put", sequence, done.n_chunks);
	} else if (what == 11) {
		engine_lookup(e, n_tokens);
	} else if (what == 12) {
		done = engine_wait(e, cistern_prefetch(e->c, e->model_id, e->keys, n_chunks, 1));
		if (done.status && done.status != -ENOSPC)
			wrong("prefetch", sequence, done.status);
	} else if (what == 13) {
		done = engine_wait(e, cistern_pin(e->c, e->model_id, e->keys, n_chunks, 1));
		if (!done.status)
			engine_wait(e, cistern_unpin(e->c, e->model_id, e->keys, done.n_chunks, 2));
	} else if (what == 14) {
		done = engine_wait(e, cistern_remove(e->c, e->model_id, e->keys, n_chunks, 1));
		if (done.status)
			wrong("remove", sequence, done.status);
	} else {
		/* -EIO: the disk was too slow for something, and that is told. */
		done = engine_wait(e, cistern_sync(e->c, 1));
		if (done.status && done.status != -EIO)
			wrong("sync", sequence, done.status);
	}
}

static void client(const char *socket, uint32_t number, double until, uint64_t *n_done)
{
	unsigned seed = number * 7919 + 1;
	struct engine e;

	engine_open(&e, socket, number);
	while (now_s() < until) {
		work(&e, &seed, number);
		++*n_done;
		/* Some come and go. */
		if (number % 4 == 0 && rand_r(&seed) % 200 == 0) {
			engine_close(&e);
			engine_open(&e, socket, number);
		}
	}
	engine_close(&e);
	_exit(0);
}

int crowd_run(const struct private_daemon *d, int n_clients, int seconds)
{
	uint64_t *n_done = NULL, total = 0;
	const double start = now_s(), until = start + seconds;
	const int period = seconds < 20 ? 1 : seconds / 20;
	long at_third = 0, at_end = 0;
	int n_faults = 0;
	pid_t pids[256];
	int fd;
	void *addr;

	if (cistern_memory_create("counts", sizeof *n_done * 256, &fd, &addr))
		return 1;
	n_done = addr;
	fflush(NULL);
	for (int i = 0; i < n_clients; i++) {
		pids[i] = fork();
		if (pids[i] == 0)
			client(d->socket, (uint32_t)i, until, &n_done[i]);
	}
	for (int at = period; at <= seconds; at += period) {
		struct process_size s;

		while (now_s() < start + at)
			usleep(10000);
		s = process_size(d->pid);
		if (!at_third && at * 3 >= seconds)
			at_third = s.resident_kib;
		at_end = s.resident_kib;
		total = 0;
		for (int i = 0; i < n_clients; i++)
			total += n_done[i];
		printf("%4d s: %ld MiB resident, %d descriptors, %d shared memories, %llu operations\n", at,
			s.resident_kib >> 10, s.n_fds, s.n_memfds, (unsigned long long)total);
		fflush(stdout);
	}
	for (int i = 0; i < n_clients; i++) {
		int status;

		waitpid(pids[i], &status, 0);
		n_faults += status != 0;
	}
	close(fd);
	printf("%d clients, %d s, %llu operations, %d clients found fault; %ld KiB at a third of the time, "
	       "%ld at the end\n",
		n_clients, seconds, (unsigned long long)total, n_faults, at_third, at_end);
	/* Within seconds nothing is warm, and a sanitizer keeps for a while what was freed. */
	return n_faults + (seconds >= 60 && at_end > at_third + at_third / 20 + 8192);
}
