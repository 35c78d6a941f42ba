/* cistern policy: what is in force, and changes to it while the daemon runs. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cistern.h"
#include "tools/operate/ask.h"

static const char usage[] =
	"Usage: cistern policy get   [NAMESPACE] [FIELD]     what is in force\n"
	"       cistern policy set   [NAMESPACE] FIELD=VALUE...\n"
	"       cistern policy reset [NAMESPACE] [FIELD...]  back to what the configuration says\n"
	"       cistern policy save                          keep it: write the daemon's policy_file\n"
	"       cistern policy list                          all fields, with ranges and units\n"
	"       cistern policy simulate --help               a policy tried on captured KV\n"
	"\n"
	"A change holds from the next chunk on, for new chunks; it is made whole or not at all. The "
	"namespace is\n"
	"\"default\" where none is named. \"preset=archival|balanced|compact\" sets several fields at once.\n"
	"\n"
	"  -s, --socket PATH   the daemon's socket (default: $CISTERN_SOCKET, else\n"
	"                      /run/cistern/cistern.sock)\n"
	"      --json          the daemon's answer as it is: one JSON object\n";

struct call {
	const char *socket;
	bool json;
	int argc; /* after the subcommand */
	char **argv;
};

static json_t *ask_daemon(const struct call *call, json_t *request)
{
	return ask("policy", call->socket, request, 5000);
}

/* Prints the answer as JSON if that is wanted: true, and then it is gone. */
static bool printed(const struct call *call, json_t *answer)
{
	if (call->json)
		print_json(answer);
	return call->json;
}

static void print_value(const json_t *value)
{
	if (json_is_string(value))
		printf("%s\n", json_string_value(value));
	else
		printf("%.10g\n", json_number_value(value));
}

static void print_policy(const json_t *o, const char *only)
{
	const char *name;
	json_t *value;

	if (!only)
		printf("[%s] version %lld\n", json_string_value(json_object_get(o, "namespace")),
			(long long)json_integer_value(json_object_get(o, "version")));
	json_object_foreach(json_object_get(o, "policy"), name, value)
	{
		if (only && strcmp(only, name))
			continue;
		if (!only)
			printf("  %-16s ", name);
		print_value(value);
	}
}

static int get(struct call *call)
{
	json_t *request = json_pack("{s:s}", "command", "policy-get"), *answer, *item;
	const char *only = call->argc > 1 ? call->argv[1] : NULL;
	size_t i;

	if (call->argc > 2) {
		json_decref(request);
		return EXIT_USAGE;
	}
	if (call->argc)
		json_object_set_new(request, "namespace", json_string(call->argv[0]));
	answer = ask_daemon(call, request);
	if (!answer)
		return EXIT_FAILURE;
	item = json_array_get(json_object_get(answer, "policies"), 0);
	if (only && !json_object_get(json_object_get(item, "policy"), only)) {
		fprintf(stderr, "cistern policy: %s: no such field; cistern policy list has them\n", only);
		json_decref(answer);
		return EXIT_FAILURE;
	}
	if (printed(call, answer))
		return EXIT_SUCCESS;
	json_array_foreach(json_object_get(answer, "policies"), i, item) print_policy(item, only);
	json_decref(answer);
	return EXIT_SUCCESS;
}

/* Takes a leading namespace: an argument without "=" (set), or one that is no field (reset, by the daemon's
 * list).
 */
static const char *take_name_space(struct call *call)
{
	const char *name = "default";

	if (call->argc && !strchr(call->argv[0], '=')) {
		name = call->argv[0];
		call->argc--;
		call->argv++;
	}
	return name;
}

static int tell_change(const struct call *call, json_t *request)
{
	json_t *answer = ask_daemon(call, request);

	if (!answer)
		return EXIT_FAILURE;
	if (printed(call, answer))
		return EXIT_SUCCESS;
	printf("%s: %s\n", json_string_value(json_object_get(answer, "namespace")),
		json_string_value(json_object_get(answer, "changed")));
	json_decref(answer);
	return EXIT_SUCCESS;
}

static int set(struct call *call)
{
	const char *name = take_name_space(call);
	json_t *fields = json_object();

	if (!call->argc) {
		json_decref(fields);
		return EXIT_USAGE;
	}
	for (int i = 0; i < call->argc; i++) {
		char *equals = strchr(call->argv[i], '=');

		if (!equals) {
			fprintf(stderr, "cistern policy: \"%s\" is not FIELD=VALUE\n", call->argv[i]);
			json_decref(fields);
			return EXIT_USAGE;
		}
		*equals = 0;
		if (json_object_get(fields, call->argv[i])) {
			fprintf(stderr, "cistern policy: %s is given twice\n", call->argv[i]);
			json_decref(fields);
			return EXIT_USAGE;
		}
		if (json_object_set_new(fields, call->argv[i], json_string(equals + 1))) {
			fprintf(stderr, "cistern policy: an argument that is not UTF-8\n");
			json_decref(fields);
			return EXIT_USAGE;
		}
	}
	return tell_change(call,
		json_pack("{s:s, s:s, s:o}", "command", "policy-set", "namespace", name, "set", fields));
}

static bool is_field(const struct call *call, const char *word)
{
	json_t *answer = ask_daemon(call, json_pack("{s:s}", "command", "policy-list")), *item;
	bool found = false;
	size_t i;

	json_array_foreach(json_object_get(answer, "fields"), i, item) found =
		found || !strcmp(word, json_string_value(json_object_get(item, "name")));
	json_decref(answer);
	return found;
}

static int reset(struct call *call)
{
	json_t *fields = json_array();
	const char *name = "default";

	if (call->argc && !is_field(call, call->argv[0]))
		name = take_name_space(call);
	for (int i = 0; i < call->argc; i++)
		json_array_append_new(fields, json_string(call->argv[i]));
	return tell_change(call,
		json_pack("{s:s, s:s, s:o}", "command", "policy-reset", "namespace", name, "fields", fields));
}

static int save(struct call *call)
{
	json_t *answer;

	if (call->argc)
		return EXIT_USAGE;
	answer = ask_daemon(call, json_pack("{s:s}", "command", "policy-save"));
	if (!answer)
		return EXIT_FAILURE;
	if (printed(call, answer))
		return EXIT_SUCCESS;
	printf("saved to %s\n", json_string_value(json_object_get(answer, "file")));
	json_decref(answer);
	return EXIT_SUCCESS;
}

static void print_range(const json_t *f)
{
	const json_t *choices = json_object_get(f, "choices"), *word;
	size_t i;

	if (!choices) {
		printf("%g to %g %s", json_number_value(json_object_get(f, "min")),
			json_number_value(json_object_get(f, "max")),
			json_string_value(json_object_get(f, "unit")));
		return;
	}
	json_array_foreach(choices, i, word) printf("%s%s", i ? "|" : "", json_string_value(word));
}

static int list(struct call *call)
{
	json_t *answer, *f;
	size_t i;

	if (call->argc)
		return EXIT_USAGE;
	answer = ask_daemon(call, json_pack("{s:s}", "command", "policy-list"));
	if (!answer)
		return EXIT_FAILURE;
	if (printed(call, answer))
		return EXIT_SUCCESS;
	json_array_foreach(json_object_get(answer, "fields"), i, f)
	{
		printf("%s = %s   (", json_string_value(json_object_get(f, "name")),
			json_string_value(json_object_get(f, "default")));
		print_range(f);
		printf(")\n    %s\n", json_string_value(json_object_get(f, "help")));
	}
	printf("preset = archival|balanced|compact\n    sets several of these at once\n");
	json_decref(answer);
	return EXIT_SUCCESS;
}

int cmd_policy(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	static const struct {
		const char *name;
		int (*run)(struct call *call);
	} commands[] = {{"get", get}, {"set", set}, {"reset", reset}, {"save", save}, {"list", list}};
	struct call call = {0};
	int option, status = EXIT_USAGE;

	if (argc > 1 && !strcmp(argv[1], "simulate"))
		return cmd_policy_simulate(argc - 1, argv + 1);
	optind = 1;
	while ((option = getopt_long(argc, argv, "s:", options, NULL)) != -1)
		switch (option) {
		case 's': call.socket = optarg; break;
		case 'j': call.json = true; break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind < argc) {
		call.argc = argc - optind - 1;
		call.argv = argv + optind + 1;
		for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
			if (!strcmp(argv[optind], commands[i].name))
				status = commands[i].run(&call);
	}
	if (status == EXIT_USAGE)
		fputs(usage, stderr);
	return status;
}
