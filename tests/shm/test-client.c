#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake-daemon.h"
#include "shm/cistern.h"
#include "shm/doorbell.h"

static struct cistern *attach(struct fake_daemon *d, uint32_t n_entries, uint64_t arena_bytes)
{
	struct cistern_options options = {.n_entries = n_entries, .arena_bytes = arena_bytes};
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

/* Waits for one completion of user_data. */
static struct cistern_completion await(struct cistern *c, uint64_t user_data)
{
	struct cistern_completion done = {0};

	assert_int_equal(cistern_wait(c, &done, 1, 10000), 1);
	assert_int_equal(done.user_data, user_data);
	return done;
}

/* ---- connecting ---- */

static bool say_version(struct fake_daemon *d, const struct wire_hello *hello)
{
	struct wire_welcome w = {.header = {.magic = WIRE_MAGIC,
					 .version = WIRE_VERSION + 1,
					 .type = WIRE_WELCOME,
					 .len_bytes = sizeof(w)}};

	(void)hello;
	message_send(d->socket, &w, sizeof(w), NULL, 0, 1000);
	return false;
}

/* A daemon of another version knows no welcome for us, but how to say so. */
static bool say_error_of_version(struct fake_daemon *d, const struct wire_hello *hello)
{
	struct wire_error e;

	(void)hello;
	message_error(&e, -EPROTO, "I speak version 2");
	e.header.version = 2;
	message_send(d->socket, &e, sizeof(e), NULL, 0, 1000);
	return false;
}

static bool say_no_access(struct fake_daemon *d, const struct wire_hello *hello)
{
	assert_string_equal(hello->name_space, "default");
	fake_answer_error(d, -EACCES, "uid 7 may not");
	return false;
}

static bool say_garbage(struct fake_daemon *d, const struct wire_hello *hello)
{
	(void)hello;
	message_send(d->socket, "garbage", 7, NULL, 0, 1000);
	return false;
}

static bool say_welcome_without_fds(struct fake_daemon *d, const struct wire_hello *hello)
{
	struct wire_welcome w;

	segment_create(hello->n_entries, hello->arena_bytes, &d->segment, &(int){0});
	segment_welcome(&d->segment, 16, 1, &w);
	message_send(d->socket, &w, sizeof(w), NULL, 0, 1000);
	return false;
}

static bool say_nothing(struct fake_daemon *d, const struct wire_hello *hello)
{
	(void)d;
	(void)hello;
	return false;
}

static void test_refused_handshakes(void **state)
{
	static const struct {
		bool (*on_hello)(struct fake_daemon *d, const struct wire_hello *hello);
		int r;
		const char *sentence;
	} cases[] = {
		{say_version, -EPROTO, "another version"},
		{say_error_of_version, -EPROTO, "I speak version 2"},
		{say_no_access, -EACCES, "uid 7 may not"},
		{say_garbage, -EPROTO, "not a Cistern message"},
		{say_welcome_without_fds, -EPROTO, "not a welcome"},
		{say_nothing, -ECONNREFUSED, "hung up"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct fake_daemon d = {.on_hello = cases[i].on_hello};
		struct cistern_options options = {0};
		struct cistern *c = NULL;

		fake_start(&d);
		options.socket_path = d.path;
		assert_int_equal(cistern_connect(&options, &c), cases[i].r);
		assert_null(c);
		if (!strstr(cistern_error(NULL), cases[i].sentence))
			fail_msg("\"%s\" does not say \"%s\"", cistern_error(NULL), cases[i].sentence);
		fake_stop(&d);
	}
}

static void test_no_daemon(void **state)
{
	struct fake_daemon d = {0};
	struct cistern_options options = {.socket_path = "/nonexistent/socket"};
	struct cistern *c = NULL;
	char *answer;

	(void)state;
	assert_int_equal(cistern_connect(&options, &c), -ENOENT);
	assert_non_null(strstr(cistern_error(NULL), "/nonexistent/socket"));
	assert_int_equal(cistern_control("/nonexistent/socket", "{}", &answer, 1000), -ENOENT);
	fake_start(&d);
	close(d.listener); /* as after a kill -9: the name is there, nobody listens */
	d.listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	options.socket_path = d.path;
	shutdown(d.listener, SHUT_RDWR);
	assert_int_equal(cistern_connect(&options, &c), -ECONNREFUSED);
	fake_stop(&d);
}

static void test_options_out_of_range(void **state)
{
	static const struct cistern_options cases[] = {
		{.n_entries = 3},
		{.n_entries = 8192},
		{.arena_bytes = 100},
		{.arena_bytes = UINT64_MAX},
		{.name_space = ""},
		{.name_space = "0123456789012345678901234567890123456789012345678901234567890123"},
		{.socket_path = "/012345678901234567890123456789012345678901234567890123456789012345678901234"
				"56789012"
				"345678901234567890123456789"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct cistern *c = NULL;

		assert_int_equal(cistern_connect(&cases[i], &c), -EINVAL);
		assert_null(c);
	}
	cistern_close(NULL);
}
