/*
 * cistern bench policy: how soon a change takes effect while an engine is at work, and how near the ratio
 * comes to what was asked for. With a transform calibrated on one text and the chunks of another.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/file.h"
#include "base/hex.h"
#include "tools/bench-policy/load.h"
#include "tools/bench-rate/calibration-text.h"
#include "tools/bench.h"
#include "tools/calibration.h"
#include "tools/cistern.h"
#include "tools/private-daemon.h"

enum {
	SEQUENCES_MAX = 64,
	CHANGES_MAX = 10000,
	LENGTH = 2048,
	CHUNK_TOKENS = 256,
	TARGETS_MAX = 16,
	RUNS_IN_FLIGHT = 2,
	PATIENCE_MS = 10000,
	EXIT_INTERRUPTED = 130,
};

static const double GOAL_MS = 100, GOAL_RATIO = 0.05;

static const char usage[] =
	"Usage: cistern bench policy [--json] [options]\n"
	"\n"
	"How soon `policy set` takes effect while an engine puts, looks up and gets chunks, and how near "
	"the\n"
	"ratio comes to the target. First many changes: the time from asking for one to the completion of "
	"the\n"
	"first chunk that was encoded under it. Then targets in turn, each changed with puts in flight: the "
	"ratio\n"
	"of the coded tokens of the chunks that follow.\n"
	"\n"
	"      --json           one JSON object\n"
	"      --model DIR      the model's folder (default: the one this was built with, or "
	"$CISTERN_MODEL)\n"
	"      --text FILE      of its heldout folder, whose chunks are put (default test.txt)\n"
	"      --sequences N    of 2048 tokens of it (default 8)\n"
	"      --calibrate N    sequences of calib.txt that the transform is made of (default 16)\n"
	"      --changes N      (default 400)\n"
	"      --depth N        chunks in flight, 1 to 64 (default 8)\n"
	"      --chunks N       put for each target (default 200)\n"
	"      --targets LIST   ratios, with commas (default 12,20,10,14,18,24,28,20)\n"
	"\n"
	"Beside it, from the same run: what a put takes, without which no change can show.\n";

static volatile sig_atomic_t interrupted;

static void on_signal(int signal)
{
	interrupted = signal;
}

struct arguments {
	bool json;
	const char *model, *text;
	uint32_t n_sequences, n_calibrate, n_changes, depth, n_chunks;
	double targets[TARGETS_MAX];
	size_t n_targets;
};

/* What came of a target. */
struct reached {
	double target, ratio, window; /* of the chunks that followed; the daemon's own figure at their end */
	double ratio_total;           /* with the tokens kept bit for bit */
	uint64_t n_chunks;
};

struct bench {
	struct arguments a;
	struct private_daemon daemon, files; /* files: the folder alone */
	struct captures calibration, text;
	struct stream *stream;
	double *effect_ns, *answer_ns; /* [n_changes] */
	size_t n_measured;
	uint64_t n_unseen, n_calls, n_failed, n_put, load_ns;
	double put_p50_ns, put_p99_ns;
	struct reached reached[TARGETS_MAX];
};

/* ---- the daemon ---- */

static json_t *ask(const struct bench *b, const char *request)
{
	char *answer;
	json_t *object;
	int r = cistern_control(b->daemon.socket, request, &answer, PATIENCE_MS);

	if (r) {
		fprintf(stderr, "cistern bench policy: %s: %s\n", request, strerror(-r));
		return NULL;
	}
	object = json_loads(answer, 0, NULL);
	free(answer);
	if (!json_is_true(json_object_get(object, "ok"))) {
		fprintf(stderr, "cistern bench policy: %s: refused\n", request);
		json_decref(object);
		return NULL;
	}
	return object;
}

/* Returns the version; 0: it failed. */
static uint32_t set_target(const struct bench *b, double ratio)
{
	char request[200];
	json_t *answer;
	uint32_t version;

	snprintf(request, sizeof request,
		"{\"command\":\"policy-set\",\"set\":{\"mode\":\"ratio\",\"target_ratio\":%.6g}}", ratio);
	answer = ask(b, request);
	version = (uint32_t)json_integer_value(json_object_get(answer, "version"));
	json_decref(answer);
	return version;
}

/* When the first chunk of this version was seen to be complete; 0: none was, of the last 256. */
static uint64_t first_under(const struct bench *b, const struct load *l, uint32_t version)
{
	json_t *answer = ask(b, "{\"command\":\"decisions\"}"), *chunk;
	uint64_t first = 0;
	size_t i;

	json_array_foreach(json_object_get(answer, "chunks"), i, chunk)
	{
		const char *text = json_string_value(json_object_get(chunk, "key"));
		struct cistern_key key;
		uint64_t done;

		if ((uint32_t)json_integer_value(json_object_get(chunk, "policy_version")) != version ||
			hex_read(text, key.bytes, sizeof key.bytes) != sizeof key.bytes)
			continue;
		done = load_done_ns(l, load_number_of(&key));
		if (done && (!first || done < first))
			first = done;
	}
	json_decref(answer);
	return first;
}

/* ---- changes under load ---- */

static void sleep_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* All that was in flight when the change was answered, and some more, has been put. */
static bool wait_for_puts(const struct load *l, uint64_t n)
{
	for (int waited = 0; load_n_put(l) < n; waited++) {
		if (interrupted || waited > PATIENCE_MS)
			return false;
		sleep_ms(1);
	}
	return true;
}

static int change(struct bench *b, const struct load *l, uint32_t i)
{
	const uint64_t asked = bench_now_ns();
	const uint32_t version = set_target(b, i % 2 ? 12 : 20);
	const uint64_t answered = bench_now_ns();
	uint64_t first;

	if (!version)
		return -EIO;
	if (!wait_for_puts(l, load_n_put(l) + 2 * b->a.depth))
		return interrupted ? -EINTR : -ETIMEDOUT;
	first = first_under(b, l, version);
	if (!first) {
		b->n_unseen++;
		return 0;
	}
	/* A chunk may begin between the change and its answer, and none before. */
	b->effect_ns[b->n_measured] = first > asked ? (double)(first - asked) : 0;
	b->answer_ns[b->n_measured++] = (double)(answered - asked);
	return 0;
}

static int change_often(struct bench *b)
{
	const uint64_t began = bench_now_ns();
	uint32_t random = 1;
	struct load *l;
	int r = load_start(b->stream, (uint32_t)b->text.n, LENGTH, b->a.depth, &l);

	if (r)
		return r;
	if (!wait_for_puts(l, 4 * b->a.depth))
		r = -ETIMEDOUT;
	for (uint32_t i = 0; i < b->a.n_changes && !r && !interrupted; i++) {
		random = random * 1664525u + 1013904223u;
		sleep_ms(random >> 28); /* up to 15 ms: not in step with the load */
		r = change(b, l, i);
	}
	load_stop(l);
	b->load_ns = bench_now_ns() - began;
	b->n_put = load_n_put(l);
	b->n_calls = load_n_calls(l);
	b->n_failed = load_n_failed(l);
	b->put_p50_ns = load_put_ns(l, 0.5);
	b->put_p99_ns = load_put_ns(l, 0.99);
	load_free(l);
	return interrupted ? -EINTR : r;
}

/* ---- the ratio ---- */

/* The daemon's counts so far. */
struct counts {
	double raw, frames, exact, tokens, raw_tokens, chunks, achieved;
};

static int count(const struct bench *b, struct counts *out)
{
	json_t *status = ask(b, "{\"command\":\"status\"}");
	const json_t *chunks = json_object_get(status, "chunks");
	const json_t *f = json_array_get(json_object_get(status, "fidelity"), 0);

	if (!status)
		return -EIO;
	*out = (struct counts){.raw = json_number_value(json_object_get(chunks, "encoded_raw_bytes")),
		.frames = json_number_value(json_object_get(chunks, "encoded_frame_bytes")),
		.exact = json_number_value(json_object_get(chunks, "encoded_exact_bytes")),
		.tokens = json_number_value(json_object_get(f, "tokens")),
		.raw_tokens = json_number_value(json_object_get(f, "raw_tokens")),
		.chunks = json_number_value(json_object_get(f, "chunks")),
		.achieved = json_number_value(json_object_get(f, "achieved"))};
	json_decref(status);
	return 0;
}

/* Whole sequences, some in flight, as engines put them. */
struct runs {
	uint64_t next; /* chunk number, which no load has used */
	uint32_t n_in_flight, sequence;
};

static int begin_run(struct bench *b, struct runs *r)
{
	struct cistern_key keys[LENGTH / CHUNK_TOKENS];
	const uint32_t place = r->sequence++ % (uint32_t)b->text.n * LENGTH;
	int status;

	for (uint32_t i = 0; i < LENGTH / CHUNK_TOKENS; i++)
		load_key_of(r->next++, &keys[i]);
	status = stream_begin_put(b->stream, place, LENGTH, 0, keys, 0);
	r->n_in_flight += status >= 0;
	return status < 0 ? status : 0;
}

static int take_run(struct bench *b, struct runs *r)
{
	struct cistern_completion done;
	uint32_t model_id;
	const int n = cistern_wait(stream_connection(b->stream, &model_id), &done, 1, PATIENCE_MS);

	if (n != 1)
		return n < 0 ? n : -ETIMEDOUT;
	r->n_in_flight--;
	b->n_calls++;
	b->n_failed += done.status || done.n_chunks != LENGTH / CHUNK_TOKENS;
	return 0;
}

static int drain(struct bench *b, struct runs *r)
{
	int status = 0;

	while (r->n_in_flight && !status)
		status = take_run(b, r);
	return status;
}

/* Changes the target with puts in flight; what these were does not count, what follows does. */
static int reach(struct bench *b, struct runs *r, double target, struct reached *out)
{
	const uint32_t n_runs = (b->a.n_chunks * CHUNK_TOKENS + LENGTH - 1) / LENGTH;
	struct counts before, after;
	int status = 0;

	while (r->n_in_flight < RUNS_IN_FLIGHT && !status)
		status = begin_run(b, r);
	if (!status && !set_target(b, target))
		status = -EIO;
	if (!status)
		status = drain(b, r);
	if (!status)
		status = count(b, &before);
	for (uint32_t i = 0; i < n_runs && !status && !interrupted; i++) {
		if (r->n_in_flight == RUNS_IN_FLIGHT)
			status = take_run(b, r);
		if (!status)
			status = begin_run(b, r);
	}
	if (!status)
		status = drain(b, r);
	if (!status)
		status = count(b, &after);
	if (status || interrupted)
		return status ? status : -EINTR;
	*out = (struct reached){.target = target,
		.n_chunks = (uint64_t)(after.chunks - before.chunks),
		.window = after.achieved,
		.ratio_total = (after.raw - before.raw) / (after.frames - before.frames),
		.ratio = (after.raw - before.raw) *
			 (1 - (after.raw_tokens - before.raw_tokens) / (after.tokens - before.tokens)) /
			 (after.frames - before.frames - (after.exact - before.exact))};
	return 0;
}

static int reach_targets(struct bench *b)
{
	struct runs runs = {.next = LOAD_CHUNKS_MAX};
	json_t *answer = ask(b, "{\"command\":\"policy-reset\",\"fields\":[\"window_tokens\"]}");
	int r = answer ? 0 : -EIO;

	json_decref(answer);
	for (size_t i = 0; i < b->a.n_targets && !r; i++)
		r = reach(b, &runs, b->a.targets[i], &b->reached[i]);
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

static int calibrate(struct bench *b, const char *path)
{
	struct calibration_options o;
	struct calibration c;
	char why[400] = "";
	int r;

	calibration_options_init(&o);
	r = calibration_run(kernels_cpu(), &o, b->calibration.paths, b->calibration.n, &c, why, sizeof why);
	if (r) {
		fprintf(stderr, "cistern bench policy: %s\n", why);
		return r;
	}
	r = file_write(path, c.data, c.len);
	free(c.data);
	return r;
}

/* The stream, its memory filled: the text's sequences, and behind them room to get into. */
static int fill(struct bench *b)
{
	const struct capture_options none = {0};
	char why[200] = "";
	int r = 0;

	for (uint32_t i = 0; i < b->text.n && !r; i++) {
		struct capture *c;

		r = capture_open(b->text.paths[i], &none, &c, why, sizeof why);
		if (!r && !b->stream)
			r = stream_open(b->daemon.socket, "policy", &c->geometry,
				(uint32_t)b->text.n * LENGTH + b->a.depth * CHUNK_TOKENS, &b->stream);
		if (!r) {
			stream_copy(b->stream, c, i * LENGTH);
			capture_free(c);
		}
	}
	if (r)
		fprintf(stderr, "cistern bench policy: %s\n", *why ? why : strerror(-r));
	return r;
}

static int set_up(struct bench *b)
{
	/* In the first part chunks are put one by one: with a window, half of each would be kept as it is. */
	struct private_daemon_options options = {.no_store = 1, .policy_lines = "window_tokens = 128"};
	char transform[400];
	json_t *answer;
	int r = private_folder(&b->files);

	b->effect_ns = calloc(b->a.n_changes, sizeof *b->effect_ns);
	b->answer_ns = calloc(b->a.n_changes, sizeof *b->answer_ns);
	if (!b->effect_ns || !b->answer_ns)
		return -ENOMEM;
	if (!r)
		r = captures_of(b, "calib.txt", "recall-calib.jsonl", "calibration", b->a.n_calibrate,
			&b->calibration);
	if (!r)
		r = captures_of(b, b->a.text, NULL, "text", b->a.n_sequences, &b->text);
	if (r)
		return r;
	snprintf(transform, sizeof transform, "%s/transform.safetensors", b->files.folder);
	options.transform = transform;
	r = calibrate(b, transform);
	if (!r)
		r = private_daemon_start(&b->daemon, &options);
	if (!r)
		r = fill(b);
	if (r)
		return r;
	answer = ask(b, "{\"command\":\"policy-set\",\"set\":{\"window_tokens\":0}}");
	r = answer ? 0 : -EIO;
	json_decref(answer);
	return r;
}

/* ---- report ---- */

static double worst_off(const struct bench *b)
{
	double worst = 0;

	for (size_t i = 0; i < b->a.n_targets; i++)
		worst = fmax(worst, fabs(b->reached[i].ratio / b->reached[i].target - 1));
	return worst;
}

static double quantile_ms(double *samples, size_t n, double q)
{
	return n ? bench_quantile(samples, n, q) * 1e-6 : 0;
}

static json_t *targets_json(const struct bench *b)
{
	json_t *array = json_array();

	for (size_t i = 0; i < b->a.n_targets; i++) {
		const struct reached *t = &b->reached[i];

		json_array_append_new(array,
			json_pack("{s:f, s:I, s:f, s:f, s:f, s:f}", "target", t->target, "chunks",
				(json_int_t)t->n_chunks, "ratio", t->ratio, "off", t->ratio / t->target - 1,
				"window_ratio", t->window, "ratio_total", t->ratio_total));
	}
	return array;
}

static void report_json(struct bench *b)
{
	const double p99 = quantile_ms(b->effect_ns, b->n_measured, 0.99);
	json_t *effect = json_pack("{s:f, s:f, s:f}", "p50", quantile_ms(b->effect_ns, b->n_measured, 0.5),
		"p99", p99, "max", quantile_ms(b->effect_ns, b->n_measured, 1));
	json_t *answer = json_pack("{s:f, s:f}", "p50", quantile_ms(b->answer_ns, b->n_measured, 0.5), "p99",
		quantile_ms(b->answer_ns, b->n_measured, 0.99));
	json_t *put = json_pack("{s:f, s:f}", "p50", b->put_p50_ns * 1e-6, "p99", b->put_p99_ns * 1e-6);

	print_json(json_pack("{s:i, s:i, s:i, s:o, s:o, s:o, s:f, s:b, s:f, s:I, s:I, s:o, s:f, s:f, s:b}",
		"changes", (int)b->n_measured, "changes_unseen", (int)b->n_unseen, "depth", (int)b->a.depth,
		"effect_ms", effect, "answer_ms", answer, "put_ms", put, "goal_ms", GOAL_MS, "met",
		(int)(p99 <= GOAL_MS), "chunks_per_s", (double)b->n_put * 1e9 / (double)b->load_ns,
		"engine_calls", (json_int_t)b->n_calls, "engine_calls_failed", (json_int_t)b->n_failed,
		"targets", targets_json(b), "worst_off", worst_off(b), "goal_off", GOAL_RATIO, "ratio_met",
		(int)(worst_off(b) <= GOAL_RATIO)));
}

static void report_text(struct bench *b)
{
	printf("%zu changes while an engine put %.0f chunks a second, %u in flight\n", b->n_measured,
		(double)b->n_put * 1e9 / (double)b->load_ns, b->a.depth);
	printf("first chunk under a change, from asking for it to its completion: p50 %.1f ms, p99 %.1f ms, "
	       "most "
	       "%.1f ms (wanted: %.0f)\n",
		quantile_ms(b->effect_ns, b->n_measured, 0.5), quantile_ms(b->effect_ns, b->n_measured, 0.99),
		quantile_ms(b->effect_ns, b->n_measured, 1), GOAL_MS);
	printf("  the change's answer p50 %.2f ms, p99 %.2f ms; a put under this load p50 %.1f ms, p99 %.1f "
	       "ms\n",
		quantile_ms(b->answer_ns, b->n_measured, 0.5), quantile_ms(b->answer_ns, b->n_measured, 0.99),
		b->put_p50_ns * 1e-6, b->put_p99_ns * 1e-6);
	printf("  engine's calls: %llu, failed: %llu; changes of whose chunks none was seen: %llu\n\n",
		(unsigned long long)b->n_calls, (unsigned long long)b->n_failed,
		(unsigned long long)b->n_unseen);
	puts("target   chunks    ratio      off   window    total");
	for (size_t i = 0; i < b->a.n_targets; i++) {
		const struct reached *t = &b->reached[i];

		printf("%5.1fx %8llu %8.2f %+7.1f%% %8.2f %8.2f\n", t->target,
			(unsigned long long)t->n_chunks, t->ratio, 100 * (t->ratio / t->target - 1),
			t->window, t->ratio_total);
	}
	printf("\nfarthest off %.1f%% (wanted: %.0f%%)\n", 100 * worst_off(b), 100 * GOAL_RATIO);
}

static void tear_down(struct bench *b)
{
	b->stream = stream_close(b->stream);
	private_daemon_stop(&b->daemon);
	captures_fini(&b->calibration);
	captures_fini(&b->text);
	private_daemon_stop(&b->files);
	free(b->effect_ns);
	free(b->answer_ns);
}

static int parse_targets(struct arguments *a, const char *text)
{
	a->n_targets = 0;
	for (;;) {
		char *end;
		const double x = strtod(text, &end);

		if (end == text || !(x >= 1 && x <= 1000) || a->n_targets == TARGETS_MAX ||
			(*end && *end != ',')) {
			fprintf(stderr, "cistern bench policy: not up to %d ratios from 1 to 1000: %s\n",
				TARGETS_MAX, text);
			return -EINVAL;
		}
		a->targets[a->n_targets++] = x;
		if (!*end)
			return 0;
		text = end + 1;
	}
}

static int parse(struct arguments *a, int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"model", required_argument, NULL, 'm'}, {"text", required_argument, NULL, 't'},
		{"sequences", required_argument, NULL, 's'}, {"calibrate", required_argument, NULL, 'k'},
		{"changes", required_argument, NULL, 'c'}, {"depth", required_argument, NULL, 'd'},
		{"chunks", required_argument, NULL, 'n'}, {"targets", required_argument, NULL, 'r'},
		{"help", no_argument, NULL, 'h'}, {0}};
	int option, r = parse_targets(a, "12,20,10,14,18,24,28,20");

	optind = 1;
	while (r == 0 && (option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		switch (option) {
		case 'j': a->json = true; break;
		case 'm': a->model = optarg; break;
		case 't': a->text = optarg; break;
		case 's': r = bench_parse_natural("policy", optarg, 1, SEQUENCES_MAX, &a->n_sequences); break;
		case 'k': r = bench_parse_natural("policy", optarg, 2, SEQUENCES_MAX, &a->n_calibrate); break;
		case 'c': r = bench_parse_natural("policy", optarg, 1, CHANGES_MAX, &a->n_changes); break;
		case 'd': r = bench_parse_natural("policy", optarg, 1, LOAD_DEPTH_MAX, &a->depth); break;
		case 'n': r = bench_parse_natural("policy", optarg, 8, 100000, &a->n_chunks); break;
		case 'r': r = parse_targets(a, optarg); break;
		case 'h': fputs(usage, stdout); exit(EXIT_SUCCESS);
		default: r = -EINVAL;
		}
	return r == 0 && optind != argc ? -EINVAL : r;
}

int bench_policy(int argc, char **argv)
{
	const struct sigaction action = {.sa_handler = on_signal};
	const char *model = getenv("CISTERN_MODEL");
	struct bench b = {.a = {.model = model ? model : CISTERN_MODEL_DIR,
				  .text = "test.txt",
				  .n_sequences = 8,
				  .n_calibrate = 16,
				  .n_changes = 400,
				  .depth = 8,
				  .n_chunks = 200}};
	int r;

	if (parse(&b.a, argc, argv) < 0) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	r = set_up(&b);
	if (!r)
		r = change_often(&b);
	if (!r)
		r = reach_targets(&b);
	if (!r && b.a.json)
		report_json(&b);
	else if (!r)
		report_text(&b);
	tear_down(&b);
	if (interrupted) {
		fprintf(stderr, "cistern bench policy: interrupted\n");
		return EXIT_INTERRUPTED;
	}
	if (r)
		fprintf(stderr, "cistern bench policy: %s\n", strerror(-r));
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
