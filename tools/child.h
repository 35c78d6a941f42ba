/*
 * A child process whose standard output is read line by line, each line a JSON object. For the demo: one
 * child at a time, owned by the caller's thread. A flag that a signal handler sets ends the wait: the child
 * is then killed and collected.
 */
#ifndef TOOLS_CHILD_H
#define TOOLS_CHILD_H

#include <jansson.h>
#include <signal.h>

/* Runs argv (NULL-terminated) with stderr appended to the file at log. on_line (may be NULL) is called with
 * each object; a line that is no JSON object fails the run. 0; -EINTR when *stop was set; -ECHILD when the
 * child failed; -errno. */
int child_run(char *const argv[], const char *log, volatile sig_atomic_t *stop,
	int (*on_line)(void *arg, const json_t *object), void *arg);

#endif
