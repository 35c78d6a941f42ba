/* cistern ls: the chunks that a daemon keeps. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/cistern.h"
#include "tools/operate/ask.h"

static const char usage[] = "Usage: cistern ls [--namespace NAME] [--limit N] [--socket PATH] [--json]\n"
			    "\n"
			    "Lists chunks, in no order: namespace, model, first half of the key, tokens, KV "
			    "and frame sizes, where it\n"
			    "is (P in the pool, D on disk), pins, transform (plain: the 8-bit codec).\n"
			    "\n"
			    "  -n, --namespace NAME   of this namespace alone\n"
			    "  -l, --limit N          so many at most (default: 100; 0: all)\n"
			    "  -s, --socket PATH      the daemon's socket (default: $CISTERN_SOCKET, else "
			    "/run/cistern/cistern.sock)\n"
			    "      --json             one object a line, for every chunk\n";

static void print_chunk(const json_t *c, bool json)
{
	char raw[32], frame[32];
	const char *transform = ask_text(c, "transform");
	const bool in_pool = json_is_true(json_object_get(c, "in_pool"));
	const bool on_disk = json_is_true(json_object_get(c, "on_disk"));

	if (json) {
		json_dumpf(c, stdout, JSON_COMPACT);
		putchar('\n');
		return;
	}
	printf("%-12s %-20s %.32s %5.0f %10s %10s  %s%s %4.0f  %.16s\n", ask_text(c, "namespace"),
		ask_text(c, "model"), ask_text(c, "key"), ask_number(c, "tokens"),
		ask_bytes(ask_number(c, "raw_bytes"), raw), ask_bytes(ask_number(c, "frame_bytes"), frame),
		in_pool ? "P" : "-", on_disk ? "D" : "-", ask_number(c, "pins"),
		*transform ? transform : "plain");
}

int cmd_ls(int argc, char **argv)
{
	static const struct option options[] = {{"namespace", required_argument, NULL, 'n'},
		{"limit", required_argument, NULL, 'l'}, {"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	const char *socket = NULL, *name_space = NULL;
	unsigned long long limit = 100, n = 0;
	json_int_t next = 1;
	bool json = false;
	char *end;
	int option;

	optind = 1;
	while ((option = getopt_long(argc, argv, "n:l:s:", options, NULL)) != -1)
		switch (option) {
		case 'n': name_space = optarg; break;
		case 'l':
			limit = strtoull(optarg, &end, 10);
			if (*end || end == optarg || *optarg == '-') {
				fprintf(stderr, "cistern ls: --limit %s: not a number\n", optarg);
				return EXIT_USAGE;
			}
			break;
		case 's': socket = optarg; break;
		case 'j': json = true; break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind != argc) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	while (next && (!limit || n < limit)) {
		json_t *request = json_pack("{s:s, s:I}", "command", "list", "from", next), *answer, *chunk;
		size_t i;

		if (name_space)
			json_object_set_new(request, "namespace", json_string(name_space));
		answer = ask("ls", socket, request, 10000);
		if (!answer)
			return EXIT_FAILURE;
		json_array_foreach(json_object_get(answer, "chunks"), i, chunk)
		{
			if (limit && n == limit)
				break;
			print_chunk(chunk, json);
			n++;
		}
		next = json_integer_value(json_object_get(answer, "next"));
		json_decref(answer);
	}
	if (next && !json)
		fprintf(stderr, "cistern ls: there may be more; --limit 0 lists all\n");
	return EXIT_SUCCESS;
}
