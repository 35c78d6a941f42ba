/* A daemon in this process, without its loop, and a session of it whose client end is ours: for fuzzers that
 * speak to a session. One at a time. */
#ifndef TESTS_FUZZ_LIVE_SESSION_H
#define TESTS_FUZZ_LIVE_SESSION_H

#include "runtime/daemon/daemon.h"
#include "shm/message.h"

struct live {
	struct session *session; /* NULL: not open */
	int socket;              /* the client's end */
};

/* The daemon; made at the first call. */
struct daemon *live_daemon(void);
void live_open(struct live *l);
/* Waits for what is in flight, then takes the session apart. */
void live_close(struct live *l);
/* Sends one packet and lets the session take it. */
void live_send(struct live *l, const void *data, size_t len, const int *fds, uint32_t n_fds);
/* Takes the answer that is there, and its descriptors; 0: none. */
size_t live_answer(struct live *l, void *out, size_t room, struct message_fds *fds);
/* Takes requests and lets everything in flight end. */
void live_run(struct live *l);

#endif
