#include "runtime/daemon/session.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/log.h"
#include "runtime/daemon/attach.h"
#include "runtime/daemon/daemon.h"
#include "runtime/daemon/device/register.h"
#include "runtime/daemon/request.h"
#include "shm/cistern.h"
#include "shm/doorbell.h"
#include "shm/message.h"

/* Sockets tell of most deaths, but not when a child of the client's has inherited its end. */
static void watch_process(struct session *s, pid_t pid)
{
#ifndef SO_PEERPIDFD
	enum { SO_PEERPIDFD = 77 }; /* Linux 6.5 */
#endif
	socklen_t len = sizeof s->pidfd;

	/* By number there is a moment in which it may have become another's; it is short, and the connection
	 * new. */
	if (getsockopt(s->socket, SOL_SOCKET, SO_PEERPIDFD, &s->pidfd, &len))
		s->pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
	if (s->pidfd >= 0 && daemon_watch(s->daemon, s->pidfd, SOURCE_PROCESS, s)) {
		close(s->pidfd);
		s->pidfd = -1;
	}
}

struct session *session_new(struct daemon *d, int socket, uint32_t id)
{
	struct session *s = calloc(1, sizeof *s);
	struct ucred peer;
	socklen_t len = sizeof peer;

	if (!s || getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &len) ||
		daemon_watch(d, socket, SOURCE_SOCKET, s)) {
		close(socket);
		free(s);
		return NULL;
	}
	s->daemon = d;
	s->id = id;
	s->socket = socket;
	s->uid = peer.uid;
	s->since_ms = daemon_now_ms();
	s->sq_doorbell = s->cq_doorbell = -1;
	s->owner = import_owner_of(peer.pid);
	watch_process(s, peer.pid);
	return s;
}

static void drop_pins(struct session *s)
{
	for (size_t i = 0; i < s->n_pins; i++)
		cache_unpin(s->daemon->cache, s->pins[i]);
	free(s->pins);
	s->pins = NULL;
	s->n_pins = s->pins_size = 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void session_close(struct session *s, const char *why)
{
	if (s->closed)
		return;
	log_debug("session %u: closed: %s", s->id, why);
	s->closed = true;
	drop_pins(s);
	device_session_closed(s);
	for (uint32_t i = 0; i < SESSION_MEMORIES_MAX; i++)
		s->memories[i] = mapping_unref(s->memories[i]);
	s->leaving = mapping_unref(s->leaving);
	close_fd(&s->socket); /* which also takes it out of epoll */
	close_fd(&s->pidfd);
	close_fd(&s->sq_doorbell);
	close_fd(&s->cq_doorbell);
	segment_fini(&s->segment);
	free(s->backlog);
	s->backlog = NULL;
	s->n_backlog = s->backlog_size = 0;
}

void session_free(struct session *s)
{
	assert(s->closed && !s->n_requests);
	free(s);
}

const struct model *session_model(const struct session *s, uint32_t id)
{
	return id && id <= s->n_models ? s->models[id - 1] : NULL;
}

struct mapping *session_memory(const struct session *s, uint32_t id)
{
	return id && id <= SESSION_MEMORIES_MAX ? s->memories[id - 1] : NULL;
}

/* As much is under way as may be, or there would be no room for the completions: the rest stays in the ring.
 * What requests copied counts too, for many may name the same bytes of the arena. */
static bool is_full(const struct session *s)
{
	return s->n_requests + s->n_backlog >= s->segment.cq_entries ||
	       s->n_requests >= s->daemon->config->max_requests ||
	       s->taken_bytes > 2 * s->segment.arena_bytes;
}

uint32_t session_consume(struct session *s, uint32_t limit)
{
	struct wire_sqe sqe;
	uint32_t n = 0;

	while (n < limit && !s->closed && s->attached && !is_full(s)) {
		const int r = ring_pop(&s->sq, &sqe);

		if (r < 0) {
			session_close(s, "its submission ring is corrupt");
			break;
		}
		if (!r)
			break;
		n++;
		s->n_served++;
		s->n_requests++;
		request_start(s, &sqe);
	}
	if (n && !s->closed)
		ring_release(&s->sq);
	return n;
}

bool session_sleep(struct session *s)
{
	int r;

	/* With as many requests in flight as there is room for completions nothing is taken; the end of one
	 * brings the loop round again. */
	if (s->closed || !s->attached || is_full(s))
		return false;
	r = ring_sleep(&s->sq);
	if (r < 0)
		session_close(s, "its submission ring is corrupt");
	return r != 1;
}

void session_wake(struct session *s)
{
	if (!s->closed && s->attached)
		ring_wake(&s->sq);
}

/* 0; -EAGAIN: no room; anything else closes the session. */
static int push(struct session *s, const struct wire_cqe *cqe)
{
	const int r = ring_push(&s->cq, cqe);

	if (r == -EPROTO)
		session_close(s, "its completion ring is corrupt");
	return r;
}

/* True: some of it went into the ring, to be published. */
static bool send_backlog(struct session *s)
{
	uint32_t n = 0;

	while (n < s->n_backlog && !s->closed && !push(s, &s->backlog[n]))
		n++;
	if (s->closed || !n)
		return false;
	s->n_backlog -= n;
	memmove(s->backlog, s->backlog + n, s->n_backlog * sizeof *s->backlog);
	return true;
}

void session_rung(struct session *s)
{
	if (s->closed)
		return;
	if (doorbell_drain(s->sq_doorbell)) {
		session_close(s, "the client has gone");
		return;
	}
	if (send_backlog(s))
		daemon_mark_dirty(s->daemon, s);
}

void session_complete(struct session *s, const struct wire_cqe *cqe)
{
	int r;

	if (s->closed)
		return;
	daemon_mark_dirty(s->daemon, s);
	r = s->n_backlog ? -EAGAIN : push(s, cqe);
	if (r != -EAGAIN || (cqe->flags & CISTERN_MORE))
		return;
	if (s->n_backlog == s->backlog_size) {
		const uint32_t size = s->backlog_size ? 2 * s->backlog_size : 64;
		struct wire_cqe *more = realloc(s->backlog, size * sizeof *more);

		if (!more) {
			session_close(s, "out of memory for its completions");
			return;
		}
		s->backlog = more;
		s->backlog_size = size;
	}
	s->backlog[s->n_backlog++] = *cqe;
}

void session_publish(struct session *s)
{
	/* A client that made room before it could see the ring full did not ring: what waits is tried once
	 * more after everything is published, and only then left to the client's doorbell. */
	do {
		if (!s->closed && ring_publish(&s->cq) && doorbell_ring(s->cq_doorbell))
			session_close(s, "the client has gone");
	} while (!s->closed && s->n_backlog && send_backlog(s));
}

void session_request_ended(struct session *s)
{
	assert(s->n_requests);
	s->n_requests--;
	device_request_ended(s);
	if (s->leaving && s->leaving->n_refs == 1) {
		struct mapping *m = s->leaving;

		s->leaving = NULL;
		if (m->device) {
			device_unregister_memory(s, m, s->leaving_id);
		} else {
			mapping_unref(m);
			attach_unregistered(s);
		}
	}
}

bool session_is_waiting(const struct session *s)
{
	return s->leaving || s->leaving_events || s->waiting;
}

int session_pin(struct session *s, struct index_entry *e)
{
	int r;

	if (s->n_pins == SESSION_PINS_MAX)
		return -ENOSPC;
	if (s->n_pins == s->pins_size) {
		const size_t size = s->pins_size ? 2 * s->pins_size : 64;
		struct index_entry **more = reallocarray(s->pins, size, sizeof *more);

		if (!more)
			return -ENOMEM;
		s->pins = more;
		s->pins_size = size;
	}
	r = cache_pin(e);
	if (!r)
		s->pins[s->n_pins++] = e;
	return r;
}

int session_unpin(struct session *s, const struct index_key *id)
{
	for (size_t i = s->n_pins; i-- > 0;) {
		struct index_entry *e = s->pins[i];
		const bool removed = e->dead;
		struct index_key own;

		cache_id(s->daemon->cache, e, &own);
		if (memcmp(&own, id, sizeof own) != 0)
			continue;
		s->pins[i] = s->pins[--s->n_pins];
		cache_unpin(s->daemon->cache, e);
		return removed ? -ENOENT : 0;
	}
	return -ENOENT;
}
