/*
 * cistern bench rate: what each codec's bytes buy. Cistern, plain KVTC, uniform quantisation and fp8, all
 * calibrated on the same text and judged on other, with the same protected tokens; the Gaussian bound beside.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/bench-rate/calibration-text.h"
#include "tools/bench-rate/results/classes-report.h"
#include "tools/bench-rate/results/report.h"
#include "tools/bench.h"
#include "tools/cistern.h"
#include "tools/demo-prompts.h"
#include "tools/private-daemon.h"

enum { CODECS_MAX = 32, CASES_MAX = CODECS_MAX * UNDER_TEST_RUNGS_MAX + 16, EXIT_INTERRUPTED = 130 };

static const char usage[] =
	"Usage: cistern bench rate [--json] [--quick] [--no-sinks] [--no-window] [options]\n"
	"\n"
	"Ratio against loss, with the committed model on held-out text: Cistern, plain KVTC, uniform\n"
	"quantisation with DEFLATE, fp8, and the Gaussian rate-distortion bound. Each codec codes the same "
	"cached\n"
	"prompts; what follows them is computed over the original and over the restored cache and compared.\n"
	"\n"
	"      --json        one JSON object on stdout\n"
	"      --quick       few prompts, little calibration: does it work at all; its figures are rough\n"
	"      --no-sinks    code the first tokens as well, and show what keeping them is worth\n"
	"      --no-window   the same for the last tokens\n"
	"      --classes     Cistern alone, and with salient and redundant tokens by how the basis fits "
	"them, by how\n"
	"                    their neighbours foretell them, and by chance: against plain tokens at equal "
	"bytes\n"
	"      --model DIR   the model's folder (default: the one this was built with, or $CISTERN_MODEL)\n"
	"      --texts N     texts with their continuation (default 24)\n"
	"      --recalls N   prompts with records to be recalled (default 24)\n"
	"      --layers-per-group N  layers that are decorrelated together, by Cistern and by KVTC (default: "
	"as\n"
	"                    many as have up to 2048 features)\n"
	"\n"
	"ratio: of the coded tokens, 16-bit source over what was stored; total: protected tokens counted "
	"too;\n"
	"error: relative L2 of coded keys and values; attn: of attention outputs over real queries; kl: nats "
	"a\n"
	"token between next-token distributions; bits: a coded value; bound: the least bits at the same "
	"error.\n";

static volatile sig_atomic_t interrupted;

static void on_signal(int signal)
{
	interrupted = signal;
}

struct arguments {
	bool json, quick, no_sinks, no_window, classes;
	const char *model;
	uint32_t n_texts, n_recalls, n_sequences, layers_per_group;
};

/* A codec at a rung under a policy, and what the prompts added up to. */
struct measured_case {
	struct under_test *u;
	size_t rung;
	struct policy policy;
	const char *without; /* NULL: a point of the curves */
	struct measurement m;
};

struct bench {
	struct arguments a;
	struct policy policy;
	struct private_daemon files; /* the folder alone */
	struct learning *learning;
	struct judge *judge;
	struct bound bound;
	struct under_test *codecs[CODECS_MAX];
	size_t n_codecs;
	struct measured_case *cases;
	size_t n_cases;
};

static void add_case(
	struct bench *b, struct under_test *u, size_t rung, const struct policy *policy, const char *without)
{
	if (b->n_cases < CASES_MAX)
		b->cases[b->n_cases++] =
			(struct measured_case){.u = u, .rung = rung, .policy = *policy, .without = without};
}

/* What protection is worth: the transform codecs' 16x rungs, with all of it and without what was asked for.
 */
static void add_unprotected(struct bench *b, struct under_test *u)
{
	struct policy all, no_sinks, no_window;

	policy_init(&all);
	no_sinks = no_window = all;
	no_sinks.sink_tokens = 0;
	no_window.window_tokens = 0;
	for (size_t rung = 0; rung < u->n_rungs; rung++) {
		if (u->rungs[rung] < 15.9 || u->rungs[rung] > 16.1)
			continue;
		add_case(b, u, rung, &all, "nothing");
		if (b->a.no_sinks)
			add_case(b, u, rung, &no_sinks, "sinks");
		if (b->a.no_window)
			add_case(b, u, rung, &no_window, "window");
	}
}

/* By chance, by what neighbours foretell, by fit; and of that more. */
static int make_classes(struct bench *b)
{
	static const struct class_rule rules[] = {{.rank = CODEC_UNRANKED, .salient_share = 0.1, .finer = 2},
		{.rank = CODEC_UNRANKED, .redundant_share = 0.3, .coarser = 1},
		{.rank = CODEC_BY_NEIGHBOURS, .salient_share = 0.1, .finer = 2},
		{.rank = CODEC_BY_NEIGHBOURS, .redundant_share = 0.3, .coarser = 1},
		{.rank = CODEC_BY_FIT, .salient_share = 0.1, .finer = 2},
		{.rank = CODEC_BY_FIT, .redundant_share = 0.3, .coarser = 1},
		{.rank = CODEC_BY_FIT,
			.salient_share = 0.1,
			.finer = 2,
			.redundant_share = 0.3,
			.coarser = 1},
		{.rank = CODEC_BY_FIT, .salient_share = 0.05, .finer = 2},
		{.rank = CODEC_BY_FIT, .salient_share = 0.02, .finer = 2},
		{.rank = CODEC_BY_FIT, .salient_share = 0.05, .finer = 4},
		{.rank = CODEC_BY_FIT, .salient_share = 0.2, .finer = 1}};
	int r = under_test_cistern(b->learning, &b->codecs[b->n_codecs]);

	b->n_codecs += r == 0;
	for (size_t i = 0; i < sizeof rules / sizeof *rules && r == 0; i++) {
		r = under_test_cistern_classes(b->learning, &rules[i], &b->codecs[b->n_codecs]);
		b->n_codecs += r == 0;
	}
	return r;
}

static int make_codecs(struct bench *b)
{
	static int (*const makers[])(const struct learning *l, struct under_test **out) = {under_test_cistern,
		under_test_cistern_deflate, under_test_kvtc, under_test_kvtc_pooled, under_test_kvtc_whole,
		under_test_uniform, under_test_fp8};
	int r = 0;

	for (size_t i = 0; i < sizeof makers / sizeof *makers && r == 0; i++) {
		r = makers[i](b->learning, &b->codecs[b->n_codecs]);
		b->n_codecs += r == 0;
		r = r == -ENOENT ? 0 : r;
	}
	return r;
}

static int make_cases(struct bench *b)
{
	int r;

	b->cases = calloc(CASES_MAX, sizeof *b->cases);
	if (!b->cases)
		return -ENOMEM;
	r = b->a.classes ? make_classes(b) : make_codecs(b);
	for (size_t i = 0; i < b->n_codecs; i++)
		for (size_t rung = 0; rung < b->codecs[i]->n_rungs; rung++)
			add_case(b, b->codecs[i], rung, &b->policy, NULL);
	for (size_t i = 0; i < b->n_codecs && (b->a.no_sinks || b->a.no_window); i++)
		add_unprotected(b, b->codecs[i]);
	return r;
}

static int set_up(struct bench *b)
{
	char captures[300], prompts[300];
	struct learning_options learning = {.layers_per_group = b->a.layers_per_group, .stop = &interrupted};
	struct captures captured = {0};
	struct policy all;
	int r = private_folder(&b->files);

	if (r < 0)
		return r;
	policy_init(&all);
	b->policy = all;
	b->policy.sink_tokens = b->a.no_sinks ? 0 : all.sink_tokens;
	b->policy.window_tokens = b->a.no_window ? 0 : all.window_tokens;
	learning.skip_positions = all.sink_tokens;
	snprintf(captures, sizeof captures, "%s/captures", b->files.folder);
	snprintf(prompts, sizeof prompts, "%s/prompts.jsonl", b->files.folder);
	if (mkdir(captures, 0700) < 0)
		return -errno;
	r = calibration_text_capture(b->a.model, captures, b->a.n_sequences, &interrupted, &captured);
	if (r == 0)
		r = learning_new(&learning, captured.paths, captured.n, &b->learning);
	captures_fini(&captured);
	if (r == 0)
		r = demo_prompts_write(b->a.model, prompts, b->a.n_texts, b->a.n_recalls);
	if (r == 0)
		r = judge_new(&(struct judge_options){b->a.model, prompts}, &b->judge);
	if (r == 0)
		r = bound_init(&b->bound, b->learning);
	if (r == 0)
		r = make_cases(b);
	return r;
}

static int add_to_bound(void *arg, const struct codec_chunk *chunk, const uint8_t *classes)
{
	return bound_add(arg, chunk, classes);
}

static int judge_all(struct bench *b)
{
	const size_t n = judge_n_prompts(b->judge);
	const struct geometry *g = &b->learning->geometry;
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++) {
		r = judge_prompt(b->judge, i);
		if (r == 0)
			r = judge_for_each_chunk(b->judge, g, &b->policy, add_to_bound, &b->bound);
		for (size_t c = 0; c < b->n_cases && r == 0; c++) {
			struct measured_case *at = &b->cases[c];

			r = interrupted ? -EINTR
					: judge_measure(b->judge, g, &at->policy, at->u, at->rung, &at->m);
		}
		if (isatty(STDERR_FILENO))
			fprintf(stderr, "\rprompt %zu of %zu%s", i + 1, n, i + 1 == n ? "\r\033[K" : "");
	}
	return r;
}

static int report(struct bench *b, double seconds)
{
	const char *codecs[CODECS_MAX + 1] = {NULL};
	struct figures *points = calloc(b->n_cases, sizeof *points);
	struct unprotected *unprotected = calloc(b->n_cases, sizeof *unprotected);
	struct rate_results results = {.learning = b->learning,
		.codecs = codecs,
		.sink_tokens = b->policy.sink_tokens,
		.window_tokens = b->policy.window_tokens,
		.n_texts = b->a.n_texts,
		.n_recalls = b->a.n_recalls,
		.prompt_tokens = judge_n_tokens(b->judge),
		.text_tokens = b->cases[0].m.texts.n_tokens,
		.seconds = seconds,
		.points = points,
		.unprotected = unprotected};

	for (size_t i = 0, n = 0; i < b->n_codecs; i++)
		if (b->codecs[i]->ours)
			codecs[n++] = b->codecs[i]->name;
	for (size_t i = 0; points && unprotected && i < b->n_cases; i++) {
		const struct measured_case *c = &b->cases[i];
		struct figures f;

		figures_of(c->u, c->rung, &c->m, &b->bound, &f);
		if (c->without)
			unprotected[results.n_unprotected++] = (struct unprotected){c->without, f};
		else
			points[results.n_points++] = f;
	}
	if (points && b->a.classes)
		classes_report(points, results.n_points, b->a.json);
	else if (points && unprotected && b->a.json)
		print_json(rate_json(&results));
	else if (points && unprotected)
		rate_table(&results);
	free(points);
	free(unprotected);
	return points && unprotected ? 0 : -ENOMEM;
}

static void tear_down(struct bench *b)
{
	for (size_t i = 0; i < b->n_codecs; i++)
		b->codecs[i]->free(b->codecs[i]);
	free(b->cases);
	if (b->learning)
		bound_fini(&b->bound);
	judge_free(b->judge);
	learning_free(b->learning);
	private_daemon_stop(&b->files);
}

static int parse(struct arguments *a, int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"quick", no_argument, NULL, 'q'}, {"no-sinks", no_argument, NULL, 's'},
		{"no-window", no_argument, NULL, 'w'}, {"classes", no_argument, NULL, 'c'},
		{"model", required_argument, NULL, 'm'}, {"texts", required_argument, NULL, 't'},
		{"recalls", required_argument, NULL, 'r'}, {"layers-per-group", required_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'}, {0}};
	int option, r = 0;

	optind = 1;
	while (r == 0 && (option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		switch (option) {
		case 'j': a->json = true; break;
		case 'q':
			a->n_texts = 2;
			a->n_recalls = 1;
			a->n_sequences = 8;
			break;
		case 's': a->no_sinks = true; break;
		case 'w': a->no_window = true; break;
		case 'c': a->classes = true; break;
		case 'm': a->model = optarg; break;
		case 't': r = bench_parse_natural("rate", optarg, 1, 100, &a->n_texts); break;
		case 'r': r = bench_parse_natural("rate", optarg, 1, 200, &a->n_recalls); break;
		case 'l': r = bench_parse_natural("rate", optarg, 1, 512, &a->layers_per_group); break;
		case 'h': fputs(usage, stdout); exit(EXIT_SUCCESS);
		default: r = -EINVAL;
		}
	return r == 0 && optind != argc ? -EINVAL : r;
}

static void catch_signals(void)
{
	/* Without SA_RESTART: what waits is woken. */
	struct sigaction action = {.sa_handler = on_signal};

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
}

int bench_rate(int argc, char **argv)
{
	const char *model = getenv("CISTERN_MODEL");
	const uint64_t start = bench_now_ns();
	struct bench b = {.a = {.model = model ? model : CISTERN_MODEL_DIR,
				  .n_texts = 24,
				  .n_recalls = 24,
				  .n_sequences = 24}};
	int r;

	if (parse(&b.a, argc, argv) < 0) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	catch_signals();
	r = set_up(&b);
	if (r == 0)
		r = judge_all(&b);
	if (r == 0)
		r = report(&b, (double)(bench_now_ns() - start) * 1e-9);
	tear_down(&b);
	if (interrupted) {
		fprintf(stderr, "cistern bench rate: interrupted\n");
		return EXIT_INTERRUPTED;
	}
	if (r < 0)
		fprintf(stderr, "cistern bench rate: %s\n", strerror(-r));
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
