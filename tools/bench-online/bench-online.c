/*
 * cistern bench online: a daemon that starts with no transform and learns from an engine's traffic, beside
 * the transform that `cistern calibrate` makes of all of that traffic's text. Learned from one text, measured
 * on another. Each version that the daemon publishes is measured as it comes, against the tokens that had
 * been put by then.
 */
#include <errno.h>
#include <getopt.h>
#include <glob.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/file.h"
#include "shm/cistern.h"
#include "tools/bench-online/stream.h"
#include "tools/bench-online/yardstick.h"
#include "tools/bench-rate/calibration-text.h"
#include "tools/bench.h"
#include "tools/calibration.h"
#include "tools/cistern.h"
#include "tools/private-daemon.h"

enum {
	VERSIONS_MAX = 16,
	SEQUENCES_MAX = 64,
	LENGTH = 2048,
	CHUNK_TOKENS = 256,
	GOAL_TOKENS = 20000,
	POLL_MS = 20,
	SETTLE_MS = 60000, /* for what is still being learned at the end */
	EXIT_INTERRUPTED = 130,
};

static const double GOAL = 0.9;

static const char usage[] =
	"Usage: cistern bench online [--json] [options]\n"
	"\n"
	"How soon a daemon that starts with no transform codes as well as one that was calibrated "
	"beforehand: an\n"
	"engine's sequences are put at its pace, and every version that the daemon learns from them is "
	"measured\n"
	"on other text, beside the plain codec and the transform that `cistern calibrate` makes of all of "
	"them.\n"
	"\n"
	"      --json            one JSON object\n"
	"      --model DIR       the model's folder (default: the one this was built with, or "
	"$CISTERN_MODEL)\n"
	"      --sequences N     sequences of 2048 tokens that are put, 2 to 64 (default 24)\n"
	"      --test N          sequences that are measured on (default 8)\n"
	"      --rate N          tokens a second that are put (default 7000, what one core of the demo "
	"engine\n"
	"                        computes)\n"
	"      --cpu-percent N   what the daemon may take of a core for learning (default 25)\n"
	"      --busy            at a low priority instead of the lowest, for a machine that has other work\n"
	"      --first-tokens N  tokens that its first version rests on (default 4096)\n"
	"\n"
	"ratio: of coded tokens, 16-bit source over what is stored; error: relative L2 of coded keys and "
	"values;\n"
	"at equal error: the ratio at which neither error is over the calibrated transform's, read off the "
	"rungs.\n";

static volatile sig_atomic_t interrupted;

static void on_signal(int signal)
{
	interrupted = signal;
}

struct arguments {
	bool json, busy;
	const char *model;
	uint32_t n_sequences, n_test, rate, cpu_percent, first_tokens;
};

/* A version, and how far the stream was when it was in use. */
struct point {
	uint32_t number;
	uint64_t n_put, n_rested, len_bytes;
	struct worth worth;
	double ratio_at; /* at the calibrated transform's error */
};

struct bench {
	struct arguments a;
	struct private_daemon daemon;
	struct private_daemon files; /* the folder alone */
	struct captures learn, test;
	struct yardstick yard;
	struct stream *stream;
	uint64_t n_put, elapsed_ns;
	double put_ratio[SEQUENCES_MAX]; /* of each sequence as the daemon took it, all tokens */
	struct point points[VERSIONS_MAX];
	size_t n_points;
	struct worth plain, calibrated;
	uint64_t calibrated_tokens, calibrated_bytes;
	double encode_ns, copy_ns;
	json_t *learning; /* the daemon's last word */
};

/* ---- transforms ---- */

static int read_transform(const char *path, struct transform **out)
{
	char why[200];
	void *data;
	size_t len;
	int r = file_read(path, &data, &len);

	if (r)
		return r;
	r = transform_parse(data, len, out, why, sizeof why);
	free(data);
	return r;
}

static int calibrate(struct bench *b, struct transform **out)
{
	struct calibration_options o;
	struct calibration c;
	char why[400] = "";
	int r;

	calibration_options_init(&o);
	r = calibration_run(b->yard.kernels, &o, b->learn.paths, b->learn.n, &c, why, sizeof why);
	if (r) {
		fprintf(stderr, "cistern bench online: %s\n", why);
		return r;
	}
	b->calibrated_tokens = c.report.n_tokens;
	b->calibrated_bytes = c.len;
	r = transform_parse(c.data, c.len, out, why, sizeof why);
	free(c.data);
	return r;
}

/* ---- the daemon ---- */

static int ask(struct bench *b)
{
	char *answer;
	json_t *status;
	int r = cistern_control(b->daemon.socket, "{\"command\":\"status\"}", &answer, 10000);

	if (r)
		return r;
	status = json_loads(answer, 0, NULL);
	free(answer);
	json_decref(b->learning);
	b->learning = json_incref(
		json_object_get(json_array_get(json_object_get(status, "models"), 0), "learning"));
	json_decref(status);
	return json_is_object(b->learning) ? 0 : -EIO;
}

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static int load_version(const struct bench *b, uint32_t version, struct transform **out)
{
	char pattern[400];
	glob_t found;
	int r = -ENOENT;

	snprintf(pattern, sizeof pattern, "%s/transforms/%08u-*.safetensors", b->daemon.store, version);
	if (glob(pattern, 0, NULL, &found) == 0) {
		r = read_transform(found.gl_pathv[0], out);
		globfree(&found);
	}
	return r;
}

/* Takes note of versions that are new; they are measured when the stream has ended, not to disturb it. */
static int look(struct bench *b)
{
	const json_t *version;
	size_t i;
	int r = ask(b);

	json_array_foreach(json_object_get(b->learning, "versions"), i, version)
	{
		const uint32_t n = (uint32_t)number(version, "number");

		if (b->n_points == VERSIONS_MAX || (b->n_points && n <= b->points[b->n_points - 1].number))
			continue;
		b->points[b->n_points++] = (struct point){.number = n,
			.n_put = b->n_put,
			.n_rested = (uint64_t)number(version, "tokens"),
			.len_bytes = (uint64_t)number(version, "bytes")};
	}
	return r;
}

static void sleep_ms(long ms)
{
	const struct timespec t = {.tv_nsec = ms * 1000000};

	nanosleep(&t, NULL);
}

static bool is_learning(const struct bench *b)
{
	const char *state = json_string_value(json_object_get(b->learning, "state"));

	return state && !strcmp(state, "learning");
}

/* Puts the sequences, each when an engine of that pace would have computed it. */
static int put_all(struct bench *b)
{
	const uint64_t start = bench_now_ns();
	int r = 0;

	for (size_t i = 0; i < b->learn.n && !r && !interrupted; i++) {
		const struct capture_options none = {0};
		struct capture *c;
		uint64_t bytes;
		char why[200];

		r = capture_open(b->learn.paths[i], &none, &c, why, sizeof why);
		if (r)
			break;
		while ((double)(bench_now_ns() - start) * 1e-9 <
				(double)(b->n_put + c->n_tokens) / b->a.rate &&
			!interrupted && !r && i) {
			sleep_ms(POLL_MS);
			r = look(b);
		}
		if (!r)
			r = stream_put(b->stream, c, &bytes);
		if (!r) {
			b->put_ratio[i] =
				(double)(geometry_token_bytes(&c->geometry) * c->n_tokens) / (double)bytes;
			b->n_put += c->n_tokens;
			r = look(b);
		}
		capture_free(c);
	}
	for (int waited = 0; !r && !interrupted && (is_learning(b) || !b->n_points) && waited < SETTLE_MS;
		waited += POLL_MS) {
		sleep_ms(POLL_MS);
		r = look(b);
	}
	b->elapsed_ns = bench_now_ns() - start;
	return interrupted ? -EINTR : r;
}

static int run_daemon(struct bench *b)
{
	char more[200];
	const struct private_daemon_options options = {.more = more};
	int r;

	snprintf(more, sizeof more,
		"[learn]\nenabled = yes\ncpu_percent = %u\nfirst_tokens = %u\nonly_idle = %s\n",
		b->a.cpu_percent, b->a.first_tokens, b->a.busy ? "no" : "yes");
	r = private_daemon_start(&b->daemon, &options);
	if (!r)
		r = stream_open(
			b->daemon.socket, "online", &b->yard.captures[0]->geometry, LENGTH, &b->stream);
	if (!r)
		r = put_all(b);
	b->stream = stream_close(b->stream);
	return r;
}

/* ---- the story ---- */

static int captures_of(struct bench *b, const char *text, const char *recall, const char *folder, uint32_t n,
	struct captures *out)
{
	char path[400], text_path[600], recall_path[600];

	snprintf(path, sizeof path, "%s/%s", b->files.folder, folder);
	snprintf(text_path, sizeof text_path, "%s/heldout/%s", b->a.model, text);
	snprintf(recall_path, sizeof recall_path, "%s/heldout/%s", b->a.model, recall ? recall : "");
	if (mkdir(path, 0700))
		return -errno;
	return text_capture(b->a.model, text_path, recall ? recall_path : NULL, path, n, &interrupted, out);
}

static int set_up(struct bench *b)
{
	const struct capture_options none = {0};
	char why[200] = "";
	int r = private_folder(&b->files);

	if (!r)
		r = captures_of(b, "calib.txt", "recall-calib.jsonl", "learn", b->a.n_sequences, &b->learn);
	if (!r)
		r = captures_of(b, "test.txt", NULL, "test", b->a.n_test, &b->test);
	if (r)
		return r;
	b->yard.kernels = kernels_cpu();
	b->yard.chunk_tokens = CHUNK_TOKENS;
	policy_init(&b->yard.policy);
	b->yard.captures = calloc(b->test.n, sizeof(struct capture *));
	if (!b->yard.captures)
		return -ENOMEM;
	for (; b->yard.n_captures < b->test.n && !r; b->yard.n_captures += !r)
		r = capture_open(b->test.paths[b->yard.n_captures], &none,
			&b->yard.captures[b->yard.n_captures], why, sizeof why);
	if (r)
		fprintf(stderr, "cistern bench online: %s\n", why);
	return r;
}

static int measure_all(struct bench *b)
{
	const uint32_t n_planes = b->yard.captures[0]->geometry.n_planes;
	struct transform *t;
	int r = calibrate(b, &t);

	if (r)
		return r;
	r = yardstick_measure(&b->yard, t, &b->calibrated);
	if (!r)
		r = yardstick_cost(&b->yard, t, &b->encode_ns, &b->copy_ns);
	transform_unref(t);
	if (!r)
		r = yardstick_measure(&b->yard, NULL, &b->plain);
	for (size_t i = 0; i < b->n_points && !r && !interrupted; i++) {
		struct point *p = &b->points[i];

		r = load_version(b, p->number, &t);
		if (r)
			break;
		r = yardstick_measure(&b->yard, t, &p->worth);
		transform_unref(t);
		p->ratio_at = worth_ratio_at(&p->worth, &b->calibrated, n_planes);
	}
	return interrupted ? -EINTR : r;
}

/* The best share of the calibrated ratio, at equal error, of what was in use after so many tokens. */
static double share_within(const struct bench *b, uint64_t n_tokens)
{
	double best = 0;

	for (size_t i = 0; i < b->n_points; i++)
		if (b->points[i].n_put <= n_tokens && !isnan(b->points[i].ratio_at))
			best = fmax(best, b->points[i].ratio_at / b->calibrated.ratio[b->calibrated.at]);
	return best;
}

/* ---- report ---- */

static json_t *real(double x)
{
	return isnan(x) ? json_null() : json_real(x);
}

static json_t *worth_json(const struct worth *w, uint32_t n_planes)
{
	return json_pack("{s:f, s:f, s:f, s:o}", "rung", w->rungs[w->at], "ratio", w->ratio[w->at], "error_k",
		w->error[0][w->at], "error_v", n_planes > 1 ? json_real(w->error[1][w->at]) : json_null());
}

static json_t *points_json(const struct bench *b, uint32_t n_planes)
{
	json_t *array = json_array();

	for (size_t i = 0; i < b->n_points; i++) {
		const struct point *p = &b->points[i];

		json_array_append_new(array,
			json_pack("{s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "version", (json_int_t)p->number,
				"tokens_put", (json_int_t)p->n_put, "tokens_learned_from",
				(json_int_t)p->n_rested, "bytes", (json_int_t)p->len_bytes, "at_rung",
				worth_json(&p->worth, n_planes), "ratio_at_equal_error", real(p->ratio_at),
				"share", real(p->ratio_at / b->calibrated.ratio[b->calibrated.at])));
	}
	return array;
}

static json_t *stream_json(const struct bench *b)
{
	json_t *array = json_array();

	for (size_t i = 0; i < b->learn.n; i++)
		json_array_append_new(array, json_real(b->put_ratio[i]));
	return array;
}

static void report_json(const struct bench *b)
{
	const uint32_t n_planes = b->yard.captures[0]->geometry.n_planes;
	const double share = share_within(b, GOAL_TOKENS);

	print_json(json_pack("{s:s, s:i, s:i, s:i, s:I, s:i, s:o, s:{s:I, s:I, s:o}, s:o, s:o, s:{s:i, s:f, "
			     "s:f, s:b}, s:{s:f, "
			     "s:f}, s:f, s:O}",
		"kernels", b->yard.kernels->name, "tokens_per_s", (int)b->a.rate, "cpu_percent",
		(int)b->a.cpu_percent, "first_tokens", (int)b->a.first_tokens, "tokens_put",
		(json_int_t)b->n_put, "test_tokens", (int)(b->yard.n_captures * LENGTH), "plain",
		worth_json(&b->plain, n_planes), "calibrated", "tokens", (json_int_t)b->calibrated_tokens,
		"bytes", (json_int_t)b->calibrated_bytes, "at_rung", worth_json(&b->calibrated, n_planes),
		"versions", points_json(b, n_planes), "put_ratios", stream_json(b), "answer", "within_tokens",
		(int)GOAL_TOKENS, "share", share, "goal", GOAL, "met", share >= GOAL, "put_cost", "encode_ns",
		b->encode_ns, "sample_ns", b->copy_ns, "elapsed_ms", (double)b->elapsed_ns * 1e-6, "learning",
		b->learning));
}

static void line(const char *what, uint64_t n_put, uint64_t n_rested, const struct worth *w, double ratio_at,
	double reference)
{
	printf("%-10s %10llu %12llu %9.2f %9.4f %9.4f", what, (unsigned long long)n_put,
		(unsigned long long)n_rested, w->ratio[w->at], w->error[0][w->at], w->error[1][w->at]);
	if (isnan(ratio_at))
		puts("           -        -");
	else
		printf(" %11.2f %7.1f%%\n", ratio_at, 100 * ratio_at / reference);
}

static void report_text(const struct bench *b)
{
	const double reference = b->calibrated.ratio[b->calibrated.at], share = share_within(b, GOAL_TOKENS);
	char name[32];

	printf("%llu tokens put at %u a second, learning with %u%% of a core; measured on %zu tokens of "
	       "other text, "
	       "rung %gx\n\n",
		(unsigned long long)b->n_put, b->a.rate, b->a.cpu_percent, b->yard.n_captures * LENGTH,
		b->calibrated.rungs[b->calibrated.at]);
	puts("transform   tokens put learned from     ratio   error k   error v  at equal error");
	line("plain", 0, 0, &b->plain, NAN, reference);
	for (size_t i = 0; i < b->n_points; i++) {
		snprintf(name, sizeof name, "version %u", b->points[i].number);
		line(name, b->points[i].n_put, b->points[i].n_rested, &b->points[i].worth,
			b->points[i].ratio_at, reference);
	}
	line("calibrated", b->n_put, b->calibrated_tokens, &b->calibrated, reference, reference);
	printf("\nwithin %d tokens: %.1f%% of the calibrated ratio at equal error (wanted: %.0f%%)\n",
		GOAL_TOKENS, 100 * share, 100 * GOAL);
	printf("a sampled chunk: %.0f us to copy it, %.0f us to encode it (%.1f%% more); the daemon's own "
	       "copies took "
	       "%.0f us\n",
		b->copy_ns / 1000, b->encode_ns / 1000, 100 * b->copy_ns / b->encode_ns,
		number(b->learning, "sample_ns") / number(b->learning, "samples") / 1000);
	printf("%.0f chunks sampled, %.0f missed as learning was behind; %.0f ms of a core in %.0f ms\n",
		number(b->learning, "samples"), number(b->learning, "samples_missed"),
		number(b->learning, "cpu_ms"), (double)b->elapsed_ns * 1e-6);
}

static void tear_down(struct bench *b)
{
	private_daemon_stop(&b->daemon);
	for (size_t i = 0; i < b->yard.n_captures; i++)
		capture_free(b->yard.captures[i]);
	free(b->yard.captures);
	captures_fini(&b->learn);
	captures_fini(&b->test);
	private_daemon_stop(&b->files);
	json_decref(b->learning);
}

static int parse(struct arguments *a, int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"busy", no_argument, NULL, 'b'}, {"model", required_argument, NULL, 'm'},
		{"sequences", required_argument, NULL, 's'}, {"test", required_argument, NULL, 't'},
		{"rate", required_argument, NULL, 'r'}, {"cpu-percent", required_argument, NULL, 'c'},
		{"first-tokens", required_argument, NULL, 'f'}, {"help", no_argument, NULL, 'h'}, {0}};
	int option, r = 0;

	optind = 1;
	while (r == 0 && (option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		switch (option) {
		case 'j': a->json = true; break;
		case 'b': a->busy = true; break;
		case 'm': a->model = optarg; break;
		case 's': r = bench_parse_natural("online", optarg, 2, SEQUENCES_MAX, &a->n_sequences); break;
		case 't': r = bench_parse_natural("online", optarg, 1, SEQUENCES_MAX, &a->n_test); break;
		case 'r': r = bench_parse_natural("online", optarg, 1, 100000000, &a->rate); break;
		case 'c': r = bench_parse_natural("online", optarg, 1, 100, &a->cpu_percent); break;
		case 'f': r = bench_parse_natural("online", optarg, 512, 1 << 24, &a->first_tokens); break;
		case 'h': fputs(usage, stdout); exit(EXIT_SUCCESS);
		default: r = -EINVAL;
		}
	return r == 0 && optind != argc ? -EINVAL : r;
}

int bench_online(int argc, char **argv)
{
	const struct sigaction action = {.sa_handler = on_signal};
	const char *model = getenv("CISTERN_MODEL");
	struct bench b = {.a = {.model = model ? model : CISTERN_MODEL_DIR,
				  .n_sequences = 24,
				  .n_test = 8,
				  .rate = 7000,
				  .cpu_percent = 25,
				  .first_tokens = 4096}};
	int r;

	if (parse(&b.a, argc, argv) < 0) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	r = set_up(&b);
	if (!r)
		r = run_daemon(&b);
	if (!r)
		r = measure_all(&b);
	if (!r && b.a.json)
		report_json(&b);
	else if (!r)
		report_text(&b);
	tear_down(&b);
	if (interrupted) {
		fprintf(stderr, "cistern bench online: interrupted\n");
		return EXIT_INTERRUPTED;
	}
	if (r)
		fprintf(stderr, "cistern bench online: %s\n", strerror(-r));
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
