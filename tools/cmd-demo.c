/*
 * cistern demo: the main job, end to end, with a real model. A transform is calibrated on held-out text; a
 * private daemon is started; an engine computes long prompts of other text, puts their KV, and exits; the
 * daemon keeps it on disk alone; another engine process takes it back and goes on, and is compared with one
 * that computed everything.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shm/cistern.h"
#include "tools/bench.h"
#include "tools/child.h"
#include "tools/cistern.h"
#include "tools/demo-prompts.h"
#include "tools/private-daemon.h"

enum { PROMPTS_MAX = 512, EXIT_INTERRUPTED = 130 };

static const char usage[] =
	"Usage: cistern demo [--json] [--model DIR] [--texts N] [--recalls N] [--ratio R] [--keep]\n"
	"\n"
	"The main job, end to end: calibrate, put, spill, look up, get, go on, with a small real model.\n"
	"\n"
	"      --json        one JSON object on stdout\n"
	"      --model DIR   the model's folder (default: the one this was built with, or $CISTERN_MODEL)\n"
	"      --texts N     long documents with their continuation (default 18)\n"
	"      --recalls N   prompts with records to be recalled from far away (default 20)\n"
	"      --ratio R     wanted ratio of the coded tokens (default 16)\n"
	"      --verbose     show what daemon and engines say\n";

static volatile sig_atomic_t interrupted;

static void on_signal(int signal)
{
	interrupted = signal;
}

struct demo {
	bool json, verbose;
	const char *model;
	uint32_t n_texts, n_recalls;
	double ratio;
	struct private_daemon daemon;
	char folder[300]; /* for captures, transform, prompts: inside the daemon's, once it runs */
	char log[400];
	uint32_t n_lines, n_wanted;
	const char *doing;

	/* sums over prompts */
	uint64_t tokens, raw_bytes, stored_bytes, sink_tokens, window_tokens;
	uint64_t n_chunks, lookup_hits, restored_tokens, raw_tokens;
	uint64_t recall_asked, recall_original, recall_restored;
	double kl, nll_original, nll_restored, attn_error, continuation_tokens; /* of the texts */
	double kl_recall, recall_tokens;
	bool raw_exact;
	uint32_t policy_sinks, policy_window;
	/* of the longest prompts */
	uint32_t longest, n_longest;
	double recompute_ms[PROMPTS_MAX], restored_ms[PROMPTS_MAX];
	uint64_t transform_bytes, spilled_bytes, exact_bytes, calibration_tokens;
};

static void say(struct demo *d, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (!d->json) {
		vprintf(format, args);
		fflush(stdout);
	}
	va_end(args);
}

static void progress(struct demo *d)
{
	d->n_lines++;
	if (isatty(STDERR_FILENO))
		fprintf(stderr, "\r%s: %u of %u%s", d->doing, d->n_lines, d->n_wanted,
			d->n_lines == d->n_wanted ? "\r\033[K" : "");
}

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static int on_capture(void *arg, const json_t *object)
{
	struct demo *d = arg;

	d->calibration_tokens += (uint64_t)number(object, "tokens");
	return 0;
}

static int on_prefilled(void *arg, const json_t *object)
{
	struct demo *d = arg;
	const uint64_t n = (uint64_t)number(object, "tokens");

	if (!json_object_get(object, "kept_chunks"))
		return 0; /* the last line: the SYNC */
	const uint64_t sinks = n < d->policy_sinks ? n : d->policy_sinks;
	const uint64_t window = n - sinks < d->policy_window ? n - sinks : d->policy_window;

	d->tokens += n;
	d->n_chunks += (uint64_t)number(object, "kept_chunks");
	d->raw_bytes += (uint64_t)number(object, "original_bytes");
	d->stored_bytes += (uint64_t)number(object, "stored_bytes");
	d->sink_tokens += sinks;
	d->window_tokens += window;
	progress(d);
	return 0;
}

static int on_continued(void *arg, const json_t *object)
{
	struct demo *d = arg;
	const json_t *recall = json_object_get(object, "recall");
	const uint32_t n = (uint32_t)number(object, "tokens");
	const double continued = number(object, "continuation_tokens");

	d->lookup_hits += (uint64_t)number(object, "lookup_hits");
	d->restored_tokens += (uint64_t)number(object, "restored_tokens");
	d->raw_tokens += (uint64_t)number(object, "raw_tokens");
	d->raw_exact = d->raw_exact && json_is_true(json_object_get(object, "raw_exact"));
	if (recall) {
		d->kl_recall += number(recall, "kl") * number(recall, "answer_tokens");
		d->recall_tokens += number(recall, "answer_tokens");
		d->recall_asked += (uint64_t)number(recall, "asked");
		d->recall_original += (uint64_t)number(recall, "exact_original");
		d->recall_restored += (uint64_t)number(recall, "exact_restored");
	} else {
		/* Of real text. A question's random key cannot be predicted by anything, and is not judged.
		 */
		d->kl += number(object, "kl") * continued;
		d->attn_error += number(object, "attn_error") * continued;
		d->nll_original += number(object, "nll_original") * continued;
		d->nll_restored += number(object, "nll_restored") * continued;
		d->continuation_tokens += continued;
	}
	if (n > d->longest) {
		d->longest = n;
		d->n_longest = 0;
	}
	if (n == d->longest && d->n_longest < PROMPTS_MAX) {
		d->recompute_ms[d->n_longest] = number(object, "ttft_recompute_ms");
		d->restored_ms[d->n_longest++] = number(object, "ttft_restored_ms");
	}
	progress(d);
	return 0;
}

static void show_log(const struct demo *d)
{
	char line[1024];
	FILE *f = fopen(d->log, "r");

	while (f && fgets(line, sizeof line, f))
		fputs(line, stderr);
	if (f)
		fclose(f);
}

/* Runs a program that was built beside this one. */
static int run(struct demo *d, const char *program, const char *const *arguments,
	int (*on_line)(void *arg, const json_t *object))
{
	char path[600];
	const char *argv[24] = {path};
	size_t n = 1;
	int r = sibling_program(program, path, sizeof path);

	if (r) {
		fprintf(stderr, "cistern demo: %s was not found beside this program\n", program);
		return r;
	}
	while (*arguments && n < 23)
		argv[n++] = *arguments++;
	d->n_lines = 0;
	r = child_run((char *const *)argv, d->log, &interrupted, on_line, d);
	if (r == -ECHILD || d->verbose)
		show_log(d);
	return r;
}

static int calibrate(struct demo *d, char *transform, size_t size)
{
	char text[600], recall[600], captures[400], pattern[500];
	const char *const capture[] = {"capture", "--model", d->model, "--text", text, "--recall", recall,
		"--out", captures, "--sequences", "24", "--length", "2048", "--json", NULL};
	const char *const learn[] = {
		"calibrate", "--json", "--note", "cistern demo", "--out", transform, captures, NULL};
	int r;

	snprintf(text, sizeof text, "%s/heldout/calib.txt", d->model);
	snprintf(recall, sizeof recall, "%s/heldout/recall-calib.jsonl", d->model);
	snprintf(captures, sizeof captures, "%s/captures", d->folder);
	snprintf(pattern, sizeof pattern, "%s", captures);
	snprintf(transform, size, "%s/transform.safetensors", d->folder);
	say(d, "Calibrating on %s and recall-calib.jsonl ...\n", text);
	d->doing = "capturing";
	r = run(d, "cistern-engine", capture, on_capture);
	if (!r)
		r = run(d, "cistern", learn, NULL);
	return r;
}

static json_t *control(struct demo *d, const char *request)
{
	json_t *object = NULL;
	char *answer;

	if (!cistern_control(d->daemon.socket, request, &answer, 10000)) {
		object = json_loads(answer, 0, NULL);
		free(answer);
	}
	if (!json_is_true(json_object_get(object, "ok"))) {
		json_decref(object);
		return NULL;
	}
	return object;
}

static int read_policy(struct demo *d)
{
	json_t *status = control(d, "{\"command\":\"status\"}");
	const json_t *policy = json_object_get(status, "policy");

	if (!status)
		return -EIO;
	d->policy_sinks = (uint32_t)number(policy, "sink_tokens");
	d->policy_window = (uint32_t)number(policy, "window_tokens");
	d->transform_bytes = (uint64_t)number(json_object_get(status, "transforms"), "bytes");
	json_decref(status);
	return 0;
}

/* Sinks are searched for as well: how many tokens were kept in all, the daemon knows. */
static uint64_t count_kept(const json_t *status)
{
	const json_t *item;
	uint64_t n = 0;
	size_t i;

	json_array_foreach(json_object_get(status, "fidelity"), i, item) n +=
		(uint64_t)number(item, "raw_tokens");
	return n;
}

/* Everything that was put is on the disk already (prefill ends with a SYNC); the copies in memory go. */
static int spill(struct demo *d)
{
	json_t *answer = control(d, "{\"command\":\"drop-pool\"}");
	json_t *status = control(d, "{\"command\":\"status\"}");
	const json_t *cache = json_object_get(status, "cache"), *store = json_object_get(status, "store");
	int r = answer && status && number(cache, "in_pool") == 0 ? 0 : -EIO;

	d->spilled_bytes = (uint64_t)number(store, "written_bytes");
	d->exact_bytes = (uint64_t)number(json_object_get(status, "chunks"), "encoded_exact_bytes");
	if (!r)
		d->sink_tokens = count_kept(status) - d->window_tokens;
	say(d, "The daemon holds %.0f chunks on disk and none in memory.\n", number(cache, "on_disk"));
	json_decref(answer);
	json_decref(status);
	return r;
}

static int serve(struct demo *d, const char *transform)
{
	char prompts[400], policy[64];
	const struct private_daemon_options options = {.transform = transform, .policy_lines = policy};
	const char *const prefill[] = {"prefill", "--socket", d->daemon.socket, "--model", d->model,
		"--prompts", prompts, "--json", NULL};
	const char *const go_on[] = {"continue", "--socket", d->daemon.socket, "--model", d->model,
		"--prompts", prompts, "--json", NULL};
	int r;

	snprintf(policy, sizeof policy, "target_ratio = %g", d->ratio);
	snprintf(prompts, sizeof prompts, "%s/prompts.jsonl", d->folder);
	r = private_daemon_start(&d->daemon, &options);
	if (!r)
		r = read_policy(d);
	if (!r)
		r = demo_prompts_write(d->model, prompts, d->n_texts, d->n_recalls);
	if (r)
		return r;
	d->n_wanted = d->n_texts + d->n_recalls;
	d->doing = "engine A computes and puts";
	say(d,
		"Engine A: computes %u prompts of other text (%s/heldout/test.txt, recall.jsonl), puts them, "
		"exits.\n",
		d->n_wanted, d->model);
	r = run(d, "cistern-engine", prefill, on_prefilled);
	if (!r)
		r = spill(d);
	if (r)
		return r;
	d->doing = "engine B gets and goes on";
	say(d, "Engine B, a new process: looks up, gets, goes on; and computes it all again to compare.\n");
	d->raw_exact = true;
	return run(d, "cistern-engine", go_on, on_continued);
}

/* ---- report ---- */

struct results {
	double ratio, ratio_coded, ceiling, kl, kl_recall, nll_original, nll_restored, nll_delta_pct,
		recall_original, recall_restored, attn_error, ttft_recompute_ms, ttft_restored_ms;
};

static struct results results_of(struct demo *d)
{
	const double kept =
		(double)(d->sink_tokens + d->window_tokens) * (double)d->raw_bytes / (double)d->tokens;
	struct results r = {.ratio = (double)d->raw_bytes / (double)d->stored_bytes,
		.ratio_coded = ((double)d->raw_bytes - kept) / (double)(d->stored_bytes - d->exact_bytes),
		.ceiling = (double)d->raw_bytes / (double)d->exact_bytes,
		.kl = d->kl / d->continuation_tokens,
		.kl_recall = d->kl_recall / d->recall_tokens,
		.nll_original = d->nll_original / d->continuation_tokens,
		.nll_restored = d->nll_restored / d->continuation_tokens,
		.attn_error = d->attn_error / d->continuation_tokens,
		.recall_original = (double)d->recall_original / (double)d->recall_asked,
		.recall_restored = (double)d->recall_restored / (double)d->recall_asked};

	r.nll_delta_pct = 100 * (r.nll_restored - r.nll_original) / r.nll_original;
	r.ttft_recompute_ms = bench_quantile(d->recompute_ms, d->n_longest, 0.5);
	r.ttft_restored_ms = bench_quantile(d->restored_ms, d->n_longest, 0.5);
	return r;
}

static void report_json(const struct demo *d, const struct results *r)
{
	json_t *object = json_pack("{s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}",
		"tokens", (json_int_t)d->tokens, "raw_bytes", (json_int_t)d->raw_bytes, "stored_bytes",
		(json_int_t)d->stored_bytes, "ratio", r->ratio, "ratio_ceiling", r->ceiling, "ratio_coded",
		r->ratio_coded, "kl", r->kl, "kl_recall", r->kl_recall, "nll_original", r->nll_original,
		"nll_restored", r->nll_restored, "nll_delta_pct", r->nll_delta_pct, "recall_original",
		r->recall_original, "recall_restored", r->recall_restored, "attn_error", r->attn_error);
	json_t *more = json_pack("{s:I, s:I, s:b, s:f, s:f, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
		"sink_tokens", (json_int_t)d->sink_tokens, "window_tokens", (json_int_t)d->window_tokens,
		"protected_exact", (int)d->raw_exact, "ttft_recompute_ms", r->ttft_recompute_ms,
		"ttft_restored_ms", r->ttft_restored_ms, "ttft_tokens", (int)d->longest, "chunks",
		(json_int_t)d->n_chunks, "lookup_hits", (json_int_t)d->lookup_hits, "restored_tokens",
		(json_int_t)d->restored_tokens, "spilled_bytes", (json_int_t)d->spilled_bytes,
		"transform_bytes", (json_int_t)d->transform_bytes, "calibration_tokens",
		(json_int_t)d->calibration_tokens, "recall_asked", (json_int_t)d->recall_asked);
	char calibration[600], demo[600];

	snprintf(calibration, sizeof calibration, "%s/heldout/calib.txt, recall-calib.jsonl", d->model);
	snprintf(demo, sizeof demo, "%s/heldout/test.txt, recall.jsonl", d->model);
	json_object_update(object, more);
	json_decref(more);
	json_object_set_new(object, "calibration_text", json_string(calibration));
	json_object_set_new(object, "demo_text", json_string(demo));
	print_json(object);
}

static void report_table(const struct demo *d, const struct results *r)
{
	printf("\n%-34s %14.2f MB of KV for %llu tokens\n", "raw", (double)d->raw_bytes / 1e6,
		(unsigned long long)d->tokens);
	printf("%-34s %14.2f MB, everything counted (%.2f MB on disk)\n", "stored",
		(double)d->stored_bytes / 1e6, (double)d->spilled_bytes / 1e6);
	printf("%-34s %14.1f x\n", "ratio of the coded tokens", r->ratio_coded);
	printf("%-34s %14.1f x     at most %.1f while %llu of the tokens are kept bit for bit\n",
		"ratio in all", r->ratio, r->ceiling,
		(unsigned long long)(d->sink_tokens + d->window_tokens));
	printf("%-34s %14s       %llu sink and %llu window tokens\n", "protected tokens, bit for bit",
		d->raw_exact ? "all" : "NOT ALL", (unsigned long long)d->sink_tokens,
		(unsigned long long)d->window_tokens);
	printf("%-34s %14.1f KB    from %llu tokens of calibration text\n", "transform",
		(double)d->transform_bytes / 1e3, (unsigned long long)d->calibration_tokens);
	printf("\n%-34s %14s %14s\n", "", "original", "restored");
	printf("%-34s %14.4f %14.4f   %+.3f %%\n", "next-token loss, nats", r->nll_original, r->nll_restored,
		r->nll_delta_pct);
	printf("%-34s %13.1f%% %13.1f%%   of %llu answers\n", "far recall, exact", 100 * r->recall_original,
		100 * r->recall_restored, (unsigned long long)d->recall_asked);
	printf("%-34s %14s %14.5f   of the documents' continuation\n", "KL divergence, nats", "", r->kl);
	printf("%-34s %14s %14.5f   of the answers\n", "", "", r->kl_recall);
	printf("%-34s %14s %14.4f\n", "error of attention outputs", "", r->attn_error);
	printf("%-34s %14.1f %14.1f   a prompt of %u tokens, from disk\n", "time to first token, ms",
		r->ttft_recompute_ms, r->ttft_restored_ms, d->longest);
	printf("\n%llu of %llu chunks were found again; %llu of %llu tokens restored.\n",
		(unsigned long long)d->lookup_hits, (unsigned long long)d->n_chunks,
		(unsigned long long)d->restored_tokens, (unsigned long long)d->tokens);
}

static int parse(struct demo *d, int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"model", required_argument, NULL, 'm'}, {"texts", required_argument, NULL, 't'},
		{"recalls", required_argument, NULL, 'r'}, {"ratio", required_argument, NULL, 'R'},
		{"verbose", no_argument, NULL, 'v'}, {"help", no_argument, NULL, 'h'}, {0}};
	int option;

	optind = 1;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'j': d->json = true; break;
		case 'm': d->model = optarg; break;
		case 't': d->n_texts = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'r': d->n_recalls = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'R': d->ratio = strtod(optarg, NULL); break;
		case 'v': d->verbose = true; break;
		case 'h': fputs(usage, stdout); exit(EXIT_SUCCESS);
		default: return -EINVAL;
		}
	if (optind != argc || d->n_texts < 1 || d->n_texts > 100 || d->n_recalls < 1 || d->n_recalls > 200 ||
		!(d->ratio >= 1 && d->ratio <= 100))
		return -EINVAL;
	return 0;
}

static void catch_signals(void)
{
	/* Without SA_RESTART: what waits is woken. */
	struct sigaction action = {.sa_handler = on_signal};

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
}

int cmd_demo(int argc, char **argv)
{
	const char *model = getenv("CISTERN_MODEL");
	struct demo *d = calloc(1, sizeof *d);
	struct private_daemon files = {0};
	char transform[400];
	int r = -ENOMEM;

	if (!d)
		goto out;
	*d = (struct demo){
		.model = model ? model : CISTERN_MODEL_DIR, .n_texts = 18, .n_recalls = 20, .ratio = 16};
	r = parse(d, argc, argv);
	if (r) {
		fputs(usage, stderr);
		free(d);
		return EXIT_USAGE;
	}
	catch_signals();
	r = private_folder(&files);
	if (r)
		goto out;
	snprintf(d->folder, sizeof d->folder, "%s", files.folder);
	snprintf(d->log, sizeof d->log, "%s/engines.log", files.folder);
	r = calibrate(d, transform, sizeof transform);
	if (!r)
		r = serve(d, transform);
	private_daemon_stop(&d->daemon);
	private_daemon_stop(&files);
	if (!r) {
		const struct results results = results_of(d);

		if (d->json)
			report_json(d, &results);
		else
			report_table(d, &results);
	}
out:
	free(d);
	if (interrupted) {
		fprintf(stderr, "cistern demo: interrupted\n");
		return EXIT_INTERRUPTED;
	}
	if (r)
		fprintf(stderr, "cistern demo: %s\n", strerror(-r));
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
