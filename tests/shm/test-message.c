#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "shm/message.h"

struct pair {
	int a, b;
	int n_open; /* descriptors of the process before the test: a leak shows as one more */
};

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static int setup(void **state)
{
	struct pair *p = calloc(1, sizeof(*p));
	int ends[2];

	p->n_open = count_fds();
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	p->a = ends[0];
	p->b = ends[1];
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct pair *p = *state;

	if (p->a >= 0)
		close(p->a);
	close(p->b);
	assert_int_equal(count_fds(), p->n_open);
	free(p);
	return 0;
}

static void test_there_and_back(void **state)
{
	struct pair *p = *state;
	struct wire_registered m = {.id = 7}, got = {0};
	size_t len = 0;

	message_header(&m, WIRE_REGISTERED, sizeof(m));
	assert_int_equal(message_send(p->a, &m, sizeof(m), NULL, 0, 0), 0);
	assert_int_equal(message_receive(p->b, &got, sizeof(got), &len, NULL, 0), 0);
	assert_int_equal(len, sizeof(m));
	assert_int_equal(message_check(&got, len, NULL), 0);
	assert_int_equal(message_type(&got), WIRE_REGISTERED);
	assert_int_equal(got.id, 7);
}

static void test_descriptors_are_handed_over(void **state)
{
	struct pair *p = *state;
	int ends[2];
	struct message_fds fds = {0};
	char c = 'x';
	size_t len;
	int w;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_int_equal(message_send(p->a, "hi", 2, (int[]){ends[0], ends[1]}, 2, 0), 0);
	close(ends[1]);
	assert_int_equal(message_receive(p->b, &(char[8]){0}, 8, &len, &fds, 0), 0);
	assert_int_equal(fds.n, 2);
	for (int i = 0; i < 2; i++)
		assert_int_equal(fcntl(fds.fds[i], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	w = message_fds_take(&fds, 1);
	assert_int_equal(message_fds_take(&fds, 2), -1);
	message_fds_close(&fds); /* not the one that was taken */
	assert_int_equal(write(w, "y", 1), 1);
	assert_int_equal(read(ends[0], &c, 1), 1);
	assert_int_equal(c, 'y');
	close(w);
	close(ends[0]);
}

/* Whatever descriptors the peer attaches, none is left open by a message that was refused. */
static void test_unwanted_descriptors_are_closed(void **state)
{
	struct pair *p = *state;
	union {
		char bytes[CMSG_SPACE(64 * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	static const struct {
		int n;
		int wanted, r;
	} cases[] = {{1, 0, 0}, {4, 0, 0}, {4, 1, 0}, {5, 1, -EPROTO}, {5, 0, -EPROTO}, {16, 1, -EPROTO},
		{17, 1, -EPROTO}, {64, 1, -EPROTO}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct iovec iov = {.iov_base = (char[1]){'m'}, .iov_len = 1};
		struct msghdr msg = {.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = &control,
			.msg_controllen = CMSG_SPACE((size_t)cases[i].n * sizeof(int))};
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		struct message_fds fds = {0};
		char byte;
		size_t len;

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN((size_t)cases[i].n * sizeof(int));
		for (int f = 0; f < cases[i].n; f++)
			memcpy(CMSG_DATA(c) + (size_t)f * sizeof(int), &p->a, sizeof(int));
		assert_int_equal(sendmsg(p->a, &msg, 0), 1);
		assert_int_equal(
			message_receive(p->b, &byte, 1, &len, cases[i].wanted ? &fds : NULL, 0), cases[i].r);
		assert_int_equal(
			count_fds(), p->n_open + 2 + (cases[i].wanted && cases[i].r == 0 ? cases[i].n : 0));
		message_fds_close(&fds);
	}
}

static void test_bounds(void **state)
{
	struct pair *p = *state;
	uint8_t *large = calloc(1, WIRE_MESSAGE_MAX + 1);
	char small[8];
	size_t len = 99;

	assert_int_equal(message_send(p->a, large, WIRE_MESSAGE_MAX + 1, NULL, 0, 0), -EMSGSIZE);
	assert_int_equal(message_send(p->a, large, 1, (int[5]){0}, 5, 0), -EINVAL);
	assert_int_equal(message_send(p->a, large, WIRE_MESSAGE_MAX, NULL, 0, 0), 0);
	assert_int_equal(message_receive(p->b, large, WIRE_MESSAGE_MAX, &len, NULL, 0), 0);
	assert_int_equal(len, WIRE_MESSAGE_MAX);
	/* Longer than the room: gone, not cut. */
	assert_int_equal(message_send(p->a, "123456789", 9, NULL, 0, 0), 0);
	assert_int_equal(message_send(p->a, "next", 4, NULL, 0, 0), 0);
	assert_int_equal(message_receive(p->b, small, sizeof(small), &len, NULL, 0), -EPROTO);
	assert_int_equal(len, WIRE_MESSAGE_MAX);
	assert_int_equal(message_receive(p->b, small, sizeof(small), &len, NULL, 0), 0);
	assert_int_equal(len, 4);
	free(large);
}

static void test_time_outs(void **state)
{
	struct pair *p = *state;
	char byte[1024] = {0};
	struct timespec before, after;
	size_t len;
	int r;

	assert_int_equal(message_receive(p->b, byte, 1, &len, NULL, 0), -EAGAIN);
	clock_gettime(CLOCK_MONOTONIC, &before);
	assert_int_equal(message_receive(p->b, byte, 1, &len, NULL, 30), -ETIMEDOUT);
	clock_gettime(CLOCK_MONOTONIC, &after);
	assert_true((after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000 >= 29);
	do
		r = message_send(p->a, byte, sizeof(byte), NULL, 0, 0);
	while (r == 0);
	assert_int_equal(r, -EAGAIN);
	assert_int_equal(message_send(p->a, byte, sizeof(byte), NULL, 0, 10), -ETIMEDOUT);
}

static void test_hang_up(void **state)
{
	struct pair *p = *state;
	char byte;
	size_t len;

	close(p->a);
	p->a = -1;
	assert_int_equal(message_receive(p->b, &byte, 1, &len, NULL, -1), -ENOTCONN);
	assert_int_equal(message_send(p->b, "x", 1, NULL, 0, -1), -ENOTCONN);
}

static void test_headers(void **state)
{
	static const struct {
		uint32_t magic;
		uint16_t version, type;
		uint32_t len_bytes;
		size_t len;
		int r;
	} cases[] = {
		{WIRE_MAGIC, WIRE_VERSION, WIRE_CONTROL, 16, 16, 0},
		{WIRE_MAGIC, WIRE_VERSION, WIRE_CONTROL, 20, 20, 0},
		{WIRE_MAGIC, WIRE_VERSION, WIRE_CONTROL, 20, 19, -EPROTO},
		{WIRE_MAGIC, WIRE_VERSION, WIRE_CONTROL, 16, 15, -EPROTO},
		{WIRE_MAGIC, WIRE_VERSION, WIRE_CONTROL, 0, 0, -EPROTO},
		{WIRE_MAGIC + 1, WIRE_VERSION, WIRE_CONTROL, 16, 16, -EPROTO},
		{WIRE_MAGIC, WIRE_VERSION + 1, WIRE_CONTROL, 16, 16, -EPROTO},
		{WIRE_MAGIC, WIRE_VERSION + 1, WIRE_ERROR, sizeof(struct wire_error),
			sizeof(struct wire_error), 0},
		{WIRE_MAGIC, WIRE_VERSION, WIRE_ERROR, 24, 24, -EPROTO},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct wire_error m = {.header = {.magic = cases[i].magic,
					       .version = cases[i].version,
					       .type = cases[i].type,
					       .len_bytes = cases[i].len_bytes}};
		const char *why = NULL;

		assert_int_equal(message_check(&m, cases[i].len, &why), cases[i].r);
		assert_true((why != NULL) == (cases[i].r < 0));
	}
}

static void test_error_text_always_ends(void **state)
{
	struct wire_error e;
	char text[2 * WIRE_ERROR_TEXT_MAX];

	(void)state;
	memset(text, 'a', sizeof(text));
	text[sizeof(text) - 1] = 0;
	message_error(&e, -EACCES, text);
	assert_int_equal(message_check(&e, sizeof(e), NULL), 0);
	assert_int_equal(e.status, -EACCES);
	assert_int_equal(strlen(e.text), WIRE_ERROR_TEXT_MAX - 1);
	memset(e.text, 'b', sizeof(e.text)); /* as a careless peer would send it */
	message_terminate(e.text, sizeof(e.text));
	assert_int_equal(strlen(e.text), WIRE_ERROR_TEXT_MAX - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_there_and_back, setup, teardown),
		cmocka_unit_test_setup_teardown(test_descriptors_are_handed_over, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unwanted_descriptors_are_closed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bounds, setup, teardown),
		cmocka_unit_test_setup_teardown(test_time_outs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hang_up, setup, teardown),
		cmocka_unit_test(test_headers),
		cmocka_unit_test(test_error_text_always_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
