/* cistern drain: gets a daemon ready to be stopped. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tools/cistern.h"
#include "tools/operate/ask.h"

static const char usage[] =
	"Usage: cistern drain [--stop] [--timeout SECONDS] [--cancel] [--socket PATH] [--json]\n"
	"\n"
	"Gets the daemon ready to be stopped: from now on it takes no new engines; this command waits until "
	"those\n"
	"that are attached have left and every chunk that goes to disk is written.\n"
	"\n"
	"      --stop              then ends the daemon\n"
	"  -t, --timeout SECONDS   gives up waiting after so long (default: 300); draining stays in force\n"
	"      --cancel            takes new engines again\n"
	"  -s, --socket PATH       the daemon's socket (default: $CISTERN_SOCKET, else "
	"/run/cistern/cistern.sock)\n"
	"      --json              what is left, as an object\n"
	"\n"
	"Exit status: 0 drained, 1 not, 2 wrong usage.\n";

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool is_drained(const json_t *state)
{
	return ask_number(state, "engines") == 0 && ask_number(state, "unwritten") == 0 &&
	       ask_number(state, "writing_bytes") == 0;
}

static void print_state(json_t *state, bool json)
{
	char a[32];

	if (json) {
		print_json(state);
		return;
	}
	printf("%s: %.0f engines attached, %.0f chunks to be written, %s on their way\n",
		!json_is_true(json_object_get(state, "draining")) ? "not draining"
		: is_drained(state)                               ? "drained"
								  : "draining",
		ask_number(state, "engines"), ask_number(state, "unwritten"),
		ask_bytes(ask_number(state, "writing_bytes"), a));
	json_decref(state);
}

int cmd_drain(int argc, char **argv)
{
	static const struct option options[] = {{"stop", no_argument, NULL, 'p'},
		{"timeout", required_argument, NULL, 't'}, {"cancel", no_argument, NULL, 'c'},
		{"socket", required_argument, NULL, 's'}, {"json", no_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'}, {0}};
	const char *socket = NULL;
	bool json = false, stop = false, cancel = false, drained;
	double timeout_s = 300, until_s;
	json_t *state;
	char *end;
	int option;

	optind = 1;
	while ((option = getopt_long(argc, argv, "t:s:", options, NULL)) != -1)
		switch (option) {
		case 'p': stop = true; break;
		case 't':
			timeout_s = strtod(optarg, &end);
			if (*end || end == optarg || !(timeout_s >= 0) || isinf(timeout_s)) {
				fprintf(stderr, "cistern drain: --timeout %s: not a number of seconds\n",
					optarg);
				return EXIT_USAGE;
			}
			break;
		case 'c': cancel = true; break;
		case 's': socket = optarg; break;
		case 'j': json = true; break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind != argc || (cancel && stop)) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	until_s = now_s() + timeout_s;
	state = ask("drain", socket, json_pack("{s:s, s:b}", "command", "drain", "on", !cancel), 10000);
	while (state && !cancel && !is_drained(state) && now_s() < until_s) {
		json_decref(state);
		nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
		state = ask("drain", socket, json_pack("{s:s}", "command", "drain"), 10000);
	}
	if (!state)
		return EXIT_FAILURE;
	drained = is_drained(state);
	print_state(state, json);
	if (cancel)
		return EXIT_SUCCESS;
	if (drained && stop) {
		state = ask("drain", socket, json_pack("{s:s}", "command", "stop"), 10000);
		if (!state)
			return EXIT_FAILURE;
		json_decref(state);
	}
	return drained ? EXIT_SUCCESS : EXIT_FAILURE;
}
