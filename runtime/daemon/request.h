/*
 * One request from a session's ring, from its validation to its last completion. Long ones (PUT, GET,
 * PREFETCH, REMOVE) go through their chunks with a bounded number in flight, so that a single request can
 * neither fill the memory with frames that wait for the pool nor hold the whole pool. Front thread; the
 * encoding and decoding run as jobs on workers.
 */
#ifndef RUNTIME_DAEMON_REQUEST_H
#define RUNTIME_DAEMON_REQUEST_H

#include "runtime/daemon/session.h"

/* Takes a copy of a submission that nobody else can change any more. Answers with exactly one final
 * completion, now or later. */
void request_start(struct session *s, const struct wire_sqe *sqe);

#endif
