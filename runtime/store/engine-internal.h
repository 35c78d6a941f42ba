/* What the files of the engine share: engine.c has the tasks and the turn, engine-write.c records, tombstones
 * and the closing of segments, engine-read.c reading, engine-sync.c syncs. The store's thread. */
#ifndef RUNTIME_STORE_ENGINE_INTERNAL_H
#define RUNTIME_STORE_ENGINE_INTERNAL_H

#include "runtime/store/engine.h"

static inline bool is_aligned(const void *data)
{
	return data && (uintptr_t)data % STORE_ALIGN == 0;
}

/* Ends a task and its operation. */
void engine_finish_task(struct task *t, int status);
/* Starts the task's request on its segment. */
void engine_start_io(struct task *t, enum io_kind kind, int fd, void *data, uint64_t len, uint64_t offset,
	void (*done)(struct io_request *, int));

/* Each starts a task's operation. -EAGAIN: it must be tried again when something has ended; another -errno
 * ends it. */
int engine_start_record(struct task *t);
int engine_start_tombstone(struct task *t);
int engine_start_read(struct task *t);
int engine_start_list(struct task *t);
void engine_start_sync(struct task *t);

/* Does in advance what takes long about a write: makes the checksum of one that waits its turn. False: there
 * is nothing to do. */
bool engine_prepare_write(struct engine *e);
/* Deletes the segment that was made ahead, if any. False: its header is still being written. */
bool engine_drop_spare(struct engine *e);
/* Whether the store has so few segments that it needs the room of each. */
static inline bool engine_is_small(const struct engine *e)
{
	return e->limit_bytes / 16 < e->segment_bytes;
}

/* Begins to close the open segment, which it is. */
void engine_close_segment(struct engine *e, struct segment *g);
/* Gives a segment that is being closed its footer, if all of its records are stable by now: what a footer
 * names is believed at the next start. !can_sync: they will not be; it gets none. For others nothing happens.
 */
void engine_go_on_closing(struct segment *g, bool can_sync);
/* Starts a round, when there is none. */
void engine_start_round(struct engine *e);
/* Starts a round for those who wait, when there is none. Whether it has ended already. */
bool engine_sync_what_waits(struct engine *e);

#endif
