/* Ring entries against a live session that has registered a model and memory: any entries, any arena, any
 * indices. The session serves or ends; every request that was taken comes to an end; the pool leaks nothing.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "shm/cistern.h"
#include "shm/ring.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/live-session.h"

enum { N_LAYERS = 2, N_HEADS = 1, DIM = 8, BLOCK = 16, BLOCKS = 64, ENTRIES = 16, ARENA = 8192 };

static struct segment segment;
static struct ring_producer sq;
static struct ring_consumer cq;

static void ask(struct live *l, const void *message, size_t len, const int *fds, uint32_t n_fds)
{
	uint8_t answer[4096];
	struct message_fds got = {0};

	live_send(l, message, len, fds, n_fds);
	REQUIRE(live_answer(l, answer, sizeof answer, &got));
	REQUIRE(message_type(answer) == WIRE_REGISTERED);
	message_fds_close(&got);
}

static void attach(struct live *l)
{
	struct wire_hello hello = {.name_space = "default", .n_entries = ENTRIES, .arena_bytes = ARENA};
	struct {
		struct wire_register_model w;
	} model = {0};
	struct {
		struct wire_register_memory w;
		struct wire_layout layouts[N_LAYERS];
	} memory = {0};
	const uint64_t layer = (uint64_t)BLOCKS * BLOCK * N_HEADS * DIM * 2;
	struct message_fds fds = {0};
	struct wire_welcome welcome;
	static int fd = -1;
	void *addr;
	int segment_fd;

	message_header(&hello, WIRE_HELLO, sizeof hello);
	live_send(l, &hello, sizeof hello, NULL, 0);
	REQUIRE(live_answer(l, &welcome, sizeof welcome, &fds) == sizeof welcome && fds.n == 3);
	segment_fd = message_fds_take(&fds, 0);
	REQUIRE(segment_map(&welcome, segment_fd, &segment, NULL) == 0);
	close(segment_fd);
	message_fds_close(&fds);
	segment_sq_producer(&segment, &sq);
	segment_cq_consumer(&segment, &cq);

	message_header(&model, WIRE_REGISTER_MODEL, sizeof model);
	strcpy(model.w.name, "fuzz");
	model.w.n_layers = N_LAYERS;
	model.w.n_planes = 1;
	model.w.tp_size = 1;
	model.w.planes[0] = (struct wire_plane){.n_heads = N_HEADS, .dim = DIM, .dtype = 1, .rope_scale = 1};
	ask(l, &model, sizeof model, NULL, 0);
	if (fd < 0) {
		REQUIRE(cistern_memory_create("kv", layer * N_LAYERS, &fd, &addr) == 0);
		munmap(addr, layer * N_LAYERS);
	}
	message_header(&memory, WIRE_REGISTER_MEMORY, sizeof memory);
	memory.w.model_id = 1;
	memory.w.block_tokens = BLOCK;
	memory.w.size_bytes = layer * N_LAYERS;
	memory.w.n_blocks = BLOCKS;
	memory.w.kind = WIRE_MEMORY_MEMFD;
	for (uint64_t i = 0; i < N_LAYERS; i++)
		memory.layouts[i] = (struct wire_layout){.base = i * layer,
			.block_stride = BLOCK * DIM * 2,
			.token_stride = DIM * 2,
			.head_stride = DIM * 2};
	ask(l, &memory, sizeof memory, &fd, 1);
}

/* One that mostly adds up. */
static struct wire_sqe likely(struct input *in)
{
	const uint8_t op = take_u8(in), chunks = take_u8(in) % 5;
	struct wire_sqe sqe = {.op = op % 11, .flags = op >> 4 & 1, .object = take_u8(in) % 3};

	sqe.user_data = take_u8(in);
	sqe.position = (uint64_t)(take_u8(in) & 3) * 256;
	sqe.n_chunks = chunks;
	sqe.n_tokens = chunks ? (chunks - 1u) * 256 + take_u8(in) + 1u : take_u8(in);
	sqe.block_offset = take_u8(in) % 32;
	sqe.n_blocks = (sqe.n_tokens + sqe.block_offset + BLOCK - 1) / BLOCK;
	sqe.keys_off = take_u8(in) * 8u;
	sqe.blocks_off = 4096 + take_u8(in) * 4u;
	return sqe;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct input in = {data, len};
	struct pool_stats before, after;
	struct live l;
	uint8_t mode;

	live_open(&l);
	attach(&l);
	pool_get_stats(live_daemon()->pool, &before);
	mode = take_u8(&in);
	for (uint32_t i = 0; i < ARENA / 4; i++) {
		const uint32_t block = i * 7 % (mode & 1 ? BLOCKS : BLOCKS + 1);

		memcpy(segment.arena + 4 * i, &block, 4);
	}
	for (int i = 0; i < 8; i++)
		take(&in, segment.arena + 32 * i, mode & 2 ? 2 : 0);
	while (in.left && !l.session->closed) {
		const uint8_t what = take_u8(&in);
		struct wire_sqe sqe = likely(&in);
		struct wire_cqe cqe;

		if (what % 8 == 0)
			take(&in, &sqe, sizeof sqe);
		if (what % 16 == 1)
			take(&in, segment.arena + take_u16(&in) % (ARENA - 64), 16);
		/* The indices themselves, head and tail of either ring. */
		if (what == 255) {
			uint32_t index = take_u32(&in);
			uint8_t *rings = (uint8_t *)segment.addr;

			memcpy(rings + (take_u8(&in) & 7) * 64, &index, 4);
		}
		if (ring_push(&sq, &sqe) == 0)
			ring_publish(&sq);
		if (what & 64)
			live_run(&l);
		if (what & 32) {
			while (ring_pop(&cq, &cqe) == 1)
				;
			ring_release(&cq);
			session_rung(l.session);
		}
	}
	live_run(&l);
	segment_fini(&segment);
	live_close(&l);
	cache_drop_pool(live_daemon()->cache);
	pool_get_stats(live_daemon()->pool, &after);
	REQUIRE(after.used_bytes <= after.limit_bytes);
	return 0;
}
