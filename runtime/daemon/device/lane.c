#include "runtime/daemon/device/lane.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "kernels/cuda/driver.h"
#include "runtime/cuda/device.h"
#include "runtime/stats/board.h"

enum {
	STUCK_MS = 2000, /* from when on a call or a task is called stuck */
	WATCH_MS = 500,
	END_MS = 1000, /* what lanes_free waits for a lane */
	/* How long a lane sleeps between two looks at what has not ended: short at first, for a copy of some
	 * MiB takes so long. */
	NAP_FIRST_US = 10,
	NAP_LAST_US = 200,
};

struct lane {
	struct lanes *lanes;
	struct lane *next; /* all lanes; front thread */
	char name[48];
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct lane_task *todo, **todo_end; /* under lock */
	bool closing, look;                 /* under lock */
	size_t n_busy;                      /* front thread: tasks that have not come back */
	bool closed, told;                  /* front thread: lane_close was called; it was called stuck */
	_Atomic bool ended;                 /* release: the thread touches nothing any more */
	/* What it does now: pairs with itself, relaxed; a watcher may see one with the other's time. */
	const char *_Atomic doing;
	_Atomic uint64_t doing_since_ns;
	_Atomic uint64_t oldest_since_ns; /* of the tasks under way; 0: none */
	/* The thread's own. */
	CUstream streams[2];
	struct lane_task *flying, **flying_end;
	struct lane_keep *keeps;
};

struct lanes {
	const struct device *device;
	int fd;
	pthread_mutex_t lock;
	struct lane_task *done, **done_end; /* under lock */
	bool look;                          /* under lock */
	struct lane *all;                   /* front thread, as is the rest */
	size_t n_busy;
};

/* ---- on a lane ---- */

static void doing(struct lane *lane, const char *what)
{
	atomic_store_explicit(&lane->doing_since_ns, board_now_ns(), memory_order_relaxed);
	atomic_store_explicit(&lane->doing, what, memory_order_relaxed);
}

static void give_back(struct lane *lane, struct lane_task *t, int status)
{
	struct lanes *l = lane->lanes;
	bool first;

	t->status = status;
	t->next = NULL;
	pthread_mutex_lock(&l->lock);
	first = !l->done;
	*l->done_end = t;
	l->done_end = &t->next;
	pthread_mutex_unlock(&l->lock);
	if (first)
		eventfd_write(l->fd, 1);
}

/* Takes out of the flying tasks those that have landed. A failed query is the work's failure: the task is
 * over, for nothing more is to be learnt of it. */
static bool land(struct lane *lane)
{
	const struct cuda_driver *cu = device_driver(lane->lanes->device);
	struct lane_task **link = &lane->flying;
	bool any = false;

	while (*link) {
		struct lane_task *t = *link;
		CUresult r;

		doing(lane, t->what);
		r = cu->cuEventQuery(t->landed);
		doing(lane, NULL);
		if (r == CUDA_ERROR_NOT_READY) {
			link = &t->next;
			continue;
		}
		*link = t->next;
		any = true;
		give_back(lane, t, r ? device_status(r) : 0);
	}
	lane->flying_end = link;
	return any;
}

static bool try_task(struct lane *lane, struct lane_task *t, bool cancelled)
{
	int r = -ECANCELED;

	if (!cancelled) {
		doing(lane, t->what);
		r = t->run(t);
		doing(lane, NULL);
	}
	if (r == -EAGAIN)
		return false;
	t->next = NULL;
	if (!r && t->landed) {
		*lane->flying_end = t;
		lane->flying_end = &t->next;
	} else {
		give_back(lane, t, r);
	}
	return true;
}

/* Tries every task that waits, once. The list is the lane's meanwhile; what comes in is put behind. */
static bool try_all(struct lane *lane, bool cancelled)
{
	struct lane_task *list, *left = NULL, **left_end = &left;
	bool any = false;

	pthread_mutex_lock(&lane->lock);
	list = lane->todo;
	lane->todo = NULL;
	lane->todo_end = &lane->todo;
	pthread_mutex_unlock(&lane->lock);
	while (list) {
		struct lane_task *t = list;

		list = t->next;
		if (try_task(lane, t, cancelled)) {
			any = true;
			continue;
		}
		t->next = NULL;
		*left_end = t;
		left_end = &t->next;
	}
	if (left) {
		pthread_mutex_lock(&lane->lock);
		*left_end = lane->todo;
		if (!lane->todo)
			lane->todo_end = left_end;
		lane->todo = left;
		pthread_mutex_unlock(&lane->lock);
	}
	return any;
}

static void note_oldest(struct lane *lane)
{
	uint64_t oldest = lane->flying ? lane->flying->since_ns : 0;

	for (const struct lane_task *t = lane->flying; t; t = t->next)
		if (t->since_ns < oldest)
			oldest = t->since_ns;
	atomic_store_explicit(&lane->oldest_since_ns, oldest, memory_order_relaxed);
}

/* Sleeps until there is something to do, or for nap_us when something has not ended. Returns whether the lane
 * is closing. */
static bool rest(struct lane *lane, uint32_t nap_us)
{
	struct timespec until;
	bool closing, look;

	pthread_mutex_lock(&lane->lock);
	while (!lane->todo && !lane->flying && !lane->closing && !lane->look)
		pthread_cond_wait(&lane->work, &lane->lock);
	if (nap_us && !lane->closing && !lane->look) {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += nap_us * 1000L;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&lane->work, &lane->lock, &until);
	}
	closing = lane->closing;
	look = lane->look;
	lane->look = false;
	pthread_mutex_unlock(&lane->lock);
	if (look)
		lane_drop_stale(lane);
	return closing;
}

static int begin(struct lane *lane)
{
	const struct cuda_driver *cu = device_driver(lane->lanes->device);
	int least = 0, greatest = 0;

	if (device_enter(lane->lanes->device))
		return -EIO;
	cu->cuCtxGetStreamPriorityRange(&least, &greatest);
	/* The engine's own work goes first. */
	for (int i = 0; i < 2; i++)
		if (cu->cuStreamCreateWithPriority(&lane->streams[i], CU_STREAM_NON_BLOCKING, least)) {
			lane->streams[i] = NULL;
			return -EIO;
		}
	return 0;
}

static void finish(struct lane *lane)
{
	const struct cuda_driver *cu = device_driver(lane->lanes->device);

	while (lane->keeps) {
		doing(lane, "close");
		lane_let_go(lane, lane->keeps);
	}
	doing(lane, "end");
	for (int i = 0; i < 2; i++)
		if (lane->streams[i])
			cu->cuStreamDestroy(lane->streams[i]);
	doing(lane, NULL);
}

static void *live(void *arg)
{
	struct lane *lane = arg;
	uint32_t nap_us = 0;
	bool closing = false, broken;

	doing(lane, "begin");
	broken = begin(lane);
	doing(lane, NULL);
	for (;;) {
		const bool any_done = land(lane), any_tried = try_all(lane, closing || broken);
		bool waiting;

		note_oldest(lane);
		pthread_mutex_lock(&lane->lock);
		waiting = lane->todo || lane->flying;
		pthread_mutex_unlock(&lane->lock);
		if (closing && !waiting)
			break;
		nap_us = !waiting || any_done || any_tried ? 0 : nap_us ? nap_us * 2 : NAP_FIRST_US;
		if (nap_us > NAP_LAST_US)
			nap_us = NAP_LAST_US;
		closing = rest(lane, nap_us);
		if (closing && waiting && lane->flying)
			nanosleep(&(struct timespec){.tv_nsec = NAP_LAST_US * 1000L}, NULL);
	}
	finish(lane);
	/* The front thread is told as of a task: it looks at lanes that have ended when it reaps. */
	atomic_store_explicit(&lane->ended, true, memory_order_release);
	eventfd_write(lane->lanes->fd, 1);
	return NULL;
}

void lane_keep(struct lane *lane, struct lane_keep *k)
{
	assert(!k->is_open);
	k->is_open = true;
	k->next = lane->keeps;
	lane->keeps = k;
}

void lane_let_go(struct lane *lane, struct lane_keep *k)
{
	struct lane_keep **link = &lane->keeps;

	if (!k->is_open)
		return;
	while (*link != k)
		link = &(*link)->next;
	*link = k->next;
	k->is_open = false;
	k->close(k);
}

void lane_drop_stale(struct lane *lane)
{
	struct lane_keep *next;

	/* What is under way on it was asked for in good faith, and the memory is there as long as it is
	 * mapped. */
	while (lane->flying)
		if (!land(lane))
			nanosleep(&(struct timespec){.tv_nsec = NAP_FIRST_US * 1000L}, NULL);
	for (struct lane_keep *k = lane->keeps; k; k = next) {
		next = k->next;
		if (k->is_stale && k->is_stale(k))
			lane_let_go(lane, k);
	}
}

void lane_want_look(struct lane *lane)
{
	struct lanes *l = lane->lanes;

	pthread_mutex_lock(&l->lock);
	l->look = true;
	pthread_mutex_unlock(&l->lock);
	eventfd_write(l->fd, 1);
}

CUstream lane_work(const struct lane *lane)
{
	return lane->streams[0];
}

CUstream lane_copy(const struct lane *lane)
{
	return lane->streams[1];
}

const struct device *lane_device(const struct lane *lane)
{
	return lane->lanes->device;
}

/* ---- on the front thread ---- */

int lanes_new(const struct device *d, struct lanes **out)
{
	struct lanes *l = calloc(1, sizeof *l);

	if (!l)
		return -ENOMEM;
	l->device = d;
	l->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->fd < 0) {
		free(l);
		return -errno;
	}
	pthread_mutex_init(&l->lock, NULL);
	l->done_end = &l->done;
	*out = l;
	return 0;
}

static void lane_free(struct lane *lane)
{
	pthread_join(lane->thread, NULL);
	pthread_cond_destroy(&lane->work);
	pthread_mutex_destroy(&lane->lock);
	free(lane);
}

/* Lanes that have ended and whose tasks have all come back. */
static void bury(struct lanes *l)
{
	struct lane **link = &l->all;

	while (*link) {
		struct lane *lane = *link;

		/* acquire: pairs with the thread's last store. */
		if (!lane->closed || lane->n_busy ||
			!atomic_load_explicit(&lane->ended, memory_order_acquire)) {
			link = &lane->next;
			continue;
		}
		*link = lane->next;
		lane_free(lane);
	}
}

bool lanes_free(struct lanes *l)
{
	if (!l)
		return true;
	for (int i = 0; i < END_MS && l->all; i++) {
		lanes_reap(l);
		if (l->all)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	if (l->all) {
		for (const struct lane *lane = l->all; lane; lane = lane->next)
			log_warning("device: %s is left behind, its last call has not come back", lane->name);
		return false;
	}
	close(l->fd);
	pthread_mutex_destroy(&l->lock);
	free(l);
	return true;
}

int lanes_fd(const struct lanes *l)
{
	return l->fd;
}

size_t lanes_n_busy(const struct lanes *l)
{
	return l->n_busy;
}

size_t lanes_reap(struct lanes *l)
{
	struct lane_task *list;
	eventfd_t count;
	size_t n = 0;
	bool look;

	/* The signal is taken back before the list: a task that comes in between signals again. */
	eventfd_read(l->fd, &count);
	pthread_mutex_lock(&l->lock);
	list = l->done;
	l->done = NULL;
	l->done_end = &l->done;
	look = l->look;
	l->look = false;
	pthread_mutex_unlock(&l->lock);
	if (look)
		lanes_look(l);
	while (list) {
		struct lane_task *t = list;

		list = t->next;
		t->lane->n_busy--;
		l->n_busy--;
		n++;
		t->done(t);
	}
	bury(l);
	return n;
}

/* For how long a lane has been in one call, or its oldest work under way. */
static uint64_t busy_ms(const struct lane *lane, const char **what)
{
	const uint64_t now = board_now_ns();
	const uint64_t oldest = atomic_load_explicit(&lane->oldest_since_ns, memory_order_relaxed);
	uint64_t since = atomic_load_explicit(&lane->doing_since_ns, memory_order_relaxed);

	*what = atomic_load_explicit(&lane->doing, memory_order_relaxed);
	if (!*what && oldest) {
		*what = "work on the GPU";
		since = oldest;
	}
	return *what && now > since ? (now - since) / 1000000 : 0;
}

int lanes_watch(struct lanes *l)
{
	bool any = false;

	for (struct lane *lane = l->all; lane; lane = lane->next) {
		const char *what;
		const uint64_t ms = busy_ms(lane, &what);

		any |= what || lane->n_busy || lane->closed;
		if (ms < STUCK_MS) {
			if (lane->told)
				log_warning("device: %s goes on", lane->name);
			lane->told = false;
		} else if (!lane->told) {
			log_warning("device: %s is stuck: %s has not come back for %llu ms", lane->name, what,
				(unsigned long long)ms);
			lane->told = true;
		}
	}
	return any ? WATCH_MS : -1;
}

void lanes_look(struct lanes *l)
{
	for (struct lane *lane = l->all; lane; lane = lane->next) {
		pthread_mutex_lock(&lane->lock);
		lane->look = true;
		pthread_cond_signal(&lane->work);
		pthread_mutex_unlock(&lane->lock);
	}
}

json_t *lanes_status(const struct lanes *l)
{
	json_t *array = json_array();

	for (const struct lane *lane = l->all; lane; lane = lane->next) {
		const char *what;
		const uint64_t ms = busy_ms(lane, &what);

		json_array_append_new(
			array, json_pack("{s:s, s:I, s:s?, s:I, s:b, s:b}", "name", lane->name, "tasks",
				       (json_int_t)lane->n_busy, "doing", what, "for_ms", (json_int_t)ms,
				       "stuck", ms >= STUCK_MS, "closing", lane->closed));
	}
	return array;
}

int lane_new(struct lanes *l, const char *name, struct lane **out)
{
	struct lane *lane = calloc(1, sizeof *lane);
	pthread_condattr_t monotonic;
	sigset_t all, old;
	int r;

	if (!lane)
		return -ENOMEM;
	lane->lanes = l;
	snprintf(lane->name, sizeof lane->name, "%s", name);
	lane->todo_end = &lane->todo;
	lane->flying_end = &lane->flying;
	pthread_mutex_init(&lane->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&lane->work, &monotonic);
	pthread_condattr_destroy(&monotonic);
	/* Signals are the front thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	r = -pthread_create(&lane->thread, NULL, live, lane);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r) {
		pthread_cond_destroy(&lane->work);
		pthread_mutex_destroy(&lane->lock);
		free(lane);
		return r;
	}
	lane->next = l->all;
	l->all = lane;
	*out = lane;
	return 0;
}

void lane_submit(struct lane *lane, struct lane_task *t)
{
	assert(!lane->closed);
	t->lane = lane;
	t->next = NULL;
	t->status = 0;
	t->landed = NULL;
	t->since_ns = board_now_ns();
	lane->n_busy++;
	lane->lanes->n_busy++;
	pthread_mutex_lock(&lane->lock);
	*lane->todo_end = t;
	lane->todo_end = &t->next;
	pthread_cond_signal(&lane->work);
	pthread_mutex_unlock(&lane->lock);
}

void lane_close(struct lane *lane)
{
	if (!lane || lane->closed)
		return;
	lane->closed = true;
	pthread_mutex_lock(&lane->lock);
	lane->closing = true;
	pthread_cond_signal(&lane->work);
	pthread_mutex_unlock(&lane->lock);
}
