#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/segment.h"

static void test_both_sides_share_it(void **state)
{
	struct segment daemon = {0}, client = {0};
	struct ring_producer sq_in, cq_in;
	struct ring_consumer sq_out, cq_out;
	struct wire_sqe sqe = {.op = WIRE_GET, .user_data = 5};
	struct wire_cqe cqe = {.status = -2, .user_data = 6};
	struct wire_welcome w;
	int fd;

	(void)state;
	assert_int_equal(segment_create(4, 5000, &daemon, &fd), 0);
	segment_welcome(&daemon, 256, 3, &w);
	assert_int_equal(w.chunk_tokens, 256);
	assert_int_equal(w.session_id, 3);
	assert_int_equal(segment_map(&w, fd, &client, NULL), 0);
	close(fd);
	assert_int_equal(client.arena_bytes, 5000);
	assert_int_equal(client.cq_entries, 8);

	segment_sq_producer(&client, &sq_in);
	segment_cq_consumer(&client, &cq_out);
	segment_sq_consumer(&daemon, &sq_out);
	segment_cq_producer(&daemon, &cq_in);
	for (int i = 0; i < 4; i++)
		assert_int_equal(ring_push(&sq_in, &sqe), 0);
	assert_int_equal(ring_push(&sq_in, &sqe), -EAGAIN);
	for (int i = 0; i < 8; i++)
		assert_int_equal(ring_push(&cq_in, &cqe), 0);
	assert_int_equal(ring_push(&cq_in, &cqe), -EAGAIN);
	memset(client.arena, 0xee, client.arena_bytes);
	ring_publish(&sq_in);
	ring_publish(&cq_in);

	sqe = (struct wire_sqe){0};
	cqe = (struct wire_cqe){0};
	assert_int_equal(ring_pop(&sq_out, &sqe), 1);
	assert_int_equal(sqe.op, WIRE_GET);
	assert_int_equal(sqe.user_data, 5);
	assert_int_equal(ring_pop(&cq_out, &cqe), 1);
	assert_int_equal(cqe.status, -2);
	assert_int_equal(cqe.user_data, 6);
	assert_int_equal(daemon.arena[0], 0xee);
	assert_int_equal(daemon.arena[4999], 0xee);

	segment_fini(&client);
	assert_int_equal(daemon.arena[4999], 0xee);
	segment_fini(&daemon);
	segment_fini(&daemon);
	assert_null(daemon.addr);
}

static void test_sizes(void **state)
{
	static const struct {
		uint32_t n_entries;
		uint64_t arena_bytes;
		int r;
	} cases[] = {
		{1, WIRE_ARENA_MIN, 0},
		{WIRE_ENTRIES_MAX, WIRE_ARENA_MAX, 0},
		{0, WIRE_ARENA_MIN, -EINVAL},
		{3, WIRE_ARENA_MIN, -EINVAL},
		{2 * WIRE_ENTRIES_MAX, WIRE_ARENA_MIN, -EINVAL},
		{0x80000000u, WIRE_ARENA_MIN, -EINVAL},
		{256, 0, -EINVAL},
		{256, WIRE_ARENA_MIN - 1, -EINVAL},
		{256, WIRE_ARENA_MAX + 1, -EINVAL},
		{256, UINT64_MAX, -EINVAL},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct segment s = {0};
		int fd = -1;

		assert_int_equal(
			segment_create(cases[i].n_entries, cases[i].arena_bytes, &s, &fd), cases[i].r);
		assert_true((s.addr != NULL) == (cases[i].r == 0) && (fd >= 0) == (cases[i].r == 0));
		if (fd >= 0)
			close(fd);
		segment_fini(&s);
	}
}

static void test_nobody_can_resize_it(void **state)
{
	struct segment s = {0};
	struct stat st;
	int fd;

	(void)state;
	assert_int_equal(segment_create(8, WIRE_ARENA_MIN, &s, &fd), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(ftruncate(fd, 0), -1);
	assert_int_equal(ftruncate(fd, st.st_size - 1), -1);
	assert_int_equal(ftruncate(fd, st.st_size + 1), -1);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	close(fd);
	segment_fini(&s);
}

/* Every field of a welcome set to every troublesome value: refused, or the handles stay inside. */
static void test_lying_welcome(void **state)
{
	static const struct {
		size_t offset, size;
		const char *name;
	} fields[] = {
		{offsetof(struct wire_welcome, segment_bytes), 8, "segment_bytes"},
		{offsetof(struct wire_welcome, sq_off), 8, "sq_off"},
		{offsetof(struct wire_welcome, cq_off), 8, "cq_off"},
		{offsetof(struct wire_welcome, arena_off), 8, "arena_off"},
		{offsetof(struct wire_welcome, arena_bytes), 8, "arena_bytes"},
		{offsetof(struct wire_welcome, sq_entries), 4, "sq_entries"},
		{offsetof(struct wire_welcome, cq_entries), 4, "cq_entries"},
	};
	static const uint64_t values[] = {1, 3, 32, 4032, 1u << 20, 1u << 30, UINT32_MAX, 1ull << 40,
		INT64_MAX, UINT64_MAX - 63, UINT64_MAX};
	struct segment daemon = {0};
	struct wire_welcome good;
	int fd;

	(void)state;
	assert_int_equal(segment_create(64, 1 << 16, &daemon, &fd), 0);
	segment_welcome(&daemon, 256, 0, &good);
	for (size_t f = 0; f < sizeof(fields) / sizeof(fields[0]); f++) {
		for (size_t v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
			struct wire_welcome w = good;
			struct segment s = {0};
			const char *why = NULL;

			memcpy((uint8_t *)&w + fields[f].offset, &values[v], fields[f].size);
			if (segment_map(&w, fd, &s, &why) != -EPROTO)
				fail_msg("%s = %#llx was believed", fields[f].name,
					(unsigned long long)values[v]);
			assert_non_null(why);
			assert_null(s.addr);
		}
	}
	close(fd);
	segment_fini(&daemon);
}

static void test_wrong_descriptors(void **state)
{
	struct segment daemon = {0}, s = {0};
	struct wire_welcome w;
	int fd, unsealed, shorter, null;

	(void)state;
	assert_int_equal(segment_create(64, 1 << 16, &daemon, &fd), 0);
	segment_welcome(&daemon, 256, 0, &w);
	unsealed = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(unsealed, (off_t)w.segment_bytes), 0);
	shorter = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(shorter, (off_t)w.segment_bytes - 4096), 0);
	assert_int_equal(fcntl(shorter, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);

	assert_int_equal(segment_map(&w, unsealed, &s, NULL), -EPROTO);
	assert_int_equal(segment_map(&w, shorter, &s, NULL), -EPROTO);
	assert_int_equal(segment_map(&w, null, &s, NULL), -EPROTO);
	assert_int_equal(segment_map(&w, -1, &s, NULL), -EPROTO);
	assert_null(s.addr);
	assert_int_equal(segment_map(&w, fd, &s, NULL), 0);
	segment_fini(&s);
	close(unsealed);
	close(shorter);
	close(null);
	close(fd);
	segment_fini(&daemon);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_both_sides_share_it),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_nobody_can_resize_it),
		cmocka_unit_test(test_lying_welcome),
		cmocka_unit_test(test_wrong_descriptors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
