/*
 * The daemon: one front thread that owns every structure and never blocks, workers that encode and decode,
 * the store's thread, and a lane for each engine on the GPU. The front thread sleeps in epoll on the
 * listening socket, signals, every session's socket and doorbell, finished jobs and finished disk operations.
 */
#ifndef RUNTIME_DAEMON_DAEMON_H
#define RUNTIME_DAEMON_DAEMON_H

#include "runtime/config.h"
#include "runtime/daemon/cache.h"
#include "runtime/daemon/learn/learn.h"
#include "runtime/daemon/events.h"
#include "runtime/daemon/governor/governor.h"
#include "runtime/daemon/notify.h"
#include "runtime/daemon/policies.h"
#include "runtime/daemon/registry.h"
#include "runtime/daemon/session.h"
#include "runtime/daemon/steward/steward.h"
#include "runtime/daemon/worker.h"
#include "runtime/stats/board.h"
#include "runtime/stats/exporter.h"

enum { DAEMON_OPS = 10 };

struct fidelity;
struct gpu;

struct daemon_counters {
	uint64_t n_requests[DAEMON_OPS]; /* by enum wire_op */
	uint64_t n_taken;                /* requests of all kinds but NOP: numbers them */
	uint64_t n_connections;
	uint64_t n_put_chunks, n_get_chunks; /* encoded; decoded */
	uint64_t put_frame_bytes, put_raw_bytes;
	uint64_t put_raw_section_bytes; /* of put_frame_bytes: tokens kept bit for bit */
	uint64_t n_bad_requests;
};

struct daemon {
	const struct config *config;
	const struct kernels *kernels;
	struct policies *policies;
	struct governor *governor;
	struct events *events;
	struct pool *pool;
	struct store *store; /* NULL: none */
	struct cache *cache;
	struct registry *registry;
	struct workers *workers;
	struct learn *learn;
	struct fidelity *fidelity;
	struct steward *steward;
	struct board *board;
	struct gpu *gpu; /* NULL: none */
	struct notify notify;
	struct exporter *exporter; /* NULL: no metrics */
	uint32_t n_workers;
	int epoll, listener, signals;
	struct session *sessions;
	struct session *dirty;
	struct session *asking; /* whose control command is being carried out */
	uint32_t n_sessions, next_session_id;
	uint64_t started_ms;
	bool stopping;
	bool draining; /* no new engines are taken */
	struct daemon_counters counters;
	uint8_t message[WIRE_MESSAGE_MAX]; /* the one being handled */
};

/* Sets up everything that config names; signals SIGTERM and SIGINT are taken from here on. Says why in the
 * log and returns -errno when it cannot. config is borrowed until daemon_fini. */
int daemon_init(struct daemon *d, const struct config *config);
/* Serves until SIGTERM or SIGINT. 0, or -errno. Blocks. */
int daemon_run(struct daemon *d);
/* Closes sessions, lets what is in flight end, syncs and closes the store, removes the socket. */
void daemon_fini(struct daemon *d);

uint64_t daemon_now_ms(void);

/* Registers a descriptor with the loop. kind and session come back in daemon_run. */
enum daemon_source {
	SOURCE_LISTENER,
	SOURCE_SIGNALS,
	SOURCE_WORKERS,
	SOURCE_STORE,
	SOURCE_SOCKET,
	SOURCE_DOORBELL,
	SOURCE_LEARN,
	SOURCE_FIDELITY,
	SOURCE_STEWARD,
	SOURCE_PROCESS,
	SOURCE_GPU
};
int daemon_watch(struct daemon *d, int fd, enum daemon_source source, struct session *s);
/* Stops and resumes listening for a session's messages; a hang-up is noticed all the same. */
void daemon_pause_socket(struct daemon *d, struct session *s, bool paused);
void daemon_mark_dirty(struct daemon *d, struct session *s);

#endif
