/*
 * A disk that fails now and then: errors, short and torn writes, rotten bits, refused syncs, no room,
 * slowness, from a seed. Whatever it does, nothing wrong is ever read; what was written well and synced is
 * there after a restart unless it rotted; what was removed stays removed; and when the disk behaves again, so
 * does the store.
 *
 * test-faulty-disk [ROUNDS [SEED]]: default 40; prints the seed and what was injected.
 */
#include "tests/runtime/store-fixture.h"

#include "base/log.h"
#include "tests/fault/disk.h"

#include <time.h>

enum { FRAMES = 64, STEPS = 400 };

struct knowledge {
	bool safe[FRAMES];    /* written well, and a sync after it was */
	bool removed[FRAMES]; /* and the removal was acknowledged, and nothing was written since */
};

static bool may_rot;
static uint64_t n_lost_to_rot, n_steps;
static int round_now;

/* 0, or an error that the disk may give. */
static void allowed(int r)
{
	if (r != 0 && r != -EIO && r != -ENOSPC && r != -EROFS && r != -EDQUOT && r != -EBADMSG &&
		r != -ENOENT)
		fail_msg("an error that no disk gave: %d", r);
}

static void work(struct fixture *f, struct knowledge *k, unsigned *seed)
{
	bool written[FRAMES] = {false};

	for (int i = 0; i < STEPS; i++) {
		const uint32_t number = (uint32_t)rand_r(seed) % FRAMES;
		const int what = rand_r(seed) % 16;

		n_steps++;
		if (what < 7) {
			const struct store_location old = f->at[number].location;
			const int r = write_frame(f, number);

			allowed(r);
			k->removed[number] = false;
			if (r == 0) {
				written[number] = true;
				/* The older one is not needed once the new one is safe; here it is let go at
				 * once. */
				k->safe[number] = false;
				if (old.len_pages)
					store_forget(f->store, &old);
			}
		} else if (what < 12 && is_there(f, number)) {
			const int r = read_frame(f, number); /* which compares */

			allowed(r);
			assert_true(r != -EBADMSG || may_rot);
		} else if (what < 14) {
			const int r = sync_store(f);

			allowed(r);
			for (uint32_t n = 0; r == 0 && n < FRAMES; n++)
				k->safe[n] = k->safe[n] || (written[n] && is_there(f, n));
			/* What a sync failed on is in doubt for good. */
			for (uint32_t n = 0; r != 0 && n < FRAMES; n++)
				written[n] = false;
		} else {
			const int r = remove_frame(f, number);

			allowed(r);
			k->safe[number] = false;
			written[number] = false;
			k->removed[number] = r == 0;
		}
	}
}

static void check(struct fixture *f, const struct knowledge *k)
{
	for (uint32_t i = 0; i < FRAMES; i++) {
		const int r = is_there(f, i) ? read_frame(f, i) : -ENOENT;

		if (k->removed[i] && is_there(f, i))
			fail_msg("round %d: frame %u was removed and is back", round_now, i);
		if (k->safe[i] && r != 0) {
			if (!may_rot)
				fail_msg("frame %u was synced and is gone (%d)", i, r);
			n_lost_to_rot++;
		}
		if (r != 0 && r != -ENOENT && r != -EBADMSG)
			fail_msg("frame %u: %d", i, r);
	}
}

static int n_rounds = 40;
static unsigned given_seed;

static void faults(void **state)
{
	static const struct disk_faults kinds[] = {
		{.write_error = 9, .error = EIO},
		{.write_error = 9, .error = ENOSPC},
		{.write_error = 2, .error = EROFS, .no_space = 2},
		{.write_short = 3, .read_short = 3},
		{.write_torn = 7},
		{.sync_error = 4},
		{.no_space = 2},
		{.read_error = 5},
		{.slow = 20, .write_error = 30},
		{.write_error = 30,
			.write_short = 10,
			.write_torn = 30,
			.sync_error = 20,
			.no_space = 8,
			.read_short = 10},
		{.write_rot = 10},
		{.read_rot = 10},
		{.write_rot = 30, .write_torn = 20, .read_rot = 20, .sync_error = 20, .read_error = 30},
	};
	unsigned seed = given_seed ? given_seed : (unsigned)time(NULL);
	struct disk_counts c;

	(void)state;
	print_message("seed %u\n", seed);
	for (int round = 0; round < n_rounds; round++) {
		round_now = round;
		const struct disk_faults *kind = &kinds[(size_t)round % (sizeof kinds / sizeof *kinds)];
		struct knowledge k = {0};
		struct fixture *f = NULL;
		int r;

		may_rot = kind->write_rot || kind->read_rot;
		assert_int_equal(set_up_in((void **)&f, access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm"), 0);
		f->config.limit_bytes = 64 * SEGMENT;
		open_store(f);
		disk_misbehave(kind, seed + (unsigned)round);
		work(f, &k, &seed);
		/* A restart in the middle of it may fail, and must not spoil anything. */
		close_store(f);
		r = try_open(f);
		allowed(r);
		disk_misbehave(NULL, 0);
		if (r == 0)
			close_store(f);
		open_store(f);
		check(f, &k);
		/* And it works as ever. */
		for (uint32_t i = FRAMES; i < FRAMES + 8; i++) {
			assert_int_equal(write_frame(f, i), 0);
			assert_int_equal(read_frame(f, i), 0);
		}
		assert_int_equal(sync_store(f), 0);
		tear_down((void **)&f);
	}
	c = disk_counts();
	print_message(
		"%d rounds, %llu steps; injected: %llu write errors, %llu short, %llu torn, %llu rotten, "
		"%llu read "
		"errors, %llu sync errors, %llu times no space, %llu slow; %llu synced frames lost to rot\n",
		n_rounds, (unsigned long long)n_steps, (unsigned long long)c.n_write_errors,
		(unsigned long long)c.n_short, (unsigned long long)c.n_torn, (unsigned long long)c.n_rotten,
		(unsigned long long)c.n_read_errors, (unsigned long long)c.n_sync_errors,
		(unsigned long long)c.n_no_space, (unsigned long long)c.n_slow,
		(unsigned long long)n_lost_to_rot);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(faults)};

	if (argc > 1)
		n_rounds = atoi(argv[1]);
	if (argc > 2)
		given_seed = (unsigned)strtoul(argv[2], NULL, 10);
	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
