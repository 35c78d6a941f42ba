/* A daemon among clients that lie: garbage on the socket, impossible numbers in registrations, rings and
 * requests. Each is told off or cut off; after each the daemon serves an honest client as before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "shm/doorbell.h"
#include "shm/message.h"
#include "shm/segment.h"
#include "tests/integration/engine.h"
#include "tools/private-daemon.h"

enum { WAIT_MS = 10000 };

static struct private_daemon daemon_;

static int set_up(void **state)
{
	const struct private_daemon_options options = {
		.no_store = 1, .more = "[namespace other]\nuids = 12345\n"};

	(void)state;
	return private_daemon_start(&daemon_, &options);
}

static int tear_down(void **state)
{
	(void)state;
	assert_int_equal(private_daemon_end(&daemon_, SIGTERM), 0);
	private_daemon_stop(&daemon_);
	return 0;
}

static int connect_raw(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, daemon_.socket);
	assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
	return fd;
}

/* An honest client puts and gets something of its own. */
static void serves_as_before(void)
{
	static uint32_t sequence = 1000;
	struct engine e;

	engine_open(&e, daemon_.socket, 1);
	engine_prefill(&e, ++sequence, 512);
	assert_int_equal(engine_put(&e, 512).n_chunks, 2);
	engine_wipe(&e);
	assert_int_equal(engine_get(&e, 512, 0).n_chunks, 2);
	assert_true(engine_error(&e, sequence, 0, 512) < 0.02);
	engine_close(&e);
}

/* The status of the error that answers, 0 for another answer, or -ENOTCONN when there is none. */
static int answer_to(int fd)
{
	static uint8_t buffer[WIRE_MESSAGE_MAX];
	struct wire_error error;
	size_t len;
	const int r = message_receive(fd, buffer, sizeof buffer, &len, NULL, WAIT_MS);

	if (r)
		return r;
	assert_int_equal(message_check(buffer, len, NULL), 0);
	if (message_type(buffer) != WIRE_ERROR)
		return 0;
	memcpy(&error, buffer, sizeof error);
	assert_true(error.status < 0);
	assert_true(strnlen(error.text, sizeof error.text) > 0);
	return error.status;
}

static bool hung_up(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char byte;

	return poll(&p, 1, WAIT_MS) == 1 && recv(fd, &byte, 1, 0) <= 0;
}

static struct wire_hello good_hello(void)
{
	struct wire_hello hello = {.name_space = "default", .n_entries = 64, .arena_bytes = 65536};

	message_header(&hello, WIRE_HELLO, sizeof hello);
	return hello;
}

static void bad_hellos(void **state)
{
	enum { GARBAGE, SHORT, VERSION, MAGIC, LENGTH, ENTRIES, ARENA, NAMESPACE, FOREIGN, N_CASES };
	static const int wanted[N_CASES] = {
		-EPROTO, -EPROTO, -EPROTO, -EPROTO, -EPROTO, -EINVAL, -EINVAL, -EACCES, -EACCES};

	(void)state;
	for (int i = 0; i < N_CASES; i++) {
		struct wire_hello h = good_hello();
		size_t len = sizeof h;
		const int fd = connect_raw();

		switch (i) {
		case GARBAGE: memset(&h, 0xEE, sizeof h); break;
		case SHORT: len = 10; break;
		case VERSION: h.header.version = 77; break;
		case MAGIC: h.header.magic++; break;
		case LENGTH: h.header.len_bytes += 8; break;
		case ENTRIES: h.n_entries = 63; break;
		case ARENA: h.arena_bytes = UINT64_MAX; break;
		case NAMESPACE:
			memset(h.name_space, 'x', sizeof h.name_space); /* and no NUL */
			break;
		case FOREIGN: strcpy(h.name_space, "other"); break;
		}
		assert_int_equal(send(fd, &h, len, 0), (ssize_t)len);
		assert_int_equal(answer_to(fd), wanted[i]);
		assert_true(hung_up(fd));
		close(fd);
	}
	serves_as_before();
}

/* Random messages, some with a sound header; some with descriptors. */
static void random_messages(void **state)
{
	const unsigned seed = (unsigned)time(NULL);
	uint8_t message[512];

	(void)state;
	srand(seed);
	print_message("seed %u\n", seed);
	for (int i = 0; i < 300; i++) {
		const int fd = connect_raw();
		const int n = 1 + rand() % 4;

		if (i % 2) {
			const struct wire_hello h = good_hello();

			assert_int_equal(send(fd, &h, sizeof h, 0), sizeof h);
		}
		for (int k = 0; k < n; k++) {
			const size_t len = 16 + (size_t)rand() % (sizeof message - 16);

			for (size_t b = 0; b < sizeof message; b++)
				message[b] = (uint8_t)rand();
			message_header(message, (enum wire_type)(rand() % 12), len);
			/* It may have hung up already. */
			if (rand() % 8)
				message_send(fd, message, len, NULL, 0, WAIT_MS);
			else
				message_send(fd, message, len, &(int){0}, 1, WAIT_MS);
		}
		close(fd);
	}
	serves_as_before();
}

/* ---- a client that speaks the wire itself ---- */

struct liar {
	int socket, sq_doorbell, cq_doorbell;
	struct segment segment;
	struct ring_producer sq;
	struct ring_consumer cq;
	uint32_t model_id, memory_id;
};

static void liar_open(struct liar *l)
{
	const struct wire_hello h = good_hello();
	struct wire_welcome w;
	struct message_fds fds = {0};
	size_t len;

	l->socket = connect_raw();
	assert_int_equal(message_send(l->socket, &h, sizeof h, NULL, 0, WAIT_MS), 0);
	assert_int_equal(message_receive(l->socket, &w, sizeof w, &len, &fds, WAIT_MS), 0);
	assert_int_equal(message_type(&w), WIRE_WELCOME);
	const int segment = message_fds_take(&fds, 0);

	l->sq_doorbell = message_fds_take(&fds, 1);
	l->cq_doorbell = message_fds_take(&fds, 2);
	assert_int_equal(segment_map(&w, segment, &l->segment, NULL), 0);
	close(segment);
	segment_sq_producer(&l->segment, &l->sq);
	segment_cq_consumer(&l->segment, &l->cq);
}

static void liar_close(struct liar *l)
{
	segment_fini(&l->segment);
	close(l->sq_doorbell);
	close(l->cq_doorbell);
	close(l->socket);
}

struct model_message {
	struct wire_register_model w;
	float inv_freq[E_DIM / 2];
};

struct memory_message {
	struct wire_register_memory w;
	struct wire_layout layouts[E_LAYERS * 2];
};

static void describe(struct model_message *model, struct memory_message *memory)
{
	struct cistern_layout layouts[E_LAYERS * 2];
	struct cistern_plane planes[2];
	struct cistern_model m;

	memset(model, 0, sizeof *model);
	memset(memory, 0, sizeof *memory);
	engine_describe(&m, planes, model->inv_freq, layouts);
	strcpy(model->w.name, m.name);
	model->w.n_layers = m.n_layers;
	model->w.n_planes = m.n_planes;
	model->w.tp_size = 1;
	for (int i = 0; i < 2; i++)
		model->w.planes[i] = (struct wire_plane){.n_heads = planes[i].n_heads,
			.dim = planes[i].dim,
			.dtype = planes[i].dtype,
			.rope_kind = planes[i].rope_kind,
			.rope_dim = planes[i].rope_dim,
			.rope_scale = 1};
	message_header(model, WIRE_REGISTER_MODEL, sizeof *model);
	memory->w.block_tokens = E_BLOCK;
	memory->w.n_blocks = E_BLOCKS;
	memory->w.size_bytes = (uint64_t)E_LAYERS * 2 * E_BLOCKS * E_BLOCK * E_WIDTH * 2;
	memory->w.kind = WIRE_MEMORY_MEMFD;
	for (int i = 0; i < E_LAYERS * 2; i++)
		memory->layouts[i] = (struct wire_layout){layouts[i].base, layouts[i].block_stride,
			layouts[i].token_stride, layouts[i].head_stride};
	message_header(memory, WIRE_REGISTER_MEMORY, sizeof *memory);
}

static int ask(const struct liar *l, const void *message, size_t len, int fd, uint32_t *id)
{
	struct wire_registered answer;
	uint8_t buffer[sizeof(struct wire_error)];
	size_t answer_len;

	assert_int_equal(message_send(l->socket, message, len, &fd, fd >= 0, WAIT_MS), 0);
	assert_int_equal(message_receive(l->socket, buffer, sizeof buffer, &answer_len, NULL, WAIT_MS), 0);
	if (message_type(buffer) == WIRE_ERROR) {
		struct wire_error e;

		memcpy(&e, buffer, sizeof e);
		return e.status;
	}
	memcpy(&answer, buffer, sizeof answer);
	if (id)
		*id = answer.id;
	return 0;
}

static void bad_registrations(void **state)
{
	const uint64_t size = (uint64_t)E_LAYERS * 2 * E_BLOCKS * E_BLOCK * E_WIDTH * 2;
	struct model_message model;
	struct memory_message memory;
	struct liar l;
	int sealed, unsealed;
	void *addr;

	(void)state;
	liar_open(&l);
	describe(&model, &memory);
	assert_int_equal(cistern_memory_create("kv", size, &sealed, &addr), 0);
	munmap(addr, size);
	unsealed = memfd_create("kv", MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(unsealed, (off_t)size), 0);

	memory.w.model_id = 1;
	assert_int_equal(ask(&l, &memory, sizeof memory, sealed, NULL), -ENOENT);
	assert_int_equal(ask(&l, &model, sizeof model, -1, &memory.w.model_id), 0);

	static const struct {
		const char *what;
		int wanted;
	} models[] = {{"no layers", -EINVAL}, {"three planes", -EINVAL}, {"an odd rope_dim", -EINVAL},
		{"a huge dim", -EINVAL}, {"a frequency that is no number", -EINVAL},
		{"a name that ends nowhere", 0}};
	for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
		struct model_message m = model;

		if (i == 0)
			m.w.n_layers = 0;
		else if (i == 1)
			m.w.n_planes = 3;
		else if (i == 2)
			m.w.planes[0].rope_dim = 15;
		else if (i == 3)
			m.w.planes[1].dim = 1u << 31;
		else if (i == 4)
			m.inv_freq[3] = __builtin_nanf("");
		else
			memset(m.w.name, 'n', sizeof m.w.name);
		assert_int_equal(ask(&l, &m, sizeof m, -1, NULL), models[i].wanted);
	}

	static const char *const memories[] = {"outside", "outside by overflow", "overlapping heads",
		"all strides zero", "misaligned", "larger than the memfd", "no blocks", "not sealed",
		"no descriptor"};
	for (size_t i = 0; i < sizeof memories / sizeof *memories; i++) {
		struct memory_message m = memory;
		struct wire_layout *layout = &m.layouts[3];
		int fd = sealed;

		switch (i) {
		case 0: layout->base = size - 8; break;
		case 1: layout->block_stride = UINT64_MAX / 2; break;
		case 2: layout->head_stride = E_DIM; break;
		case 3: layout->head_stride = layout->token_stride = layout->block_stride = 0; break;
		case 4: layout->base++; break;
		case 5: m.w.size_bytes *= 2; break;
		case 6: m.w.n_blocks = 0; break;
		case 7: fd = unsealed; break;
		default: fd = -1;
		}
		const int got = ask(&l, &m, sizeof m, fd, NULL);

		if (got != (i == 7 ? -EPERM : -EINVAL))
			fail_msg("%s: %d", memories[i], got);
	}
	assert_int_equal(ask(&l, &memory, sizeof memory, sealed, &l.memory_id), 0);
	close(sealed);
	close(unsealed);
	liar_close(&l);
	serves_as_before();
}

static void liar_register(struct liar *l)
{
	const uint64_t size = (uint64_t)E_LAYERS * 2 * E_BLOCKS * E_BLOCK * E_WIDTH * 2;
	struct model_message model;
	struct memory_message memory;
	void *addr;
	int fd;

	describe(&model, &memory);
	assert_int_equal(cistern_memory_create("kv", size, &fd, &addr), 0);
	munmap(addr, size);
	assert_int_equal(ask(l, &model, sizeof model, -1, &l->model_id), 0);
	memory.w.model_id = l->model_id;
	assert_int_equal(ask(l, &memory, sizeof memory, fd, &l->memory_id), 0);
	close(fd);
}

/* Sends one submission and returns its completion's status; -ENOTCONN when the daemon hangs up instead. */
static int submit(struct liar *l, const struct wire_sqe *sqe)
{
	struct wire_cqe cqe;

	assert_int_equal(ring_push(&l->sq, sqe), 0);
	if (ring_publish(&l->sq))
		doorbell_ring(l->sq_doorbell);
	for (;;) {
		struct pollfd p[2] = {
			{.fd = l->cq_doorbell, .events = POLLIN}, {.fd = l->socket, .events = POLLIN}};
		const int r = ring_pop(&l->cq, &cqe);

		if (r == 1) {
			ring_release(&l->cq);
			assert_int_equal(cqe.user_data, sqe->user_data);
			return cqe.status;
		}
		if (ring_sleep(&l->cq) != 1)
			continue;
		assert_true(poll(p, 2, WAIT_MS) > 0);
		if (doorbell_drain(l->cq_doorbell))
			return -ENOTCONN;
	}
}

static void bad_requests(void **state)
{
	struct liar l;

	(void)state;
	liar_open(&l);
	liar_register(&l);
	const struct wire_sqe good = {.op = WIRE_GET,
		.object = l.memory_id,
		.user_data = 0xABCD,
		.n_tokens = 300,
		.n_chunks = 2,
		.n_blocks = 19,
		.keys_off = 0,
		.blocks_off = 4096};
	static const struct {
		const char *what;
		int wanted;
	} cases[] = {
		{"as it should be", 0},
		{"no such operation", -EOPNOTSUPP},
		{"no such memory", -ENOENT},
		{"keys beyond the arena", -EINVAL},
		{"keys that overflow", -EINVAL},
		{"blocks beyond the arena", -EINVAL},
		{"too few blocks", -EINVAL},
		{"an offset that needs more blocks", -EINVAL},
		{"a block that is not there", -EINVAL},
		{"chunks that do not match the tokens", -EINVAL},
		{"no tokens", -EINVAL},
		{"a position inside a chunk", -EINVAL},
		{"a position at the end of the world", -EINVAL},
		{"four thousand million tokens", -EINVAL},
		{"a model that was not registered", -ENOENT},
		{"more keys than the arena holds", -EINVAL},
		{"an observation beyond the arena", -EINVAL},
		{"an observation at the end of the world", -EINVAL},
		{"an observation of nothing", -EINVAL},
		{"an observation longer than the arena", -EINVAL},
		{"a preset that does not exist", -EINVAL},
		{"an event for memory that is not on a GPU", -EINVAL},
		{"events for memory that is not on a GPU", -EINVAL},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct wire_sqe s = good;
		uint32_t *blocks = (uint32_t *)(void *)(l.segment.arena + 4096);

		const struct wire_observation observation = {
			.kind = i == 19 ? WIRE_QUERIES : 0, .n_queries = 300, .n_heads = 1024, .n_layers = 1};

		for (uint32_t b = 0; b < 19; b++)
			blocks[b] = b;
		memcpy(l.segment.arena + 8192, &observation, sizeof observation);
		s.data_off = i >= 16 && i <= 19 ? 8192 : 0;
		switch (i) {
		case 1: s.op = 200; break;
		case 2: s.object = 99; break;
		case 3: s.keys_off = l.segment.arena_bytes - 63; break;
		case 4: s.keys_off = UINT64_MAX - 8; break;
		case 5: s.blocks_off = l.segment.arena_bytes; break;
		case 6: s.n_blocks = 18; break;
		case 7: s.block_offset = UINT32_MAX; break;
		case 8: blocks[18] = E_BLOCKS; break;
		case 9: s.n_chunks = 1; break;
		case 10:
			s.n_tokens = 0;
			s.n_chunks = 0;
			break;
		case 11: s.position = 100; break;
		case 12: s.position = UINT64_MAX - 255; break;
		case 13:
			s.n_tokens = UINT32_MAX;
			s.n_chunks = 1u << 24;
			break;
		case 14:
			s.op = WIRE_LOOKUP;
			s.object = 3;
			break;
		case 15:
			s.op = WIRE_LOOKUP;
			s.object = l.model_id;
			s.n_chunks = UINT32_MAX;
			break;
		case 16:
			s.op = WIRE_OBSERVE;
			s.data_off = l.segment.arena_bytes - 31;
			break;
		case 17:
			s.op = WIRE_OBSERVE;
			s.data_off = UINT64_MAX - 8;
			break;
		case 18:
		case 19: s.op = WIRE_OBSERVE; break;
		case 20:
			s.op = WIRE_PUT;
			s.preset = 4;
			break;
		case 21: s.events.ready = 1; break;
		case 22: s.events.n = 1; break;
		}
		const int got = submit(&l, &s);

		if (got != cases[i].wanted)
			fail_msg("%s: %d, not %d", cases[i].what, got, cases[i].wanted);
	}
	liar_close(&l);
	serves_as_before();
}

/* Indices that cannot be: the daemon gives the client up. */
static void corrupt_rings(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++) {
		const struct wire_sqe nop = {.user_data = 1};
		struct liar l;

		liar_open(&l);
		assert_int_equal(submit(&l, &nop), 0);
		if (i == 0) {
			atomic_store(&l.segment.sq->tail, 12345678);
			doorbell_ring(l.sq_doorbell);
		} else {
			/* Ours of the completions: it says that more was taken than there was. Noticed once
			 * the daemon needs it, when it comes round. */
			atomic_store(&l.segment.cq->head, 4000000000u);
			for (int k = 0; k < 130; k++) {
				if (ring_push(&l.sq, &nop))
					break;
				if (ring_publish(&l.sq))
					doorbell_ring(l.sq_doorbell);
				usleep(100);
			}
		}
		assert_true(hung_up(l.socket));
		liar_close(&l);
	}
	serves_as_before();
}

/* A client that never takes its completions does not hold up the others. */
static void completions_not_taken(void **state)
{
	const struct wire_sqe nop = {.user_data = 1};
	struct liar l;
	uint32_t n_pushed = 0;

	(void)state;
	liar_open(&l);
	for (int k = 0; k < 2000; k++) {
		if (!ring_push(&l.sq, &nop))
			n_pushed++;
		if (ring_publish(&l.sq))
			doorbell_ring(l.sq_doorbell);
		if (k % 64 == 0)
			usleep(1000);
	}
	assert_true(n_pushed >= 64 + 128); /* both rings are full now */
	serves_as_before();
	/* Once it takes them, all are there. */
	for (uint32_t n = 0; n < n_pushed;) {
		struct wire_cqe cqe;

		if (ring_pop(&l.cq, &cqe) == 1) {
			n++;
			if (ring_release(&l.cq))
				doorbell_ring(l.sq_doorbell);
		} else {
			usleep(100);
		}
	}
	liar_close(&l);
	serves_as_before();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_hellos),
		cmocka_unit_test(random_messages),
		cmocka_unit_test(bad_registrations),
		cmocka_unit_test(bad_requests),
		cmocka_unit_test(corrupt_rings),
		cmocka_unit_test(completions_not_taken),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
