/* The `cistern` command: what its subcommands share. Each is a function like main, given its own name and
 * arguments, and returns the exit status. */
#ifndef TOOLS_CISTERN_H
#define TOOLS_CISTERN_H

#include <jansson.h>
#include <stdbool.h>

/* Exit statuses beside EXIT_SUCCESS and EXIT_FAILURE. */
enum { EXIT_USAGE = 2 };

int cmd_bench(int argc, char **argv);
int cmd_calibrate(int argc, char **argv);
int cmd_demo(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_drain(int argc, char **argv);
int cmd_events(int argc, char **argv);
int cmd_ls(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_plan_capacity(int argc, char **argv);
int cmd_pool(int argc, char **argv);
int cmd_purge(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_policy(int argc, char **argv);
int cmd_policy_simulate(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_top(int argc, char **argv);
int cmd_trace(int argc, char **argv);

/* Prints the object on stdout with a newline, and takes it. */
void print_json(json_t *object);

#endif
