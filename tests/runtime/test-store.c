#include "store-fixture.h"

#include "base/log.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>

/* ---- everyday use ---- */

static void round_trip(void **state)
{
	struct fixture *f = *state;
	struct store_stats stats;

	open_store(f);
	assert_int_equal(f->n_found, 0);
	write_frames(f, 0, 60);
	expect_frames(f, 0, 60);
	assert_int_equal(sync_store(f), 0);
	stats = stats_of(f);
	assert_int_equal(stats.n_writes, 60);
	assert_int_equal(stats.n_reads, 60);
	assert_int_equal(stats.n_records, 60);
	assert_int_equal(stats.written_bytes, stats.live_bytes);
	assert_int_equal(stats.read_bytes, stats.live_bytes);
	assert_int_equal(stats.n_dropped, 0);
	assert_int_equal(stats.n_errors, 0);
	assert_true(stats.n_segments > 3);
	assert_true(stats.used_bytes <= stats.limit_bytes && stats.used_bytes > stats.live_bytes);

	reopen(f);
	assert_int_equal(f->n_found, 60);
	expect_frames(f, 0, 60);
	write_frames(f, 60, 70);
	reopen(f);
	assert_int_equal(f->n_found, 70);
	expect_frames(f, 0, 70);
	assert_int_equal(stats_of(f).n_dropped, 0);
}

/* Many at a time: none is lost, none mixed up, and a sync ends after the writes before it. */
static void in_flight(void **state)
{
	enum { N = 200 };
	struct fixture *f = *state;
	struct store_op ops[N + 1] = {0};
	struct pollfd ready = {.events = POLLIN};
	uint32_t n_done = 0;
	bool synced = false;

	f->config.depth = 8;
	open_store(f);
	ready.fd = store_fd(f->store);
	for (uint32_t i = 0; i < N; i++) {
		ops[i] = (struct store_op){
			.kind = STORE_WRITE, .status = 1, .data = record_room(i), .record = record_of(i)};
		frame_fill(i, (uint8_t *)ops[i].data + STORE_HEADER_BYTES);
		store_submit(f->store, &ops[i]);
	}
	ops[N].kind = STORE_SYNC;
	store_submit(f->store, &ops[N]);
	while (n_done <= N) {
		assert_int_equal(poll(&ready, 1, 20000), 1);
		for (struct store_op *op = store_reap(f->store); op; op = op->next) {
			assert_int_equal(op->status, 0);
			assert_false(synced);
			synced = op->kind == STORE_SYNC;
			n_done++;
		}
	}
	assert_null(store_reap(f->store));
	for (uint32_t i = 0; i < N; i++) {
		f->at[i] = ops[i].record;
		free(ops[i].data);
	}
	expect_frames(f, 0, N);
	reopen(f);
	assert_int_equal(f->n_found, N);
	expect_frames(f, 0, N);
}

/* Closing waits for what was submitted, though nobody takes it. */
static void close_while_busy(void **state)
{
	enum { N = 40 };
	struct fixture *f = *state;
	struct store_op ops[N];

	open_store(f);
	for (uint32_t i = 0; i < N; i++) {
		ops[i] = (struct store_op){
			.kind = STORE_WRITE, .status = 1, .data = record_room(i), .record = record_of(i)};
		frame_fill(i, (uint8_t *)ops[i].data + STORE_HEADER_BYTES);
		store_submit(f->store, &ops[i]);
	}
	close_store(f);
	for (uint32_t i = 0; i < N; i++) {
		assert_int_equal(ops[i].status, 0);
		free(ops[i].data);
	}
	open_store(f);
	expect_frames(f, 0, N);
}

/* Of two records of one key the later one is found, and there is one. */
static void rewritten(void **state)
{
	struct fixture *f = *state;
	struct store_location first;

	open_store(f);
	write_frames(f, 0, 20);
	first = f->at[7].location;
	assert_int_equal(write_frame(f, 7), 0);
	store_forget(f->store, &first);
	reopen(f);
	assert_int_equal(f->n_found, 20);
	assert_true(f->at[7].location.segment != first.segment || f->at[7].location.offset != first.offset);
	expect_frames(f, 0, 20);
}

static void removed(void **state)
{
	struct fixture *f = *state;

	open_store(f);
	write_frames(f, 0, 30);
	for (uint32_t i = 0; i < 30; i += 3)
		assert_int_equal(remove_frame(f, i), 0);
	/* Removing what is not there is fine. */
	assert_int_equal(remove_frame(f, 500), 0);
	assert_int_equal(write_frame(f, 6), 0);
	for (int round = 0; round < 3; round++) {
		reopen(f);
		for (uint32_t i = 0; i < 30; i++)
			assert_int_equal(is_there(f, i), i % 3 != 0 || i == 6);
		assert_int_equal(f->n_found, 21);
		assert_int_equal(read_frame(f, 6), 0);
	}
}

static void bad_operations(void **state)
{
	struct fixture *f = *state;
	struct store_op op = {.kind = STORE_WRITE, .record = record_of(1)};
	char *room = record_room(1);
	struct store_location elsewhere;

	open_store(f);
	assert_int_equal(run_op(f, &op), -EINVAL);
	op.data = room + 512;
	assert_int_equal(run_op(f, &op), -EINVAL);
	op.data = room;
	op.record.frame_bytes = 0;
	assert_int_equal(run_op(f, &op), -EINVAL);
	op.record.frame_bytes = UINT64_MAX;
	assert_int_equal(run_op(f, &op), -EINVAL);
	op.record.frame_bytes = 9 << 20;
	assert_int_equal(run_op(f, &op), -EDQUOT);
	op.kind = (enum store_op_kind)77;
	assert_int_equal(run_op(f, &op), -EINVAL);

	write_frames(f, 1, 3);
	op = (struct store_op){.kind = STORE_READ, .data = room, .record = f->at[1]};
	op.record.location.segment = 99;
	assert_int_equal(run_op(f, &op), -ENOENT);
	op.record.location = f->at[1].location;
	op.record.location.offset = UINT64_MAX - STORE_ALIGN + 1;
	assert_int_equal(run_op(f, &op), -ENOENT);
	op.record.location.offset = 1;
	assert_int_equal(run_op(f, &op), -EINVAL);
	op.record.location = f->at[1].location;
	op.record.location.len_pages = 0;
	assert_int_equal(run_op(f, &op), -EINVAL);
	/* The place of another record: nobody gets a frame that he did not ask for. */
	op.record.location = f->at[1].location;
	op.record.key[0] ^= 1;
	assert_int_equal(run_op(f, &op), -EBADMSG);
	op.record = f->at[1];
	op.record.name_space[3] ^= 1;
	assert_int_equal(run_op(f, &op), -EBADMSG);
	op.record = f->at[1];
	op.record.fingerprint[15] ^= 1;
	assert_int_equal(run_op(f, &op), -EBADMSG);
	op.record = f->at[1];
	assert_int_equal(run_op(f, &op), 0);
	free(room);

	/* Forgetting nonsense, or twice, changes nothing. */
	elsewhere = f->at[1].location;
	elsewhere.offset += 8192 << 12;
	store_forget(f->store, &elsewhere);
	elsewhere.segment = 1234;
	store_forget(f->store, &elsewhere);
	store_forget(f->store, &f->at[1].location);
	store_forget(f->store, &f->at[1].location);
	assert_int_equal(sync_store(f), 0);
	assert_int_equal(stats_of(f).n_records, 1);
	expect_frames(f, 2, 3);
	assert_null(store_close(NULL));
}

static void bad_configurations(void **state)
{
	struct fixture *f = *state;
	const struct store_config good = f->config;

	f->config.limit_bytes = 1000;
	assert_int_equal(try_open(f), -EINVAL);
	f->config = good;
	f->config.segment_bytes = SEGMENT + 1;
	assert_int_equal(try_open(f), -EINVAL);
	f->config = good;
	f->config.depth = 1 << 20;
	assert_int_equal(try_open(f), -EINVAL);
	f->config = good;
	f->config.directory = "/nonexistent/store";
	assert_int_equal(try_open(f), -ENOENT);
	f->config.directory = "/dev/null";
	assert_int_equal(try_open(f), -ENOTDIR);
	/* The default of 64 MiB is cut to a quarter of the limit. */
	f->config = good;
	f->config.segment_bytes = 0;
	open_store(f);
	write_frames(f, 0, 3);
	assert_int_equal(stats_of(f).used_bytes, 2 << 20);
}

/* One store at a time, in another process or in this one; the directory is made when missing. */
static void one_at_a_time(void **state)
{
	struct fixture *f = *state, second = *f;
	char deeper[104];

	open_store(f);
	assert_int_equal(try_open(&second), -EBUSY);
	assert_null(second.store);
	write_frames(f, 0, 1);
	close_store(f);
	open_store(&second);
	assert_int_equal(second.n_found, 1);
	close_store(&second);

	strcat(strcpy(deeper, f->dir), "/deeper");
	second.config.directory = deeper;
	open_store(&second);
	write_frames(&second, 0, 1);
	close_store(&second);
	strcpy(second.dir, deeper);
	assert_int_equal(each_file(&second, remove_file), 1);
	assert_int_equal(rmdir(deeper), 0);
}

/* More segments than descriptors are kept, and records read from all over. */
static void many_segments(void **state)
{
	enum { N = 1000 };
	struct fixture *f = *state;

	f->config.limit_bytes = 64 << 20;
	open_store(f);
	write_frames(f, 0, N);
	assert_true(stats_of(f).n_segments > 128);
	reopen(f);
	assert_int_equal(f->n_found, N);
	for (uint32_t i = 0; i < N; i++)
		assert_int_equal(read_frame(f, i * 379 % N), 0);
}

/* ---- room ---- */

/* The limit holds at every moment; what is forgotten makes room, whole segments at a time. */
static void limit(void **state)
{
	struct fixture *f = *state;
	uint32_t n = 0;

	f->config.limit_bytes = 8 * SEGMENT;
	open_store(f);
	while (write_frame(f, n) == 0) {
		assert_true(stats_of(f).used_bytes <= f->config.limit_bytes);
		n++;
	}
	/* Seven of the eight segments are for frames. */
	assert_true(n > 30);
	assert_int_equal(write_frame(f, n), -EDQUOT);
	expect_frames(f, 0, n);
	/* Every second one: no segment comes free. */
	for (uint32_t i = 0; i < n; i += 2)
		forget_frame(f, i);
	assert_int_equal(write_frame(f, n), -EDQUOT);
	for (uint32_t i = 1; i < n / 2; i += 2)
		forget_frame(f, i);
	for (uint32_t i = 0; i < 5; i++)
		assert_int_equal(write_frame(f, n + i), 0);
	expect_frames(f, n, n + 5);
	for (uint32_t i = 0; i < n; i++)
		if (is_there(f, i))
			assert_int_equal(read_frame(f, i), 0);
	assert_true(stats_of(f).used_bytes <= f->config.limit_bytes);
	assert_int_equal(stats_of(f).n_errors, 0);
	/* It goes on for ever. */
	for (uint32_t i = 0; i < 300; i++) {
		if (is_there(f, i % 40))
			forget_frame(f, i % 40);
		if (write_frame(f, i % 40) == 0)
			assert_int_equal(read_frame(f, i % 40), 0);
		assert_true(stats_of(f).used_bytes <= f->config.limit_bytes);
	}
}

/* A full store still forgets, durably. */
static void remove_when_full(void **state)
{
	struct fixture *f = *state;
	uint32_t n = 0;

	f->config.limit_bytes = 4 * SEGMENT;
	open_store(f);
	while (write_frame(f, n) == 0)
		n++;
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(remove_frame(f, i), 0);
	assert_true(stats_of(f).used_bytes <= f->config.limit_bytes);
	write_frames(f, n, n + 4);
	reopen(f);
	assert_int_equal(f->n_found, 4);
	expect_frames(f, n, n + 4);
}

/* A tombstone outlives every older record of its key that is still in some file, and not by much. */
static void tombstones_last(void **state)
{
	struct fixture *f = *state;

	f->config.limit_bytes = 6 * SEGMENT;
	open_store(f);
	/* The first segment: frame 0, to be removed, and frame 1, which keeps the segment. */
	write_frames(f, 0, 2);
	reopen(f);
	assert_int_equal(remove_frame(f, 0), 0);
	reopen(f);
	/* Turn the rest of the store over and over: the tombstone's segment has no live record, yet stays. */
	for (uint32_t i = 0; i < 100; i++) {
		assert_int_equal(write_frame(f, 10 + i), 0);
		forget_frame(f, 10 + i);
	}
	reopen(f);
	assert_false(is_there(f, 0));
	assert_int_equal(read_frame(f, 1), 0);
	/* Now the first segment may go, and then the tombstone's may. */
	forget_frame(f, 1);
	for (uint32_t i = 0; i < FRAMES_MAX; i++)
		if (is_there(f, i))
			forget_frame(f, i);
	for (uint32_t i = 0; i < 100; i++) {
		assert_int_equal(write_frame(f, 10 + i), 0);
		forget_frame(f, 10 + i);
	}
	reopen(f);
	assert_false(is_there(f, 0));
	assert_false(is_there(f, 1));
}

/* ---- crashes ---- */

/* Runs fn in a process that ends without closing anything. */
static int in_child(struct fixture *f, void (*fn)(struct fixture *f))
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		fn(f);
		_exit(9);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void write_sync_write(struct fixture *f)
{
	open_store(f);
	write_frames(f, 0, 40);
	if (remove_frame(f, 3) < 0 || sync_store(f) < 0)
		_exit(1);
	write_frames(f, 40, 45);
	kill(getpid(), SIGKILL);
}

static void write_sync_exit(struct fixture *f)
{
	open_store(f);
	write_frames(f, 50, 80);
	if (remove_frame(f, 60) < 0 || sync_store(f) < 0)
		_exit(1);
}

static void killed(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(in_child(f, write_sync_write), 128 + SIGKILL);
	open_store(f);
	for (uint32_t i = 0; i < 40; i++)
		assert_int_equal(is_there(f, i), i != 3);
	/* The machine did not crash, so what was written since the sync is there as well. */
	expect_frames(f, 4, 45);
	assert_int_equal(stats_of(f).n_dropped, 0);
	close_store(f);

	assert_int_equal(in_child(f, write_sync_exit), 9);
	open_store(f);
	expect_frames(f, 4, 45);
	expect_frames(f, 61, 80);
	assert_false(is_there(f, 3));
	assert_false(is_there(f, 60));
	assert_int_equal(f->n_found, 44 + 29);
	/* It is written to again. */
	write_frames(f, 90, 100);
	reopen(f);
	assert_int_equal(f->n_found, 44 + 29 + 10);
}

/* Random work with restarts and kills in between, against what is known to have been done. The child tells
 * the parent by a pipe what it has done, each step after the store said that it was. */
struct step {
	uint32_t number;
	uint32_t there;
};

static unsigned chaos_seed;
static int chaos_pipe;

static void chaos(struct fixture *f)
{
	unsigned seed = chaos_seed;
	int n_steps = rand_r(&seed) % 80;
	struct step steps[80];

	open_store(f);
	for (int i = 0; i < n_steps; i++) {
		uint32_t number = (uint32_t)rand_r(&seed) % 60;

		if (rand_r(&seed) % 3) {
			struct store_location before = f->at[number].location;

			/* With live records in every segment there may be no room; then all stays as it was.
			 */
			int r = write_frame(f, number);

			if (r < 0 && r != -EDQUOT)
				_exit(1);
			if (r == 0 && before.len_pages)
				store_forget(f->store, &before);
			steps[i] = (struct step){number, r == 0 || before.len_pages};
		} else {
			int r = remove_frame(f, number);

			if (r < 0 && r != -EDQUOT)
				_exit(2);
			steps[i] = (struct step){number, r < 0 && is_there(f, number)};
		}
	}
	if (rand_r(&seed) % 2)
		close_store(f);
	else if (sync_store(f) < 0)
		_exit(3);
	if (write(chaos_pipe, steps, (size_t)n_steps * sizeof *steps) < 0)
		_exit(4);
}

static void against_model(void **state)
{
	struct fixture *f = *state;
	bool there[60] = {0};

	chaos_seed = (unsigned)time(NULL);
	print_message("seed %u\n", chaos_seed);
	f->config.limit_bytes = 30 * SEGMENT;
	for (int round = 0; round < 10; round++, chaos_seed++) {
		struct step steps[80];
		int ends[2];
		ssize_t n;

		assert_int_equal(pipe(ends), 0);
		chaos_pipe = ends[1];
		assert_int_equal(in_child(f, chaos), 9);
		close(ends[1]);
		n = read(ends[0], steps, sizeof steps);
		close(ends[0]);
		for (size_t i = 0; i < (size_t)n / sizeof *steps; i++)
			there[steps[i].number] = steps[i].there;
		open_store(f);
		for (uint32_t i = 0; i < 60; i++) {
			assert_int_equal(is_there(f, i), there[i]);
			if (there[i])
				assert_int_equal(read_frame(f, i), 0);
		}
		assert_int_equal(stats_of(f).n_dropped, 0);
		close_store(f);
	}
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(round_trip),
		TEST(in_flight),
		TEST(close_while_busy),
		TEST(rewritten),
		TEST(removed),
		TEST(bad_operations),
		TEST(bad_configurations),
		TEST(one_at_a_time),
		TEST(many_segments),
		TEST(limit),
		TEST(remove_when_full),
		TEST(tombstones_last),
		TEST(killed),
		TEST(against_model),
	};

	log_set_level(LOG_LEVEL_WARNING);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
