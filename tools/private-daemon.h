/*
 * A cisternd of one's own in a temporary folder, for the demo, the benches and the tests. It ends when its
 * starter does, however that ends; its folder goes with private_daemon_stop, which is safe to call twice and
 * from a clean-up after a signal (not from a signal handler).
 */
#ifndef TOOLS_PRIVATE_DAEMON_H
#define TOOLS_PRIVATE_DAEMON_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct private_daemon {
	char folder[256]; /* empty: not started */
	char socket[300];
	char log[300]; /* what the daemon wrote to stderr */
	char store[300];
	pid_t pid; /* 0: not running */
};

struct private_daemon_options {
	const char *transform; /* path; NULL: none */
	uint32_t spin_us;
	uint32_t workers;    /* 0: one per CPU */
	uint64_t pool_bytes; /* 0: 256 MiB */
	int no_store;
	const char *daemon_lines; /* more lines for [daemon], or NULL */
	const char *store_lines;  /* more lines for [store] instead of its size, or NULL */
	const char *policy_lines; /* more lines for [policy], or NULL */
	const char *more;         /* whole sections, or NULL */
};

/* The folder alone, without a daemon. -errno. */
int private_folder(struct private_daemon *p);
/* Makes the folder, writes the configuration, starts the daemon found beside this program (or $CISTERND),
 * waits until it serves. -errno; what the daemon said is in log, and printed to stderr. */
int private_daemon_start(struct private_daemon *p, const struct private_daemon_options *options);
/* Starts it again in the same folder, after private_daemon_end. */
int private_daemon_restart(struct private_daemon *p);
/* Sends a signal and waits for the end. Returns its wait status, or -errno. The folder stays. */
int private_daemon_end(struct private_daemon *p, int signal);
/* Ends it (SIGTERM) if it runs and removes the folder. */
void private_daemon_stop(struct private_daemon *p);

/* The path of a program built or installed beside this one. */
int sibling_program(const char *name, char *path, size_t size);

#endif
