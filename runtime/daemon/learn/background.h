/*
 * A thread for work that nobody waits for: at a low priority or the lowest there is (SCHED_IDLE), and for no
 * more than a share of one core. The front thread hands it tasks and takes the finished ones back in order;
 * neither side ever waits for the other: both ways are lists that are swapped atomically, since a lock that a
 * thread of no priority holds is one that it may hold for long.
 */
#ifndef RUNTIME_DAEMON_LEARN_BACKGROUND_H
#define RUNTIME_DAEMON_LEARN_BACKGROUND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/codec.h"

struct background;

struct task {
	/* On the thread. Calls background_rest between pieces of work, and ends soon when that says so. */
	void (*run)(struct task *task, struct background *b);
	/* On the front thread; may free the task. ran: run was called. */
	void (*done)(struct task *task, bool ran);
	bool ran;          /* the thread's own */
	struct task *next; /* the lists' own */
};

/* share: of one core, over 0 to 1. only_idle: it is to run when nothing else wants to; then it may not run at
 * all for long. -ENOMEM, -EAGAIN, -errno. */
int background_new(double share, bool only_idle, const struct kernels *kernels, struct background **out);
/* Ends the thread when what it is at has come to a rest; what it had not begun is handed back as not run.
 * Then background_reap takes the last. Twice is fine. */
void background_stop(struct background *b);
/* Stopped and reaped. NULL is fine. */
struct background *background_free(struct background *b);

void background_submit(struct background *b, struct task *task);
/* Readable when finished tasks wait. */
int background_fd(const struct background *b);
/* Calls done for every finished task. */
void background_reap(struct background *b);
/* Tasks handed over and not yet reaped. */
size_t background_n_busy(const struct background *b);
/* Processor time it has had so far. Any thread. */
uint64_t background_cpu_ns(const struct background *b);

/* For tasks, on the thread: sleeps as long as the work since the last rest takes to be within the share.
 * False: the daemon stops. */
bool background_rest(struct background *b);
/* The thread's own codec; NULL: there was no memory. */
struct codec *background_codec(struct background *b);

#endif
