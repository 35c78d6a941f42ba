/*
 * What the store's thread does: takes operations in the order they were submitted, gives writes their place,
 * keeps up to depth of them in flight, syncs for all who wait at once, and changes segments. Everything here
 * belongs to that one thread and nothing waits but engine_wait.
 *
 * An operation in flight is a task. Syncs go by rounds: a round syncs every segment that was written to, and
 * the directory if files were made, and ends all the SYNC and REMOVE operations that were ready when it
 * began. Those that become ready meanwhile wait for the next, so a busy disk is not asked for a sync each.
 */
#ifndef RUNTIME_STORE_ENGINE_H
#define RUNTIME_STORE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/store/io.h"
#include "runtime/store/op-list.h"
#include "runtime/store/segment.h"
#include "runtime/store.h"

struct engine;

struct task {
	struct io_request io;
	struct engine *engine;
	struct store_op *op;
	struct segment *segment;
	struct format_record header; /* WRITE, REMOVE: as written */
	uint32_t slot;
	uint64_t serial; /* WRITE, REMOVE: the how manieth write; SYNC: the last write to wait for */
	void *page;      /* REMOVE, PURGE: the record; kept for the next */
	void *list_data; /* LIST: the footer */
	struct task *next;
};

struct engine {
	struct io io;
	struct segments segments;
	struct segment *open;  /* NULL: none */
	struct segment *spare; /* made ahead of its use; NULL: none */
	bool spare_tried;      /* since open was opened */
	uint64_t limit_bytes, segment_bytes;
	uint64_t next_sequence;

	struct op_list reads;    /* submitted, not started: they go first, since somebody waits for them */
	struct op_list others;   /* in the order of submission */
	struct op_list finished; /* the caller's to take */

	struct task *tasks; /* [n_tasks] */
	uint32_t depth;     /* of reads, and of all else, each */
	uint32_t n_tasks;   /* more than depth, so that reads can start however much is being written */
	uint32_t n_busy_reads, n_busy_others;
	struct task *idle;
	uint64_t serial;           /* of the last write started */
	struct task *syncs;        /* wait for writes, or for a round to join */
	struct task *round;        /* joined the round that is under way */
	uint32_t n_round_requests; /* in flight of that round */
	int round_status;
	struct io_request dir_sync;
	uint32_t n_closing; /* segments that are being closed */
	uint32_t n_full;    /* of them, those that wait for a sync, and then for their footers */
	bool close_now;     /* they are not to wait for more of their kind */
	bool wound_up;      /* the last sync was begun */

	struct store_stats stats; /* the counts; what can be looked up is filled in by engine_get_stats */
};

/* Sizes and depth in config are complete and make sense. dir_fd: the caller's. -ENOMEM. What is still missing
 * then is e->segments' content and e->next_sequence, by scan_directory, and e->io, which the thread itself
 * makes, with room for engine_requests(e), and ends. */
int engine_init(struct engine *e, const struct store_config *config, int dir_fd, bool direct);
uint32_t engine_requests(const struct engine *e);
/* Nothing may be in flight. May follow a failed engine_init, or none. */
void engine_fini(struct engine *e);

/* Takes an operation, to be started when its turn comes. It ends in e->finished. */
void engine_submit(struct engine *e, struct store_op *op);
/* Starts what can be started. */
void engine_turn(struct engine *e);
/* Waits for wake_fd or the end of some request, and deals with that. */
void engine_wait(struct engine *e);
/* Whether all operations have finished. */
bool engine_is_idle(const struct engine *e);
/* When idle: begins to close the open segment. True once there is nothing more to wait for. */
bool engine_wind_up(struct engine *e);

void engine_get_stats(const struct engine *e, struct store_stats *out);

#endif
