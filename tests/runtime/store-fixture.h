/* What the store's tests share: a directory of their own, frames whose every byte follows from their number,
 * and operations waited for one by one. */
#ifndef TESTS_STORE_FIXTURE_H
#define TESTS_STORE_FIXTURE_H

#include "runtime/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { FRAMES_MAX = 1024, SEGMENT = 64 << 10 };

struct fixture {
	char dir[104];
	struct store *store;
	struct store_config config;
	/* By number: where store_open found a record, or a write put it. len_pages 0: nowhere. */
	struct store_record at[FRAMES_MAX];
	uint32_t n_found;
};

/* ---- frames ---- */

static inline uint64_t frame_len(uint32_t number)
{
	return number * 997u % 9000 + 1;
}

static inline void frame_fill(uint32_t number, uint8_t *out)
{
	uint32_t x = number * 2654435761u + 1;

	for (uint64_t i = 0; i < frame_len(number); i++) {
		x = x * 1664525 + 1013904223;
		out[i] = (uint8_t)(x >> 24);
	}
}

static inline struct store_record record_of(uint32_t number)
{
	struct store_record r = {
		.frame_bytes = frame_len(number),
		.raw_bytes = frame_len(number) * 16,
		.n_tokens = number % 256 + 1,
		.position = (uint64_t)number * 256,
	};

	memset(r.name_space, (int)(number % 3), sizeof r.name_space);
	memset(r.fingerprint, 0xf1, sizeof r.fingerprint);
	memcpy(r.key, &number, sizeof number);
	memset(r.parent, (int)number, sizeof r.parent);
	memset(r.transform, (int)(number % 5), sizeof r.transform);
	return r;
}

/* Room for one record, as the pool would hand out. */
static inline void *record_room(uint32_t number)
{
	size_t len = (STORE_HEADER_BYTES + frame_len(number) + STORE_ALIGN - 1) / STORE_ALIGN * STORE_ALIGN;
	void *room = aligned_alloc(STORE_ALIGN, len);

	assert_non_null(room);
	memset(room, 0xee, len);
	return room;
}

/* ---- opening and closing ---- */

static inline void on_found(void *arg, const struct store_record *r)
{
	struct fixture *f = arg;
	struct store_record expected;
	uint32_t number;

	memcpy(&number, r->key, sizeof number);
	assert_true(number < FRAMES_MAX);
	assert_int_equal(f->at[number].location.len_pages, 0);
	expected = record_of(number);
	expected.location = r->location;
	assert_memory_equal(r, &expected, sizeof expected);
	f->at[number] = *r;
	f->n_found++;
}

static inline int try_open(struct fixture *f)
{
	memset(f->at, 0, sizeof f->at);
	f->n_found = 0;
	f->store = NULL;
	return store_open(&f->config, on_found, f, &f->store);
}

static inline void open_store(struct fixture *f)
{
	assert_int_equal(try_open(f), 0);
}

static inline void close_store(struct fixture *f)
{
	f->store = store_close(f->store);
}

static inline void reopen(struct fixture *f)
{
	close_store(f);
	open_store(f);
}

static inline int set_up_in(void **state, const char *where)
{
	struct fixture *f = calloc(1, sizeof *f);

	snprintf(f->dir, sizeof f->dir, "%s/test-store-XXXXXX", where);
	if (!mkdtemp(f->dir))
		return -1;
	f->config =
		(struct store_config){.directory = f->dir, .limit_bytes = 8 << 20, .segment_bytes = SEGMENT};
	*state = f;
	return 0;
}

static inline int set_up(void **state)
{
	return set_up_in(state, "/tmp");
}

/* Calls fn for the path of each file in the directory. Returns how many. */
static inline int each_file(const struct fixture *f, void (*fn)(const char *path))
{
	DIR *dir = opendir(f->dir);
	struct dirent *e;
	int n = 0;

	while (dir && (e = readdir(dir))) {
		char path[PATH_MAX];

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "%s/%s", f->dir, e->d_name);
		n++;
		if (fn)
			fn(path);
	}
	if (dir)
		closedir(dir);
	return n;
}

static inline void remove_file(const char *path)
{
	unlink(path);
}

static inline int tear_down(void **state)
{
	struct fixture *f = *state;

	close_store(f);
	each_file(f, remove_file);
	rmdir(f->dir);
	free(f);
	return 0;
}

/* ---- operations ---- */

/* Waits until op comes back, and it alone. */
static inline int finish(struct fixture *f, struct store_op *op)
{
	struct pollfd ready = {.fd = store_fd(f->store), .events = POLLIN};
	struct store_op *done;

	assert_int_equal(poll(&ready, 1, 20000), 1);
	done = store_reap(f->store);
	assert_ptr_equal(done, op);
	assert_null(op->next);
	return op->status;
}

static inline int run_op(struct fixture *f, struct store_op *op)
{
	op->status = 1;
	store_submit(f->store, op);
	return finish(f, op);
}

static inline int write_frame(struct fixture *f, uint32_t number)
{
	struct store_op op = {.kind = STORE_WRITE, .data = record_room(number), .record = record_of(number)};
	int r;

	frame_fill(number, (uint8_t *)op.data + STORE_HEADER_BYTES);
	r = run_op(f, &op);
	if (r == 0)
		f->at[number] = op.record;
	free(op.data);
	return r;
}

/* Reads a frame from where it was last seen, and compares it when the store says that it is right. */
static inline int read_frame(struct fixture *f, uint32_t number)
{
	struct store_op op = {.kind = STORE_READ, .data = record_room(number), .record = f->at[number]};
	uint8_t *expected = malloc(frame_len(number));
	int r = run_op(f, &op);

	frame_fill(number, expected);
	if (r == 0)
		assert_memory_equal((uint8_t *)op.data + STORE_HEADER_BYTES, expected, frame_len(number));
	free(expected);
	free(op.data);
	return r;
}

static inline void write_frames(struct fixture *f, uint32_t first, uint32_t end)
{
	for (uint32_t i = first; i < end; i++)
		assert_int_equal(write_frame(f, i), 0);
}

static inline bool is_there(const struct fixture *f, uint32_t number)
{
	return f->at[number].location.len_pages != 0;
}

/* Frames [first, end) are there and right. */
static inline void expect_frames(struct fixture *f, uint32_t first, uint32_t end)
{
	for (uint32_t i = first; i < end; i++) {
		assert_true(is_there(f, i));
		assert_int_equal(read_frame(f, i), 0);
	}
}

static inline int sync_store(struct fixture *f)
{
	struct store_op op = {.kind = STORE_SYNC};

	return run_op(f, &op);
}

static inline void forget_frame(struct fixture *f, uint32_t number)
{
	store_forget(f->store, &f->at[number].location);
	memset(&f->at[number], 0, sizeof f->at[number]);
}

static inline int remove_frame(struct fixture *f, uint32_t number)
{
	struct store_op op = {.kind = STORE_REMOVE, .record = record_of(number)};
	int r = run_op(f, &op);

	if (r == 0 && is_there(f, number))
		forget_frame(f, number);
	return r;
}

static inline struct store_stats stats_of(struct fixture *f)
{
	struct store_stats stats;

	store_get_stats(f->store, &stats);
	return stats;
}

#endif
