#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shm/cistern.h"
#include "tools/cistern.h"

static const char usage[] =
	"Usage: cistern purge [--socket PATH] [--json] NAMESPACE\n"
	"\n"
	"Forgets every chunk of a namespace, in memory and on disk. When it returns 0, none of them comes "
	"back,\nalso not after a crash.\n"
	"\n"
	"  -s, --socket PATH   the daemon's socket (default: $CISTERN_SOCKET, else\n"
	"                      /run/cistern/cistern.sock)\n"
	"      --json          the daemon's answer as it is: one JSON object\n";

enum { TIMEOUT_MS = 60000 };

static int purge(const char *socket, const char *name, bool json)
{
	json_t *request = json_pack("{s:s, s:s}", "command", "purge", "namespace", name), *object = NULL;
	char *text = request ? json_dumps(request, JSON_COMPACT) : NULL, *answer = NULL;
	int status = EXIT_FAILURE, r;

	json_decref(request);
	if (!text) {
		fprintf(stderr, "cistern purge: %s is not UTF-8\n", name);
		return EXIT_USAGE;
	}
	r = cistern_control(socket, text, &answer, TIMEOUT_MS);
	free(text);
	if (r) {
		fprintf(stderr, "cistern purge: %s\n", cistern_error(NULL));
		return EXIT_FAILURE;
	}
	object = json_loads(answer, 0, NULL);
	free(answer);
	if (object && json_is_true(json_object_get(object, "ok")))
		status = EXIT_SUCCESS;
	if (json && object) {
		print_json(object);
		return status;
	}
	if (status == EXIT_SUCCESS)
		printf("%s: %lld chunks forgotten\n", name,
			(long long)json_integer_value(json_object_get(object, "purged")));
	else
		fprintf(stderr, "cistern purge: %s\n",
			object ? json_string_value(json_object_get(object, "error"))
			       : "the answer is not JSON");
	json_decref(object);
	return status;
}

int cmd_purge(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	const char *socket = NULL;
	bool json = false;
	int option;

	optind = 1;
	while ((option = getopt_long(argc, argv, "s:", options, NULL)) != -1)
		switch (option) {
		case 's': socket = optarg; break;
		case 'j': json = true; break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind + 1 != argc || !*argv[optind]) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	return purge(socket, argv[optind], json);
}
