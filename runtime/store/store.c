#include "runtime/store.h"

#include "base/log.h"
#include "runtime/store/engine.h"
#include "runtime/store/scan.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/*
 * The seam between two threads: the front thread's calls leave what they bring in a mailbox and ring a
 * doorbell; the store's thread empties it, lets the engine work, and leaves what is finished. See
 * engine.h for the work itself.
 */

enum {
	SEGMENT_BYTES = 64 << 20,
	SEGMENT_BYTES_MAX = 256 << 20,
	SEGMENTS = 64, /* of those between the two */
	SEGMENT_BYTES_MIN = 64 << 10,
	LIMIT_SEGMENTS_MIN = 4, /* with fewer, whole segments come free too seldom */
	DEPTH = 32,
	DEPTH_MAX = 4096,
	LOCK_WAIT_MS = 1000,
	LOCK_STEP_MS = 10,
};

struct store {
	int dir_fd;  /* locked */
	int wake_fd; /* rung by the front thread when the mailbox was empty */
	int done_fd; /* rung by the store's when finished was */
	pthread_t thread;
	sem_t ready; /* the engine has its ring */

	pthread_mutex_t lock; /* guards what follows up to the engine */
	struct op_list submitted;
	struct op_list finished;
	struct store_location *forgotten;
	size_t n_forgotten, forgotten_capacity;
	bool stopping;
	struct store_stats stats; /* as the thread last told */

	struct engine engine; /* the thread's, from the moment it runs */
	struct store_config config;
};

static void ring(int fd)
{
	/* Fails only where the counter is full, and then it is readable anyway. */
	(void)!write(fd, &(uint64_t){1}, sizeof(uint64_t));
}

/* ---- the store's thread ---- */

/* Empties the mailbox. Returns whether the store is to stop. */
static bool take_mail(struct store *s)
{
	struct store_location *forgotten;
	struct store_op *op, *next;
	size_t n_forgotten;
	bool stopping;

	pthread_mutex_lock(&s->lock);
	op = op_list_take(&s->submitted);
	forgotten = s->forgotten;
	n_forgotten = s->n_forgotten;
	s->forgotten = NULL;
	s->n_forgotten = s->forgotten_capacity = 0;
	stopping = s->stopping;
	pthread_mutex_unlock(&s->lock);

	for (size_t i = 0; i < n_forgotten; i++)
		segments_forget(&s->engine.segments, &forgotten[i]);
	free(forgotten);
	for (; op; op = next) {
		next = op->next;
		engine_submit(&s->engine, op);
	}
	return stopping;
}

static void deliver(struct store *s)
{
	struct store_op *op = op_list_take(&s->engine.finished), *next;
	bool was_empty, any = op != NULL;
	struct store_stats stats;

	engine_get_stats(&s->engine, &stats);
	pthread_mutex_lock(&s->lock);
	s->stats = stats;
	was_empty = !s->finished.first;
	for (; op; op = next) {
		next = op->next;
		op_list_add(&s->finished, op);
	}
	pthread_mutex_unlock(&s->lock);
	if (any && was_empty)
		ring(s->done_fd);
}

static void *run(void *arg)
{
	struct store *s = arg;
	struct engine *e = &s->engine;
	bool stopping;

	pthread_setname_np(pthread_self(), "store");
	io_init(&e->io, engine_requests(e), s->wake_fd, s->config.pool_addr, s->config.pool_bytes);
	deliver(s);
	sem_post(&s->ready);
	for (;;) {
		stopping = take_mail(s);
		engine_turn(e);
		/* Before those are woken who wait: the disk may have nothing to do. */
		io_submit(&e->io);
		deliver(s);
		if (stopping && engine_is_idle(e) && engine_wind_up(e))
			break;
		engine_wait(e);
	}
	io_fini(&e->io);
	return NULL;
}

/* ---- opening ---- */

/* A store that was killed has its files for a moment longer, until what it had in flight has ended. */
static int lock_directory(int fd)
{
	for (int waited = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; waited += LOCK_STEP_MS) {
		if (errno != EWOULDBLOCK || waited >= LOCK_WAIT_MS)
			return -1;
		nanosleep(&(struct timespec){.tv_nsec = LOCK_STEP_MS * 1000000}, NULL);
	}
	return 0;
}

static int open_directory(const char *path, int *out)
{
	bool made = mkdir(path, 0700) == 0;
	int fd, parent;

	if (!made && errno != EEXIST) {
		int r = -errno;

		log_error("store: cannot make %s: %s", path, strerror(-r));
		return r;
	}
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		int r = -errno;

		log_error("store: cannot open %s: %s", path, strerror(-r));
		return r;
	}
	if (made && (parent = openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0) {
		fsync(parent);
		close(parent);
	}
	if (lock_directory(fd) < 0) {
		int r = errno == EWOULDBLOCK ? -EBUSY : -errno;

		log_error("store: %s: %s", path, r == -EBUSY ? "in use by another process" : strerror(-r));
		close(fd);
		return r;
	}
	*out = fd;
	return 0;
}

/* Whether files here can be written past the page cache in pages of ours: only a write tells. */
static bool can_write_directly(int dir_fd)
{
	static const char name[] = "direct-io-probe";
	void *page = aligned_alloc(STORE_ALIGN, STORE_ALIGN);
	int fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC | O_NOFOLLOW, 0600);
	bool can = false;

	if (page && fd >= 0) {
		memset(page, 0, STORE_ALIGN);
		can = pwrite(fd, page, STORE_ALIGN, 0) == STORE_ALIGN &&
		      pread(fd, page, STORE_ALIGN, 0) == STORE_ALIGN;
	}
	if (fd >= 0)
		close(fd);
	unlinkat(dir_fd, name, 0);
	free(page);
	return can;
}

/* The thread takes no signals: they are the program's, not the store's. */
static int start_thread(struct store *s)
{
	sigset_t all, before;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = -pthread_create(&s->thread, NULL, run, s);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	while (r == 0 && sem_wait(&s->ready) < 0)
		;
	return r;
}

/* Fills in what was left to us; see the header. */
static int complete_config(struct store_config *c)
{
	uint64_t at_most = c->limit_bytes / LIMIT_SEGMENTS_MIN / STORE_ALIGN * STORE_ALIGN;

	if (!c->segment_bytes) {
		c->segment_bytes = c->limit_bytes / SEGMENTS / STORE_ALIGN * STORE_ALIGN;
		if (c->segment_bytes < SEGMENT_BYTES)
			c->segment_bytes = SEGMENT_BYTES;
		if (c->segment_bytes > SEGMENT_BYTES_MAX)
			c->segment_bytes = SEGMENT_BYTES_MAX;
	}
	if (c->segment_bytes > at_most)
		c->segment_bytes = at_most;
	if (c->segment_bytes < SEGMENT_BYTES_MIN || c->segment_bytes % STORE_ALIGN || c->depth > DEPTH_MAX) {
		log_error("store: a limit of %llu bytes, segments of %llu, depth %u: out of range",
			(unsigned long long)c->limit_bytes, (unsigned long long)c->segment_bytes, c->depth);
		return -EINVAL;
	}
	if (!c->depth)
		c->depth = DEPTH;
	return 0;
}

/* What is left when the thread does not run. */
static struct store *dispose(struct store *s)
{
	engine_fini(&s->engine);
	if (s->wake_fd >= 0)
		close(s->wake_fd);
	if (s->done_fd >= 0)
		close(s->done_fd);
	if (s->dir_fd >= 0)
		close(s->dir_fd); /* and with it the lock */
	sem_destroy(&s->ready);
	pthread_mutex_destroy(&s->lock);
	free(s->forgotten);
	free(s);
	return NULL;
}

static void log_opened(const struct store *s, const struct scan_result *found)
{
	const struct engine *e = &s->engine;

	log_info("store: %s: %llu records, %llu MiB in %zu segments (%llu read whole), %llu dropped; %s, "
		 "%s%s%s",
		s->config.directory, (unsigned long long)e->segments.n_live,
		(unsigned long long)(e->segments.used_bytes >> 20), e->segments.n,
		(unsigned long long)found->n_scanned, (unsigned long long)found->n_dropped,
		e->io.has_ring ? "io_uring" : "no io_uring (plain system calls)",
		e->segments.direct ? "O_DIRECT" : "no O_DIRECT (page cache)",
		!s->config.pool_addr  ? ""
		: e->io.fixed_buffers ? ", fixed buffers"
				      : ", no fixed buffers (RLIMIT_MEMLOCK?)",
		!e->io.has_ring     ? ""
		: e->io.fixed_files ? ", registered files"
				    : ", no registered files (RLIMIT_NOFILE, or a kernel before 5.19)");
}

int store_open(const struct store_config *config, store_found_fn found, void *arg, struct store **out)
{
	struct scan_result result;
	struct store_config complete = *config;
	struct store *s;
	int r = complete_config(&complete);

	if (r < 0)
		return r;
	s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->config = complete;
	s->dir_fd = -1;
	s->wake_fd = eventfd(0, EFD_CLOEXEC);
	s->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	sem_init(&s->ready, 0, 0);
	pthread_mutex_init(&s->lock, NULL);
	op_list_init(&s->submitted);
	op_list_init(&s->finished);
	if (s->wake_fd < 0 || s->done_fd < 0)
		r = -errno;
	if (r == 0)
		r = open_directory(complete.directory, &s->dir_fd);
	if (r == 0)
		r = engine_init(&s->engine, &complete, s->dir_fd, can_write_directly(s->dir_fd));
	if (r == 0)
		r = scan_directory(&s->engine.segments, found, arg, &result);
	if (r == 0) {
		s->engine.next_sequence = result.next_sequence;
		s->engine.stats.n_dropped = result.n_dropped;
		engine_get_stats(&s->engine, &s->stats);
		r = start_thread(s);
	}
	if (r < 0) {
		dispose(s);
		return r;
	}
	log_opened(s, &result);
	*out = s;
	return 0;
}

struct store *store_close(struct store *s)
{
	if (!s)
		return NULL;
	pthread_mutex_lock(&s->lock);
	s->stopping = true;
	pthread_mutex_unlock(&s->lock);
	ring(s->wake_fd);
	pthread_join(s->thread, NULL);
	fsync(s->dir_fd);
	return dispose(s);
}

/* ---- the front thread's side ---- */

void store_submit(struct store *s, struct store_op *op)
{
	bool was_empty;

	pthread_mutex_lock(&s->lock);
	was_empty = !s->submitted.first;
	op_list_add(&s->submitted, op);
	pthread_mutex_unlock(&s->lock);
	if (was_empty)
		ring(s->wake_fd);
}

int store_fd(const struct store *s)
{
	return s->done_fd;
}

struct store_op *store_reap(struct store *s)
{
	struct store_op *first;
	uint64_t value;

	/* Before the list is taken: what is added after that rings again. */
	(void)!read(s->done_fd, &value, sizeof value);
	pthread_mutex_lock(&s->lock);
	first = op_list_take(&s->finished);
	pthread_mutex_unlock(&s->lock);
	return first;
}

void store_forget(struct store *s, const struct store_location *location)
{
	bool first;

	pthread_mutex_lock(&s->lock);
	if (s->n_forgotten == s->forgotten_capacity) {
		size_t more = s->forgotten_capacity * 2 + 64;
		struct store_location *forgotten = reallocarray(s->forgotten, more, sizeof *forgotten);

		if (forgotten) {
			s->forgotten = forgotten;
			s->forgotten_capacity = more;
		}
	}
	/* Without memory it is not forgotten: its room comes free at the next start, if it is not found then.
	 */
	first = s->n_forgotten == 0;
	if (s->n_forgotten < s->forgotten_capacity)
		s->forgotten[s->n_forgotten++] = *location;
	pthread_mutex_unlock(&s->lock);
	if (first)
		ring(s->wake_fd);
}

void store_get_stats(struct store *s, struct store_stats *out)
{
	pthread_mutex_lock(&s->lock);
	*out = s->stats;
	pthread_mutex_unlock(&s->lock);
}
