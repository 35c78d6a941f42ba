/* What the store's thread does, without the thread: in which order things are begun, and what may not happen
 * while something is in flight. */
#include "store-fixture.h"

#include "base/log.h"
#include "runtime/store/engine-internal.h"
#include "runtime/store/scan.h"

#include <sys/eventfd.h>

struct bench {
	struct fixture *f;
	struct engine engine;
	int dir_fd, wake_fd;
};

static void open_engine(struct bench *b, struct fixture *f, uint32_t depth)
{
	struct store_config config = f->config;
	struct scan_result result;

	config.depth = depth;
	b->f = f;
	b->dir_fd = open(f->dir, O_RDONLY | O_DIRECTORY);
	b->wake_fd = eventfd(0, 0);
	assert_int_equal(engine_init(&b->engine, &config, b->dir_fd, false), 0);
	assert_int_equal(scan_directory(&b->engine.segments, NULL, NULL, &result), 0);
	b->engine.next_sequence = result.next_sequence;
	io_init(&b->engine.io, engine_requests(&b->engine), b->wake_fd, NULL, 0);
}

static void run_until_idle(struct bench *b)
{
	for (engine_turn(&b->engine); !engine_is_idle(&b->engine); engine_turn(&b->engine))
		engine_wait(&b->engine);
}

static void close_engine(struct bench *b)
{
	run_until_idle(b);
	while (!engine_wind_up(&b->engine))
		engine_wait(&b->engine);
	io_fini(&b->engine.io);
	engine_fini(&b->engine);
	close(b->wake_fd);
	close(b->dir_fd);
}

static void make_write(struct store_op *op, uint32_t number)
{
	*op = (struct store_op){
		.kind = STORE_WRITE, .status = 1, .data = record_room(number), .record = record_of(number)};
	frame_fill(number, (uint8_t *)op->data + STORE_HEADER_BYTES);
}

/* A sync begins when the last write before it has ended, and does not wait for those after it. */
static void sync_waits(void **state)
{
	enum { N = 12, BARRIER = 6 };
	struct bench b;
	struct store_op ops[N], sync = {.kind = STORE_SYNC, .status = 1};
	bool begun = false;

	open_engine(&b, *state, 16);
	for (uint32_t i = 0; i < N; i++) {
		make_write(&ops[i], i);
		if (i == BARRIER)
			engine_submit(&b.engine, &sync);
		engine_submit(&b.engine, &ops[i]);
	}
	for (engine_turn(&b.engine); !engine_is_idle(&b.engine); engine_turn(&b.engine)) {
		bool written = true;

		for (uint32_t i = 0; i < BARRIER; i++)
			written = written && ops[i].status == 0;
		/* Every turn begins what may begin. */
		begun = begun || b.engine.round;
		assert_int_equal(begun, written);
		engine_wait(&b.engine);
	}
	assert_true(begun);
	assert_int_equal(sync.status, 0);
	close_engine(&b);
	for (uint32_t i = 0; i < N; i++)
		free(ops[i].data);
}

/* Removals that end together are synced together. */
static void one_sync_for_many(void **state)
{
	enum { N = 12 };
	struct bench b;
	struct store_op ops[N];
	struct task *before = NULL;
	int n_rounds = 0;

	open_engine(&b, *state, 16);
	for (uint32_t i = 0; i < N; i++) {
		ops[i] = (struct store_op){.kind = STORE_REMOVE, .status = 1, .record = record_of(i)};
		engine_submit(&b.engine, &ops[i]);
	}
	for (engine_turn(&b.engine); !engine_is_idle(&b.engine); engine_turn(&b.engine)) {
		n_rounds += b.engine.round && b.engine.round != before;
		before = b.engine.round;
		engine_wait(&b.engine);
	}
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(ops[i].status, 0);
	assert_in_range(n_rounds, 1, N / 2);
	close_engine(&b);
}

/* However many writes wait, a read begins at once: a request waits for it. */
static void reads_go_first(void **state)
{
	enum { N = 40, DEPTH = 4 };
	struct bench b;
	struct store_op ops[N], read;

	open_engine(&b, *state, DEPTH);
	make_write(&ops[0], 0);
	engine_submit(&b.engine, &ops[0]);
	run_until_idle(&b);
	for (uint32_t i = 1; i < N; i++) {
		make_write(&ops[i], i);
		engine_submit(&b.engine, &ops[i]);
	}
	engine_turn(&b.engine);
	assert_int_equal(b.engine.n_busy_others, DEPTH);
	assert_non_null(b.engine.others.first);
	read = (struct store_op){.kind = STORE_READ, .data = record_room(0), .record = ops[0].record};
	engine_submit(&b.engine, &read);
	engine_turn(&b.engine);
	assert_null(b.engine.reads.first);
	assert_int_equal(b.engine.n_busy_reads, 1);
	run_until_idle(&b);
	assert_int_equal(read.status, 0);
	close_engine(&b);
	for (uint32_t i = 0; i < N; i++)
		free(ops[i].data);
	free(read.data);
}

static void expect_frame_at(struct bench *b, const struct store_op *written, uint32_t number)
{
	struct store_op read = {.kind = STORE_READ, .data = record_room(number), .record = written->record};

	engine_submit(&b->engine, &read);
	run_until_idle(b);
	op_list_take(&b->engine.finished);
	assert_int_equal(read.status, 0);
	assert_memory_equal(read.data, written->data, STORE_HEADER_BYTES + frame_len(number));
	free(read.data);
}

/* Checksums are made while writes wait, for the segment that each will probably go to: into the open one, the
 * next, which may be there or not, and past removals and what is no good write. Whatever was guessed, every
 * record is sound; and an operation used again has nothing left of its first time. */
static void checksums_in_advance(void **state)
{
	enum { N = 60, DEPTH = 4 };
	struct bench b;
	struct engine *e = &b.engine;
	struct store_op ops[N], bad = {.kind = STORE_WRITE, .data = NULL}, removal;
	uint32_t n_prepared = 0;

	open_engine(&b, *state, DEPTH);
	for (int round = 0; round < 2; round++) {
		for (uint32_t i = 0; i < N; i++) {
			if (round == 0)
				make_write(&ops[i], i);
			else
				memset((char *)ops[i].data + STORE_HEADER_BYTES, (int)i, frame_len(i));
			engine_submit(e, &ops[i]);
			if (i == N / 2) {
				engine_submit(e, &bad);
				removal = (struct store_op){.kind = STORE_REMOVE, .record = record_of(N)};
				engine_submit(e, &removal);
			}
		}
		for (engine_turn(e); !engine_is_idle(e); engine_turn(e)) {
			/* At most the next so many, each once. */
			for (uint32_t n = 0; engine_prepare_write(e); n++, n_prepared++)
				assert_true(n < DEPTH);
			engine_wait(e);
		}
		assert_int_equal(bad.status, -EINVAL);
		for (uint32_t i = 0; i < N; i++) {
			assert_int_equal(ops[i].status, 0);
			expect_frame_at(&b, &ops[i], i);
		}
	}
	assert_true(e->segments.n > 4);
	assert_true(n_prepared > N);
	close_engine(&b);
	for (uint32_t i = 0; i < N; i++)
		free(ops[i].data);
}

/* A segment that nobody wants stays while it is read from, and while it is being closed. */
static void busy_segments_stay(void **state)
{
	struct bench b;
	struct engine *e = &b.engine;
	struct store_op write, read;

	open_engine(&b, *state, 4);
	make_write(&write, 5);
	engine_submit(e, &write);
	run_until_idle(&b);
	assert_false(engine_wind_up(e));
	segments_forget(&e->segments, &write.record.location);
	assert_int_equal(e->segments.list[0]->state, SEGMENT_CLOSING);
	assert_false(segments_reclaim(&e->segments));
	while (!engine_wind_up(e))
		engine_wait(e);
	assert_int_equal(e->segments.list[0]->state, SEGMENT_CLOSED);

	read = (struct store_op){.kind = STORE_READ, .data = record_room(5), .record = write.record};
	engine_submit(e, &read);
	engine_turn(e);
	assert_int_equal(e->segments.list[0]->n_in_flight, 1);
	assert_false(segments_reclaim(&e->segments));
	run_until_idle(&b);
	assert_int_equal(read.status, 0);
	assert_memory_equal(read.data, write.data, STORE_HEADER_BYTES + frame_len(5));
	assert_true(segments_reclaim(&e->segments));
	assert_false(segments_reclaim(&e->segments));
	assert_int_equal(e->segments.used_bytes, 0);
	close_engine(&b);
	free(write.data);
	free(read.data);
}

/* So many syncs that they take every place there is for what is no read, with nothing to sync: they end, and
 * what waited behind them goes on though nothing on the disk tells of it. */
static void syncs_that_end_at_once(void **state)
{
	enum { DEPTH = 8, N = DEPTH * 3 };
	struct bench b;
	struct store_op syncs[N], write;

	open_engine(&b, *state, DEPTH);
	for (uint32_t i = 0; i < N; i++) {
		syncs[i] = (struct store_op){.kind = STORE_SYNC, .status = 1};
		engine_submit(&b.engine, &syncs[i]);
	}
	make_write(&write, 3);
	engine_submit(&b.engine, &write);
	engine_turn(&b.engine);
	assert_null(b.engine.others.first);
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(syncs[i].status, 0);
	run_until_idle(&b);
	assert_int_equal(write.status, 0);
	close_engine(&b);
	free(write.data);
}

static void write_one(struct bench *b, uint32_t number)
{
	struct store_op op;

	make_write(&op, number);
	engine_submit(&b->engine, &op);
	run_until_idle(b);
	assert_ptr_equal(op_list_take(&b->engine.finished), &op);
	assert_int_equal(op.status, 0);
	free(op.data);
}

/* The next segment is there before it is needed, is taken when it is, and does not outlive the store. */
static void a_segment_ahead(void **state)
{
	struct fixture *f = *state;
	struct bench b;
	struct engine *e = &b.engine;
	struct segment *spare;
	uint32_t number = 0;

	open_engine(&b, f, 4);
	while (!e->spare)
		write_one(&b, number++);
	spare = e->spare;
	assert_true(e->open->end > SEGMENT / 2);
	assert_int_equal(spare->number, e->open->number + 1);
	assert_int_equal(e->segments.used_bytes, 2 * SEGMENT);
	assert_false(segments_reclaim(&e->segments));
	while (e->spare == spare)
		write_one(&b, number++);
	assert_ptr_equal(e->open, spare);
	while (!e->spare)
		write_one(&b, number++);
	close_engine(&b);
	assert_int_equal(each_file(f, NULL), 2);
	open_store(f);
	expect_frames(f, 0, number);
}

/* However many segments are written, descriptors are few: they once were one for each, until there were none
 * left for clients. */
static void few_descriptors(void **state)
{
	struct fixture *f = *state;
	struct bench b;

	f->config.limit_bytes = 64 << 20;
	open_engine(&b, f, 4);
	for (uint32_t number = 0; b.engine.segments.n < 160; number = (number + 1) % FRAMES_MAX)
		write_one(&b, number);
	assert_in_range(b.engine.segments.n_fds, 100, 130);
	close_engine(&b);
}

static void write_until_n_full(struct bench *b, uint32_t n, uint32_t *number)
{
	while (b->engine.n_full < n)
		write_one(b, (*number)++);
}

static void run_until_closed(struct bench *b)
{
	for (engine_turn(&b->engine); b->engine.n_closing; engine_turn(&b->engine))
		engine_wait(&b->engine);
}

static void sync_now(struct bench *b)
{
	struct store_op op = {.kind = STORE_SYNC, .status = 1};

	engine_submit(&b->engine, &op);
	run_until_idle(b);
	run_until_closed(b);
	assert_int_equal(op.status, 0);
	op_list_take(&b->engine.finished);
}

static uint32_t count_footers(const struct engine *e)
{
	uint32_t n = 0;

	for (size_t i = 0; i < e->segments.n; i++)
		n += e->segments.list[i]->has_footer;
	return n;
}

/* Segments that are full wait for somebody's sync, since each sync stops all writing for a moment; or for
 * there to be four. A store without many segments does not have them wait. At the end all are closed, and
 * stable. */
static void closed_together(void **state)
{
	struct fixture *f = *state;
	struct bench b;
	struct engine *e = &b.engine;
	uint32_t number = 0;

	f->config.limit_bytes = 64 * SEGMENT;
	open_engine(&b, f, 4);
	write_until_n_full(&b, 2, &number);
	assert_int_equal(count_footers(e), 0);
	sync_now(&b);
	assert_int_equal(e->n_full, 0);
	assert_int_equal(count_footers(e), 2);
	assert_true(e->segments.list[0]->footer_dirty);
	sync_now(&b);
	assert_false(e->segments.list[0]->footer_dirty);

	write_until_n_full(&b, 3, &number);
	for (const struct segment *open = e->open; e->open == open;)
		write_one(&b, number++);
	run_until_closed(&b);
	assert_int_equal(count_footers(e), 6);
	while (!engine_wind_up(e))
		engine_wait(e);
	for (size_t i = 0; i < e->segments.n; i++) {
		const struct segment *g = e->segments.list[i];

		assert_true(g->has_footer && !g->dirty && !g->footer_dirty);
	}
	close_engine(&b);

	f->config.limit_bytes = 15 * SEGMENT;
	open_engine(&b, f, 4);
	for (size_t n = b.engine.segments.n + 3; b.engine.segments.n < n;)
		write_one(&b, number++);
	run_until_closed(&b);
	assert_int_equal(count_footers(&b.engine), b.engine.segments.n - 1);
	close_engine(&b);
}

/* None is kept where it would take a good part of the room. */
static void no_segment_ahead(void **state)
{
	struct fixture *f = *state;
	struct bench b;

	f->config.limit_bytes = 15 * SEGMENT;
	open_engine(&b, f, 4);
	for (uint32_t number = 0; number < 30; number++) {
		write_one(&b, number);
		assert_null(b.engine.spare);
	}
	close_engine(&b);
}

/* A record larger than a segment gets one of its own, and numbers rise with time all the same: what removes
 * it later is in a file with a higher one. */
static void a_large_one_between(void **state)
{
	enum { LARGE = SEGMENT };
	struct bench b;
	struct engine *e = &b.engine;
	struct store_op op = {
		.kind = STORE_WRITE, .data = aligned_alloc(STORE_ALIGN, 2 * SEGMENT), .record = record_of(1)};
	uint32_t number = 2, of_large;

	assert_non_null(op.data);
	memset(op.data, 1, 2 * SEGMENT);
	op.record.frame_bytes = LARGE;
	open_engine(&b, *state, 4);
	while (!e->spare)
		write_one(&b, number++);
	engine_submit(e, &op);
	run_until_idle(&b);
	assert_int_equal(op.status, 0);
	assert_null(e->spare);
	of_large = op.record.location.segment;
	op = (struct store_op){.kind = STORE_REMOVE, .data = op.data, .record = record_of(1)};
	engine_submit(e, &op);
	run_until_idle(&b);
	assert_int_equal(op.status, 0);
	assert_true(e->open->number > of_large);
	close_engine(&b);
	free(op.data);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(sync_waits),
		TEST(one_sync_for_many),
		TEST(reads_go_first),
		TEST(checksums_in_advance),
		TEST(busy_segments_stay),
		TEST(syncs_that_end_at_once),
		TEST(a_segment_ahead),
		TEST(few_descriptors),
		TEST(closed_together),
		TEST(no_segment_ahead),
		TEST(a_large_one_between),
	};

	log_set_level(LOG_LEVEL_WARNING);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
