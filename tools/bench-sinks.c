/*
 * cistern bench sinks: how well attention sinks are found, what finding them is worth, and what it costs.
 * With the model that is kept beside this program: a transform is calibrated on one text, a detector learns
 * from the same, and both are judged on another by the attention that the model really pays. See
 * cistern-engine sinks.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench.h"
#include "tools/child.h"
#include "tools/cistern.h"
#include "tools/private-daemon.h"

static const char usage[] =
	"Usage: cistern bench sinks [--json] [--model DIR] [--sequences N]\n"
	"\n"
	"Finds attention sinks in held-out text and compares with the attention really paid.\n"
	"\n"
	"  --json           one JSON object\n"
	"  --model DIR      the model's folder (default: the one this was built with, or $CISTERN_MODEL)\n"
	"  --sequences N    of 2048 tokens: N to learn from, N ordinary and N with separators planted in the "
	"middle\n"
	"                   to judge by (default 12)\n";

static volatile sig_atomic_t interrupted;

static void on_signal(int signal)
{
	interrupted = signal;
}

struct bench {
	const char *model;
	char sequences[16];
	bool json;
	struct private_daemon files; /* its folder alone */
	char log[400];
	json_t *result;
};

static int keep(void *arg, const json_t *object)
{
	struct bench *b = arg;

	json_decref(b->result);
	b->result = json_deep_copy(object);
	return b->result ? 0 : -ENOMEM;
}

static int run(struct bench *b, const char *program, const char *const *arguments,
	int (*on_line)(void *arg, const json_t *object))
{
	char path[600];
	const char *argv[24] = {path};
	size_t n = 1;
	int r = sibling_program(program, path, sizeof path);

	while (!r && *arguments && n < 23)
		argv[n++] = *arguments++;
	if (!r)
		r = child_run((char *const *)argv, b->log, &interrupted, on_line, b);
	if (r == -ECHILD)
		fprintf(stderr, "cistern bench sinks: %s failed; what it said is gone with its folder\n",
			program);
	return r;
}

static int measure(struct bench *b)
{
	char calib[600], test[600], recall[600], captures[400], transform[400];
	const char *const capture[] = {"capture", "--model", b->model, "--text", calib, "--recall", recall,
		"--out", captures, "--sequences", "24", "--length", "2048", NULL};
	const char *const learn[] = {"calibrate", "--json", "--out", transform, captures, NULL};
	const char *const judge[] = {"sinks", "--model", b->model, "--text", test, "--train", calib,
		"--sequences", b->sequences, "--transform", transform, NULL};
	int r;

	snprintf(calib, sizeof calib, "%s/heldout/calib.txt", b->model);
	snprintf(test, sizeof test, "%s/heldout/test.txt", b->model);
	snprintf(recall, sizeof recall, "%s/heldout/recall-calib.jsonl", b->model);
	snprintf(captures, sizeof captures, "%s/captures", b->files.folder);
	snprintf(transform, sizeof transform, "%s/transform.safetensors", b->files.folder);
	r = run(b, "cistern-engine", capture, NULL);
	if (!r)
		r = run(b, "cistern", learn, NULL);
	return r ? r : run(b, "cistern-engine", judge, keep);
}

/* ---- report ---- */

static double number(const json_t *o, const char *key)
{
	return json_number_value(json_object_get(o, key));
}

static void print_worth(const json_t *rows, const char *title)
{
	static const char *const ways[] = {
		"nothing", "first_4", "first_as_many", "cold", "trained", "observed", "oracle"};
	const json_t *row;
	size_t i;

	printf("\n%s: KL divergence of what follows, nats (ratio in all)\n  %-6s", title, "rung");
	for (size_t k = 0; k < sizeof ways / sizeof *ways; k++)
		printf(" %18s", ways[k]);
	putchar('\n');
	json_array_foreach(rows, i, row)
	{
		printf("  %-6.0f", number(row, "rung"));
		for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
			const json_t *way = json_object_get(row, ways[k]);

			printf(" %10.6f (%5.2f)", number(way, "kl"), number(way, "ratio"));
		}
		putchar('\n');
	}
}

static void print_result(const json_t *o)
{
	static const char *const ways[] = {"cold", "trained", "observed"};
	const json_t *cost = json_object_get(o, "cost");

	printf("Sinks: tokens to which some head gives 10 times the uniform share in at least half of the "
	       "queries of\n"
	       "the whole chunk that follows their own; the first 4 positions and the window's chunk left "
	       "out.\n\n");
	printf("  %-10s %6s %9s %10s %14s %16s %10s %12s\n", "", "sinks", "recall", "mistaken",
		"recall at 2%", "recall at 0.5%", "planted", "attended");
	for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
		const json_t *w = json_object_get(json_object_get(o, "found"), ways[k]);

		printf("  %-10s %6.0f %9.3f %9.2f%% %14.3f %16.3f %5.0f of %2.0f %12.3f\n", ways[k],
			number(w, "sinks"), number(w, "recall"), 100 * number(w, "mistaken"),
			number(w, "recall_at_2pct"), number(w, "recall_at_half_pct"),
			number(w, "planted_found"), number(w, "planted"), number(w, "attended_recall"));
	}
	printf("\n  cold: no attention was ever seen; trained: learned from attention, none seen of this "
	       "text; observed:\n"
	       "  16 queries of each chunk were seen. attended: recall of tokens that get 10 times the "
	       "uniform share on\n"
	       "  average over the chunk, what is asked for now and then included.\n");
	print_worth(json_object_get(o, "ordinary"), "Ordinary text");
	print_worth(json_object_get(o, "planted"), "Text with separators planted in the middle");
	printf("\nSearch %.1f us a chunk, encoding %.1f us: %.1f%%\n", number(cost, "search_us"),
		number(cost, "encode_us"), 100 * number(cost, "share"));
}

int bench_sinks(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"model", required_argument, NULL, 'm'}, {"sequences", required_argument, NULL, 'n'},
		{"help", no_argument, NULL, 'h'}, {0}};
	struct sigaction action = {.sa_handler = on_signal};
	const char *model = getenv("CISTERN_MODEL");
	struct bench b = {.model = model ? model : CISTERN_MODEL_DIR};
	unsigned long n = 12;
	int option, r;

	optind = 1;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'j': b.json = true; break;
		case 'm': b.model = optarg; break;
		case 'n': n = strtoul(optarg, NULL, 10); break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind != argc || n < 2 || n > 100) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	snprintf(b.sequences, sizeof b.sequences, "%lu", n);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	r = private_folder(&b.files);
	if (!r) {
		snprintf(b.log, sizeof b.log, "%s/engine.log", b.files.folder);
		r = measure(&b);
		private_daemon_stop(&b.files);
	}
	if (!r && b.json)
		print_json(json_incref(b.result));
	else if (!r)
		print_result(b.result);
	json_decref(b.result);
	if (r)
		fprintf(stderr, "cistern bench sinks: %s\n", interrupted ? "interrupted" : strerror(-r));
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
