/*
 * cistern bench sinks: how well attention sinks are found, what finding them is worth, and what it costs.
 * With the model that is kept beside this program: codecs are calibrated and a detector learns on one text,
 * and both are judged on another by the attention that the model really pays.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "policy/fields.h"
#include "tools/bench-rate/calibration-text.h"
#include "tools/bench-sinks/results.h"
#include "tools/bench.h"
#include "tools/cistern.h"
#include "tools/private-daemon.h"

enum { EXIT_INTERRUPTED = 130 };

static const struct construction constructions[] = {
	{.name = "ordinary", .what = "text as it is"},
	{.name = "separators",
		.what = "text with one or two separators in it, after which it goes on elsewhere",
		.n_separators_max = 2},
	{.name = "copied",
		.what = "one token in the middle has the first one's key and value",
		.n_copies = 1},
	{.name = "several", .what = "eight tokens have the first one's key and value", .n_copies = 8},
	{.name = "moved",
		.what = "one token has the first one's key and value, and the first those of an ordinary one",
		.n_copies = 1,
		.first_is_plain = true},
	{.name = "louder",
		.what = "moved, its key twice as far from the mean key",
		.n_copies = 1,
		.first_is_plain = true,
		.louder = 2},
	{.name = "massive4",
		.what = "moved, its key with 4 times its norm added to a component that queries hardly read",
		.n_copies = 1,
		.first_is_plain = true,
		.aside = 4},
	{.name = "massive16",
		.what = "the same with 16 times its norm",
		.n_copies = 1,
		.first_is_plain = true,
		.aside = 16},
};
enum { N_CONSTRUCTIONS = sizeof constructions / sizeof *constructions };

static const char usage[] =
	"Usage: cistern bench sinks [--json] [--quick] [options]\n"
	"\n"
	"Finds attention sinks in held-out text and compares with the attention really paid; codes "
	"sequences\n"
	"with and without protection, with sinks planted in the text and in the cache.\n"
	"\n"
	"      --json             one JSON object\n"
	"      --quick            few sequences, one rung: does it work at all; its figures are rough\n"
	"      --model DIR        the model's folder (default: the one this was built with, or "
	"$CISTERN_MODEL)\n"
	"      --sequences N      of 2048 tokens, of each construction, to judge by (default 12)\n"
	"      --learn FILE       text to calibrate and to learn from (default: the model's calib.txt)\n"
	"      --judge FILE       text to judge by (default: the model's test.txt)\n"
	"      --construction C   that one alone, and ordinary text: ordinary, separators, copied, several,\n"
	"                         moved, louder, massive4, massive16\n"
	"      --no-worth         find sinks, code nothing\n"
	"      --shown N          queries of each chunk that an engine shows, 1, 2, 4, ... 256 (default 16)\n"
	"      --set FIELD=VALUE  of the policy: sink_budget, sink_multiple, sink_unusual\n";

static volatile sig_atomic_t interrupted;

static void on_signal(int signal)
{
	interrupted = signal;
}

struct arguments {
	bool json, no_worth, one_rung;
	const char *model, *learn, *judge, *construction;
	uint32_t n_sequences, n_learn, n_captures, n_shown;
	struct policy policy;
};

struct bench {
	struct arguments a;
	struct private_daemon files; /* its folder alone */
	struct tokens learn, judge;
	struct learning *learning;
	struct under_test *codecs[WORTH_CODECS_MAX];
	size_t n_codecs;
	struct sequence *sequence;
	struct search *search;
	struct search_decisions decisions;
	struct construction_result results[N_CONSTRUCTIONS];
	size_t n_results;
	struct search_tally text[WAYS];
	uint32_t *by_head;
	struct codec *codec;
	double *encode_ns;
	size_t n_encode;
};

/* ---- set up ---- */

static int make_codecs(struct bench *b)
{
	char captures[300], recall[600];
	struct learning_options options = {.skip_positions = SEQUENCE_FIRST, .stop = &interrupted};
	struct captures captured = {0};
	int r;

	snprintf(captures, sizeof captures, "%s/captures", b->files.folder);
	snprintf(recall, sizeof recall, "%s/heldout/recall-calib.jsonl", b->a.model);
	if (mkdir(captures, 0700) < 0)
		return -errno;
	r = text_capture(b->a.model, b->a.learn, recall, captures, b->a.n_captures, &interrupted, &captured);
	if (!r)
		r = learning_new(&options, captured.paths, captured.n, &b->learning);
	captures_fini(&captured);
	if (!r)
		r = under_test_cistern_bounded(b->learning, b->a.policy.max_error, &b->codecs[0]);
	b->n_codecs += !r;
	if (!r)
		r = under_test_kvtc(b->learning, &b->codecs[1]);
	b->n_codecs += !r;
	b->codec = r ? NULL : codec_new(b->learning->kernels, (size_t)1 << 26);
	return r ? r : b->codec ? 0 : -ENOMEM;
}

static int read_text(const char *path, struct tokens *out)
{
	int r = text_read(path, out);

	if (!r && out->n <= 2 * SEQUENCE_TOKENS)
		r = -ENODATA;
	if (r)
		fprintf(stderr, "cistern bench sinks: %s: %s\n", path,
			r == -ENODATA ? "too short" : strerror(-r));
	return r;
}

static int set_up(struct bench *b)
{
	int r = read_text(b->a.learn, &b->learn);

	if (!r)
		r = read_text(b->a.judge, &b->judge);
	if (!r)
		r = sequence_new(b->a.model, &b->sequence);
	if (!r)
		r = private_folder(&b->files);
	if (!r && !b->a.no_worth)
		r = make_codecs(b);
	if (!r)
		r = search_new(b->sequence, &b->learn, b->a.n_learn, &b->a.policy, b->a.n_shown, &b->search);
	if (!r) {
		b->by_head = calloc((size_t)b->sequence->model->n_layers * b->sequence->model->n_heads,
			sizeof *b->by_head);
		r = b->by_head ? 0 : -ENOMEM;
	}
	return r;
}

/* ---- judging ---- */

/* What the search is measured against: the chunks of one sequence encoded, as it is. */
static int time_encoding(struct bench *b)
{
	const struct transform *t = b->learning->transform;
	double *more = realloc(b->encode_ns, (b->n_encode + SEQUENCE_PROMPT / FORWARD_CHUNK) * sizeof *more);
	int r = more ? 0 : -ENOMEM;

	if (more)
		b->encode_ns = more;
	for (uint32_t c = 0; c < SEQUENCE_PROMPT / FORWARD_CHUNK && !r; c++) {
		const struct codec_chunk chunk = sequence_chunk(b->sequence, &b->sequence->table, c);
		const struct codec_options options = {.transform = t,
			.rung = transform_rung(t, 16),
			.classes = b->decisions.classes[WAY_LEARNED] + c * FORWARD_CHUNK};
		const uint64_t start = bench_cpu_ns();
		uint8_t *frame;
		size_t len;

		r = codec_encode(b->codec, &chunk, &options, &frame, &len, NULL);
		if (r)
			break;
		b->encode_ns[b->n_encode++] = (double)(bench_cpu_ns() - start);
		free(frame);
	}
	return r;
}

static int note_attention(struct bench *b, struct construction_result *out)
{
	const uint32_t n = b->sequence->n_planted;
	double *more = realloc(out->attention, (out->n_attention + n + 1) * sizeof *more);
	int r;

	if (!more)
		return -ENOMEM;
	out->attention = more;
	r = sequence_planted_attention(b->sequence, more + out->n_attention);
	out->n_attention += r ? 0 : n;
	return r;
}

static int judge_sequence(struct bench *b, uint32_t i, struct construction_result *out)
{
	struct sequence *s = b->sequence;
	const bool as_computed = !out->construction->n_copies;
	int r = interrupted ? -EINTR : sequence_make(s, &b->judge, i, b->a.n_sequences, out->construction);

	if (!r)
		r = search_decide(b->search, s, &b->decisions);
	for (int way = 0; way < WAYS && !r; way++) {
		if (!way_is_search((enum way)way))
			continue;
		r = search_count(s, &b->decisions, (enum way)way, &out->tally[way]);
		if (!r && as_computed)
			r = search_count(s, &b->decisions, (enum way)way, &b->text[way]);
	}
	for (size_t k = 0; k < (size_t)s->model->n_layers * s->model->n_heads && !r && as_computed; k++)
		b->by_head[k] += s->truth.by_head[k];
	if (!r)
		r = note_attention(b, out);
	if (!r && b->n_codecs && as_computed)
		r = time_encoding(b);
	if (!r && b->n_codecs)
		r = worth_add(&out->worth, s, &b->decisions, b->codecs, b->n_codecs, b->a.one_rung);
	out->n_sequences += !r;
	return r;
}

static int judge_all(struct bench *b)
{
	int r = 0;

	for (size_t c = 0; c < N_CONSTRUCTIONS && !r; c++) {
		struct construction_result *out = &b->results[b->n_results];

		if (b->a.construction && c && strcmp(b->a.construction, constructions[c].name) != 0)
			continue;
		out->construction = &constructions[c];
		b->n_results++;
		for (uint32_t i = 0; i < b->a.n_sequences && !r; i++) {
			r = judge_sequence(b, i, out);
			if (isatty(STDERR_FILENO))
				fprintf(stderr, "\r%s: %u of %u\033[K", constructions[c].name, i + 1,
					b->a.n_sequences);
		}
	}
	if (isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
	return r;
}

static int report(struct bench *b)
{
	const char *codecs[WORTH_CODECS_MAX];
	struct search *f = b->search;
	struct sinks_results results = {.search = f,
		.n_learned_from = b->a.n_learn,
		.codecs = codecs,
		.n_codecs = b->n_codecs,
		.one_rung = b->a.one_rung,
		.constructions = b->results,
		.n_constructions = b->n_results,
		.text = b->text,
		.by_head = b->by_head,
		.n_layers = b->sequence->model->n_layers,
		.n_heads = b->sequence->model->n_heads,
		.search_us = f->n_search ? bench_quantile(f->search_ns, f->n_search, 0.5) / 1e3 : 0,
		.encode_us = b->n_encode ? bench_quantile(b->encode_ns, b->n_encode, 0.5) / 1e3 : 0};
	json_t *o;

	for (size_t i = 0; i < b->n_codecs; i++)
		codecs[i] = b->codecs[i]->name;
	o = sinks_results_json(&results);
	if (!o)
		return -ENOMEM;
	if (b->a.json)
		print_json(json_incref(o));
	else
		sinks_results_print(o);
	json_decref(o);
	return 0;
}

static void tear_down(struct bench *b)
{
	for (size_t c = 0; c < b->n_results; c++) {
		free(b->results[c].attention);
		for (int way = 0; way < WAYS; way++)
			search_tally_fini(&b->results[c].tally[way]);
	}
	for (int way = 0; way < WAYS; way++)
		search_tally_fini(&b->text[way]);
	for (size_t i = 0; i < b->n_codecs; i++)
		b->codecs[i]->free(b->codecs[i]);
	search_free(b->search);
	sequence_free(b->sequence);
	learning_free(b->learning);
	codec_free(b->codec);
	tokens_fini(&b->learn);
	tokens_fini(&b->judge);
	free(b->by_head);
	free(b->encode_ns);
	private_daemon_stop(&b->files);
}

/* ---- the command ---- */

static bool is_construction(const char *name)
{
	for (size_t i = 0; i < N_CONSTRUCTIONS; i++)
		if (strcmp(name, constructions[i].name) == 0)
			return true;
	fprintf(stderr, "cistern bench sinks: there is no construction %s\n", name);
	return false;
}

static int set_field(struct policy *p, char *assignment)
{
	char why[POLICY_WHY_MAX] = "give FIELD=VALUE", *equals = strchr(assignment, '=');
	int r = -EINVAL;

	if (equals) {
		*equals = '\0';
		r = policy_set(p, assignment, equals + 1, why, sizeof why);
	}
	if (!r)
		r = policy_check(p, why, sizeof why);
	if (r)
		fprintf(stderr, "cistern bench sinks: --set: %s\n", why);
	return r;
}

static int parse(struct arguments *a, int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"quick", no_argument, NULL, 'q'}, {"model", required_argument, NULL, 'm'},
		{"sequences", required_argument, NULL, 'n'}, {"learn", required_argument, NULL, 'l'},
		{"judge", required_argument, NULL, 't'}, {"construction", required_argument, NULL, 'c'},
		{"no-worth", no_argument, NULL, 'w'}, {"shown", required_argument, NULL, 'o'},
		{"set", required_argument, NULL, 's'}, {"help", no_argument, NULL, 'h'}, {0}};
	int option, r = 0;

	while (!r && (option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		switch (option) {
		case 'j': a->json = true; break;
		case 'q':
			a->n_sequences = 2;
			a->n_learn = 6;
			a->n_captures = 8;
			a->one_rung = true;
			break;
		case 'm': a->model = optarg; break;
		case 'n': r = bench_parse_natural("sinks", optarg, 1, 100, &a->n_sequences); break;
		case 'l': a->learn = optarg; break;
		case 't': a->judge = optarg; break;
		case 'c':
			a->construction = optarg;
			r = is_construction(optarg) ? 0 : -EINVAL;
			break;
		case 'w': a->no_worth = true; break;
		case 'o':
			r = bench_parse_natural("sinks", optarg, 1, FORWARD_CHUNK, &a->n_shown);
			if (!r && FORWARD_CHUNK % a->n_shown)
				r = -EINVAL;
			break;
		case 's': r = set_field(&a->policy, optarg); break;
		case 'h': fputs(usage, stdout); exit(EXIT_SUCCESS);
		default: r = -EINVAL;
		}
	return r == 0 && optind != argc ? -EINVAL : r;
}

int bench_sinks(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_signal};
	const char *model = getenv("CISTERN_MODEL");
	char calib[600], test[600];
	struct bench *b = calloc(1, sizeof *b);
	int r;

	if (!b)
		return EXIT_FAILURE;
	b->a = (struct arguments){.model = model ? model : CISTERN_MODEL_DIR,
		.n_sequences = 12,
		.n_learn = 12,
		.n_captures = 24,
		.n_shown = 16};
	policy_init(&b->a.policy);
	if (parse(&b->a, argc, argv) < 0) {
		fputs(usage, stderr);
		free(b);
		return EXIT_USAGE;
	}
	snprintf(calib, sizeof calib, "%s/heldout/calib.txt", b->a.model);
	snprintf(test, sizeof test, "%s/heldout/test.txt", b->a.model);
	b->a.learn = b->a.learn ? b->a.learn : calib;
	b->a.judge = b->a.judge ? b->a.judge : test;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	r = set_up(b);
	if (!r)
		r = judge_all(b);
	if (!r)
		r = report(b);
	tear_down(b);
	free(b);
	if (interrupted) {
		fprintf(stderr, "cistern bench sinks: interrupted\n");
		return EXIT_INTERRUPTED;
	}
	if (r)
		fprintf(stderr, "cistern bench sinks: %s\n", strerror(-r));
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
