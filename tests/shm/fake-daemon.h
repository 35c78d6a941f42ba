/*
 * The other end for the client's tests: a daemon of one connection, in a thread, that can be told to
 * misbehave. What it has seen may be read by the test after the completion that tells of it.
 */
#ifndef TESTS_SHM_FAKE_DAEMON_H
#define TESTS_SHM_FAKE_DAEMON_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "shm/message.h"
#include "shm/segment.h"

enum { FAKE_CHUNK_TOKENS = 16, FAKE_MESSAGE_MAX = 4096 };

struct fake_daemon {
	/* Set before fake_start; NULL takes the plain answer. Each returns false to hang up. */
	bool (*on_hello)(struct fake_daemon *d, const struct wire_hello *hello);
	bool (*on_message)(struct fake_daemon *d, const void *message, size_t len, struct message_fds *fds);
	bool (*on_sqe)(struct fake_daemon *d, const struct wire_sqe *sqe);
	uint32_t n_ignored; /* completions that the ring had no room for */

	_Alignas(8) uint8_t message[FAKE_MESSAGE_MAX]; /* the last one received */
	size_t message_len;
	uint32_t n_fds; /* that came with it */
	pthread_mutex_t lock;
	struct wire_sqe sqe; /* the last one taken; see fake_last_sqe */

	char directory[64];
	char path[96];
	int listener;
	int socket;
	int sq_sleeper;
	int cq_ringer;
	struct segment segment;
	struct ring_consumer sq;
	struct ring_producer cq;
	uint32_t next_id;
	pthread_t thread;
	bool joined;
};

/* Listens at d->path, in a directory of its own, and serves the first connection. */
void fake_start(struct fake_daemon *d);
/* The last request taken. The lock is for ThreadSanitizer, which does not know that the rings' two mappings
 * are the same memory. */
struct wire_sqe fake_last_sqe(struct fake_daemon *d);
/* Waits until the daemon has hung up. */
void fake_join(struct fake_daemon *d);
/* Waits until the connection has ended, and clears up. */
void fake_stop(struct fake_daemon *d);

/* For the callbacks: completes a request; the client sees it at once. */
void fake_complete(
	struct fake_daemon *d, const struct wire_sqe *sqe, int status, uint32_t n_chunks, uint32_t flags);
/* The plain answer to a hello. */
bool fake_welcome(struct fake_daemon *d, const struct wire_hello *hello);
/* Answers on the socket. */
void fake_answer_error(struct fake_daemon *d, int status, const char *text);

#endif
