#include "store-fixture.h"

#include "base/file.h"
#include "base/log.h"
#include "runtime/store/format.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

/* One segment with frames 0 to 19 in it, as a crash or a clean end leaves it, with something done to its
 * bytes. */
enum { N = 20, VICTIM = 7, NOBODY = -1, ALL = -2 };

struct image {
	uint8_t *data;
	size_t len;
};

static const char *segment_path(const struct fixture *f, unsigned number)
{
	static char path[160];

	snprintf(path, sizeof path, "%s/segment-%08x", f->dir, number);
	return path;
}

static struct image load_image(const struct fixture *f, unsigned number)
{
	struct image m;
	void *data;

	assert_int_equal(file_read(segment_path(f, number), &data, &m.len), 0);
	m.data = data;
	return m;
}

/* Not by file_write, whose sync costs too much here. */
static void store_image(const struct fixture *f, unsigned number, const struct image *m)
{
	FILE *file = fopen(segment_path(f, number), "w");

	assert_non_null(file);
	assert_int_equal(fwrite(m->data, 1, m->len, file), m->len);
	assert_int_equal(fclose(file), 0);
}

/* Leaves f closed, f->at filled in, and the segment's bytes in *m: with footer, or as they were before it. */
static void make_segment(struct fixture *f, bool closed, struct image *m)
{
	f->config.segment_bytes = 256 << 10;
	open_store(f);
	write_frames(f, 0, N);
	if (!closed)
		*m = load_image(f, 1);
	close_store(f);
	if (closed)
		*m = load_image(f, 1);
}

static struct format_trailer trailer_of(const struct image *m)
{
	struct format_trailer t;

	memcpy(&t, m->data + m->len - STORE_ALIGN, sizeof t);
	return t;
}

/* ---- kinds of damage ---- */

static uint8_t *victim(struct fixture *f, struct image *m)
{
	return m->data + f->at[VICTIM].location.offset;
}

static void nothing(struct fixture *f, struct image *m)
{
	(void)f;
	(void)m;
}

static void bit_in_frame(struct fixture *f, struct image *m)
{
	victim(f, m)[STORE_HEADER_BYTES + frame_len(VICTIM) - 1] ^= 1;
}

static void bit_in_header(struct fixture *f, struct image *m)
{
	victim(f, m)[offsetof(struct format_record, position)] ^= 0x80;
}

static void bit_in_padding(struct fixture *f, struct image *m)
{
	victim(f, m)[STORE_HEADER_BYTES + frame_len(VICTIM)] ^= 1;
}

static void zeroed_record(struct fixture *f, struct image *m)
{
	memset(victim(f, m), 0, (size_t)f->at[VICTIM].location.len_pages * STORE_ALIGN);
}

/* Sealed properly: it is the length that must not be believed. */
static void longer_than_the_file(struct fixture *f, struct image *m)
{
	struct format_segment segment;
	struct format_record h;

	memcpy(&segment, m->data, sizeof segment);
	memcpy(&h, victim(f, m), sizeof h);
	h.frame_bytes = UINT64_MAX - 100;
	format_record_seal(&h, segment.salt);
	memcpy(victim(f, m), &h, sizeof h);
}

static void strayed_write(struct fixture *f, struct image *m)
{
	memcpy(victim(f, m), m->data + f->at[VICTIM - 2].location.offset, STORE_ALIGN);
}

static void cut_in_last_frame(struct fixture *f, struct image *m)
{
	m->len = f->at[N - 1].location.offset + STORE_HEADER_BYTES + frame_len(N - 1) - 1;
}

static void cut_in_last_header(struct fixture *f, struct image *m)
{
	m->len = f->at[N - 1].location.offset + 100;
}

static void cut_in_last_padding(struct fixture *f, struct image *m)
{
	m->len = f->at[N - 1].location.offset + STORE_HEADER_BYTES + frame_len(N - 1);
}

static void cut_before_last(struct fixture *f, struct image *m)
{
	m->len = f->at[N - 1].location.offset;
}

static void bit_in_salt(struct fixture *f, struct image *m)
{
	(void)f;
	m->data[offsetof(struct format_segment, salt)] ^= 1;
}

static void first_page_never_written(struct fixture *f, struct image *m)
{
	(void)f;
	memset(m->data, 0, STORE_ALIGN);
}

static void never_written(struct fixture *f, struct image *m)
{
	(void)f;
	memset(m->data, 0, m->len);
}

static void empty_file(struct fixture *f, struct image *m)
{
	(void)f;
	m->len = 0;
}

static void bit_in_footer(struct fixture *f, struct image *m)
{
	(void)f;
	m->data[trailer_of(m).footer_offset + 3 * STORE_HEADER_BYTES + 17] ^= 4;
}

static void bit_in_trailer(struct fixture *f, struct image *m)
{
	(void)f;
	m->data[m->len - STORE_ALIGN + offsetof(struct format_trailer, n_records)] ^= 1;
}

static void trailer_cut_off(struct fixture *f, struct image *m)
{
	(void)f;
	m->len -= STORE_ALIGN;
}

static void footer_cut_off(struct fixture *f, struct image *m)
{
	(void)f;
	m->len = trailer_of(m).footer_offset;
}

static void bit_in_salt_and_footer(struct fixture *f, struct image *m)
{
	bit_in_salt(f, m);
	bit_in_footer(f, m);
}

static void noise(struct fixture *f, struct image *m)
{
	(void)f;
	memset(m->data, 0x77, m->len);
}

/* ---- what comes of it ---- */

static void damage(void **state)
{
	enum { OPEN = 0, CLOSED = 1 };
	static const struct {
		const char *name;
		int closed;
		void (*fn)(struct fixture *f, struct image *m);
		int lost;         /* the frame that is not found */
		int rotten;       /* the frame that is found, and not read */
		uint64_t dropped; /* by the scan */
	} cases[] = {
		{"an unclosed segment", OPEN, nothing, NOBODY, NOBODY, 0},
		{"bit in a frame", OPEN, bit_in_frame, VICTIM, NOBODY, 1},
		{"bit in a header", OPEN, bit_in_header, VICTIM, NOBODY, 1},
		{"bit in padding", OPEN, bit_in_padding, NOBODY, NOBODY, 0},
		{"a record never written", OPEN, zeroed_record, VICTIM, NOBODY, 0},
		{"absurd length", OPEN, longer_than_the_file, VICTIM, NOBODY, 1},
		{"a write gone astray", OPEN, strayed_write, VICTIM, NOBODY, 1},
		{"cut in the last frame", OPEN, cut_in_last_frame, N - 1, NOBODY, 1},
		{"cut in the last header", OPEN, cut_in_last_header, N - 1, NOBODY, 1},
		{"cut in the last padding", OPEN, cut_in_last_padding, NOBODY, NOBODY, 0},
		{"cut before the last record", OPEN, cut_before_last, N - 1, NOBODY, 0},
		{"bit in the salt", OPEN, bit_in_salt, ALL, NOBODY, 1},
		{"first page never written", OPEN, first_page_never_written, ALL, NOBODY, 0},
		{"never written", OPEN, never_written, ALL, NOBODY, 0},
		{"empty file", OPEN, empty_file, ALL, NOBODY, 0},
		{"noise", OPEN, noise, ALL, NOBODY, 1},
		{"a closed segment", CLOSED, nothing, NOBODY, NOBODY, 0},
		{"closed, bit in a frame", CLOSED, bit_in_frame, NOBODY, VICTIM, 0},
		{"closed, bit in a header", CLOSED, bit_in_header, NOBODY, VICTIM, 0},
		{"closed, a record lost", CLOSED, zeroed_record, NOBODY, VICTIM, 0},
		{"closed, a write gone astray", CLOSED, strayed_write, NOBODY, VICTIM, 0},
		{"closed, bit in the footer", CLOSED, bit_in_footer, NOBODY, NOBODY, 0},
		{"closed, bit in the trailer", CLOSED, bit_in_trailer, NOBODY, NOBODY, 0},
		{"closed, trailer cut off", CLOSED, trailer_cut_off, NOBODY, NOBODY, 0},
		{"closed, footer cut off", CLOSED, footer_cut_off, NOBODY, NOBODY, 0},
		{"closed, bit in the salt", CLOSED, bit_in_salt, NOBODY, NOBODY, 0},
		{"closed, salt and footer", CLOSED, bit_in_salt_and_footer, NOBODY, NOBODY, 0},
		{"closed, noise", CLOSED, noise, ALL, NOBODY, 1},
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct image m;

		print_message("%s\n", cases[i].name);
		make_segment(f, cases[i].closed, &m);
		cases[i].fn(f, &m);
		store_image(f, 1, &m);
		free(m.data);
		open_store(f);
		assert_int_equal(stats_of(f).n_dropped, cases[i].dropped);
		/* Twice: what was scanned was closed, and is read by its footer the second time. */
		for (int round = 0; round < 2; round++) {
			for (int j = 0; j < N; j++) {
				bool lost = cases[i].lost == ALL || cases[i].lost == j;

				assert_int_equal(is_there(f, (uint32_t)j), !lost);
				if (!lost)
					assert_int_equal(read_frame(f, (uint32_t)j),
						cases[i].rotten == j ? -EBADMSG : 0);
			}
			write_frames(f, 100, 103);
			expect_frames(f, 100, 103);
			reopen(f);
		}
		expect_frames(f, 100, 103);
		close_store(f);
		each_file(f, remove_file);
	}
}

/* Bits flipped and ends cut at random: what is found is right or known to be rotten, and the store goes on.
 */
static void random_damage(void **state)
{
	struct fixture *f = *state;
	unsigned seed = (unsigned)time(NULL);

	print_message("seed %u\n", seed);
	log_set_level(LOG_LEVEL_ERROR);
	for (int round = 0; round < 60; round++) {
		struct image m;

		make_segment(f, round % 2, &m);
		for (int i = rand_r(&seed) % 20; i >= 0; i--)
			m.data[(size_t)rand_r(&seed) % m.len] ^= (uint8_t)(1 << rand_r(&seed) % 8);
		if (rand_r(&seed) % 4 == 0)
			m.len = (size_t)rand_r(&seed) % m.len;
		store_image(f, 1, &m);
		free(m.data);
		open_store(f);
		for (uint32_t i = 0; i < N; i++)
			if (is_there(f, i) && read_frame(f, i) != 0)
				assert_int_equal(read_frame(f, i), -EBADMSG);
		write_frames(f, 100, 103);
		expect_frames(f, 100, 103);
		close_store(f);
		each_file(f, remove_file);
	}
	log_set_level(LOG_LEVEL_WARNING);
}

/* A tenant puts into its frame what looks like a record of another's, and the machine crashes so that the
 * frame's own header is lost. The salt, which the tenant cannot know, keeps the scan from believing it. */
static void forged_record(void **state)
{
	struct fixture *f = *state;
	struct store_op op = {.kind = STORE_WRITE, .record = record_of(1)};
	struct format_record h = {.kind = FORMAT_WRITE, .sequence = 1000, .frame_bytes = 100, .segment = 1};
	struct format_segment segment;
	struct image m;

	for (int knows_salt = 0; knows_salt < 2; knows_salt++) {
		open_store(f);
		op.record.frame_bytes = 3 * STORE_ALIGN;
		op.data = aligned_alloc(STORE_ALIGN, 4 * STORE_ALIGN);
		memset(op.data, 0, 4 * STORE_ALIGN);
		assert_int_equal(run_op(f, &op), 0);
		m = load_image(f, 1);
		memcpy(&segment, m.data, sizeof segment);

		h.offset = op.record.location.offset + STORE_ALIGN;
		h.key[0] = 200;
		memset(h.name_space, 2, sizeof h.name_space);
		h.body_checksum = format_checksum(
			m.data + h.offset + STORE_HEADER_BYTES, 100, knows_salt ? segment.salt : 0);
		format_record_seal(&h, knows_salt ? segment.salt : 0);
		memcpy(m.data + h.offset, &h, sizeof h);
		m.data[op.record.location.offset] ^= 1;
		close_store(f);
		store_image(f, 1, &m);
		free(m.data);
		free(op.data);

		/* With the salt it would be believed: so it is the salt that does it. */
		memset(f->at, 0, sizeof f->at);
		assert_int_equal(store_open(&f->config, NULL, NULL, &f->store), 0);
		assert_int_equal(stats_of(f).n_records, knows_salt);
		close_store(f);
		each_file(f, remove_file);
	}
}

/* One bit of a tombstone, where there is no footer to tell of it either: what was removed stays removed. */
static void rotten_tombstone(void **state)
{
	struct fixture *f = *state;
	struct store_location at;
	struct image m;

	open_store(f);
	write_frames(f, 1, 2);
	at = f->at[1].location;
	assert_int_equal(remove_frame(f, 1), 0);
	write_frames(f, 2, 3);
	close_store(f);
	m = load_image(f, at.segment);
	m.data[m.len - STORE_ALIGN] ^= 1;
	m.data[at.offset + (uint64_t)at.len_pages * STORE_ALIGN + 30] ^= 1;
	store_image(f, at.segment, &m);
	free(m.data);
	open_store(f);
	assert_false(is_there(f, 1));
	expect_frames(f, 2, 3);
}

/* A segment of a version to come: nothing is touched, neither it nor its neighbours, however damaged. */
static void another_version(void **state)
{
	struct fixture *f = *state;
	struct image before[2], after;
	struct format_segment h;
	char page[STORE_ALIGN];

	make_segment(f, false, &before[0]);
	before[0].data[before[0].len / 4] ^= 1;
	store_image(f, 1, &before[0]);
	format_segment_encode(page, 2, 12345);
	memcpy(&h, page, sizeof h);
	h.version = FORMAT_VERSION + 1;
	h.checksum = format_checksum(&h, offsetof(struct format_segment, checksum), 0);
	before[1] = (struct image){malloc(5000), 5000};
	memset(before[1].data, 0xaa, 5000);
	memcpy(before[1].data, &h, sizeof h);
	store_image(f, 2, &before[1]);

	log_set_level((enum log_level) - 1);
	assert_int_equal(try_open(f), -ENOTSUP);
	log_set_level(LOG_LEVEL_WARNING);
	assert_int_equal(f->n_found, 0);
	assert_int_equal(each_file(f, NULL), 2);
	for (unsigned i = 0; i < 2; i++) {
		after = load_image(f, i + 1);
		assert_int_equal(after.len, before[i].len);
		assert_memory_equal(after.data, before[i].data, after.len);
		free(after.data);
		free(before[i].data);
	}
}

static void foreign_files(void **state)
{
	static const char *const names[] = {"notes.txt", "segment-1", "segment-0000000G",
		"segment-00000001.bak", "segment-0000000A", "Segment-00000001", "segment--0000001",
		"segment-000000001", "direct-io-prob"};
	struct fixture *f = *state;
	char path[300];

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		snprintf(path, sizeof path, "%s/%s", f->dir, names[i]);
		assert_int_equal(file_write(path, names[i], strlen(names[i])), 0);
	}
	open_store(f);
	write_frames(f, 0, 30);
	reopen(f);
	expect_frames(f, 0, 30);
	for (uint32_t i = 0; i < 30; i++)
		assert_int_equal(remove_frame(f, i), 0);
	reopen(f);
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		void *text;
		size_t len;

		snprintf(path, sizeof path, "%s/%s", f->dir, names[i]);
		assert_int_equal(file_read(path, &text, &len), 0);
		assert_string_equal(text, names[i]);
		free(text);
	}
}

/* A file that shrinks while the store is open. */
static void cut_under_way(void **state)
{
	struct fixture *f = *state;

	f->config.segment_bytes = 256 << 10;
	open_store(f);
	write_frames(f, 0, N);
	assert_int_equal(truncate(segment_path(f, 1), (off_t)f->at[10].location.offset + 100), 0);
	expect_frames(f, 0, 10);
	assert_int_equal(read_frame(f, 10), -EBADMSG);
	assert_int_equal(read_frame(f, 15), -EBADMSG);
	assert_int_equal(stats_of(f).n_dropped, 2);
	assert_int_equal(unlink(segment_path(f, 1)), 0);
	expect_frames(f, 0, 10);
	reopen(f);
	assert_int_equal(f->n_found, 0);
	write_frames(f, 0, 2);
}

/* ---- machines that lack something ---- */

/* Runs fn in a process of its own, which it may spoil. 77: what fn needs cannot be had. */
static void in_child(struct fixture *f, void (*fn)(struct fixture *f))
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		fn(f);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* As in a container whose filter knows no io_uring. */
static void use_without_io_uring(struct fixture *f)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = 4, .filter = filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ||
		syscall(SYS_io_uring_setup, 1, NULL) != -1 || errno != EPERM)
		_exit(77);
	open_store(f);
	write_frames(f, 0, 40);
	assert_int_equal(remove_frame(f, 3), 0);
	assert_int_equal(sync_store(f), 0);
	expect_frames(f, 4, 40);
	reopen(f);
	assert_int_equal(f->n_found, 39);
	expect_frames(f, 4, 40);
	close_store(f);
}

static void without_io_uring(void **state)
{
	in_child(*state, use_without_io_uring);
}

static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool done = fd >= 0 && write(fd, text, strlen(text)) >= 0;

	if (fd >= 0)
		close(fd);
	return done;
}

/* Moves to a mount namespace of its own: as root, or as what passes for root in a user namespace. */
static bool own_mounts(void)
{
	char uid_map[32], gid_map[32];

	snprintf(uid_map, sizeof uid_map, "0 %u 1", (unsigned)geteuid());
	snprintf(gid_map, sizeof gid_map, "0 %u 1", (unsigned)getegid());
	if (unshare(CLONE_NEWNS) < 0 &&
		(unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 || !put("/proc/self/setgroups", "deny") ||
			!put("/proc/self/uid_map", uid_map) || !put("/proc/self/gid_map", gid_map)))
		return false;
	return mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) == 0;
}

static void use_small_disk(struct fixture *f)
{
	uint32_t n = 0, end;

	if (!own_mounts() || mount("none", f->dir, "tmpfs", 0, "size=400K") < 0)
		_exit(77);
	open_store(f);
	while (write_frame(f, n) == 0)
		n++;
	assert_true(n > 10 && n < 60);
	assert_int_equal(write_frame(f, n), -ENOSPC);
	expect_frames(f, 0, n);
	for (uint32_t i = 0; i < n; i++)
		forget_frame(f, i);
	for (end = n; end < n + 10; end++)
		assert_int_equal(write_frame(f, end), 0);
	reopen(f);
	expect_frames(f, n, end);
	close_store(f);
}

static void disk_full(void **state)
{
	in_child(*state, use_small_disk);
}

/* Writes fail from some place in the file on: the operation says so, and those before and after it are whole.
 */
static void use_failing_disk(struct fixture *f)
{
	uint32_t n = 0;

	signal(SIGXFSZ, SIG_IGN);
	f->config.segment_bytes = 256 << 10;
	open_store(f);
	write_frames(f, 0, 5);
	if (setrlimit(RLIMIT_FSIZE, &(struct rlimit){100 << 10, RLIM_INFINITY}) < 0)
		_exit(77);
	for (n = 5; write_frame(f, n) == 0; n++)
		;
	assert_true(n > 7);
	assert_int_equal(write_frame(f, n), -EFBIG);
	assert_int_equal(remove_frame(f, 2), -EFBIG);
	assert_int_equal(stats_of(f).n_errors, 3);
	assert_int_equal(sync_store(f), 0);
	expect_frames(f, 0, n);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}), 0);
	write_frames(f, n, n + 5);
	expect_frames(f, 0, n + 5);
	reopen(f);
	assert_int_equal(f->n_found, n + 5);
	assert_int_equal(stats_of(f).n_dropped, 0);
	expect_frames(f, 0, n + 5);
	close_store(f);
}

static void failing_disk(void **state)
{
	in_child(*state, use_failing_disk);
}

/* In memory that is registered, or, where the limit on locked memory forbids that, in the same memory as it
 * is. */
static void fixed_buffers(void **state)
{
	struct fixture *f = *state;
	const size_t len = 1 << 20;
	uint8_t *pool = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct store_op op;

	assert_true(pool != MAP_FAILED);
	f->config.pool_addr = pool;
	f->config.pool_bytes = len;
	open_store(f);
	print_message("fixed buffers: %u\n", stats_of(f).fixed_buffers);
	for (uint32_t i = 0; i < 20; i++) {
		uint8_t *out = pool + (size_t)i * 16384, *in = pool + len - 16384;

		op = (struct store_op){.kind = STORE_WRITE, .data = out, .record = record_of(i)};
		frame_fill(i, out + STORE_HEADER_BYTES);
		assert_int_equal(run_op(f, &op), 0);
		memset(in, 0, 16384);
		op.kind = STORE_READ;
		op.data = in;
		assert_int_equal(run_op(f, &op), 0);
		assert_memory_equal(in, out, STORE_HEADER_BYTES + frame_len(i));
		f->at[i] = op.record;
	}
	/* And memory that is not of the pool. */
	expect_frames(f, 0, 20);
	close_store(f);
	munmap(pool, len);
}

/* More segments than descriptors are kept, so that numbers are used again. */
static void write_and_read_many(struct fixture *f)
{
	enum { MANY = 1000 };

	f->config.limit_bytes = 64 << 20;
	open_store(f);
	print_message("fixed files: %u\n", stats_of(f).fixed_files);
	write_frames(f, 0, MANY);
	assert_true(stats_of(f).n_segments > 128);
	for (uint32_t i = 0; i < MANY; i++)
		assert_int_equal(read_frame(f, i * 379 % MANY), 0);
}

static void use_few_files(struct fixture *f)
{
	const struct rlimit few = {512, 512};

	if (setrlimit(RLIMIT_NOFILE, &few)) {
		/* valgrind keeps the hard limit for itself. */
		assert_int_equal(errno, EPERM);
		print_message("skipped: the number of descriptors cannot be limited here\n");
		_exit(77);
	}
	write_and_read_many(f);
	assert_false(stats_of(f).fixed_files);
	close_store(f);
}

/* Files are registered as they are met and let go before they are closed, or, where the process may not have
 * so many, used as they are: a descriptor's number is another file's the next moment. */
static void fixed_files(void **state)
{
	write_and_read_many(*state);
	close_store(*state);
	in_child(*state, use_few_files);
}

static int set_up_in_memory(void **state)
{
	return set_up_in(state, "/dev/shm");
}

static void on_tmpfs(void **state)
{
	struct fixture *f = *state;

	open_store(f);
	print_message("O_DIRECT: %u\n", stats_of(f).direct);
	write_frames(f, 0, 60);
	assert_int_equal(remove_frame(f, 1), 0);
	reopen(f);
	assert_int_equal(f->n_found, 59);
	expect_frames(f, 2, 60);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
/* The disk's syncs would take most of the time. */
#define IN_MEMORY(fn) cmocka_unit_test_setup_teardown(fn, set_up_in_memory, tear_down)
	const struct CMUnitTest tests[] = {
		IN_MEMORY(damage),
		IN_MEMORY(random_damage),
		TEST(forged_record),
		TEST(rotten_tombstone),
		TEST(another_version),
		TEST(foreign_files),
		TEST(cut_under_way),
		TEST(without_io_uring),
		TEST(disk_full),
		TEST(failing_disk),
		TEST(fixed_buffers),
		IN_MEMORY(fixed_files),
		IN_MEMORY(on_tmpfs),
	};

	log_set_level(LOG_LEVEL_WARNING);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
