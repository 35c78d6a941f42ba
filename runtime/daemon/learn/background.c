#include "runtime/daemon/learn/background.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SCRATCH_MAX_BYTES = 64 << 20, NICE_LOW = 10, NICE_LOWEST = 19 };

struct background {
	double share;
	bool only_idle;
	const struct kernels *kernels;
	struct codec *codec;                   /* the thread's */
	_Atomic(struct task *) todo, finished; /* newest first */
	atomic_bool stop;
	int wake; /* the thread sleeps on it: work, or stop */
	int fd;   /* finished tasks */
	_Atomic uint64_t cpu_ns;
	uint64_t rested_cpu_ns, rested_ns; /* the thread's: as of the last rest */
	pthread_t thread;
	bool started;
	size_t n_busy; /* the front thread's */
};

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Whoever takes the list takes all of it, so that a node is never unlinked from the middle. */
static void push(_Atomic(struct task *) *list, struct task *task)
{
	task->next = atomic_load_explicit(list, memory_order_relaxed);
	/* Release: the task's fields; pairs with the exchange in take_all. */
	while (!atomic_compare_exchange_weak_explicit(
		list, &task->next, task, memory_order_release, memory_order_relaxed))
		;
}

/* In the order they were pushed. */
static struct task *take_all(_Atomic(struct task *) *list)
{
	struct task *t = atomic_exchange_explicit(list, NULL, memory_order_acquire), *ordered = NULL;

	while (t) {
		struct task *next = t->next;

		t->next = ordered;
		ordered = t;
		t = next;
	}
	return ordered;
}

/* Where SCHED_IDLE is forbidden, a nice value comes near. */
static void lower_priority(const struct background *b)
{
	const struct sched_param none = {0};

	if (!b->only_idle || sched_setscheduler(0, SCHED_IDLE, &none))
		setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), b->only_idle ? NICE_LOWEST : NICE_LOW);
}

static bool stopping(const struct background *b)
{
	return atomic_load_explicit(&b->stop, memory_order_relaxed);
}

bool background_rest(struct background *b)
{
	const uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID), now = clock_ns(CLOCK_MONOTONIC);
	const double wanted = (double)(cpu - b->rested_cpu_ns) / b->share;
	double left_ms = (wanted - (double)(now - b->rested_ns)) / 1e6;

	atomic_store_explicit(&b->cpu_ns, cpu, memory_order_relaxed);
	/* Work that was handed over wakes the poll early: the sleep goes on. */
	while (left_ms >= 1 && !stopping(b)) {
		const struct timespec slice = {.tv_nsec = (left_ms > 50 ? 50 : (long)left_ms) * 1000000};

		nanosleep(&slice, NULL);
		left_ms = (wanted - (double)(clock_ns(CLOCK_MONOTONIC) - b->rested_ns)) / 1e6;
	}
	b->rested_cpu_ns = cpu;
	b->rested_ns = clock_ns(CLOCK_MONOTONIC);
	return !stopping(b);
}

static void finish(struct background *b, struct task *task, bool ran)
{
	task->ran = ran;
	push(&b->finished, task);
	eventfd_write(b->fd, 1);
}

static void *work(void *arg)
{
	struct background *b = arg;

	lower_priority(b);
	b->codec = codec_new(b->kernels, SCRATCH_MAX_BYTES);
	b->rested_ns = clock_ns(CLOCK_MONOTONIC);
	for (;;) {
		struct task *list;
		eventfd_t count;

		eventfd_read(b->wake, &count); /* blocks */
		list = take_all(&b->todo);
		b->rested_ns = clock_ns(CLOCK_MONOTONIC);
		while (list) {
			struct task *task = list;
			const bool runs = !stopping(b);

			list = list->next;
			if (runs) {
				task->run(task, b);
				background_rest(b);
			}
			finish(b, task, runs);
		}
		if (stopping(b))
			break;
	}
	codec_free(b->codec);
	return NULL;
}

int background_new(double share, bool only_idle, const struct kernels *kernels, struct background **out)
{
	struct background *b = calloc(1, sizeof *b);
	sigset_t all, old;
	int r = 0;

	if (!b)
		return -ENOMEM;
	b->share = share;
	b->only_idle = only_idle;
	b->kernels = kernels;
	b->wake = eventfd(0, EFD_CLOEXEC);
	b->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (b->wake < 0 || b->fd < 0)
		r = -errno;
	/* Signals are the front thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	if (!r)
		r = -pthread_create(&b->thread, NULL, work, b);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	b->started = !r;
	if (r)
		background_free(b);
	else
		*out = b;
	return r;
}

void background_stop(struct background *b)
{
	if (!b || !b->started)
		return;
	atomic_store_explicit(&b->stop, true, memory_order_relaxed);
	eventfd_write(b->wake, 1);
	pthread_join(b->thread, NULL);
	b->started = false;
	/* What came in behind the thread's last look. */
	for (struct task *t = take_all(&b->todo), *next; t; t = next) {
		next = t->next;
		finish(b, t, false);
	}
}

struct background *background_free(struct background *b)
{
	if (!b)
		return NULL;
	background_stop(b);
	if (b->wake >= 0)
		close(b->wake);
	if (b->fd >= 0)
		close(b->fd);
	free(b);
	return NULL;
}

void background_submit(struct background *b, struct task *task)
{
	b->n_busy++;
	if (!b->started) {
		finish(b, task, false);
		return;
	}
	push(&b->todo, task);
	/* Never blocks: the counter would have to reach 2^64. */
	eventfd_write(b->wake, 1);
}

int background_fd(const struct background *b)
{
	return b->fd;
}

void background_reap(struct background *b)
{
	struct task *list;
	eventfd_t count;

	/* The signal is taken back before the list: a task that comes in between signals again. */
	eventfd_read(b->fd, &count);
	list = take_all(&b->finished);
	while (list) {
		struct task *next = list->next;

		b->n_busy--;
		list->done(list, list->ran);
		list = next;
	}
}

size_t background_n_busy(const struct background *b)
{
	return b->n_busy;
}

uint64_t background_cpu_ns(const struct background *b)
{
	return atomic_load_explicit(&b->cpu_ns, memory_order_relaxed);
}

struct codec *background_codec(struct background *b)
{
	return b->codec;
}
