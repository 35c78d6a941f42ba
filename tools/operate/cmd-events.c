/* cistern events: what has happened in a daemon, and what happens. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tools/cistern.h"
#include "tools/operate/ask.h"

static const char usage[] = "Usage: cistern events [--follow] [--from NUMBER] [--socket PATH] [--json]\n"
			    "\n"
			    "The daemon's event log: policies changed and by whom, alarms, failing disks, "
			    "models and transforms. The\n"
			    "last 1024 are kept.\n"
			    "\n"
			    "  -f, --follow            goes on showing what happens, until interrupted\n"
			    "      --from NUMBER       from this event on (default: the first that is kept)\n"
			    "  -s, --socket PATH       the daemon's socket (default: $CISTERN_SOCKET, else\n"
			    "                          /run/cistern/cistern.sock)\n"
			    "      --json              one object a line\n";

static void print_event(const json_t *e, bool json)
{
	const double ms = ask_number(e, "time_ms");
	const time_t seconds = (time_t)(ms / 1000);
	const json_t *uid = json_object_get(e, "uid");
	char when[32], who[32] = "";
	struct tm local;

	if (json) {
		json_dumpf(e, stdout, JSON_COMPACT);
		putchar('\n');
		return;
	}
	localtime_r(&seconds, &local);
	strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &local);
	if (json_is_integer(uid))
		snprintf(who, sizeof who, "uid %lld ", (long long)json_integer_value(uid));
	printf("%6.0f %s %-7s %s%s%s%s\n", ask_number(e, "number"), when, ask_text(e, "kind"),
		ask_text(e, "namespace"), *ask_text(e, "namespace") ? ": " : "", who, ask_text(e, "text"));
}

/* Shows all from *next on, and moves it. False: the daemon did not answer. */
static bool show(const char *socket, bool json, json_int_t *next)
{
	json_t *answer, *e;
	json_int_t lost, before;
	size_t i;

	do {
		before = *next;
		answer = ask(
			"events", socket, json_pack("{s:s, s:I}", "command", "events", "from", *next), 10000);
		if (!answer)
			return false;
		lost = json_integer_value(json_object_get(answer, "lost"));
		if (lost && before > 1)
			fprintf(stderr, "cistern events: %lld events came too fast and are lost\n",
				(long long)lost);
		json_array_foreach(json_object_get(answer, "events"), i, e) print_event(e, json);
		*next = json_integer_value(json_object_get(answer, "next"));
		json_decref(answer);
	} while (*next > before);
	fflush(stdout);
	return true;
}

int cmd_events(int argc, char **argv)
{
	static const struct option options[] = {{"follow", no_argument, NULL, 'f'},
		{"from", required_argument, NULL, 'n'}, {"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	const char *socket = NULL;
	bool json = false, follow = false;
	json_int_t next = 1;
	char *end;
	int option;

	optind = 1;
	while ((option = getopt_long(argc, argv, "fs:", options, NULL)) != -1)
		switch (option) {
		case 'f': follow = true; break;
		case 'n':
			next = strtoll(optarg, &end, 10);
			if (*end || end == optarg || next < 0) {
				fprintf(stderr, "cistern events: --from %s: not an event's number\n", optarg);
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
	if (!show(socket, json, &next))
		return EXIT_FAILURE;
	while (follow) {
		nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
		if (!show(socket, json, &next))
			return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}
