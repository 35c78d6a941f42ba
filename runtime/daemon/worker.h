/*
 * Threads that encode and decode, each with a codec of its own. The front thread hands them jobs and takes
 * the finished ones back, in any order; a job belongs to the workers in between. Nothing here knows what a
 * job is for.
 */
#ifndef RUNTIME_DAEMON_WORKER_H
#define RUNTIME_DAEMON_WORKER_H

#include "runtime/codec.h"

struct workers;

struct job {
	void (*run)(struct job *job, struct codec *codec); /* on a worker */
	void (*done)(struct job *job);                     /* on the front thread; may free the job */
	struct job *next;                                  /* the workers' own */
	/* When it ran, CLOCK_MONOTONIC, and on which of them: set by the workers, for done. */
	uint64_t started_ns, ended_ns;
	uint32_t worker;
};

/* n threads. -ENOMEM, -EAGAIN: they could not be started. */
int workers_new(uint32_t n, const struct kernels *kernels, struct workers **out);
/* Lets the jobs that were handed over finish, ends the threads. Finished jobs that were not taken are lost:
 * call workers_reap() until nothing is in flight first. NULL is fine. */
struct workers *workers_free(struct workers *w);

/* Hands a job over. Never blocks for long. */
void workers_submit(struct workers *w, struct job *job);
/* Readable when finished jobs wait. */
int workers_fd(const struct workers *w);
/* Calls done for every finished job. Returns how many. */
size_t workers_reap(struct workers *w);
/* Jobs handed over and not yet reaped. */
size_t workers_n_busy(const struct workers *w);

#endif
