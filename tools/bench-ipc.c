/*
 * A NOP's way to the daemon and back, spinning and sleeping, beside what the machine can do at best: two
 * threads that bounce a cache line, and two that wake each other through eventfds. Rounds of all four are
 * interleaved, so that whatever else the machine does falls on all alike; figures are medians over the
 * rounds' quantiles.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "shm/cistern.h"
#include "tools/bench.h"
#include "tools/cistern.h"
#include "tools/private-daemon.h"

enum { ROUNDS_MAX = 101, DAEMON_SPIN_US = 1000000, CLIENT_SPIN_US = 1000000 };

static const char usage[] = "Usage: cistern bench ipc [--json] [--rounds N] [--requests N]\n"
			    "\n"
			    "Round trip of a NOP through a private cisternd, in microseconds, while both "
			    "sides spin and while both\n"
			    "sleep, beside the floors: a cache line bounced between two threads, and two "
			    "threads that wake each other\n"
			    "through eventfds.\n"
			    "\n"
			    "  --json          one JSON object\n"
			    "  --rounds N      interleaved rounds, 1 to 101 (default 11)\n"
			    "  --requests N    round trips in each round (default 2000)\n";

struct series {
	const char *name;
	double p50[ROUNDS_MAX], p99[ROUNDS_MAX];
};

enum { CACHE_LINE, SPINNING, EVENTFD, SLEEPING, N_SERIES };

/* ---- floors ---- */

struct bounce {
	_Alignas(64) _Atomic uint32_t there;
	_Alignas(64) _Atomic uint32_t back;
	uint32_t n;
	int to, from;
};

static void *bounce_back(void *arg)
{
	struct bounce *b = arg;

	for (uint32_t i = 1; i <= b->n; i++) {
		while (atomic_load_explicit(&b->there, memory_order_acquire) != i)
			;
		atomic_store_explicit(&b->back, i, memory_order_release);
	}
	return NULL;
}

static int cache_line_floor(double *us, uint32_t n)
{
	struct bounce b = {.n = n};
	pthread_t thread;

	if (pthread_create(&thread, NULL, bounce_back, &b))
		return -EAGAIN;
	for (uint32_t i = 1; i <= n; i++) {
		const uint64_t start = bench_now_ns();

		atomic_store_explicit(&b.there, i, memory_order_release);
		while (atomic_load_explicit(&b.back, memory_order_acquire) != i)
			;
		us[i - 1] = (double)(bench_now_ns() - start) / 1000;
	}
	pthread_join(thread, NULL);
	return 0;
}

static void *wake_back(void *arg)
{
	struct bounce *b = arg;
	eventfd_t value;

	for (uint32_t i = 0; i < b->n; i++)
		if (eventfd_read(b->to, &value) || eventfd_write(b->from, 1))
			break;
	return NULL;
}

static int eventfd_floor(double *us, uint32_t n)
{
	struct bounce b = {.n = n, .to = eventfd(0, EFD_CLOEXEC), .from = eventfd(0, EFD_CLOEXEC)};
	pthread_t thread;
	eventfd_t value;

	if (b.to < 0 || b.from < 0 || pthread_create(&thread, NULL, wake_back, &b))
		return -EAGAIN;
	for (uint32_t i = 0; i < n; i++) {
		const uint64_t start = bench_now_ns();

		if (eventfd_write(b.to, 1) || eventfd_read(b.from, &value))
			break;
		us[i] = (double)(bench_now_ns() - start) / 1000;
	}
	pthread_join(thread, NULL);
	close(b.to);
	close(b.from);
	return 0;
}

/* ---- ours ---- */

static int round_trips(struct cistern *c, double *us, uint32_t n)
{
	struct cistern_completion done;

	for (uint32_t i = 0; i < n; i++) {
		const uint64_t start = bench_now_ns();
		int r = cistern_nop(c, i);

		if (!r)
			r = cistern_wait(c, &done, 1, 10000);
		if (r != 1 || done.user_data != i || done.status)
			return r < 0 ? r : -ETIMEDOUT;
		us[i] = (double)(bench_now_ns() - start) / 1000;
	}
	return 0;
}

struct side {
	struct private_daemon daemon;
	struct cistern *client;
};

static int side_open(struct side *s, uint32_t daemon_spin_us, uint32_t client_spin_us)
{
	const struct private_daemon_options options = {
		.spin_us = daemon_spin_us, .workers = 1, .no_store = 1, .pool_bytes = 1 << 20};
	struct cistern_options connect = {.spin_us = client_spin_us};
	int r = private_daemon_start(&s->daemon, &options);

	if (r)
		return r;
	connect.socket_path = s->daemon.socket;
	r = cistern_connect(&connect, &s->client);
	if (r)
		fprintf(stderr, "cistern bench ipc: %s\n", cistern_error(NULL));
	return r;
}

static void side_close(struct side *s)
{
	cistern_close(s->client);
	private_daemon_stop(&s->daemon);
}

static int run_round(struct side *side, double *us, uint32_t n, int which)
{
	/* A daemon that spins would take a core from the other measurements: each round has it fresh, and it
	 * sleeps again soon after its last request, or ends. */
	switch (which) {
	case CACHE_LINE: return cache_line_floor(us, n);
	case EVENTFD: return eventfd_floor(us, n);
	default: return round_trips(side->client, us, n);
	}
}

static int measure(struct series *series, uint32_t n_rounds, uint32_t n)
{
	double *us = calloc(n, sizeof *us);
	int r = us ? 0 : -ENOMEM;

	for (uint32_t round = 0; !r && round < n_rounds; round++)
		for (int k = 0; !r && k < N_SERIES; k++) {
			struct side side = {0};

			if (k == SPINNING)
				r = side_open(&side, DAEMON_SPIN_US, CLIENT_SPIN_US);
			else if (k == SLEEPING)
				r = side_open(&side, 0, 0);
			if (!r)
				r = run_round(&side, us, n, k); /* warms up */
			if (!r)
				r = run_round(&side, us, n, k);
			if (!r) {
				series[k].p50[round] = bench_quantile(us, n, 0.5);
				series[k].p99[round] = bench_quantile(us, n, 0.99);
			}
			side_close(&side);
		}
	free(us);
	return r;
}

static void report(struct series *series, uint32_t n_rounds, uint32_t n, bool json)
{
	double p50[N_SERIES], p99[N_SERIES];
	json_t *object;

	for (int k = 0; k < N_SERIES; k++) {
		p50[k] = bench_quantile(series[k].p50, n_rounds, 0.5);
		p99[k] = bench_quantile(series[k].p99, n_rounds, 0.5);
	}
	if (!json) {
		printf("NOP round trip, microseconds (%u rounds of %u)\n\n", n_rounds, n);
		printf("%-28s %8s %8s\n", "", "p50", "p99");
		for (int k = 0; k < N_SERIES; k++)
			printf("%-28s %8.2f %8.2f\n", series[k].name, p50[k], p99[k]);
		printf("\nspinning is %.1f times its floor, sleeping %.1f times\n",
			p50[SPINNING] / p50[CACHE_LINE], p50[SLEEPING] / p50[EVENTFD]);
		return;
	}
	object = json_object();
	for (int k = 0; k < N_SERIES; k++)
		json_object_set_new(
			object, series[k].name, json_pack("{s:f, s:f}", "p50_us", p50[k], "p99_us", p99[k]));
	json_object_set_new(object, "spinning_over_floor", json_real(p50[SPINNING] / p50[CACHE_LINE]));
	json_object_set_new(object, "sleeping_over_floor", json_real(p50[SLEEPING] / p50[EVENTFD]));
	json_object_set_new(object, "rounds", json_integer(n_rounds));
	json_object_set_new(object, "requests", json_integer(n));
	print_json(object);
}

int bench_ipc(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"rounds", required_argument, NULL, 'r'}, {"requests", required_argument, NULL, 'n'},
		{"help", no_argument, NULL, 'h'}, {0}};
	static struct series series[N_SERIES] = {[CACHE_LINE] = {.name = "floor: cache line"},
		[SPINNING] = {.name = "spinning"},
		[EVENTFD] = {.name = "floor: eventfd"},
		[SLEEPING] = {.name = "sleeping"}};
	uint32_t n_rounds = 11, n = 2000;
	bool json = false;
	int option, r;

	optind = 1;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'j': json = true; break;
		case 'r': n_rounds = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'n': n = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind != argc || n_rounds < 1 || n_rounds > ROUNDS_MAX || n < 10 || n > 10000000) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	r = measure(series, n_rounds, n);
	if (r) {
		fprintf(stderr, "cistern bench ipc: %s\n", strerror(-r));
		return EXIT_FAILURE;
	}
	report(series, n_rounds, n, json);
	return EXIT_SUCCESS;
}
