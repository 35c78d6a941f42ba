/*
 * Inside libcistern: the connection as its files see it. client.c begins and ends it, client-register.c makes
 * the round trips on the socket, client-request.c queues and submits, client-completion.c takes completions
 * and waits for them.
 */
#ifndef SHM_CLIENT_H
#define SHM_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "shm/arena.h"
#include "shm/cistern.h"
#include "shm/message.h"
#include "shm/ring.h"
#include "shm/segment.h"

enum { CLIENT_ERROR_MAX = 512, CLIENT_HANDSHAKE_MS = 5000, CLIENT_REGISTER_MS = 30000 };

/* A request between its submission and its last completion. Its index and generation travel as the wire's
 * user_data, so that a completion the daemon made up, or sends twice, is not taken for one of ours. */
struct flight {
	uint64_t user_data; /* the engine's */
	uint64_t arena_offset;
	uint64_t arena_len; /* 0: none */
	uint32_t n_chunks;  /* as asked */
	uint32_t generation;
	bool live;
};

/* What was registered: for checking what refers to it, and to be registered anew with another daemon. id is
 * the engine's name for it, the same for the life of the handle; wire_id the daemon's. */
struct client_model {
	uint32_t id, wire_id;
	uint32_t n_layouts;      /* layers x planes */
	uint32_t key_head_bytes; /* one head of one token of plane 0 */
	void *message;           /* as it was sent; malloc'd */
	size_t message_len;
};

struct client_memory {
	uint32_t id, wire_id;
	uint32_t model_id;
	uint32_t block_tokens;
	uint32_t n_blocks;
	uint32_t key_head_bytes; /* its model's */
	bool on_device;
	int fds[WIRE_PART_FDS_MAX]; /* descriptors of our own */
	uint32_t n_fds;
	void *message;
	size_t message_len;
};

/* Events that were registered together: ids [id, id + n). */
struct client_events {
	uint32_t id, wire_id;
	uint32_t n;
	void *message;
	size_t message_len;
};

struct cistern {
	int socket;
	int sq_ringer;
	int cq_sleeper;
	struct segment segment;
	struct ring_producer sq;
	struct ring_consumer cq;
	struct arena arena;
	struct flight *flights; /* [n_flights] */
	uint32_t *idle;         /* [n_idle] indices of flights that are free, a stack */
	uint32_t n_flights;     /* as many as the completion ring has entries */
	uint32_t n_idle;
	struct client_model *models;
	uint32_t n_models;
	struct client_memory *memories;
	uint32_t n_memories;
	struct client_events *events;
	uint32_t n_events; /* registrations */
	char *socket_path; /* as given; NULL: the default */
	struct wire_hello hello;
	uint32_t chunk_tokens;
	uint32_t spin_us;
	bool gone;         /* the daemon hung up, or broke the protocol */
	bool broken;       /* the latter: what the rings say is not to be believed any more */
	bool watched;      /* cistern_fd was called: somebody else sleeps on the doorbell */
	int64_t looked_ns; /* when the socket was last looked at */
	char error[CLIENT_ERROR_MAX];
};

/* Connects by c->socket_path and c->hello and sets everything up but what was registered. c holds nothing of
 * a connection before; after a failure client_disconnect is still to be called. */
int client_connect(struct cistern *c);
/* Lets go of the connection and what hangs on it, but not of what was registered. */
void client_disconnect(struct cistern *c);
/* Sends a registration and takes the id from its answer. fds stay the caller's. */
int client_ask(struct cistern *c, const void *message, size_t len, const int *fds, uint32_t n_fds,
	int timeout_ms, uint32_t *id);
void client_forget_memory(struct client_memory *m);
void client_forget_model(struct client_model *m);
void client_forget_events(struct client_events *e);
/* What the daemon calls n events from id on. -EINVAL, with the sentence kept: they are not registered, or not
 * together. n 0: none, whatever id is. */
int client_wire_events(struct cistern *c, uint32_t id, uint32_t n, uint32_t *wire_id);
/* More room for a list of n items, each of item_bytes, when it is full; NULL: out of memory. */
void *client_grow(void *list, uint32_t n, size_t item_bytes);
/* By the engine's name for it, which is the daemon's too until a reconnection. NULL: not registered. */
const struct client_memory *client_memory(const struct cistern *c, uint32_t id);
const struct client_model *client_model(const struct cistern *c, uint32_t id);

/* Keeps the sentence for cistern_error and returns status. */
int client_fail(struct cistern *c, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The connection is over; keeps the sentence, unless there is one about an earlier end. Returns -ENOTCONN. */
int client_lost(struct cistern *c, bool broken, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Looks whether the daemon has hung up or has something to say on the socket; marks the connection lost.
 * Does not block. */
void client_look(struct cistern *c);

/* Connects to the daemon at path (NULL: the default). *fd is the caller's. why gets the sentence on failure.
 */
int client_dial(const char *path, int timeout_ms, int *fd, char *why, size_t why_len);

#endif
