/* What the cache's files share: cache.c has the life of an entry, remove.c its end
 * by order, room.c who gets what part of the pool,
 * spill.c the way to the disk and back, reclaim.c room on the disk. Front thread. */
#ifndef RUNTIME_DAEMON_CACHE_INTERNAL_H
#define RUNTIME_DAEMON_CACHE_INTERNAL_H

#include "policy/evict.h"
#include "runtime/daemon/cache.h"

/* Room in the pool that somebody waits for: to fill an entry with a frame, or (frame NULL) to read its record
 * back, for all of the entry's waiters. */
struct need {
	struct need *next;
	struct index_entry *entry;
	uint8_t *frame;
	size_t frame_bytes;
	struct store_record what;
	struct cache_wait *wait;
	uint64_t since_ms; /* when it was first refused; 0: not yet */
};

/* A store operation of ours. */
struct cache_op {
	struct store_op op;                                 /* first: store_reap returns this */
	void (*done)(struct cache *c, struct cache_op *op); /* which frees it, or uses it again */
	struct index_entry *entry;
	struct cache_wait *wait;        /* REMOVE, PURGE, SYNC */
	uint64_t n_failures;            /* SYNC: as of its start */
	struct store_location replaced; /* WRITE: where an older frame of the chunk is; segment 0: nowhere */
	uint64_t submitted_ns;
	void *buffer;          /* of a record on the move that is not in the pool */
	uint64_t bytes;        /* WRITE: counted in writing_bytes */
	struct cache_op *next; /* SYNC: parked */
};

/* A segment that is being emptied. */
struct reclaim {
	bool active;
	bool failed; /* something could not be moved: the segment stays */
	struct store_list *list;
	uint32_t next;                /* record of the list */
	uint32_t n_active;            /* operations in flight */
	struct store_location *moved; /* [n_moved]: old places, to be forgotten once the new ones are safe */
	uint32_t n_moved;
};

struct cache {
	struct index *index;
	struct pool *pool;
	struct store *store;
	struct board *board;                      /* NULL: nobody counts */
	void (*gone)(void *arg, uint32_t number); /* NULL: nobody asks */
	void *gone_arg;
	struct evict in_pool, on_disk;
	struct cache_share
		*shares; /* an owner's tag: 1 + the place of its namespace here; 0: not known yet */
	size_t n_shares;
	struct need *needs, **needs_end; /* in order of arrival: who waits for room in the pool */
	size_t n_busy;                   /* store operations in flight */
	size_t n_dead;                   /* entries that wait for their last user */
	bool serving;                    /* needs are being served now */

	/* Children found on disk before their parents, until the store is attached. */
	struct orphan *orphans;
	size_t n_orphans, orphans_capacity;

	/* The way to the disk. */
	struct evict_list unwritten; /* by the on_disk nodes */
	uint64_t writing_bytes, writing_max;
	bool full; /* the store is at its limit: nothing is written before reclaim has made room */
	bool failing;
	int error;
	uint64_t retry_ms; /* full, failing: when to try again; on the monotonic clock */
	uint32_t backoff_ms;
	uint64_t slow_ms;        /* until then nobody waits for writes: the disk was too slow */
	uint64_t n_failures;     /* writes that failed for good or for now */
	struct cache_op *parked; /* SYNCs that wait for room on the disk */
	struct reclaim reclaim;

	struct cache_stats stats;
};

struct orphan {
	uint32_t number;
	uint8_t parent[32];
};

/* Flags of an entry's nodes. */
enum {
	IN_POOL_BURIED = 1, /* dead, and holds nothing any more, but others hold it */
	ON_DISK_REPLACING =
		1, /* waits to be written, or is, and an older frame of it is on disk: see its draft */
};

static inline size_t record_bytes(size_t frame_bytes)
{
	return STORE_HEADER_BYTES + frame_bytes;
}

static inline size_t pages_of(size_t len_bytes)
{
	return (len_bytes + STORE_ALIGN - 1) / STORE_ALIGN * STORE_ALIGN;
}

static inline bool is_idle(const struct index_entry *e)
{
	return !e->n_users && !e->writing && !e->reading;
}

/* cache.c */
struct cache_share *share_of(struct cache *c, const struct index_entry *e);
/* Fills in what a record says. Once for each entry. */
void describe(struct cache *c, struct index_entry *e, const struct store_record *r);
/* To be called right before it comes to be in either tier, for until then nothing keeps its parent. */
void link_parent(struct cache *c, struct index_entry *e, const uint8_t parent[32]);
/* Puts a record in its place. */
void set_record(struct cache *c, struct index_entry *e, void *record);
/* The entry leaves the pool (is_dropped: for want of room). */
void drop_record(struct cache *c, struct index_entry *e, bool is_dropped);
void set_location(struct cache *c, struct index_entry *e, const struct store_location *l);
void drop_location(struct cache *c, struct index_entry *e, bool is_dropped);
/* Nobody finds it any more; it goes with its last user. */
void kill_entry(struct cache *c, struct index_entry *e);
/* To be called when a dead entry's user may have been the last. */
void bury(struct cache *c, struct index_entry *e);

/* room.c */
/* -ENOSPC: not now, what is there is in use, or (unless unwritten is true) waits to be written. -ENOMEM: it
 * is larger than the pool, or the rest is pinned; the same for the namespace's part of the pool. */
int make_room(
	struct cache *c, const struct cache_share *share, size_t len_bytes, bool unwritten, void **addr);
/* When a need that waits for writes has waited for long enough; UINT64_MAX: there is none. */
uint64_t needs_deadline_ms(const struct cache *c);
/* Queues a need and serves what can be served. -ENOMEM. */
int add_need(struct cache *c, const struct need *need);
void serve_needs(struct cache *c);

/* spill.c */
struct cache_op *op_new(struct index_entry *e, enum store_op_kind kind, struct cache_wait *wait,
	void (*done)(struct cache *c, struct cache_op *op));
void submit(struct cache *c, struct cache_op *op);
/* A record is to be written; its header is a draft, with the location of what it replaces. */
void queue_write(struct cache *c, struct index_entry *e);
void unqueue_write(struct cache *c, struct index_entry *e);
/* The older frame of one that is not written any more. */
void forget_replaced(struct cache *c, struct index_entry *e);
/* Writes what there is room for. */
void pump_writes(struct cache *c);
int start_read(struct cache *c, struct index_entry *e, void *record);
/* The record cannot be had: everybody who waits for it is told. */
void fail_read(struct cache *c, struct index_entry *e, int status);
/* A write has come back. */
void note_write(struct cache *c, int status);
/* There may be room on the disk again, or none to be had (hopeless). */
void room_on_disk(struct cache *c, bool hopeless);
uint64_t cache_now_ms(void);

/* reclaim.c */
/* Starts to make room on the disk if it is needed and not under way. */
void reclaim_check(struct cache *c);
/* Makes room in a namespace's part of the disk. False: it cannot be had. */
bool reclaim_quota(struct cache *c, struct cache_share *share, uint64_t bytes);
void reclaim_fini(struct cache *c);

#endif
