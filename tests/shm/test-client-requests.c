/* Requests and completions of libcistern, against the fake daemon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "fake-daemon.h"
#include "shm/cistern.h"
#include "shm/doorbell.h"

enum { BLOCK_TOKENS = 4, N_BLOCKS = 10 };

static struct cistern *attach(
	struct fake_daemon *d, uint32_t n_entries, uint64_t arena_bytes, uint32_t spin_us)
{
	struct cistern_options options = {
		.n_entries = n_entries, .arena_bytes = arena_bytes, .spin_us = spin_us};
	struct cistern *c = NULL;

	fake_start(d);
	options.socket_path = d->path;
	if (cistern_connect(&options, &c) < 0)
		fail_msg("%s", cistern_error(NULL));
	return c;
}

static void detach(struct fake_daemon *d, struct cistern *c)
{
	cistern_close(c);
	fake_stop(d);
}

static struct cistern_completion await(struct cistern *c, uint64_t user_data)
{
	struct cistern_completion done = {0};

	assert_int_equal(cistern_wait(c, &done, 1, 10000), 1);
	assert_int_equal(done.user_data, user_data);
	return done;
}

/* A model of one layer and one plane and a memory for it; returns the memory's id. */
static uint32_t add_memory(struct cistern *c)
{
	struct cistern_plane plane = {.n_heads = 1, .dim = 8, .dtype = CISTERN_F16};
	struct cistern_model model = {.name = "tiny", .n_layers = 1, .n_planes = 1, .planes = &plane};
	struct cistern_layout layout = {.block_stride = 64, .token_stride = 16, .head_stride = 16};
	struct cistern_memory memory = {
		.size_bytes = 4096, .block_tokens = BLOCK_TOKENS, .n_blocks = N_BLOCKS, .layouts = &layout};
	uint32_t id = 0;
	void *addr;

	assert_int_equal(cistern_register_model(c, &model, &memory.model_id), 0);
	assert_int_equal(cistern_memory_create("test", 4096, &memory.fd, &addr), 0);
	munmap(addr, 4096);
	assert_int_equal(cistern_register_memory(c, &memory, &id), 0);
	close(memory.fd);
	return id;
}

/* Two chunks: 20 tokens from the second token of block 9 on. */
static const uint32_t blocks[] = {9, 0, 8, 1, 7, 2, 6};
static struct cistern_key keys[64];
static struct cistern_run good_run(uint32_t memory_id)
{
	return (struct cistern_run){
		.memory_id = memory_id,
		.n_tokens = 20,
		.position = 32,
		.keys = keys,
		.n_chunks = 2,
		.n_blocks = 6,
		.blocks = blocks,
		.block_offset = 1,
	};
}

static void test_nop(void **state)
{
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 8, 4096, 0);
	struct cistern_completion done[4];

	(void)state;
	assert_int_equal(cistern_poll(c, done, 4), 0);
	assert_int_equal(cistern_wait(c, done, 4, 0), 0);
	assert_int_equal(cistern_wait(c, done, 4, 20), 0);
	assert_int_equal(cistern_poll(c, done, 0), -EINVAL);
	assert_int_equal(cistern_wait(c, done, 0, -1), -EINVAL);
	assert_int_equal(cistern_nop(c, UINT64_MAX), 0);
	assert_int_equal(cistern_poll(c, done, 4), 0); /* queued, not submitted */
	assert_int_equal(cistern_submit(c), 1);
	assert_int_equal(cistern_submit(c), 0);
	assert_int_equal(await(c, UINT64_MAX).status, 0);
	assert_int_equal(cistern_poll(c, done, 4), 0);
	detach(&d, c);
}

/* Every request as the daemon finds it in ring and arena. */
static void test_requests_on_the_wire(void **state)
{
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 8, 4096, 0);
	uint32_t memory_id = add_memory(c);
	struct cistern_run run = good_run(memory_id);
	struct cistern_key parent, zero = {0};
	struct wire_sqe sqe;
	const uint8_t *arena = d.segment.arena;

	(void)state;
	memset(&parent, 0x77, sizeof(parent));
	for (size_t i = 0; i < 64; i++)
		memset(&keys[i], (int)i + 1, sizeof(keys[i]));

	assert_int_equal(cistern_put(c, &run, &parent, 1), 0);
	assert_int_equal(await(c, 1).n_chunks, 2);
	sqe = fake_last_sqe(&d);
	assert_int_equal(sqe.op, WIRE_PUT);
	assert_int_equal(sqe.object, memory_id);
	assert_int_equal(sqe.position, 32);
	assert_int_equal(sqe.n_tokens, 20);
	assert_int_equal(sqe.n_chunks, 2);
	assert_int_equal(sqe.n_blocks, 6);
	assert_int_equal(sqe.block_offset, 1);
	assert_memory_equal(arena + sqe.keys_off, &parent, 32);
	assert_memory_equal(arena + sqe.keys_off + 32, keys, 64);
	assert_memory_equal(arena + sqe.blocks_off, blocks, 24);

	assert_int_equal(cistern_put(c, &run, NULL, 2), 0);
	await(c, 2);
	sqe = fake_last_sqe(&d);
	assert_memory_equal(arena + sqe.keys_off, &zero, 32);

	run.n_blocks = 7; /* one more than the run reaches: not sent */
	run.flags = CISTERN_LAYERWISE;
	assert_int_equal(cistern_get(c, &run, 3), 0);
	assert_int_equal(await(c, 3).bytes, 1000);
	sqe = fake_last_sqe(&d);
	assert_int_equal(sqe.op, WIRE_GET);
	assert_int_equal(sqe.flags, CISTERN_LAYERWISE);
	assert_int_equal(sqe.n_blocks, 6);
	assert_memory_equal(arena + sqe.keys_off, keys, 64);
	assert_memory_equal(arena + sqe.blocks_off, blocks, 24);

	static const struct {
		int (*request)(struct cistern *c, uint32_t model_id, const struct cistern_key *keys,
			uint32_t n_chunks, uint64_t user_data);
		enum wire_op op;
	} cases[] = {{cistern_lookup, WIRE_LOOKUP}, {cistern_prefetch, WIRE_PREFETCH},
		{cistern_pin, WIRE_PIN}, {cistern_unpin, WIRE_UNPIN}, {cistern_remove, WIRE_REMOVE}};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(cases[i].request(c, 12, keys, 64, 100 + i), 0);
		assert_int_equal(await(c, 100 + i).n_chunks, 64);
		sqe = fake_last_sqe(&d);
		assert_int_equal(sqe.op, cases[i].op);
		assert_int_equal(sqe.object, 12);
		assert_memory_equal(arena + sqe.keys_off, keys, sizeof(keys));
		assert_int_equal(cases[i].request(c, 12, NULL, 1, 0), -EINVAL);
		assert_int_equal(cases[i].request(c, 12, keys, 0, 0), -EINVAL);
	}
	assert_int_equal(cistern_sync(c, 4), 0);
	await(c, 4);
	sqe = fake_last_sqe(&d);
	assert_int_equal(sqe.op, WIRE_SYNC);
	detach(&d, c);
}

static void test_runs_that_do_not_add_up(void **state)
{
	static const uint32_t far[] = {0, 1, 2, 3, 4, N_BLOCKS};
	static const struct {
		struct cistern_run run; /* what differs from a good one; where 0 or NULL, nothing does */
		const char *sentence;
	} cases[] = {
		{{.memory_id = 99}, "memory 99"},
		{{.n_tokens = 33}, "3 chunks"},
		{{.n_tokens = 16}, "1 chunks"},
		{{.n_tokens = UINT32_MAX}, "chunks"},
		{{.n_chunks = 1}, "2 chunks"},
		{{.n_chunks = UINT32_MAX}, "2 chunks"},
		{{.position = 33}, "position 33"},
		{{.position = UINT64_MAX - 15}, "position"},
		{{.n_blocks = 5}, "6 blocks"},
		{{.block_offset = 4}, "block_offset 4"},
		{{.block_offset = UINT32_MAX}, "block_offset"},
		{{.blocks = far}, "block 5 of the run is 10"},
		{{.flags = 2}, "flags"},
	};
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 8, 4096, 0);
	struct cistern_run run = good_run(add_memory(c));

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct cistern_run *with = &cases[i].run;
		struct cistern_run bad = run;

		bad.memory_id = with->memory_id ? with->memory_id : bad.memory_id;
		bad.n_tokens = with->n_tokens ? with->n_tokens : bad.n_tokens;
		bad.n_chunks = with->n_chunks ? with->n_chunks : bad.n_chunks;
		bad.position = with->position ? with->position : bad.position;
		bad.n_blocks = with->n_blocks ? with->n_blocks : bad.n_blocks;
		bad.block_offset = with->block_offset ? with->block_offset : bad.block_offset;
		bad.blocks = with->blocks ? with->blocks : bad.blocks;
		bad.flags = with->flags;
		if (cistern_put(c, &bad, NULL, 1) != -EINVAL || !strstr(cistern_error(c), cases[i].sentence))
			fail_msg("case %zu: \"%s\" does not say \"%s\"", i, cistern_error(c),
				cases[i].sentence);
		assert_int_equal(cistern_get(c, &bad, 1), -EINVAL);
	}
	run.n_tokens = 0;
	run.n_chunks = 0;
	assert_int_equal(cistern_get(c, &run, 1), -EINVAL);
	run = good_run(run.memory_id);
	run.keys = NULL;
	assert_int_equal(cistern_get(c, &run, 1), -EINVAL);
	run = good_run(run.memory_id);
	run.blocks = NULL;
	assert_int_equal(cistern_get(c, &run, 1), -EINVAL);
	run = good_run(run.memory_id);
	assert_int_equal(cistern_get(c, &run, 1), 0); /* the good one is good */
	await(c, 1);
	assert_int_equal(cistern_unregister_memory(c, run.memory_id), 0);
	assert_int_equal(cistern_get(c, &run, 1), -EINVAL);
	detach(&d, c);
}

/* ---- pressure ---- */

static bool hold(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	(void)d;
	(void)sqe;
	return true;
}

static void test_submission_ring_full(void **state)
{
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 4, 4096, 0);
	struct cistern_completion done[8];
	int n = 0;

	(void)state;
	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(cistern_nop(c, i), 0);
	assert_int_equal(cistern_nop(c, 4), -EAGAIN);
	assert_int_equal(cistern_submit(c), 4);
	while (n < 4)
		n += cistern_wait(c, done + n, 8 - (uint32_t)n, 10000);
	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(done[i].user_data, i);
	assert_int_equal(cistern_nop(c, 4), 0);
	await(c, 4);
	detach(&d, c);
}

/* As many requests may be in flight as the completion ring has room for. */
static void test_flights_run_out(void **state)
{
	struct fake_daemon d = {.on_sqe = hold};
	struct cistern *c = attach(&d, 4, 4096, 0);
	uint32_t n = 0;
	int r = 0;

	(void)state;
	for (int tries = 0; tries < 10000 && n < 8; tries++) {
		r = cistern_nop(c, n);
		n += r == 0;
		assert_int_equal(cistern_submit(c) >= 0, 1);
		if (r == -EAGAIN)
			usleep(1000);
	}
	assert_int_equal(n, 8);
	assert_int_equal(cistern_nop(c, n), -EAGAIN);
	assert_non_null(strstr(cistern_error(c), "8 requests are in flight"));
	detach(&d, c);
}

/* 4096 bytes hold 128 keys. */
static void test_arena_full(void **state)
{
	struct cistern_key *many = calloc(129, sizeof(*many));
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 8, 4096, 0);

	(void)state;
	assert_int_equal(cistern_lookup(c, 1, many, 129, 1), -ENOSPC);
	assert_int_equal(cistern_lookup(c, 1, many, UINT32_MAX, 1), -ENOSPC);
	assert_int_equal(cistern_lookup(c, 1, many, 100, 1), 0);
	assert_int_equal(cistern_lookup(c, 1, many, 29, 2), -EAGAIN);
	assert_int_equal(cistern_lookup(c, 1, many, 28, 2), 0);
	await(c, 1);
	await(c, 2);
	assert_int_equal(cistern_lookup(c, 1, many, 128, 3), 0); /* all of it came back */
	await(c, 3);
	detach(&d, c);
	free(many);
}

/* ---- completions ---- */

static bool answer_in_layers(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	fake_complete(d, sqe, 0, sqe->n_chunks, CISTERN_MORE);
	fake_complete(d, sqe, 0, sqe->n_chunks, CISTERN_MORE | 0x100);
	fake_complete(d, sqe, -EIO, 1, 0);
	return true;
}

static void test_more_completions(void **state)
{
	struct fake_daemon d = {.on_sqe = answer_in_layers};
	struct cistern *c = attach(&d, 8, 4096, 0);
	struct cistern_key *many = calloc(128, sizeof(*many));
	struct cistern_completion done;

	(void)state;
	for (int i = 0; i < 3; i++) {
		/* The arena bytes come back with the last one only. */
		assert_int_equal(cistern_lookup(c, 1, many, 128, 7), 0);
		assert_int_equal(await(c, 7).flags, CISTERN_MORE);
		assert_int_equal(cistern_lookup(c, 1, many, 1, 8), -EAGAIN);
		assert_int_equal(await(c, 7).flags, CISTERN_MORE);
		done = await(c, 7);
		assert_int_equal(done.flags, 0);
		assert_int_equal(done.status, -EIO);
		assert_int_equal(done.n_chunks, 1);
	}
	detach(&d, c);
	free(many);
}

/* More completions than the ring holds: the daemon sleeps on the full ring until the client has made room.
 */
static bool flood(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	struct wire_cqe cqe = {.user_data = sqe->user_data};

	for (uint32_t i = 0; i < 5000; i++) {
		cqe.n_layers = i;
		cqe.flags = i < 4999 ? CISTERN_MORE : 0;
		while (ring_push(&d->cq, &cqe) == -EAGAIN) {
			struct pollfd p = {.fd = d->sq_sleeper, .events = POLLIN};

			if (ring_publish(&d->cq))
				doorbell_ring(d->cq_ringer);
			if (ring_push(&d->cq, &cqe) == 0)
				break;
			if (poll(&p, 1, 5000) != 1)
				return false; /* the client takes it for a hang-up */
			doorbell_drain(d->sq_sleeper);
		}
	}
	if (ring_publish(&d->cq))
		doorbell_ring(d->cq_ringer);
	return true;
}

static void test_full_completion_ring(void **state)
{
	struct fake_daemon d = {.on_sqe = flood};
	struct cistern *c = attach(&d, 4, 4096, 0);
	struct cistern_completion done[3];
	uint32_t next = 0;

	(void)state;
	assert_int_equal(cistern_nop(c, 1), 0);
	while (next < 5000) {
		int n = cistern_wait(c, done, 3, 10000);

		if (n <= 0)
			fail_msg("after %u: %d, %s", next, n, cistern_error(c));
		for (int i = 0; i < n; i++)
			assert_int_equal(done[i].n_layers, next++);
	}
	detach(&d, c);
}

static void test_spinning(void **state)
{
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 8, 4096, 2000);
	struct cistern_completion done;

	(void)state;
	for (uint64_t i = 0; i < 100; i++) {
		assert_int_equal(cistern_nop(c, i), 0);
		await(c, i);
	}
	assert_int_equal(cistern_wait(c, &done, 1, 10), 0);
	detach(&d, c);
}

/* The engine sleeps in a loop of its own; a wake-up that is lost ends the test by time-out. */
static void test_descriptor(void **state)
{
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 8, 4096, 0);
	struct cistern_completion done[3];
	struct pollfd p = {.fd = cistern_fd(c), .events = POLLIN};
	uint64_t n_queued = 0, n_done = 0;

	(void)state;
	assert_int_equal(poll(&p, 1, 0), 0);
	while (n_done < 20000) {
		int n;

		while (n_queued < 20000 && cistern_nop(c, n_queued) == 0)
			n_queued++;
		assert_true(cistern_submit(c) >= 0);
		assert_int_equal(poll(&p, 1, 10000), 1);
		while ((n = cistern_poll(c, done, 3)) > 0)
			for (int i = 0; i < n; i++)
				assert_int_equal(done[i].user_data, n_done++);
		assert_int_equal(n, 0);
	}
	/* Together with cistern_wait. */
	assert_int_equal(cistern_nop(c, 1), 0);
	await(c, 1);
	assert_int_equal(cistern_wait(c, done, 1, 5), 0);
	assert_int_equal(cistern_nop(c, 2), 0);
	assert_int_equal(cistern_submit(c), 1);
	assert_int_equal(poll(&p, 1, 10000), 1);
	await(c, 2);
	detach(&d, c);
}

static void on_alarm(int number)
{
	(void)number;
}

static void test_interrupted(void **state)
{
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 8, 4096, 0);
	struct sigaction action = {.sa_handler = on_alarm};
	struct itimerval timer = {.it_value.tv_usec = 10000, .it_interval.tv_usec = 10000};
	struct cistern_completion done;

	(void)state;
	assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
	setitimer(ITIMER_REAL, &timer, NULL);
	assert_int_equal(cistern_wait(c, &done, 1, 20000), -EINTR);
	setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
	assert_int_equal(cistern_nop(c, 1), 0);
	await(c, 1);
	detach(&d, c);
}

/* ---- a daemon that dies or lies ---- */

static bool hang_up(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	if (sqe->op == WIRE_NOP)
		fake_complete(d, sqe, 0, 0, 0);
	return sqe->op == WIRE_NOP;
}

static bool say_why(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	(void)sqe;
	fake_answer_error(d, -EPROTO, "keys outside the arena");
	return false;
}

static bool complete_twice(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	fake_complete(d, sqe, 0, 0, 0);
	fake_complete(d, sqe, 0, 0, 0);
	return true;
}

static bool complete_nobody(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	struct wire_sqe other = *sqe;

	other.user_data = UINT32_MAX;
	fake_complete(d, &other, 0, 0, 0);
	return true;
}

static bool complete_too_much(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	fake_complete(d, sqe, 0, sqe->n_chunks + 1, 0);
	return true;
}

static bool tear_ring(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	(void)sqe;
	atomic_store(&d->segment.cq->tail, 0x80000000u);
	doorbell_ring(d->cq_ringer);
	return true;
}

static bool chatter(struct fake_daemon *d, const struct wire_sqe *sqe)
{
	(void)sqe;
	message_send(d->socket, "hello", 5, NULL, 0, 1000);
	return true;
}

static void test_lost_daemon(void **state)
{
	static const struct {
		bool (*on_sqe)(struct fake_daemon *d, const struct wire_sqe *sqe);
		const char *sentence;
	} cases[] = {
		{hang_up, "hung up"},
		{say_why, "keys outside the arena"},
		{complete_twice, "fits no request"},
		{complete_nobody, "fits no request"},
		{complete_too_much, "fits no request"},
		{tear_ring, "completion ring"},
		{chatter, "nobody asked for"},
	};
	enum { WAIT, POLL, DESCRIPTOR, N_WAYS };

	(void)state;
	for (size_t i = 0; i < N_WAYS * sizeof(cases) / sizeof(cases[0]); i++) {
		struct fake_daemon d = {.on_sqe = cases[i / N_WAYS].on_sqe};
		struct cistern *c = attach(&d, 8, 4096, i % 2 ? 100 : 0);
		struct cistern_completion done;
		struct pollfd p = {.events = POLLIN};
		int r;

		if (i % N_WAYS == DESCRIPTOR)
			p.fd = cistern_fd(c);
		assert_int_equal(cistern_sync(c, 1), 0);
		assert_int_equal(cistern_submit(c), 1);
		do {
			if (i % N_WAYS == WAIT) {
				r = cistern_wait(c, &done, 1, -1);
			} else {
				if (i % N_WAYS == DESCRIPTOR && d.on_sqe != chatter)
					assert_int_equal(poll(&p, 1, 10000), 1);
				r = cistern_poll(c, &done, 1);
			}
		} while (r >= 0);
		assert_int_equal(r, -ENOTCONN);
		if (!strstr(cistern_error(c), cases[i / N_WAYS].sentence))
			fail_msg("\"%s\" does not say \"%s\"", cistern_error(c), cases[i / N_WAYS].sentence);
		/* And so it stays, in every call. */
		assert_int_equal(cistern_nop(c, 1), -ENOTCONN);
		assert_int_equal(cistern_lookup(c, 1, keys, 1, 1), -ENOTCONN);
		assert_int_equal(cistern_submit(c), -ENOTCONN);
		assert_int_equal(cistern_poll(c, &done, 1), -ENOTCONN);
		assert_int_equal(cistern_wait(c, &done, 1, -1), -ENOTCONN);
		assert_int_equal(cistern_unregister_memory(c, 1), -ENOTCONN);
		detach(&d, c);
	}
}

/* What was completed before the daemon died is not lost. */
static void test_last_completions(void **state)
{
	struct fake_daemon d = {.on_sqe = hang_up};
	struct cistern *c = attach(&d, 8, 4096, 0);
	struct cistern_completion done;

	(void)state;
	for (uint64_t i = 0; i < 3; i++)
		assert_int_equal(cistern_nop(c, i), 0);
	assert_int_equal(cistern_sync(c, 3), 0);
	assert_int_equal(cistern_submit(c), 4);
	fake_join(&d); /* it is dead now */
	for (uint64_t i = 0; i < 3; i++)
		await(c, i);
	assert_int_equal(cistern_wait(c, &done, 1, -1), -ENOTCONN);
	detach(&d, c);
}

/* Memory and events on a GPU are bytes that pass through; the daemon gets ids of its own. */
static void test_device_on_the_wire(void **state)
{
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 8, 4096, 0);
	const uint32_t on_host = add_memory(c);
	struct cistern_layout layout = {.block_stride = 64, .token_stride = 16, .head_stride = 16};
	struct cistern_device_part parts[2] = {
		{.address = 0x7000, .offset_bytes = 256, .size_bytes = 1024, .fd = 1},
		{.allocation_bytes = 8192, .size_bytes = 512, .fd = 2}};
	struct cistern_memory memory = {.model_id = 1,
		.size_bytes = 1536,
		.block_tokens = BLOCK_TOKENS,
		.n_blocks = N_BLOCKS,
		.layouts = &layout,
		.kind = CISTERN_MEMORY_CUDA_IPC,
		.n_parts = 2,
		.parts = parts,
		.uuid = {9}};
	uint8_t handles[3][64];
	uint32_t id, first, second;
	struct {
		struct wire_register_memory head;
		struct wire_device_memory device;
		struct wire_device_part parts[2];
		struct wire_layout layout;
	} wire;
	struct cistern_run run;
	struct wire_sqe sqe;

	(void)state;
	for (int i = 0; i < 3; i++)
		memset(handles[i], i + 1, 64);
	memcpy(parts[0].handle, handles[0], 64);
	memcpy(parts[1].handle, handles[1], 64);
	assert_int_equal(cistern_register_memory(c, &memory, &id), 0);
	assert_int_equal(d.message_len, sizeof wire);
	assert_int_equal(d.n_fds, 0);
	memcpy(&wire, d.message, sizeof wire);
	assert_int_equal(wire.head.kind, WIRE_MEMORY_CUDA_IPC);
	assert_int_equal(wire.device.n_parts, 2);
	assert_int_equal(wire.device.uuid[0], 9);
	assert_memory_equal(wire.parts[1].handle, handles[1], 64);
	assert_int_equal(wire.parts[0].address, 0x7000);
	assert_int_equal(wire.parts[0].offset_bytes, 256);
	assert_int_equal(wire.parts[1].size_bytes, 512);
	assert_int_equal(wire.layout.block_stride, 64);
	memory.kind = CISTERN_MEMORY_CUDA_VMM;
	assert_int_equal(cistern_register_memory(c, &memory, &id), 0);
	assert_int_equal(d.n_fds, 2);
	memcpy(&wire, d.message, sizeof wire);
	assert_int_equal(wire.head.kind, WIRE_MEMORY_CUDA_VMM);
	assert_int_equal(wire.parts[1].allocation_bytes, 8192);
	assert_int_equal(wire.parts[1].handle[0], 0);

	d.next_id = 40;
	assert_int_equal(cistern_register_events(c, handles, 1, &first), 0);
	assert_int_equal(cistern_register_events(c, handles + 1, 2, &second), 0);
	assert_int_equal(d.message_len, sizeof(struct wire_register_events) + 128);
	assert_int_equal(second, first + 1);

	run = good_run(id);
	run.ready_event = first;
	run.released_event = second + 1;
	run.first_event = second;
	run.n_events = 2;
	assert_int_equal(cistern_put(c, &run, NULL, 1), 0);
	assert_int_equal(cistern_submit(c), 1);
	await(c, 1);
	sqe = fake_last_sqe(&d);
	assert_int_equal(sqe.events.ready, 41);
	assert_int_equal(sqe.events.first, 43);
	assert_int_equal(sqe.events.n, 1);
	assert_int_equal(cistern_get(c, &run, 2), 0);
	assert_int_equal(cistern_submit(c), 1);
	await(c, 2);
	sqe = fake_last_sqe(&d);
	assert_int_equal(sqe.events.ready, 41);
	assert_int_equal(sqe.events.first, 42);
	assert_int_equal(sqe.events.n, 2);

	/* Nothing of this reaches the daemon. */
	run.n_events = 3;
	assert_int_equal(cistern_get(c, &run, 3), -EINVAL);
	run.n_events = 2;
	run.first_event = first; /* of two registrations */
	assert_int_equal(cistern_get(c, &run, 3), -EINVAL);
	run = good_run(on_host);
	run.ready_event = first;
	assert_int_equal(cistern_put(c, &run, NULL, 3), -EINVAL);
	run = good_run(id);
	assert_int_equal(cistern_unregister_events(c, second + 1), -ENOENT);
	assert_int_equal(cistern_unregister_events(c, second), 0);
	run.released_event = second;
	assert_int_equal(cistern_put(c, &run, NULL, 3), -EINVAL);
	assert_int_equal(cistern_register_events(c, handles, 0, &first), -EINVAL);
	assert_int_equal(cistern_register_events(c, NULL, 1, &first), -EINVAL);
	memory.size_bytes = 1537;
	assert_int_equal(cistern_register_memory(c, &memory, &id), -EINVAL);
	memory.size_bytes = 1536;
	parts[1].fd = -1;
	assert_int_equal(cistern_register_memory(c, &memory, &id), -EINVAL);
	memory.n_parts = 5;
	assert_int_equal(cistern_register_memory(c, &memory, &id), -EINVAL);
	memory.kind = 7;
	assert_int_equal(cistern_register_memory(c, &memory, &id), -EINVAL);
	detach(&d, c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nop),
		cmocka_unit_test(test_requests_on_the_wire),
		cmocka_unit_test(test_device_on_the_wire),
		cmocka_unit_test(test_runs_that_do_not_add_up),
		cmocka_unit_test(test_submission_ring_full),
		cmocka_unit_test(test_flights_run_out),
		cmocka_unit_test(test_arena_full),
		cmocka_unit_test(test_more_completions),
		cmocka_unit_test(test_full_completion_ring),
		cmocka_unit_test(test_spinning),
		cmocka_unit_test(test_descriptor),
		cmocka_unit_test(test_interrupted),
		cmocka_unit_test(test_lost_daemon),
		cmocka_unit_test(test_last_completions),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
