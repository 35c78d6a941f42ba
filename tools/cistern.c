/* cistern: what an operator types. A table of subcommands, each in its own file. */
#include "tools/cistern.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} commands[] = {
	{"bench", cmd_bench, "measure the way to the daemon, and the codec"},
	{"calibrate", cmd_calibrate, "learn a transform from captured KV"},
	{"demo", cmd_demo, "the main job, end to end, with a small real model"},
	{"doctor", cmd_doctor, "whether this machine is fit, and what to do if not"},
	{"drain", cmd_drain, "get a daemon ready to be stopped"},
	{"events", cmd_events, "what has happened in the daemon"},
	{"ls", cmd_ls, "the chunks that are kept"},
	{"plan", cmd_plan, "what a transform will cost, and what a pool and a store will hold"},
	{"inspect", cmd_inspect, "one chunk: its classes, errors, and why"},
	{"pool", cmd_pool, "memory for chunks, and resizing the GPU's part of it"},
	{"purge", cmd_purge, "forget a namespace, for good"},
	{"policy", cmd_policy, "show and change policies while the daemon runs"},
	{"status", cmd_status, "what a running daemon holds and does"},
	{"top", cmd_top, "the same, live, by namespace and model"},
	{"trace", cmd_trace, "the last spans of work, for a browser's trace viewer"},
};

static void print_usage(FILE *out)
{
	fputs("Usage: cistern COMMAND [--help] [options]\n\n", out);
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].help);
	fputs("\nEvery command takes --json and --help. Exit status: 0 done, 1 failed, 2 wrong usage.\n",
		out);
}

void print_json(json_t *object)
{
	json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
	putchar('\n');
	json_decref(object);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;

	if (!name) {
		print_usage(stderr);
		return EXIT_USAGE;
	}
	if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
		print_usage(stdout);
		return EXIT_SUCCESS;
	}
	if (!strcmp(name, "--version")) {
		puts("cistern " CISTERN_VERSION);
		return EXIT_SUCCESS;
	}
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (!strcmp(name, commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	fprintf(stderr, "cistern: no such command: %s\n", name);
	print_usage(stderr);
	return EXIT_USAGE;
}
