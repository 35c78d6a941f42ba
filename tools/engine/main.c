/* cistern-engine: a small inference engine, client of a Cistern daemon like any other. */
#include "tools/engine/engine.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
	"usage: cistern-engine prefill  [--socket PATH] [--namespace NAME] --model DIR --prompts FILE\n"
	"                               [--observe]\n"
	"       cistern-engine continue [--socket PATH] [--namespace NAME] --model DIR --prompts FILE\n"
	"                               [--sinks 4] [--window 128]\n"
	"       cistern-engine capture  --model DIR --text FILE --out DIR --sequences N [--length 2048]\n"
	"                               [--tokens N] [--recall FILE] [--attention]\n"
	"       cistern-engine speed    --model DIR [--length 2048]\n"
	"options of all: [--limit PROMPTS] [--order nhd|hnd] [--seed N] [--json]\n"
	"\n"
	"prefill computes prompts and leaves their KV with the daemon; continue, another process, takes it\n"
	"back and compares what follows with what follows a full computation. JSON, one object a line.\n";

enum option_id {
	OPTION_MODEL = 256,
	OPTION_SOCKET,
	OPTION_NAMESPACE,
	OPTION_PROMPTS,
	OPTION_LIMIT,
	OPTION_SINKS,
	OPTION_WINDOW,
	OPTION_TEXT,
	OPTION_RECALL,
	OPTION_OUT,
	OPTION_TOKENS,
	OPTION_SEQUENCES,
	OPTION_LENGTH,
	OPTION_ATTENTION,
	OPTION_OBSERVE,
	OPTION_ORDER,
	OPTION_SEED,
	OPTION_JSON,
	OPTION_HELP,
};

static const struct option option_table[] = {
	{"model", required_argument, NULL, OPTION_MODEL},
	{"socket", required_argument, NULL, OPTION_SOCKET},
	{"namespace", required_argument, NULL, OPTION_NAMESPACE},
	{"prompts", required_argument, NULL, OPTION_PROMPTS},
	{"limit", required_argument, NULL, OPTION_LIMIT},
	{"sinks", required_argument, NULL, OPTION_SINKS},
	{"window", required_argument, NULL, OPTION_WINDOW},
	{"text", required_argument, NULL, OPTION_TEXT},
	{"recall", required_argument, NULL, OPTION_RECALL},
	{"out", required_argument, NULL, OPTION_OUT},
	{"tokens", required_argument, NULL, OPTION_TOKENS},
	{"sequences", required_argument, NULL, OPTION_SEQUENCES},
	{"length", required_argument, NULL, OPTION_LENGTH},
	{"attention", no_argument, NULL, OPTION_ATTENTION},
	{"observe", no_argument, NULL, OPTION_OBSERVE},
	{"order", required_argument, NULL, OPTION_ORDER},
	{"seed", required_argument, NULL, OPTION_SEED},
	{"json", no_argument, NULL, OPTION_JSON},
	{"help", no_argument, NULL, OPTION_HELP},
	{0},
};

static int number_parse(const char *text, uint32_t *out)
{
	unsigned long n;
	char *end;

	errno = 0;
	n = strtoul(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || n > INT32_MAX)
		return -EINVAL;
	*out = (uint32_t)n;
	return 0;
}

static int option_apply(struct options *o, int id, const char *value)
{
	uint32_t seed;

	switch (id) {
	case OPTION_MODEL: o->model = value; return 0;
	case OPTION_SOCKET: o->socket = value; return 0;
	case OPTION_NAMESPACE: o->name_space = value; return 0;
	case OPTION_PROMPTS: o->prompts = value; return 0;
	case OPTION_TEXT: o->text = value; return 0;
	case OPTION_RECALL: o->recall = value; return 0;
	case OPTION_OUT: o->out = value; return 0;
	case OPTION_LIMIT: return number_parse(value, &o->limit);
	case OPTION_SINKS: return number_parse(value, &o->sink_tokens);
	case OPTION_WINDOW: return number_parse(value, &o->window_tokens);
	case OPTION_TOKENS: return number_parse(value, &o->n_tokens);
	case OPTION_SEQUENCES: return number_parse(value, &o->n_sequences);
	case OPTION_LENGTH: return number_parse(value, &o->length);
	case OPTION_ATTENTION: o->attention = true; return 0;
	case OPTION_OBSERVE: o->observe = true; return 0;
	case OPTION_JSON: return 0; /* there is no other form; taken so that all commands take it */
	case OPTION_ORDER:
		o->order = strcmp(value, "hnd") == 0 ? KV_HND : KV_NHD;
		return o->order == KV_HND || strcmp(value, "nhd") == 0 ? 0 : -EINVAL;
	case OPTION_SEED:
		if (number_parse(value, &seed) < 0)
			return -EINVAL;
		o->seed = seed;
		return 0;
	default: return -EINVAL;
	}
}

static const struct command {
	const char *name;
	int (*run)(const struct options *o);
	bool prompts, text; /* what it cannot do without */
} commands[] = {
	{"prefill", engine_prefill, true, false},
	{"continue", engine_continue, true, false},
	{"capture", engine_capture, false, true},
	{"speed", engine_speed, false, false},
};

static int complain(const char *what)
{
	fprintf(stderr, "cistern-engine: %s\n%s", what, usage);
	return 2;
}

int main(int argc, char **argv)
{
	struct options o = {.sink_tokens = 4, .window_tokens = 128, .length = 2048, .seed = 1};
	const struct command *command = NULL;
	int id;

	if (argc < 2)
		return complain("no command");
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (strcmp(argv[1], commands[i].name) == 0)
			command = &commands[i];
	if (strcmp(argv[1], "--help") == 0)
		return fputs(usage, stdout) < 0;
	if (!command)
		return complain("no such command");
	optind = 2;
	while ((id = getopt_long(argc, argv, "", option_table, NULL)) != -1) {
		if (id == OPTION_HELP)
			return fputs(usage, stdout) < 0;
		if (option_apply(&o, id, optarg) < 0)
			return complain("an option that does not exist or has a wrong value");
	}
	if (optind < argc)
		return complain("an argument that is no option");
	if (!o.model)
		return complain("--model is missing");
	if (command->prompts && !o.prompts)
		return complain("--prompts is missing");
	if (command->text && (!o.text || !o.out || !o.n_sequences))
		return complain("--text, --out and --sequences are needed");
	return command->run(&o) < 0;
}
