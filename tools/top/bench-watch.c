/*
 * What watching costs the daemon: its CPU time while an engine looks up 200 times a second, with nobody
 * watching and with watchers (`cistern top --json` at 10 Hz each), in interleaved rounds. Beside it what the
 * daemon pays whether or not anybody watches: the publication of its statistics, 20 times a second.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime/stats/board.h"
#include "shm/cistern.h"
#include "tools/bench.h"
#include "tools/cistern.h"
#include "tools/private-daemon.h"

enum {
	ROUNDS_MAX = 101,
	WATCHERS_MAX = 8,
	LOOKUPS_PER_S = 200,
	LOOKUP_CHUNKS = 16,
	PUBLICATIONS = 2000,
	CACHES = 8
};

static const char usage[] = "Usage: cistern bench watch [--json] [--rounds N] [--seconds S] [--watchers N]\n"
			    "\n"
			    "CPU time of a private cisternd under a light load, as a share of one core, with "
			    "nobody watching and with\n"
			    "watchers at 10 Hz, beside what publishing its statistics costs it in any case.\n"
			    "\n"
			    "  --json          one JSON object\n"
			    "  --rounds N      interleaved rounds, 1 to 101 (default 5)\n"
			    "  --seconds S     of each part of a round, 1 to 60 (default 2)\n"
			    "  --watchers N    1 to 8 (default 4)\n";

struct bench {
	struct private_daemon daemon;
	struct cistern *engine;
	uint32_t model_id, seconds, n_watchers;
	struct cistern_key keys[LOOKUP_CHUNKS];
};

/* CPU time of all threads so far, in nanoseconds (proc(5), schedstat). 0: it cannot be read. */
static uint64_t cpu_ns(pid_t pid)
{
	char path[300];
	uint64_t sum = 0;
	DIR *tasks;
	const struct dirent *task;

	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	tasks = opendir(path);
	while (tasks && (task = readdir(tasks))) {
		unsigned long long ns;
		FILE *f;

		if (task->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", (int)pid, task->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fscanf(f, "%llu", &ns) == 1)
			sum += ns;
		fclose(f);
	}
	if (tasks)
		closedir(tasks);
	return sum;
}

static pid_t start_watcher(const struct bench *b)
{
	const pid_t parent = getpid(), pid = fork();
	int null;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	null = open("/dev/null", O_RDWR);
	if (getppid() != parent || null < 0 || dup2(null, STDOUT_FILENO) < 0)
		_exit(1);
	execl("/proc/self/exe", "cistern", "top", "--json", "--interval", "0.1", "--socket", b->daemon.socket,
		(char *)NULL);
	_exit(1);
}

/* The daemon's share of a core while the engine asks for some seconds, or (asking false) is silent; or a
 * negative -errno. */
static double measure(const struct bench *b, bool asking)
{
	const uint64_t start_ns = bench_now_ns(), cpu_before = cpu_ns(b->daemon.pid);
	const uint64_t n = (uint64_t)b->seconds * LOOKUPS_PER_S;
	struct cistern_completion done;

	for (uint64_t i = 1; i <= n; i++) {
		const uint64_t next_ns = start_ns + i * (1000000000 / LOOKUPS_PER_S);
		const struct timespec next = {
			.tv_sec = (time_t)(next_ns / 1000000000), .tv_nsec = (long)(next_ns % 1000000000)};

		if (asking && (cistern_lookup(b->engine, b->model_id, b->keys, LOOKUP_CHUNKS, i) ||
				      cistern_wait(b->engine, &done, 1, 5000) != 1))
			return -EIO;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
	return (double)(cpu_ns(b->daemon.pid) - cpu_before) / (double)(bench_now_ns() - start_ns);
}

static double measure_watched(const struct bench *b, bool asking)
{
	pid_t watchers[WATCHERS_MAX];
	double share = -EIO;
	bool all_live = true;

	for (uint32_t i = 0; i < b->n_watchers; i++)
		watchers[i] = start_watcher(b);
	nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* attaching is not watching */
	share = measure(b, asking);
	for (uint32_t i = 0; i < b->n_watchers; i++) {
		/* One that has ended by itself has watched nothing. */
		if (watchers[i] <= 0 || waitpid(watchers[i], NULL, WNOHANG) != 0) {
			all_live = false;
			continue;
		}
		kill(watchers[i], SIGKILL);
		waitpid(watchers[i], NULL, 0);
	}
	return all_live ? share : -ECHILD;
}

/* Of one publication with as many records as a busy machine has, in nanoseconds. */
static double publication_ns(void)
{
	static const uint8_t name_space[16] = {1};
	struct board *board;
	uint64_t start_ns, sum_ns = 0;

	if (board_new(&board))
		return NAN;
	for (uint32_t i = 0; i < PUBLICATIONS; i++) {
		for (uint8_t k = 0; k < CACHES; k++)
			board_cache(board, name_space, (const uint8_t[16]){k})->puts++;
		start_ns = bench_now_ns();
		board_publish(board, i);
		sum_ns += bench_now_ns() - start_ns;
	}
	board_free(board);
	return (double)sum_ns / PUBLICATIONS;
}

static int set_up(struct bench *b)
{
	const struct private_daemon_options options = {.no_store = 1, .workers = 1};
	const struct cistern_plane planes[2] = {{.n_heads = 1, .dim = 64, .dtype = CISTERN_F16},
		{.n_heads = 1, .dim = 64, .dtype = CISTERN_F16}};
	const struct cistern_model model = {.name = "bench", .n_layers = 1, .n_planes = 2, .planes = planes};
	struct cistern_options where = {0};
	uint32_t tokens[LOOKUP_CHUNKS] = {0};
	struct cistern_key root;
	int r = private_daemon_start(&b->daemon, &options);

	if (r)
		return r;
	where.socket_path = b->daemon.socket;
	cistern_key_root(NULL, 0, &root);
	cistern_key_chain(&root, tokens, LOOKUP_CHUNKS, 1, b->keys);
	r = cistern_connect(&where, &b->engine);
	return r ? r : cistern_register_model(b->engine, &model, &b->model_id);
}

static int run(struct bench *b, uint32_t n_rounds, bool json)
{
	double alone[ROUNDS_MAX], watched[ROUNDS_MAX], difference[ROUNDS_MAX], idle[ROUNDS_MAX];
	const double publication = publication_ns();
	double base, with, more, silent;

	for (uint32_t i = 0; i < n_rounds; i++) {
		alone[i] = measure(b, true);
		watched[i] = measure_watched(b, true);
		idle[i] = measure_watched(b, false);
		if (alone[i] < 0 || watched[i] < 0 || idle[i] < 0) {
			fprintf(stderr,
				"cistern bench watch: the engine got no answer, or a watcher ended\n");
			return EXIT_FAILURE;
		}
		difference[i] = watched[i] - alone[i];
	}
	base = 100 * bench_quantile(alone, n_rounds, 0.5);
	with = 100 * bench_quantile(watched, n_rounds, 0.5);
	more = 100 * bench_quantile(difference, n_rounds, 0.5);
	silent = 100 * bench_quantile(idle, n_rounds, 1);
	if (json) {
		print_json(json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:i}", "alone_percent", base,
			"watched_percent", with, "difference_percent", more, "idle_watched_percent", silent,
			"publication_ns", publication, "publication_percent",
			publication * (1000.0 / BOARD_PERIOD_MS) / 1e7, "watchers", (int)b->n_watchers,
			"rounds", (int)n_rounds));
		return EXIT_SUCCESS;
	}
	printf("the daemon's CPU time, percent of one core, %d lookups a second\n", LOOKUPS_PER_S);
	printf("  nobody watches          %8.3f\n", base);
	printf("  %u watchers at 10 Hz     %8.3f   difference %+.3f (medians of %u rounds of %u s)\n",
		b->n_watchers, with, more, n_rounds, b->seconds);
	printf("  the same, engine silent %8.3f   most of %u rounds: all of it is what watching costs\n",
		silent, n_rounds);
	printf("  publishing, in any case %8.3f   %.1f us each, %d a second, watched or not\n",
		publication * (1000.0 / BOARD_PERIOD_MS) / 1e7, publication / 1000, 1000 / BOARD_PERIOD_MS);
	return EXIT_SUCCESS;
}

static bool parse(const char *text, uint32_t max, uint32_t *out)
{
	char *end;
	const unsigned long value = strtoul(text, &end, 10);

	if (*end || end == text || !value || value > max)
		return false;
	*out = (uint32_t)value;
	return true;
}

int bench_watch(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"rounds", required_argument, NULL, 'r'}, {"seconds", required_argument, NULL, 's'},
		{"watchers", required_argument, NULL, 'w'}, {"help", no_argument, NULL, 'h'}, {0}};
	struct bench b = {.seconds = 2, .n_watchers = 4};
	uint32_t n_rounds = 5;
	bool json = false, sound = true;
	int option, status = EXIT_FAILURE;

	optind = 1;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'j': json = true; break;
		case 'r': sound = sound && parse(optarg, ROUNDS_MAX, &n_rounds); break;
		case 's': sound = sound && parse(optarg, 60, &b.seconds); break;
		case 'w': sound = sound && parse(optarg, WATCHERS_MAX, &b.n_watchers); break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: sound = false;
		}
	if (optind != argc || !sound) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	if (set_up(&b))
		fprintf(stderr, "cistern bench watch: the daemon did not start, or did not answer\n");
	else
		status = run(&b, n_rounds, json);
	cistern_close(b.engine);
	private_daemon_stop(&b.daemon);
	return status;
}
