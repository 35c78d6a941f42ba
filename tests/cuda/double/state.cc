#include "tests/cuda/double/state.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>

namespace
{

enum { OBJECTS = 4096, HOLDERS = 8, FAILURES = 16 };

struct holder {
	pid_t pid; /* 0: free */
	uint64_t start;
};

struct object {
	uint64_t id, len_bytes; /* id 0: free */
	struct holder holders[HOLDERS];
};

struct failure {
	char name[48];
	pid_t pid;
	unsigned n; /* calls until then; 0: free */
	int code;
};

struct shared {
	uint32_t made; /* the rest is there */
	pthread_mutex_t lock;
	uint64_t total_bytes;
	std::atomic<uint32_t> delay_us, orphan_ms, orphans_fire;
	std::atomic<uint32_t> n_failures;
	struct failure failures[FAILURES];
	struct object objects[OBJECTS];
};

struct shared *shared;
uint64_t own_start;

[[noreturn]] void give_up(const char *what)
{
	fprintf(stderr, "driver double: %s: %s\n", what, strerror(errno));
	abort();
}

/* The lock, also after a process died with it: what it guards is counts, each right by itself. */
class guard
{
      public:
	guard()
	{
		if (pthread_mutex_lock(&shared->lock) == EOWNERDEAD)
			pthread_mutex_consistent(&shared->lock);
	}
	~guard()
	{
		pthread_mutex_unlock(&shared->lock);
	}
	guard(const guard &) = delete;
	guard &operator=(const guard &) = delete;
};

uint64_t number_of_environment(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);
	return text && *text ? strtoull(text, nullptr, 0) : otherwise;
}

void make()
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&shared->lock, &attributes);
	pthread_mutexattr_destroy(&attributes);
	shared->total_bytes = number_of_environment("CISTERN_DOUBLE_BYTES", 4ull << 30);
	shared->delay_us = static_cast<uint32_t>(number_of_environment("CISTERN_DOUBLE_DELAY_US", 0));
	shared->orphan_ms = static_cast<uint32_t>(number_of_environment("CISTERN_DOUBLE_ORPHAN_MS", 2000));
	shared->made = 1;
}

bool lives(const struct holder &h)
{
	return process_start(h.pid) == h.start;
}

/* Drops the dead; the object goes with its last holder. */
void sweep(struct object *o)
{
	bool held = false;

	for (struct holder &h : o->holders) {
		if (h.pid && !lives(h))
			h.pid = 0;
		held |= h.pid != 0;
	}
	if (!held)
		o->id = 0;
}

void read_failures_of_environment()
{
	const char *text = getenv("CISTERN_DOUBLE_FAIL");
	char name[48];
	unsigned n;
	int code, used;

	for (; text && sscanf(text, "%47[^:]:%u:%d%n", name, &n, &code, &used) == 3; text += *text == ',') {
		state_fail(getpid(), name, n, code);
		text += used;
	}
}

} // namespace

uint64_t process_start(pid_t pid)
{
	char path[32], text[1024];
	unsigned long long start = 0;
	char status = 0;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	FILE *f = fopen(path, "re");
	if (!f)
		return 0;
	text[fread(text, 1, sizeof text - 1, f)] = '\0';
	fclose(f);
	/* proc(5): after the name in parentheses, the state is field 3, the start time field 22. */
	const char *rest = strrchr(text, ')');
	if (!rest ||
		sscanf(rest + 1,
			" %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
			&status, &start) != 2)
		return 0;
	return status == 'Z' || status == 'X' ? 0 : start;
}

void state_open()
{
	const char *path = getenv("CISTERN_DOUBLE_DEVICE");
	int fd = -1, flags = MAP_SHARED | MAP_ANONYMOUS;

	own_start = process_start(getpid());
	if (path && *path) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0 || flock(fd, LOCK_EX) != 0 || ftruncate(fd, sizeof *shared) != 0)
			give_up(path);
		flags = MAP_SHARED;
	}
	void *at = mmap(nullptr, sizeof *shared, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (at == MAP_FAILED)
		give_up("the device's state");
	shared = static_cast<struct shared *>(at);
	if (!shared->made)
		make();
	/* The mapping keeps the file open, and would keep it locked. */
	if (fd >= 0) {
		flock(fd, LOCK_UN);
		close(fd);
	}
	read_failures_of_environment();
}

bool state_hold(uint64_t id, uint64_t len_bytes)
{
	guard g;
	uint64_t taken = 0;
	struct object *free_slot = nullptr, *found = nullptr;

	for (struct object &o : shared->objects) {
		if (o.id)
			sweep(&o);
		if (!o.id)
			free_slot = free_slot ? free_slot : &o;
		else
			taken += o.len_bytes;
		if (o.id == id)
			found = &o;
	}
	if (!found) {
		if (len_bytes > shared->total_bytes || taken > shared->total_bytes - len_bytes || !free_slot)
			return false;
		found = free_slot;
		memset(found, 0, sizeof *found);
		found->id = id;
		found->len_bytes = len_bytes;
	}
	for (struct holder &h : found->holders)
		if (!h.pid) {
			h = {getpid(), own_start};
			return true;
		}
	return false;
}

void state_drop(uint64_t id)
{
	guard g;

	for (struct object &o : shared->objects) {
		if (o.id != id)
			continue;
		for (struct holder &h : o.holders)
			if (h.pid == getpid()) {
				h.pid = 0;
				break;
			}
		sweep(&o);
		return;
	}
}

struct state_memory state_get_memory()
{
	guard g;
	struct state_memory m = {shared->total_bytes, 0, 0};

	for (struct object &o : shared->objects) {
		if (o.id)
			sweep(&o);
		if (!o.id)
			continue;
		m.taken_bytes += o.len_bytes;
		for (const struct holder &h : o.holders)
			if (h.pid == getpid()) {
				m.process_bytes += o.len_bytes;
				break;
			}
	}
	return m;
}

void state_set_total(uint64_t bytes)
{
	guard g;
	shared->total_bytes = bytes;
}

unsigned state_delay_us()
{
	return shared->delay_us;
}

void state_set_delay_us(unsigned delay_us)
{
	shared->delay_us = delay_us;
}

unsigned state_orphan_ms()
{
	return shared->orphan_ms;
}

bool state_orphans_fire()
{
	return shared->orphans_fire != 0;
}

void state_set_orphans_fire(bool fire)
{
	shared->orphans_fire = fire;
}

void state_fail(pid_t pid, const char *name, unsigned n, int code)
{
	guard g;

	for (struct failure &f : shared->failures)
		if (!f.n) {
			snprintf(f.name, sizeof f.name, "%s", name);
			f.pid = pid;
			f.n = n;
			f.code = code;
			shared->n_failures++;
			return;
		}
	fprintf(stderr, "driver double: no more than %d failures can wait\n", FAILURES);
	abort();
}

int state_failure(const char *name)
{
	int code = 0;

	if (!shared->n_failures)
		return 0;
	guard g;
	for (struct failure &f : shared->failures)
		if (f.n && (f.pid == 0 || f.pid == getpid()) && strcmp(f.name, name) == 0 && --f.n == 0) {
			shared->n_failures--;
			code = f.code;
		}
	return code;
}
