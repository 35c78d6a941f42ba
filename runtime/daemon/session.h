/*
 * A connection: the handshake, what the client registered, and its rings. Owned by the daemon's front thread,
 * and freed by it when the socket has closed and the last request has ended: until then a closed session
 * stays as a shell that takes completions and drops them.
 */
#ifndef RUNTIME_DAEMON_SESSION_H
#define RUNTIME_DAEMON_SESSION_H

#include <stdbool.h>
#include <sys/types.h>

#include "runtime/cuda/import.h"
#include "runtime/daemon/mapping.h"
#include "runtime/index.h"
#include "shm/protocol.h"
#include "shm/segment.h"

struct daemon;
struct event_group;
struct lane;

enum { SESSION_MODELS_MAX = 16, SESSION_MEMORIES_MAX = 64, SESSION_PINS_MAX = 1 << 20 };

struct session {
	struct daemon *daemon;
	struct session *next, *previous; /* all sessions */
	uint32_t id;
	int socket;
	int pidfd; /* of the process that connected; -1: not to be had */
	uid_t uid;
	uint64_t since_ms;
	bool attached; /* after WIRE_HELLO */
	bool watching; /* after WIRE_STATISTICS: it stays, silent, to see the daemon end */
	bool closed;
	bool dirty; /* in the daemon's list of sessions with completions to publish */
	struct session *next_dirty;
	char name_space_name[WIRE_NAMESPACE_MAX];
	uint8_t name_space[16];
	uint32_t tenant; /* the namespace's number in policies.h */
	struct segment segment;
	struct ring_consumer sq;
	struct ring_producer cq;
	int sq_doorbell; /* we sleep on it */
	int cq_doorbell; /* we ring it */
	const struct model *models[SESSION_MODELS_MAX];
	uint32_t n_models;
	struct mapping *memories[SESSION_MEMORIES_MAX];
	struct mapping *leaving; /* taken out, the answer waits for its last request */
	uint32_t leaving_id;
	/* On the GPU. */
	struct import_owner owner;
	struct lane *lane; /* NULL: nothing was registered there, or closed */
	struct event_group *events;
	struct event_group *leaving_events; /* as leaving */
	bool waiting;             /* something is opened or closed on the lane, and the answer waits for it */
	uint32_t n_requests;      /* in flight */
	struct wire_cqe *backlog; /* completions that found the ring full */
	uint32_t n_backlog, backlog_size;
	uint64_t memory_bytes;     /* registered */
	uint64_t taken_bytes;      /* of keys and block tables that its requests in flight have copied */
	struct index_entry **pins; /* that this connection keeps from eviction */
	size_t n_pins, pins_size;
	uint64_t n_lost_seen; /* as of the last SYNC */
	uint64_t n_served;
};

/* Takes over an accepted socket. NULL: out of memory, the socket is closed. */
struct session *session_new(struct daemon *d, int socket, uint32_t id);
/* Closes the connection: drops pins, mappings not in use, the segment. The struct stays while requests are in
 * flight. */
void session_close(struct session *s, const char *why);
/* Frees a closed session with no requests. */
void session_free(struct session *s);

/* The socket is readable: takes messages. */
void session_receive(struct session *s);
/* Takes requests from the ring, at most limit. Returns how many. */
uint32_t session_consume(struct session *s, uint32_t limit);
/* Announces that the front thread is about to sleep. True: there is work after all. */
bool session_sleep(struct session *s);
void session_wake(struct session *s);
/* The client rang: takes the ring back, and sends what waited for room. */
void session_rung(struct session *s);

/* Queues a completion; it is published by session_publish at the end of the daemon's round. With
 * CISTERN_MORE it is left out when the ring has no room. */
void session_complete(struct session *s, const struct wire_cqe *cqe);
void session_publish(struct session *s);

/* An answer is owed still: the next message has to wait. */
bool session_is_waiting(const struct session *s);
/* A request has ended (after its last completion). */
void session_request_ended(struct session *s);

/* The daemon's name for a model or a memory that this session registered; NULL: no such. */
const struct model *session_model(const struct session *s, uint32_t id);
struct mapping *session_memory(const struct session *s, uint32_t id);

/* Pins. -ENOMEM; -ENOSPC: a limit; -ENOENT: not pinned by this session. */
int session_pin(struct session *s, struct index_entry *e);
int session_unpin(struct session *s, const struct index_key *id);

#endif
