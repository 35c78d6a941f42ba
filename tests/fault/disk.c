#include "tests/fault/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <liburing.h>

enum { FDS = 1024, FOLDER = -2, SECTOR = 512, FILES_MAX = 256 };

enum event_kind { MADE, DELETED, WROTE, SIZED, SYNCED, FOLDER_SYNCED };

struct event {
	enum event_kind kind;
	uint32_t file; /* a segment's number */
	uint64_t offset, len;
	uint8_t *data; /* WROTE */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct disk_faults faults;
static bool misbehaving, keeping;
static uint64_t state;
static struct disk_counts counts;
static int64_t numbers[FDS]; /* by descriptor: 1 + a segment's number; FOLDER; 0: not ours */
static struct event *events;
static size_t n_events, events_capacity;

int __real_openat64(int dir, const char *name, int flags, ...);
int __real_close(int fd);
int __real_unlinkat(int dir, const char *name, int flags);
ssize_t __real_pread64(int fd, void *data, size_t len, off_t offset);
ssize_t __real_pwrite64(int fd, const void *data, size_t len, off_t offset);
int __real_fdatasync(int fd);
int __real_fsync(int fd);
int __real_fallocate64(int fd, int mode, off_t offset, off_t len);
int __real_ftruncate64(int fd, off_t len);

int __wrap_openat64(int dir, const char *name, int flags, ...);
int __wrap_close(int fd);
int __wrap_unlinkat(int dir, const char *name, int flags);
ssize_t __wrap_pread64(int fd, void *data, size_t len, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *data, size_t len, off_t offset);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t len);
int __wrap_ftruncate64(int fd, off_t len);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);

/* SplitMix64 (G. Steele et al., OOPSLA 2014). */
static uint64_t next(uint64_t *s)
{
	uint64_t z = *s += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

/* With the lock. */
static bool happens(uint32_t one_in)
{
	return misbehaving && one_in && next(&state) % one_in == 0;
}

static bool is_ours(int fd)
{
	return fd >= 0 && fd < FDS && numbers[fd] > 0;
}

static void dawdle(void)
{
	bool slow;

	pthread_mutex_lock(&lock);
	slow = happens(faults.slow);
	counts.n_slow += slow;
	pthread_mutex_unlock(&lock);
	if (slow)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* With the lock. */
static void add_event(enum event_kind kind, int64_t file, uint64_t offset, const void *data, uint64_t len)
{
	struct event *e;

	if (!keeping)
		return;
	if (n_events == events_capacity) {
		events_capacity = events_capacity * 2 + 1024;
		events = reallocarray(events, events_capacity, sizeof *events);
		if (!events)
			abort();
	}
	e = &events[n_events++];
	*e = (struct event){.kind = kind, .file = (uint32_t)file, .offset = offset, .len = len};
	if (data) {
		e->data = malloc(len ? len : 1);
		if (!e->data)
			abort();
		memcpy(e->data, data, len);
	}
}

/* ---- the calls ---- */

int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
	(void)entries;
	(void)ring;
	(void)flags;
	return -ENOSYS;
}

int __wrap_openat64(int dir, const char *name, int flags, ...)
{
	unsigned number;
	va_list args;
	mode_t mode;
	int fd;

	va_start(args, flags);
	mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
	va_end(args);
	fd = __real_openat64(dir, name, flags, mode);
	if (fd < 0 || fd >= FDS)
		return fd;
	pthread_mutex_lock(&lock);
	numbers[fd] = 0;
	if (sscanf(name, "segment-%8x", &number) == 1) {
		numbers[fd] = (int64_t)number + 1;
		if (flags & O_CREAT)
			add_event(MADE, number, 0, NULL, 0);
	}
	pthread_mutex_unlock(&lock);
	return fd;
}

int __wrap_close(int fd)
{
	pthread_mutex_lock(&lock);
	if (fd >= 0 && fd < FDS)
		numbers[fd] = 0;
	pthread_mutex_unlock(&lock);
	return __real_close(fd);
}

int __wrap_unlinkat(int dir, const char *name, int flags)
{
	const int r = __real_unlinkat(dir, name, flags);
	unsigned number;

	pthread_mutex_lock(&lock);
	if (r == 0 && sscanf(name, "segment-%8x", &number) == 1)
		add_event(DELETED, number, 0, NULL, 0);
	pthread_mutex_unlock(&lock);
	return r;
}

ssize_t __wrap_pread64(int fd, void *data, size_t len, off_t offset)
{
	ssize_t n;

	if (!is_ours(fd))
		return __real_pread64(fd, data, len, offset);
	dawdle();
	pthread_mutex_lock(&lock);
	if (happens(faults.read_error)) {
		counts.n_read_errors++;
		pthread_mutex_unlock(&lock);
		errno = EIO;
		return -1;
	}
	if (len > 4096 && happens(faults.read_short)) {
		counts.n_short++;
		len = (size_t)(next(&state) % (len / 4096)) * 4096 + 4096;
	}
	n = __real_pread64(fd, data, len, offset);
	if (n > 0 && happens(faults.read_rot)) {
		counts.n_rotten++;
		((uint8_t *)data)[next(&state) % (size_t)n] ^= (uint8_t)(1 << next(&state) % 8);
	}
	pthread_mutex_unlock(&lock);
	return n;
}

ssize_t __wrap_pwrite64(int fd, const void *data, size_t len, off_t offset)
{
	uint8_t *rotten = NULL;
	bool torn = false;
	ssize_t n;

	if (!is_ours(fd))
		return __real_pwrite64(fd, data, len, offset);
	dawdle();
	pthread_mutex_lock(&lock);
	if (happens(faults.write_error)) {
		counts.n_write_errors++;
		pthread_mutex_unlock(&lock);
		errno = faults.error ? faults.error : EIO;
		return -1;
	}
	if (len > 4096 && happens(faults.write_short)) {
		counts.n_short++;
		len = (size_t)(next(&state) % (len / 4096)) * 4096 + 4096;
	}
	if (happens(faults.write_torn)) {
		counts.n_torn++;
		torn = true;
		len = (size_t)(next(&state) % (len / 4096 + 1)) * 4096;
	}
	if (len && happens(faults.write_rot) && posix_memalign((void **)&rotten, 4096, len) == 0) {
		counts.n_rotten++;
		memcpy(rotten, data, len);
		rotten[next(&state) % len] ^= (uint8_t)(1 << next(&state) % 8);
	}
	n = len ? __real_pwrite64(fd, rotten ? rotten : data, len, offset) : 0;
	if (n > 0)
		add_event(WROTE, numbers[fd] - 1, (uint64_t)offset, rotten ? rotten : data, (uint64_t)n);
	pthread_mutex_unlock(&lock);
	free(rotten);
	if (torn) {
		errno = EIO;
		return -1;
	}
	return n;
}

int __wrap_fdatasync(int fd)
{
	int r;

	if (!is_ours(fd))
		return __real_fdatasync(fd);
	dawdle();
	pthread_mutex_lock(&lock);
	if (happens(faults.sync_error)) {
		counts.n_sync_errors++;
		pthread_mutex_unlock(&lock);
		errno = EIO;
		return -1;
	}
	/* Nothing here survives a real power cut anyway: what counts is the log. */
	r = 0;
	add_event(SYNCED, numbers[fd] - 1, 0, NULL, 0);
	pthread_mutex_unlock(&lock);
	return r;
}

int __wrap_fsync(int fd)
{
	struct stat st;

	if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
		pthread_mutex_lock(&lock);
		add_event(FOLDER_SYNCED, 0, 0, NULL, 0);
		pthread_mutex_unlock(&lock);
		return 0;
	}
	return __real_fsync(fd);
}

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t len)
{
	int r;

	pthread_mutex_lock(&lock);
	if (is_ours(fd) && happens(faults.no_space)) {
		counts.n_no_space++;
		pthread_mutex_unlock(&lock);
		errno = ENOSPC;
		return -1;
	}
	r = __real_fallocate64(fd, mode, offset, len);
	if (r == 0 && is_ours(fd))
		add_event(SIZED, numbers[fd] - 1, (uint64_t)(offset + len), NULL, 0);
	pthread_mutex_unlock(&lock);
	return r;
}

int __wrap_ftruncate64(int fd, off_t len)
{
	int r;

	pthread_mutex_lock(&lock);
	r = __real_ftruncate64(fd, len);
	if (r == 0 && is_ours(fd))
		add_event(SIZED, numbers[fd] - 1, (uint64_t)len, NULL, 0);
	pthread_mutex_unlock(&lock);
	return r;
}

/* ---- orders ---- */

void disk_misbehave(const struct disk_faults *f, uint64_t seed)
{
	pthread_mutex_lock(&lock);
	misbehaving = f != NULL;
	if (f)
		faults = *f;
	state = seed;
	pthread_mutex_unlock(&lock);
}

struct disk_counts disk_counts(void)
{
	struct disk_counts c;

	pthread_mutex_lock(&lock);
	c = counts;
	pthread_mutex_unlock(&lock);
	return c;
}

void disk_keep_log(bool keep)
{
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < n_events; i++)
		free(events[i].data);
	n_events = 0;
	keeping = keep;
	pthread_mutex_unlock(&lock);
}

size_t disk_log_now(void)
{
	size_t n;

	pthread_mutex_lock(&lock);
	n = n_events;
	pthread_mutex_unlock(&lock);
	return n;
}

/* ---- power cuts ---- */

struct file {
	bool named;     /* it is in the folder */
	bool safe_name; /* whether that it is, or is not, is stable */
	uint8_t *data;
	size_t len, capacity;
};

static void resize(struct file *f, size_t len)
{
	if (len > f->capacity) {
		f->data = realloc(f->data, len * 2);
		if (!f->data)
			abort();
		f->capacity = len * 2;
	}
	if (len > f->len)
		memset(f->data + f->len, 0, len - f->len);
	f->len = len;
}

static void apply_write(struct file *f, const struct event *e, uint64_t from, uint64_t to)
{
	if (e->offset + to > f->len)
		resize(f, (size_t)(e->offset + to));
	memcpy(f->data + e->offset + from, e->data + from, (size_t)(to - from));
}

/* The last event before n after which a kind of sync of this file (or of the folder) was complete. */
static size_t last_sync(size_t n, enum event_kind kind, uint32_t file)
{
	while (n-- > 0)
		if (events[n].kind == kind && (kind == FOLDER_SYNCED || events[n].file == file))
			return n;
	return 0;
}

static void empty_folder(const char *folder)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;
	char path[PATH_MAX];

	while (dir && (entry = readdir(dir))) {
		snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
		if (entry->d_name[0] != '.')
			unlink(path);
	}
	if (dir)
		closedir(dir);
}

static void put_file(const char *folder, uint32_t number, const struct file *f)
{
	char path[PATH_MAX];
	FILE *out;

	snprintf(path, sizeof path, "%s/segment-%08x", folder, number);
	out = fopen(path, "w");
	if (!out || (f->len && fwrite(f->data, f->len, 1, out) != 1) || fclose(out))
		abort();
}

/* seed 0: everything is stable. */
static void restore(const char *folder, size_t n, uint64_t seed)
{
	static struct file files[FILES_MAX];
	const size_t folder_sync = last_sync(n, FOLDER_SYNCED, 0);

	for (size_t i = 0; i < FILES_MAX; i++)
		files[i].len = 0, files[i].named = false;
	for (size_t i = 0; i < n; i++) {
		const struct event *e = &events[i];
		struct file *f = &files[e->file % FILES_MAX];
		const bool stable = !seed || i < ((e->kind == MADE || e->kind == DELETED)
								 ? folder_sync
								 : last_sync(n, SYNCED, e->file));
		const uint64_t luck = stable ? 0 : next(&seed);

		/* What is not stable happens, does not, or happens in part. */
		if (!stable && luck % 3 == 0 && e->kind != MADE)
			continue;
		switch (e->kind) {
		case MADE:
			/* A name that is not stable may be missing at the end; its file may be synced and is
			 * lost all the same. */
			f->named = stable || luck % 2;
			f->len = 0;
			break;
		case DELETED: f->named = false; break;
		case SIZED: resize(f, (size_t)e->offset); break;
		case WROTE:
			if (stable || luck % 3 == 1)
				apply_write(f, e, 0, e->len);
			else
				for (uint64_t at = 0; at < e->len; at += SECTOR)
					if (next(&seed) % 2)
						apply_write(f, e, at,
							at + SECTOR < e->len ? at + SECTOR : e->len);
			break;
		case SYNCED:
		case FOLDER_SYNCED: break;
		}
	}
	empty_folder(folder);
	for (uint32_t i = 0; i < FILES_MAX; i++)
		if (files[i].named)
			put_file(folder, i, &files[i]);
}

void disk_after_power_cut(const char *folder, size_t n, uint64_t seed)
{
	restore(folder, n, seed ? seed : 1);
}

void disk_after_kill(const char *folder, size_t n)
{
	restore(folder, n, 0);
}
