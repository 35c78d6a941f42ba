/* cistern inspect: one chunk, as its frame has it, and why its tokens were classified as they were. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "runtime/daemon/frame-json.h"
#include "tools/cistern.h"
#include "tools/operate/ask.h"
#include "tools/plot.h"

static const char usage[] =
	"Usage: cistern inspect [KEY|FILE] [--plot OUT.svg] [--socket PATH] [--json]\n"
	"\n"
	"One chunk: its classes, errors and bytes, and for each token taken for an attention sink the "
	"reason. KEY is\n"
	"the chunk's key, in hexadecimal, or the first 8 digits of it; the daemon knows the reasons of the "
	"256 chunks\n"
	"it encoded last. FILE is a frame in a file. With neither: which chunks those are.\n"
	"\n"
	"      --plot OUT.svg  draws scores over positions and layers, classes, bits\n"
	"  -s, --socket PATH   the daemon's socket (default: $CISTERN_SOCKET, else\n"
	"                      /run/cistern/cistern.sock)\n"
	"      --json          one JSON object\n";

static json_t *from_file(const char *path)
{
	void *data;
	size_t len;
	json_t *frame;
	int r = file_read(path, &data, &len);

	if (r) {
		fprintf(stderr, "cistern inspect: %s: %s\n", path, strerror(-r));
		return NULL;
	}
	frame = frame_json(data, len);
	free(data);
	if (!frame) {
		fprintf(stderr, "cistern inspect: %s: not a frame, or damaged\n", path);
		return NULL;
	}
	return json_pack("{s:b, s:n, s:o}", "ok", 1, "decision", "frame", frame);
}

static void print_classes(const json_t *runs)
{
	static const char *const names[] = {"sink", "window", "exact", "salient", "plain", "redundant"};
	const json_t *run;
	size_t i;

	for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
		double n = 0;

		json_array_foreach(
			runs, i, run) if (!strcmp(names[k], json_string_value(json_array_get(run, 0)))) n +=
			json_number_value(json_array_get(run, 1));
		if (n > 0)
			printf("  %-10s %5.0f tokens\n", names[k], n);
	}
}

static void print_frame(const json_t *f)
{
	const json_t *mean = json_object_get(f, "mean_error"), *worst = json_object_get(f, "worst_error");

	printf("chunk      %s\n", json_string_value(json_object_get(f, "key")));
	printf("tokens     %.0f from position %.0f, %.0f of them kept bit-exact\n", ask_number(f, "tokens"),
		ask_number(f, "position"), ask_number(f, "raw_tokens"));
	printf("frame      %.0f bytes of %.0f (%.1fx), rung %.0f, policy version %.0f\n",
		ask_number(f, "bytes"), ask_number(f, "raw_bytes"),
		ask_number(f, "raw_bytes") / ask_number(f, "bytes"), ask_number(f, "rung"),
		ask_number(f, "policy_version"));
	printf("error      mean %.4f, %.4f (k, v), worst %.4f, %.4f, of the coded tokens\n",
		json_number_value(json_array_get(mean, 0)), json_number_value(json_array_get(mean, 1)),
		json_number_value(json_array_get(worst, 0)), json_number_value(json_array_get(worst, 1)));
	puts("classes");
	print_classes(json_object_get(f, "classes"));
}

static void print_sink(const json_t *s)
{
	const json_t *signal = json_object_get(s, "signal");

	printf("  %8.0f  %-10s", ask_number(s, "position"), json_string_value(json_object_get(s, "reason")));
	if (json_object_get(s, "score"))
		printf(" %6.2f over %5.2f", ask_number(s, "score"), ask_number(s, "threshold"));
	if (signal)
		printf("  %s of %s in layer %.0f, heads %.0f",
			json_string_value(json_object_get(signal, "kind")),
			json_string_value(json_object_get(signal, "plane")), ask_number(signal, "layer"),
			ask_number(signal, "head_group"));
	putchar('\n');
}

static void print_decision(const json_t *d)
{
	const json_t *attention = json_object_get(d, "attention"), *sink;
	size_t i;

	if (json_is_object(attention))
		printf("attention  outputs %.4f off, worst %.4f (layer %.0f, head %.0f), as compared last\n",
			ask_number(attention, "mean_error"), ask_number(attention, "worst_error"),
			ask_number(attention, "worst_layer"), ask_number(attention, "worst_head"));
	if (ask_number(d, "settled") > 0)
		printf("settled    %.0f tokens, which the window has left since\n", ask_number(d, "settled"));
	printf("sinks      %zu; %s\n", json_array_size(json_object_get(d, "sinks")),
		!json_is_true(json_object_get(d, "searched")) ? "no detector yet, or the search is off"
		: json_is_true(json_object_get(d, "trained"))
			? "scores are logs of the attention foretold, in multiples of the uniform share"
			: "scores are deviations from the mean token: no attention was seen of this model "
			  "yet");
	json_array_foreach(json_object_get(d, "sinks"), i, sink) print_sink(sink);
}

static int list(const char *socket, bool json)
{
	json_t *answer = ask("inspect", socket, json_pack("{s:s}", "command", "decisions"), 5000), *item;
	size_t i;

	if (!answer)
		return EXIT_FAILURE;
	if (json) {
		print_json(answer);
		return EXIT_SUCCESS;
	}
	json_array_foreach(json_object_get(answer, "chunks"), i, item)
		printf("%.16s  position %7.0f  %4.0f tokens  %3.0f sinks  rung %2.0f  policy %.0f\n",
			json_string_value(json_object_get(item, "key")), ask_number(item, "position"),
			ask_number(item, "tokens"), ask_number(item, "sinks"), ask_number(item, "rung"),
			ask_number(item, "policy_version"));
	json_decref(answer);
	return EXIT_SUCCESS;
}

static int show(json_t *answer, const char *plot, bool json)
{
	int r = plot ? plot_inspection(answer, plot) : 0;

	if (r) {
		fprintf(stderr, "cistern inspect: %s: %s\n", plot,
			r == -ENODATA ? "there are no classes to draw" : strerror(-r));
		json_decref(answer);
		return EXIT_FAILURE;
	}
	if (json) {
		print_json(answer);
		return EXIT_SUCCESS;
	}
	if (json_is_object(json_object_get(answer, "frame")))
		print_frame(json_object_get(answer, "frame"));
	else
		puts("frame      not in the pool (evicted to disk, or removed)");
	if (json_is_object(json_object_get(answer, "decision")))
		print_decision(json_object_get(answer, "decision"));
	json_decref(answer);
	return EXIT_SUCCESS;
}

int cmd_inspect(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"plot", required_argument, NULL, 'p'}, {"json", no_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'}, {0}};
	const char *socket = NULL, *plot = NULL;
	bool json = false;
	struct stat st;
	json_t *answer;
	int option;

	optind = 1;
	while ((option = getopt_long(argc, argv, "s:", options, NULL)) != -1)
		switch (option) {
		case 's': socket = optarg; break;
		case 'p': plot = optarg; break;
		case 'j': json = true; break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind == argc && !plot)
		return list(socket, json);
	if (optind + 1 != argc) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	answer = stat(argv[optind], &st)
			 ? ask("inspect", socket,
				   json_pack("{s:s, s:s}", "command", "inspect", "key", argv[optind]), 5000)
			 : from_file(argv[optind]);
	return answer ? show(answer, plot, json) : EXIT_FAILURE;
}
