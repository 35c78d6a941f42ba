#include "shm/client.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/cistern/cistern.sock"

enum {
	DEFAULT_ENTRIES = 256,
	DEFAULT_ARENA_BYTES = 1 << 20,
};

/* cistern_error(NULL): there is no connection that could keep it. */
static _Thread_local char connect_error[CLIENT_ERROR_MAX] = "no error";

int client_fail(struct cistern *c, int status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(c->error, sizeof(c->error), format, args);
	va_end(args);
	return status;
}

int client_lost(struct cistern *c, bool broken, const char *format, ...)
{
	va_list args;

	if (!c->gone) {
		va_start(args, format);
		vsnprintf(c->error, sizeof(c->error), format, args);
		va_end(args);
	}
	c->gone = true;
	c->broken |= broken;
	return -ENOTCONN;
}

/* ---- the way there ---- */

int client_dial(const char *path, int timeout_ms, int *fd, char *why, size_t why_len)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval timeout = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
	int s, r;

	if (!path)
		path = secure_getenv("CISTERN_SOCKET");
	if (!path)
		path = DEFAULT_SOCKET;
	if (strlen(path) >= sizeof(address.sun_path)) {
		snprintf(why, why_len, "the socket path is longer than %zu bytes",
			sizeof(address.sun_path) - 1);
		return -EINVAL;
	}
	memcpy(address.sun_path, path, strlen(path) + 1);
	s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (s < 0) {
		r = -errno;
		snprintf(why, why_len, "no socket: %s", strerror(-r));
		return r;
	}
	/* unix(7): bounds the wait for a daemon whose backlog is full; connect then fails with EAGAIN. */
	if (timeout_ms > 0)
		setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	if (connect(s, (struct sockaddr *)&address, sizeof(address)) < 0) {
		r = errno == EAGAIN ? -ETIMEDOUT : -errno;
		snprintf(why, why_len, "cannot reach a daemon at %s: %s", path, strerror(-r));
		close(s);
		return r;
	}
	*fd = s;
	return 0;
}

/* Sends the hello and takes the welcome apart. On success c holds socket, doorbells and segment. */
static int shake_hands(struct cistern *c, const struct wire_hello *hello)
{
	union {
		struct wire_header header;
		struct wire_welcome welcome;
		struct wire_error error;
	} answer;
	struct message_fds fds = {0};
	const char *why;
	size_t len;
	int segment, r;

	r = message_send(c->socket, hello, sizeof(*hello), NULL, 0, CLIENT_HANDSHAKE_MS);
	if (r == 0)
		r = message_receive(c->socket, &answer, sizeof(answer), &len, &fds, CLIENT_HANDSHAKE_MS);
	if (r == -ENOTCONN)
		return client_fail(c, -ECONNREFUSED, "the daemon hung up during the handshake");
	if (r < 0)
		return client_fail(c, r, "no answer to the hello: %s", strerror(-r));
	r = message_check(&answer, len, &why);
	if (r < 0) {
		client_fail(c, r, "the daemon's answer is %s", why);
		goto out;
	}
	if (answer.header.type == WIRE_ERROR) {
		message_terminate(answer.error.text, sizeof(answer.error.text));
		r = answer.error.header.version != WIRE_VERSION ? -EPROTO
		    : answer.error.status < 0                   ? answer.error.status
								: -EPROTO;
		client_fail(c, r, "the daemon refused: %s", answer.error.text);
		goto out;
	}
	if (answer.header.type != WIRE_WELCOME || len != sizeof(answer.welcome) ||
		fds.n != WIRE_WELCOME_FDS) {
		r = client_fail(c, -EPROTO, "the daemon's answer to the hello is not a welcome");
		goto out;
	}
	if (answer.welcome.chunk_tokens == 0 || answer.welcome.sq_entries != hello->n_entries ||
		answer.welcome.arena_bytes != hello->arena_bytes) {
		r = client_fail(c, -EPROTO, "the daemon's welcome is not what was asked for");
		goto out;
	}
	segment = message_fds_take(&fds, 0);
	r = segment_map(&answer.welcome, segment, &c->segment, &why);
	close(segment);
	if (r < 0) {
		client_fail(c, r, "%s", why);
		goto out;
	}
	c->sq_ringer = message_fds_take(&fds, 1);
	c->cq_sleeper = message_fds_take(&fds, 2);
	c->chunk_tokens = answer.welcome.chunk_tokens;
out:
	message_fds_close(&fds);
	return r;
}

static int prepare(struct cistern *c)
{
	c->n_flights = c->segment.cq_entries;
	c->flights = calloc(c->n_flights, sizeof(c->flights[0]));
	c->idle = calloc(c->n_flights, sizeof(c->idle[0]));
	if (!c->flights || !c->idle || arena_init(&c->arena, c->segment.arena_bytes, c->n_flights) < 0)
		return client_fail(c, -ENOMEM, "out of memory");
	for (uint32_t i = 0; i < c->n_flights; i++)
		c->idle[c->n_idle++] = c->n_flights - 1 - i;
	segment_sq_producer(&c->segment, &c->sq);
	segment_cq_consumer(&c->segment, &c->cq);
	return 0;
}

static int fill_hello(struct cistern *c, const struct cistern_options *options, struct wire_hello *hello)
{
	const char *name = options->name_space ? options->name_space : "default";

	memset(hello, 0, sizeof(*hello));
	message_header(hello, WIRE_HELLO, sizeof(*hello));
	hello->n_entries = options->n_entries ? options->n_entries : DEFAULT_ENTRIES;
	hello->arena_bytes = options->arena_bytes ? options->arena_bytes : DEFAULT_ARENA_BYTES;
	if (!*name || strlen(name) >= sizeof(hello->name_space))
		return client_fail(
			c, -EINVAL, "the namespace must have 1 to %zu bytes", sizeof(hello->name_space) - 1);
	memcpy(hello->name_space, name, strlen(name));
	if (segment_check(hello->n_entries, hello->arena_bytes) < 0)
		return client_fail(c, -EINVAL,
			"n_entries must be a power of two up to %d, arena_bytes from %d to %d",
			WIRE_ENTRIES_MAX, WIRE_ARENA_MIN, WIRE_ARENA_MAX);
	c->spin_us = options->spin_us;
	return 0;
}

int client_connect(struct cistern *c)
{
	int r;

	c->socket = c->sq_ringer = c->cq_sleeper = -1;
	r = client_dial(c->socket_path, CLIENT_HANDSHAKE_MS, &c->socket, c->error, sizeof(c->error));
	if (r == 0)
		r = shake_hands(c, &c->hello);
	return r == 0 ? prepare(c) : r;
}

void client_disconnect(struct cistern *c)
{
	segment_fini(&c->segment);
	arena_fini(&c->arena);
	free(c->flights);
	free(c->idle);
	c->flights = NULL;
	c->idle = NULL;
	c->n_flights = c->n_idle = 0;
	if (c->sq_ringer >= 0)
		close(c->sq_ringer);
	if (c->cq_sleeper >= 0)
		close(c->cq_sleeper);
	if (c->socket >= 0)
		close(c->socket);
	c->socket = c->sq_ringer = c->cq_sleeper = -1;
}

int cistern_connect(const struct cistern_options *options, struct cistern **out)
{
	static const struct cistern_options defaults = {0};
	struct cistern *c = calloc(1, sizeof(*c));
	int r;

	if (!c) {
		snprintf(connect_error, sizeof(connect_error), "out of memory");
		return -ENOMEM;
	}
	snprintf(c->error, sizeof(c->error), "no error");
	c->socket = c->sq_ringer = c->cq_sleeper = -1;
	if (!options)
		options = &defaults;
	r = fill_hello(c, options, &c->hello);
	if (r == 0 && options->socket_path) {
		c->socket_path = strdup(options->socket_path);
		if (!c->socket_path)
			r = client_fail(c, -ENOMEM, "out of memory");
	}
	if (r == 0)
		r = client_connect(c);
	if (r < 0) {
		snprintf(connect_error, sizeof(connect_error), "%s", c->error);
		cistern_close(c);
		return r;
	}
	*out = c;
	return 0;
}

/* Registers with the new connection what the old one had. */
static int register_again(struct cistern *fresh, struct cistern *c)
{
	int r = 0;

	for (uint32_t i = 0; i < c->n_models && r == 0; i++)
		r = client_ask(fresh, c->models[i].message, c->models[i].message_len, NULL, 0,
			CLIENT_REGISTER_MS, &c->models[i].wire_id);
	for (uint32_t i = 0; i < c->n_memories && r == 0; i++) {
		struct client_memory *m = &c->memories[i];
		const struct client_model *model = client_model(c, m->model_id);
		struct wire_register_memory w;

		memcpy(&w, m->message, sizeof(w));
		w.model_id = model->wire_id;
		memcpy(m->message, &w, sizeof(w));
		r = client_ask(
			fresh, m->message, m->message_len, m->fds, m->n_fds, CLIENT_REGISTER_MS, &m->wire_id);
	}
	for (uint32_t i = 0; i < c->n_events && r == 0; i++)
		r = client_ask(fresh, c->events[i].message, c->events[i].message_len, NULL, 0,
			CLIENT_REGISTER_MS, &c->events[i].wire_id);
	return r;
}

int cistern_reconnect(struct cistern *c)
{
	struct cistern *fresh = calloc(1, sizeof(*fresh));
	int r;

	if (!fresh)
		return client_fail(c, -ENOMEM, "out of memory");
	fresh->socket_path = c->socket_path;
	fresh->hello = c->hello;
	r = client_connect(fresh);
	if (r == 0 && fresh->chunk_tokens != c->chunk_tokens)
		r = client_fail(fresh, -ESTALE, "the daemon now has chunks of %u tokens, not %u",
			fresh->chunk_tokens, c->chunk_tokens);
	/* What was asked of the old connection is over, whatever comes. */
	client_lost(c, true, "given up for a new connection");
	if (r == 0)
		r = register_again(fresh, c);
	if (r < 0) {
		/* A wire id of the half of it is of no use; nothing is asked before all is registered anew.
		 */
		client_fail(c, r == -ENOTCONN ? -ECONNREFUSED : r, "%s", fresh->error);
		client_disconnect(fresh);
		free(fresh);
		return r == -ENOTCONN ? -ECONNREFUSED : r;
	}
	client_disconnect(c);
	c->socket = fresh->socket;
	c->sq_ringer = fresh->sq_ringer;
	c->cq_sleeper = fresh->cq_sleeper;
	c->segment = fresh->segment;
	c->sq = fresh->sq;
	c->cq = fresh->cq;
	c->arena = fresh->arena;
	c->flights = fresh->flights;
	c->idle = fresh->idle;
	c->n_flights = fresh->n_flights;
	c->n_idle = fresh->n_idle;
	c->gone = c->broken = c->watched = false;
	c->looked_ns = 0;
	free(fresh);
	return 0;
}

void cistern_close(struct cistern *c)
{
	if (!c)
		return;
	client_disconnect(c);
	for (uint32_t i = 0; i < c->n_models; i++)
		client_forget_model(&c->models[i]);
	for (uint32_t i = 0; i < c->n_memories; i++)
		client_forget_memory(&c->memories[i]);
	for (uint32_t i = 0; i < c->n_events; i++)
		client_forget_events(&c->events[i]);
	free(c->models);
	free(c->memories);
	free(c->events);
	free(c->socket_path);
	free(c);
}

const char *cistern_error(const struct cistern *c)
{
	return c ? c->error : connect_error;
}

uint32_t cistern_chunk_tokens(const struct cistern *c)
{
	return c->chunk_tokens;
}

/* What is wrong with an answer that came: 0, or its status, said in connect_error. */
static int check_answer(const void *message, size_t len, enum wire_type wanted)
{
	struct wire_error error;
	const char *why = "";
	int r = message_check(message, len, &why);

	if (r < 0) {
		snprintf(connect_error, sizeof(connect_error), "the daemon's answer is %s", why);
	} else if (message_type(message) == WIRE_ERROR) {
		memcpy(&error, message, sizeof(error));
		message_terminate(error.text, sizeof(error.text));
		r = error.status < 0 ? error.status : -EPROTO;
		snprintf(connect_error, sizeof(connect_error), "the daemon refused: %s", error.text);
	} else if (message_type(message) != wanted) {
		r = -EPROTO;
		snprintf(connect_error, sizeof(connect_error), "the daemon's answer is of another kind");
	}
	return r;
}

int cistern_statistics(const char *socket_path, int *page, int *alive, int timeout_ms)
{
	union {
		struct wire_header header;
		struct wire_error error;
	} message;
	struct message_fds fds = {0};
	size_t len;
	int fd = -1;
	int r = client_dial(socket_path, timeout_ms, &fd, connect_error, sizeof(connect_error));

	if (r < 0)
		return r;
	message_header(&message, WIRE_STATISTICS, sizeof(message.header));
	r = message_send(fd, &message, sizeof(message.header), NULL, 0, timeout_ms);
	if (r == 0)
		r = message_receive(fd, &message, sizeof(message), &len, &fds, timeout_ms);
	if (r < 0)
		snprintf(connect_error, sizeof(connect_error), "no answer from the daemon: %s", strerror(-r));
	else
		r = check_answer(&message, len, WIRE_STATISTICS);
	if (r == 0 && fds.n != 1) {
		r = -EPROTO;
		snprintf(connect_error, sizeof(connect_error), "the daemon's answer came without a page");
	}
	if (r == 0) {
		*page = message_fds_take(&fds, 0);
		*alive = fd;
	} else {
		close(fd);
	}
	message_fds_close(&fds);
	return r;
}

int cistern_control(const char *socket_path, const char *request, char **answer, int timeout_ms)
{
	size_t text_len = strlen(request), len = sizeof(struct wire_header) + text_len;
	char *message = NULL, *text;
	int fd = -1, r;

	if (len > WIRE_MESSAGE_MAX) {
		r = -EINVAL;
		snprintf(connect_error, sizeof(connect_error), "the request is longer than %d bytes",
			WIRE_MESSAGE_MAX - (int)sizeof(struct wire_header));
		goto out;
	}
	r = client_dial(socket_path, timeout_ms, &fd, connect_error, sizeof(connect_error));
	if (r < 0)
		goto out;
	message = malloc(WIRE_MESSAGE_MAX);
	if (!message) {
		r = -ENOMEM;
		snprintf(connect_error, sizeof(connect_error), "out of memory");
		goto out;
	}
	message_header(message, WIRE_CONTROL, len);
	memcpy(message + sizeof(struct wire_header), request, text_len);
	r = message_send(fd, message, len, NULL, 0, timeout_ms);
	if (r == 0)
		r = message_receive(fd, message, WIRE_MESSAGE_MAX, &len, NULL, timeout_ms);
	if (r < 0) {
		snprintf(connect_error, sizeof(connect_error), "no answer from the daemon: %s", strerror(-r));
		goto out;
	}
	r = check_answer(message, len, WIRE_CONTROL);
	if (r == 0) {
		text_len = len - sizeof(struct wire_header);
		text = strndup(message + sizeof(struct wire_header), text_len);
		r = text ? 0 : -ENOMEM;
		if (text)
			*answer = text;
	}
out:
	free(message);
	if (fd >= 0)
		close(fd);
	return r;
}
