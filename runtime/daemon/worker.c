#include "runtime/daemon/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "runtime/stats/board.h"

enum { SCRATCH_MAX_BYTES = 256 << 20 };

struct workers {
	const struct kernels *kernels;
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct job *todo, **todo_end; /* under lock */
	struct job *done;             /* under lock; newest first */
	bool stop;                    /* under lock */
	int fd;
	size_t n_busy; /* front thread */
	pthread_t *threads;
	uint32_t n_threads;
	_Atomic uint32_t n_lanes; /* workers that have begun */
};

static struct job *take(struct workers *w)
{
	struct job *job;

	pthread_mutex_lock(&w->lock);
	while (!w->todo && !w->stop)
		pthread_cond_wait(&w->work, &w->lock);
	job = w->todo;
	if (job) {
		w->todo = job->next;
		if (!w->todo)
			w->todo_end = &w->todo;
	}
	pthread_mutex_unlock(&w->lock);
	return job;
}

static void give_back(struct workers *w, struct job *job)
{
	bool first;

	pthread_mutex_lock(&w->lock);
	first = !w->done;
	job->next = w->done;
	w->done = job;
	pthread_mutex_unlock(&w->lock);
	/* One signal for many jobs: the front thread takes all that are there. */
	if (first)
		eventfd_write(w->fd, 1);
}

static void *work(void *arg)
{
	struct workers *w = arg;
	/* Relaxed: all that matters is that no two get the same. */
	const uint32_t lane = atomic_fetch_add_explicit(&w->n_lanes, 1, memory_order_relaxed);
	struct codec *codec = codec_new(w->kernels, SCRATCH_MAX_BYTES);
	struct job *job;

	while ((job = take(w))) {
		/* A job finds no codec only when memory ran out at start-up, and fails with -ENOMEM. */
		job->worker = lane;
		job->started_ns = board_now_ns();
		job->run(job, codec);
		job->ended_ns = board_now_ns();
		give_back(w, job);
	}
	codec_free(codec);
	return NULL;
}

int workers_new(uint32_t n, const struct kernels *kernels, struct workers **out)
{
	struct workers *w = calloc(1, sizeof *w);
	sigset_t all, old;
	int r = 0;

	if (!w)
		return -ENOMEM;
	w->kernels = kernels;
	w->todo_end = &w->todo;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->work, NULL);
	w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	w->threads = calloc(n, sizeof *w->threads);
	if (w->fd < 0 || !w->threads)
		r = w->fd < 0 ? -errno : -ENOMEM;
	/* Signals are the front thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	for (; !r && w->n_threads < n; w->n_threads++) {
		r = -pthread_create(&w->threads[w->n_threads], NULL, work, w);
		if (r)
			break;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		workers_free(w);
	else
		*out = w;
	return r;
}

struct workers *workers_free(struct workers *w)
{
	if (!w)
		return NULL;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_broadcast(&w->work);
	pthread_mutex_unlock(&w->lock);
	for (uint32_t i = 0; i < w->n_threads; i++)
		pthread_join(w->threads[i], NULL);
	if (w->fd >= 0)
		close(w->fd);
	pthread_cond_destroy(&w->work);
	pthread_mutex_destroy(&w->lock);
	free(w->threads);
	free(w);
	return NULL;
}

void workers_submit(struct workers *w, struct job *job)
{
	job->next = NULL;
	w->n_busy++;
	pthread_mutex_lock(&w->lock);
	*w->todo_end = job;
	w->todo_end = &job->next;
	pthread_cond_signal(&w->work);
	pthread_mutex_unlock(&w->lock);
}

int workers_fd(const struct workers *w)
{
	return w->fd;
}

size_t workers_reap(struct workers *w)
{
	struct job *list, *ordered = NULL;
	eventfd_t count;
	size_t n = 0;

	/* The signal is taken back before the list: a job that comes in between signals again. */
	eventfd_read(w->fd, &count);
	pthread_mutex_lock(&w->lock);
	list = w->done;
	w->done = NULL;
	pthread_mutex_unlock(&w->lock);
	while (list) {
		struct job *next = list->next;

		list->next = ordered;
		ordered = list;
		list = next;
	}
	while (ordered) {
		struct job *next = ordered->next;

		w->n_busy--;
		n++;
		ordered->done(ordered);
		ordered = next;
	}
	return n;
}

size_t workers_n_busy(const struct workers *w)
{
	return w->n_busy;
}
