#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
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
	int fd;

	assert_int_equal(segment_create(hello->n_entries, hello->arena_bytes, &d->segment, &fd), 0);
	close(fd);
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
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct cistern_options options = {.socket_path = "/nonexistent/socket"};
	char directory[] = "/tmp/cistern-test-XXXXXX";
	struct cistern *c = NULL;
	char *answer = NULL;
	int s;

	(void)state;
	assert_int_equal(cistern_connect(&options, &c), -ENOENT);
	assert_non_null(strstr(cistern_error(NULL), "/nonexistent/socket"));
	assert_int_equal(cistern_control("/nonexistent/socket", "{}", &answer, 1000), -ENOENT);
	/* As after a kill -9: the name is there, nobody listens. */
	assert_non_null(mkdtemp(directory));
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", directory);
	s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(s, (struct sockaddr *)&address, sizeof(address)), 0);
	close(s);
	options.socket_path = address.sun_path;
	assert_int_equal(cistern_connect(&options, &c), -ECONNREFUSED);
	assert_int_equal(cistern_control(address.sun_path, "{}", &answer, 1000), -ECONNREFUSED);
	assert_null(c);
	assert_null(answer);
	unlink(address.sun_path);
	rmdir(directory);
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

/* ---- registering ---- */

static const float inv_freq[4] = {1, 0.1f, 0.01f, 0.001f};

/* Two planes, the first one rotated; three layers. */
static uint32_t register_model(struct cistern *c)
{
	struct cistern_plane planes[2] = {
		{.n_heads = 2,
			.dim = 8,
			.dtype = CISTERN_BF16,
			.rope_kind = CISTERN_ROPE_HALF,
			.rope_dim = 8,
			.inv_freq = inv_freq},
		{.n_heads = 2, .dim = 8, .dtype = CISTERN_BF16},
	};
	struct cistern_model model = {.name = "tiny", .n_layers = 3, .n_planes = 2, .planes = planes};
	uint32_t id = 0;

	assert_int_equal(cistern_register_model(c, &model, &id), 0);
	return id;
}

enum { BLOCK_TOKENS = 4, N_BLOCKS = 10, MEMORY_BYTES = 65536 };

static uint32_t register_memory(struct cistern *c, uint32_t model_id)
{
	struct cistern_layout layouts[6];
	struct cistern_memory memory = {.model_id = model_id,
		.size_bytes = MEMORY_BYTES,
		.block_tokens = BLOCK_TOKENS,
		.n_blocks = N_BLOCKS,
		.layouts = layouts};
	uint32_t id = 0;
	void *addr;

	for (uint64_t i = 0; i < 6; i++)
		layouts[i] = (struct cistern_layout){
			.base = i * 1280, .block_stride = 128, .token_stride = 32, .head_stride = 16};
	assert_int_equal(cistern_memory_create("test", MEMORY_BYTES, &memory.fd, &addr), 0);
	((uint8_t *)addr)[MEMORY_BYTES - 1] = 1;
	assert_int_equal(ftruncate(memory.fd, 0), -1);
	munmap(addr, MEMORY_BYTES);
	assert_int_equal(cistern_register_memory(c, &memory, &id), 0);
	close(memory.fd);
	return id;
}

static void test_registrations_on_the_wire(void **state)
{
	struct fake_daemon d = {.next_id = 40};
	struct cistern *c = attach(&d, 8, 4096);
	const struct wire_register_model *model = (const void *)d.message;
	const struct wire_register_memory *memory = (const void *)d.message;
	struct wire_layout layout;
	uint32_t model_id, memory_id;

	(void)state;
	assert_int_equal(cistern_chunk_tokens(c), FAKE_CHUNK_TOKENS);
	model_id = register_model(c);
	assert_int_equal(model_id, 41);
	assert_int_equal(model->header.type, WIRE_REGISTER_MODEL);
	assert_int_equal(d.message_len, sizeof(*model) + sizeof(inv_freq));
	assert_memory_equal(model + 1, inv_freq, sizeof(inv_freq));
	assert_string_equal(model->name, "tiny");
	assert_int_equal(model->tp_size, 1);
	assert_int_equal(model->planes[0].rope_dim, 8);
	assert_true(model->planes[0].rope_scale == 1.0f);

	memory_id = register_memory(c, model_id);
	assert_int_equal(memory_id, 42);
	assert_int_equal(memory->header.type, WIRE_REGISTER_MEMORY);
	assert_int_equal(memory->model_id, model_id);
	assert_int_equal(memory->kind, WIRE_MEMORY_MEMFD);
	assert_int_equal(d.n_fds, 1);
	assert_int_equal(d.message_len, sizeof(*memory) + 6 * sizeof(layout));
	memcpy(&layout, d.message + sizeof(*memory) + 5 * sizeof(layout), sizeof(layout));
	assert_int_equal(layout.base, 5 * 1280);

	assert_int_equal(cistern_unregister_memory(c, memory_id), 0);
	assert_int_equal(((const struct wire_unregister_memory *)d.message)->memory_id, memory_id);
	detach(&d, c);
}

static bool refuse_message(struct fake_daemon *d, const void *message, size_t len, struct message_fds *fds)
{
	(void)message;
	(void)len;
	(void)fds;
	fake_answer_error(d, -EINVAL, "plane 1: dim is 0");
	return true;
}

/* An error answer is told and leaves the connection as it was. */
static void test_registration_refused(void **state)
{
	struct fake_daemon d = {.on_message = refuse_message};
	struct cistern *c = attach(&d, 8, 4096);
	struct cistern_plane plane = {.n_heads = 1};
	struct cistern_model model = {.name = "m", .n_layers = 1, .n_planes = 1, .planes = &plane};
	struct cistern_memory memory = {.model_id = 9};
	uint32_t id = 77;

	(void)state;
	assert_int_equal(cistern_register_model(c, &model, &id), -EINVAL);
	assert_string_equal(cistern_error(c), "plane 1: dim is 0");
	assert_int_equal(id, 77);
	assert_int_equal(cistern_register_memory(c, &memory, &id), -ENOENT);
	assert_int_equal(cistern_unregister_memory(c, 3), -EINVAL);
	assert_int_equal(cistern_nop(c, 5), 0);
	assert_int_equal(await(c, 5).status, 0);
	detach(&d, c);
}

/* What cannot even be written down is refused before it is sent. */
static void test_models_that_cannot_be_sent(void **state)
{
	static const struct cistern_plane rotated = {.rope_kind = CISTERN_ROPE_HALF, .rope_dim = 8};
	static const struct cistern_plane huge = {
		.rope_kind = CISTERN_ROPE_HALF, .rope_dim = 1u << 30, .inv_freq = inv_freq};
	static const struct cistern_plane plain = {.dim = 8};
	static const char long_name[] = "0123456789012345678901234567890123456789012345678901234567890123"
					"0123456789012345678901234567890123456789012345678901234567890123";
	static const struct cistern_model cases[] = {
		{.name = NULL, .n_layers = 1, .n_planes = 1, .planes = &plain},
		{.name = "", .n_layers = 1, .n_planes = 1, .planes = &plain},
		{.name = long_name, .n_layers = 1, .n_planes = 1, .planes = &plain},
		{.name = "m", .n_layers = 1, .n_planes = 0, .planes = &plain},
		{.name = "m", .n_layers = 1, .n_planes = 3, .planes = &plain},
		{.name = "m", .n_layers = 1, .n_planes = 1},
		{.name = "m", .n_layers = 0, .n_planes = 1, .planes = &plain},
		{.name = "m", .n_layers = UINT32_MAX, .n_planes = 1, .planes = &plain},
		{.name = "m", .n_layers = 1, .n_planes = 1, .planes = &rotated},
		{.name = "m", .n_layers = 1, .n_planes = 1, .planes = &huge},
	};
	struct fake_daemon d = {0};
	struct cistern *c = attach(&d, 8, 4096);
	uint32_t id;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_int_equal(cistern_register_model(c, &cases[i], &id), -EINVAL);
	detach(&d, c);
}

/* ---- control ---- */

static bool answer_control(struct fake_daemon *d, const void *message, size_t len, struct message_fds *fds)
{
	char answer[sizeof(struct wire_header) + 11];

	(void)fds;
	if (len != sizeof(struct wire_header) + 20 ||
		memcmp((const char *)message + sizeof(struct wire_header), "{\"command\":\"status\"}", 20) !=
			0) {
		fake_answer_error(d, -EINVAL, "no such command");
		return false;
	}
	memcpy(answer + sizeof(struct wire_header), "{\"ok\":true}", 11);
	message_header(answer, WIRE_CONTROL, sizeof(answer));
	message_send(d->socket, answer, sizeof(answer), NULL, 0, 1000);
	return false;
}

static void test_control(void **state)
{
	static const struct {
		const char *request, *answer, *sentence;
		int r;
	} cases[] = {
		{"{\"command\":\"status\"}", "{\"ok\":true}", "", 0},
		{"{}", NULL, "no such command", -EINVAL},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct fake_daemon d = {.on_message = answer_control};
		char *answer = NULL;

		fake_start(&d);
		assert_int_equal(cistern_control(d.path, cases[i].request, &answer, 5000), cases[i].r);
		if (cases[i].answer)
			assert_string_equal(answer, cases[i].answer);
		else
			assert_null(answer);
		assert_non_null(strstr(cistern_error(NULL), cases[i].sentence));
		free(answer);
		fake_stop(&d);
	}
}

static void test_control_too_long(void **state)
{
	char *request = malloc(WIRE_MESSAGE_MAX + 1), *answer = NULL;

	(void)state;
	memset(request, ' ', WIRE_MESSAGE_MAX);
	request[WIRE_MESSAGE_MAX] = 0;
	assert_int_equal(cistern_control("/nonexistent", request, &answer, 1000), -EINVAL);
	free(request);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused_handshakes),
		cmocka_unit_test(test_no_daemon),
		cmocka_unit_test(test_options_out_of_range),
		cmocka_unit_test(test_registrations_on_the_wire),
		cmocka_unit_test(test_registration_refused),
		cmocka_unit_test(test_models_that_cannot_be_sent),
		cmocka_unit_test(test_control),
		cmocka_unit_test(test_control_too_long),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
