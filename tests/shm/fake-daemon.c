#include "fake-daemon.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "shm/doorbell.h"

enum { PATIENCE_MS = 20000 };

/* Unlike assert, there in release builds too. */
static void must(bool condition, const char *what)
{
	if (!condition) {
		fprintf(stderr, "fake daemon: %s failed\n", what);
		abort();
	}
}

void fake_complete(
	struct fake_daemon *d, const struct wire_sqe *sqe, int status, uint32_t n_chunks, uint32_t flags)
{
	struct wire_cqe cqe = {.user_data = sqe->user_data,
		.status = status,
		.n_chunks = n_chunks,
		.flags = flags,
		.bytes = 1000};

	if (ring_push(&d->cq, &cqe) < 0)
		d->n_ignored++;
	if (ring_publish(&d->cq))
		doorbell_ring(d->cq_ringer);
}

bool fake_welcome(struct fake_daemon *d, const struct wire_hello *hello)
{
	struct wire_welcome w;
	int fds[WIRE_WELCOME_FDS];

	must(segment_create(hello->n_entries, hello->arena_bytes, &d->segment, &fds[0]) == 0, "segment");
	must(doorbell_new(&fds[1], &d->sq_sleeper) == 0, "doorbell");
	must(doorbell_new(&d->cq_ringer, &fds[2]) == 0, "doorbell");
	segment_sq_consumer(&d->segment, &d->sq);
	segment_cq_producer(&d->segment, &d->cq);
	segment_welcome(&d->segment, FAKE_CHUNK_TOKENS, 1, &w);
	must(message_send(d->socket, &w, sizeof(w), fds, WIRE_WELCOME_FDS, PATIENCE_MS) == 0, "welcome");
	for (int i = 0; i < WIRE_WELCOME_FDS; i++)
		close(fds[i]);
	return true;
}

void fake_answer_error(struct fake_daemon *d, int status, const char *text)
{
	struct wire_error e;

	message_error(&e, status, text);
	message_send(d->socket, &e, sizeof(e), NULL, 0, PATIENCE_MS);
}

static bool serve_message(struct fake_daemon *d)
{
	struct wire_registered answer = {0};
	struct message_fds fds = {0};
	bool more = true;

	if (message_receive(d->socket, d->message, sizeof(d->message), &d->message_len, &fds, 0) < 0)
		return false;
	must(message_check(d->message, d->message_len, NULL) == 0, "message");
	d->n_fds = fds.n;
	if (d->on_message) {
		more = d->on_message(d, d->message, d->message_len, &fds);
	} else {
		message_header(&answer, WIRE_REGISTERED, sizeof(answer));
		answer.id = ++d->next_id;
		message_send(d->socket, &answer, sizeof(answer), NULL, 0, PATIENCE_MS);
	}
	message_fds_close(&fds);
	return more;
}

struct wire_sqe fake_last_sqe(struct fake_daemon *d)
{
	struct wire_sqe sqe;

	pthread_mutex_lock(&d->lock);
	sqe = d->sqe;
	pthread_mutex_unlock(&d->lock);
	return sqe;
}

static bool serve_ring(struct fake_daemon *d)
{
	struct wire_sqe sqe;

	while (ring_pop(&d->sq, &sqe) == 1) {
		ring_release(&d->sq);
		pthread_mutex_lock(&d->lock);
		d->sqe = sqe;
		pthread_mutex_unlock(&d->lock);
		if (!d->on_sqe)
			fake_complete(d, &sqe, 0, sqe.n_chunks, 0);
		else if (!d->on_sqe(d, &sqe))
			return false;
	}
	return true;
}

static void serve(struct fake_daemon *d)
{
	for (;;) {
		struct pollfd fds[2] = {
			{.fd = d->socket, .events = POLLIN}, {.fd = d->sq_sleeper, .events = POLLIN}};

		if (!serve_ring(d))
			return;
		if (ring_sleep(&d->sq) != 1)
			continue;
		must(poll(fds, 2, PATIENCE_MS) > 0, "waiting for the client");
		ring_wake(&d->sq);
		if (fds[1].revents)
			doorbell_drain(d->sq_sleeper);
		if (fds[0].revents && !serve_message(d))
			return;
	}
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void *run(void *arg)
{
	struct fake_daemon *d = arg;
	struct message_fds none = {0};
	struct wire_hello hello;

	d->socket = accept(d->listener, NULL, NULL);
	if (d->socket < 0)
		return NULL;
	must(message_receive(d->socket, d->message, sizeof(d->message), &d->message_len, NULL, PATIENCE_MS) ==
			0,
		"the first message");
	must(message_check(d->message, d->message_len, NULL) == 0, "the first message");
	if (message_type(d->message) == WIRE_CONTROL) {
		d->on_message(d, d->message, d->message_len, &none);
	} else {
		must(d->message_len == sizeof(hello), "hello");
		memcpy(&hello, d->message, sizeof(hello));
		if (d->on_hello ? d->on_hello(d, &hello) : fake_welcome(d, &hello))
			serve(d);
	}
	close_if_open(d->socket);
	close_if_open(d->sq_sleeper);
	close_if_open(d->cq_ringer);
	return NULL;
}

void fake_start(struct fake_daemon *d)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	d->socket = d->sq_sleeper = d->cq_ringer = -1;
	pthread_mutex_init(&d->lock, NULL);
	snprintf(d->directory, sizeof(d->directory), "/tmp/cistern-test-XXXXXX");
	must(mkdtemp(d->directory) != NULL, "mkdtemp");
	snprintf(d->path, sizeof(d->path), "%s/socket", d->directory);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", d->path);
	d->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	must(d->listener >= 0, "socket");
	must(bind(d->listener, (struct sockaddr *)&address, sizeof(address)) == 0, "bind");
	must(listen(d->listener, 4) == 0, "listen");
	must(pthread_create(&d->thread, NULL, run, d) == 0, "thread");
}

void fake_join(struct fake_daemon *d)
{
	if (!d->joined)
		pthread_join(d->thread, NULL);
	d->joined = true;
}

void fake_stop(struct fake_daemon *d)
{
	/* Ends an accept that nobody came to. */
	shutdown(d->listener, SHUT_RDWR);
	fake_join(d);
	close(d->listener);
	unlink(d->path);
	rmdir(d->directory);
	segment_fini(&d->segment);
}
