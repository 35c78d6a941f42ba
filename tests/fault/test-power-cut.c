/*
 * Power cuts: random work on a store whose every write, sync, creation and deletion is logged; then, for each
 * moment of the log, what the disk might hold if the power had gone just then: all that was synced, and of
 * the rest any choice, in any order, in part torn at sectors. The store opens on it, and holds what it must:
 * every record that was written before a SYNC that was acknowledged, none that was removed or purged and
 * acknowledged, and nothing wrong.
 *
 * test-power-cut [ROUNDS]: so many different runs (default 3); prints their seeds and counts.
 */
#include "tests/runtime/store-fixture.h"

#include "base/log.h"
#include "tests/fault/disk.h"

#include <time.h>

enum { FRAMES = 48, STEPS = 160, VARIANTS = 3 };

/* What the caller knows of one frame, and since when (in events of the log). */
struct claim {
	enum { NOTHING, MUST_BE, MUST_NOT_BE, MAY_BE } what;
	size_t since;
};

/* One change of what is known. */
struct change {
	uint32_t number;
	struct claim claim;
};

struct history {
	struct change changes[STEPS * FRAMES * 2];
	size_t n;
};

static uint64_t n_opens, n_checked;

static void claim(struct history *h, uint32_t number, int what)
{
	assert_true(h->n < sizeof h->changes / sizeof *h->changes);
	h->changes[h->n++] = (struct change){number, {what, disk_log_now()}};
}

static int purge_name_space(struct fixture *f, uint32_t name_space)
{
	struct store_op op = {.kind = STORE_PURGE};

	memset(op.record.name_space, (int)name_space, sizeof op.record.name_space);
	return run_op(f, &op);
}

/* Moves what is wanted of the cheapest segment, as the cache does. */
static void compact(struct fixture *f)
{
	struct store_op op = {.kind = STORE_LIST, .max_share = 0.9};
	uint32_t n_moved = 0;
	struct store_location old[64];

	if (run_op(f, &op))
		return;
	for (uint32_t i = 0; i < op.list->n && n_moved < 64; i++) {
		const struct store_record *r = &op.list->records[i];
		uint32_t number;

		memcpy(&number, r->key, sizeof number);
		if (r->kind != STORE_RECORD_FRAME) {
			struct store_op again = {
				.kind = r->kind == STORE_RECORD_PURGE ? STORE_PURGE : STORE_REMOVE,
				.record = *r,
				.bound = r->raw_bytes};

			assert_int_equal(run_op(f, &again), 0);
			continue;
		}
		if (!is_there(f, number) || f->at[number].location.segment != r->location.segment ||
			f->at[number].location.offset != r->location.offset)
			continue;
		old[n_moved] = r->location;
		n_moved += write_frame(f, number) == 0;
	}
	free(op.list);
	assert_int_equal(sync_store(f), 0);
	for (uint32_t i = 0; i < n_moved; i++)
		store_forget(f->store, &old[i]);
}

static void work(struct fixture *f, struct history *h, unsigned *seed)
{
	bool safe[FRAMES] = {false};

	for (int step = 0; step < STEPS; step++) {
		const uint32_t number = (uint32_t)rand_r(seed) % FRAMES;
		const int what = rand_r(seed) % 20;

		if (what < 11) {
			const struct store_location old = f->at[number].location;

			/* What was safe stays so while it is written anew; what was not may be there or not.
			 */
			if (!safe[number])
				claim(h, number, MAY_BE);
			if (write_frame(f, number) == 0 && old.len_pages)
				store_forget(f->store, &old);
		} else if (what < 14) {
			assert_int_equal(sync_store(f), 0);
			for (uint32_t i = 0; i < FRAMES; i++)
				if (is_there(f, i) && !safe[i]) {
					safe[i] = true;
					claim(h, i, MUST_BE);
				}
		} else if (what < 17) {
			claim(h, number, MAY_BE);
			assert_int_equal(remove_frame(f, number), 0);
			safe[number] = false;
			claim(h, number, MUST_NOT_BE);
		} else if (what < 18) {
			const uint32_t name_space = number % 3;

			for (uint32_t i = name_space; i < FRAMES; i += 3)
				claim(h, i, MAY_BE);
			assert_int_equal(purge_name_space(f, name_space), 0);
			for (uint32_t i = name_space; i < FRAMES; i += 3) {
				safe[i] = false;
				if (is_there(f, i))
					forget_frame(f, i);
				claim(h, i, MUST_NOT_BE);
			}
		} else {
			compact(f);
		}
	}
}

/* What must hold for each frame at a moment. */
static void state_at(const struct history *h, size_t now, struct claim out[FRAMES])
{
	memset(out, 0, FRAMES * sizeof *out);
	for (size_t i = 0; i < h->n; i++)
		if (h->changes[i].claim.since <= now)
			out[h->changes[i].number] = h->changes[i].claim;
}

static void check(const struct fixture *from, const struct history *h, size_t now, uint64_t seed)
{
	struct fixture f = {.config = from->config};
	struct claim claims[FRAMES];

	strcpy(f.dir, from->dir);
	strcat(f.dir, "-cut");
	f.config.directory = f.dir;
	mkdir(f.dir, 0700);
	disk_after_power_cut(f.dir, now, seed);
	open_store(&f);
	n_opens++;
	state_at(h, now, claims);
	for (uint32_t i = 0; i < FRAMES; i++) {
		/* on_found has compared what the header says, read_frame compares every byte. */
		const int r = is_there(&f, i) ? read_frame(&f, i) : -ENOENT;

		n_checked++;
		if (claims[i].what == MUST_BE && r != 0)
			fail_msg("event %zu, variant %llu: frame %u was synced and is gone (%d)", now,
				(unsigned long long)seed, i, r);
		if (claims[i].what == MUST_NOT_BE && is_there(&f, i))
			fail_msg("event %zu, variant %llu: frame %u was removed and is back", now,
				(unsigned long long)seed, i);
		if (r != 0 && r != -ENOENT && r != -EBADMSG)
			fail_msg("event %zu: frame %u: %d", now, i, r);
	}
	close_store(&f);
	each_file(&f, remove_file);
}

static int n_rounds = 3;

static void power_cuts(void **state)
{
	const unsigned start = (unsigned)time(NULL);
	static struct history h;

	(void)state;
	for (int round = 0; round < n_rounds; round++) {
		unsigned seed = start + (unsigned)round;
		struct fixture *f = NULL;
		size_t n;

		print_message("seed %u: ", seed);
		fflush(stdout);
		assert_int_equal(set_up_in((void **)&f, access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm"), 0);
		f->config.limit_bytes = 16 * SEGMENT;
		h.n = 0;
		disk_keep_log(true);
		open_store(f);
		work(f, &h, &seed);
		n = disk_log_now();
		close_store(f);
		for (size_t now = 0; now <= n; now++)
			for (uint64_t variant = 1; variant <= VARIANTS; variant++)
				check(f, &h, now, variant);
		print_message("%zu events, %llu images opened, %llu frames looked at so far\n", n,
			(unsigned long long)n_opens, (unsigned long long)n_checked);
		disk_keep_log(false);
		strcat(f->dir, "-cut");
		rmdir(f->dir);
		f->dir[strlen(f->dir) - 4] = 0;
		tear_down((void **)&f);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(power_cuts)};

	if (argc > 1)
		n_rounds = atoi(argv[1]);
	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
