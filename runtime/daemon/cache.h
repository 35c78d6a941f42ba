/*
 * The cache: which chunks there are, and their records in the pool and on disk. It joins index, pool, store
 * and eviction policy: what a frame holds is the codec's business. Every function runs on the front thread
 * and none blocks; what takes time calls back later, from cache_reap(), cache_tick() or from whichever call
 * made room.
 *
 * The life of an entry: reserved (being encoded, found by nobody) -> filled (record in the pool, then written
 * to the store in the background) -> evicted (on disk only) -> fetched (in both again) -> removed. Without a
 * store an entry that is evicted is gone; so is one that goes from the disk for want of room there, unless it
 * is in the pool.
 *
 * Holding an entry keeps the record where it is while a worker reads it. An entry that is removed meanwhile
 * is dead: it can no longer be found, and goes when the last holder lets go.
 *
 * Writing never holds up reading: only so many bytes are on their way to the disk at a time; what waits
 * beyond that can be evicted like anything else, and is lost then, which SYNC tells. When the disk fails, the
 * cache goes on with the pool alone, tries again from time to time, and writes what is still there once it
 * can.
 */
#ifndef RUNTIME_DAEMON_CACHE_H
#define RUNTIME_DAEMON_CACHE_H

#include <stdbool.h>

#include "runtime/index.h"
#include "runtime/pool.h"
#include "runtime/stats/board.h"
#include "runtime/store.h"

struct cache;

/* Somebody who waits. Owned by the caller, untouched by it until fn is called (once). fn may call the cache,
 * and may free the wait. */
struct cache_wait {
	void (*fn)(struct cache_wait *wait, int status);
	struct cache_wait *next; /* the cache's own */
};

enum cache_store_state {
	CACHE_STORE_NONE, /* there is no store */
	CACHE_STORE_GOOD,
	CACHE_STORE_FAILING, /* writes fail: the pool alone serves, and the disk is tried again now and then
			      */
};

struct cache_stats {
	uint64_t n_entries, n_in_pool, n_on_disk;
	uint64_t n_hits, n_misses; /* chunks looked up */
	uint64_t n_filled, n_evicted, n_dropped, n_removed, n_fetched, n_replaced;
	uint64_t n_write_errors, n_read_errors;
	uint64_t n_lost;                 /* evicted before they were written */
	uint64_t n_disk_evicted;         /* gone from the disk for want of room there */
	uint64_t n_moved;                /* records written anew so that a segment comes free */
	uint64_t n_unwritten;            /* records that wait to be written */
	uint64_t writing_bytes;          /* on their way to the disk */
	uint64_t frame_bytes, raw_bytes; /* of all entries */
	uint64_t index_bytes;
	enum cache_store_state store_state;
	int store_error; /* FAILING: the last -errno */
};

/* A namespace's part. Quotas: 0 for none. */
struct cache_share {
	uint8_t name_space[16];
	uint64_t pool_quota, store_quota;
	uint64_t pool_bytes, store_bytes;
	uint64_t n_chunks, frame_bytes, raw_bytes;
};

/* The pool and the store (may be NULL) are borrowed and must outlive the cache. */
struct cache *cache_new(struct pool *pool, struct store *store);
/* Nothing may be held or waiting. */
struct cache *cache_free(struct cache *c);

/* For store_open: enters a record found on disk. arg: the struct cache, made with a NULL store; cache_attach
 * gives it the store. */
void cache_found(void *arg, const struct store_record *record);
void cache_attach(struct cache *c, struct store *store);

/* From here on chunks, bytes and store latencies are counted on the board, which is borrowed. */
void cache_count_on(struct cache *c, struct board *board);

/* fn is called with the number of every entry that dies or gets another frame, before its number means
 * something else. One at a time. */
void cache_tell_gone(struct cache *c, void (*fn)(void *arg, uint32_t number), void *arg);

/* Bounds what a namespace may take of either tier; what is over goes when room is next needed. -ENOMEM. */
int cache_set_quota(struct cache *c, const uint8_t name_space[16], uint64_t pool_bytes, uint64_t store_bytes);
/* The n-th namespace that there is something known of; false: no more. */
bool cache_get_share(const struct cache *c, size_t n, struct cache_share *out);

/* A chunk that is there in full, counted as a hit or a miss, and as used. NULL: not cached. */
struct index_entry *cache_find(struct cache *c, const struct index_key *id);
/* The same, not counted. */
struct index_entry *cache_peek(struct cache *c, const struct index_key *id);
/* How many chunks of a chain are there, from its start. Counted as hits and misses, not as used: engines ask
 * often, and get what they want to use. */
size_t cache_look(struct cache *c, const uint8_t owner[16], const uint8_t (*keys)[32], size_t n);
/* Whether the chunk is being encoded now. */
bool cache_is_reserved(struct cache *c, const struct index_key *id);
void cache_id(const struct cache *c, const struct index_entry *e, struct index_key *out);
/* The transform that its frame is made with; zero: the plain codec. */
const uint8_t *cache_transform(const struct cache *c, const struct index_entry *e);
/* Whose it is. */
const struct index_owner *cache_owner(const struct cache *c, const struct index_entry *e);
/* Calls fn for every entry, in no order. It may hold the entry, and is to leave the cache alone otherwise. */
void cache_each(struct cache *c, void (*fn)(void *arg, struct index_entry *e), void *arg);

void cache_hold(struct index_entry *e);
void cache_release(struct cache *c, struct index_entry *e);

/* Keeps an entry from eviction, also one that is removed meanwhile: it is unpinned all the same. -ENOSPC:
 * pinned too often. */
int cache_pin(struct index_entry *e);
void cache_unpin(struct cache *c, struct index_entry *e);

/* A new entry for a chunk about to be encoded, held by the caller. NULL: out of memory. */
struct index_entry *cache_reserve(struct cache *c, const struct index_key *id);
/* Puts the frame into the pool and starts writing it to the store; calls wait->fn with 0 when it is in the
 * pool, or -ENOSPC when the pool can never take it. what: all but key, frame_bytes and location; copied.
 * frame is malloc'd and the cache's from now on. The caller's hold stays. */
void cache_fill(struct cache *c, struct index_entry *e, const struct store_record *what, uint8_t *frame,
	size_t frame_bytes, struct cache_wait *wait);
/* Puts another frame of the same chunk in the place of the one that a held entry has in the pool, over it
 * when it is no larger; the old one goes from the store when the new one is there. Does not wait: -EBUSY:
 * others use the record, or it is on its way to or from the disk; -ENOSPC: no room now; both leave everything
 * as it was and the frame to the caller. With 0 the frame is the cache's. The hold stays. */
int cache_replace(struct cache *c, struct index_entry *e, uint8_t *frame, size_t frame_bytes,
	const uint8_t transform[16]);
/* Chunks of the pool from the coldest on, as the policy would let them go, and of each kind no more than a
 * share of the bytes; see evict_next_cold. NULL: the walk is at its end. Some may be in use. */
struct index_entry *cache_next_cold(struct cache *c, struct evict_walk *walk, double share);
/* The chunk before it in its chain; NULL: none, or not known. */
struct index_entry *cache_parent(struct cache *c, const struct index_entry *e);
/* Encoding failed: the entry goes; ends the caller's hold. */
void cache_abandon(struct cache *c, struct index_entry *e);

/* Brings the record of a held entry into the pool; calls wait->fn with 0 when it is there (at once, when it
 * is), -ENOSPC when the pool can never take it, -EIO or -EBADMSG when it could not be read: then the entry is
 * removed. */
void cache_fetch(struct cache *c, struct index_entry *e, struct cache_wait *wait);

/* The frame of a held entry whose record is in the pool. */
const void *cache_frame(const struct index_entry *e);

/* Forgets a chunk. wait (may be NULL) is called when that is durable. */
void cache_remove(struct cache *c, struct index_entry *e, struct cache_wait *wait);
/* Forgets all chunks of a namespace. wait (may be NULL) is called when that is durable. Returns how many. */
size_t cache_purge(struct cache *c, const uint8_t name_space[16], struct cache_wait *wait);

/* Calls wait->fn when everything filled so far, and not evicted, is on stable storage. -ENOTSUP: no store;
 * -EIO: something could not be written. */
void cache_sync(struct cache *c, struct cache_wait *wait);

/* Takes what the store has finished. To be called when store_fd() is readable. */
void cache_reap(struct cache *c);
/* Tries again what is to be tried again by now. Returns in how many ms to call it next; -1: no need. */
int cache_tick(struct cache *c);

/* Drops the pool's copy of everything that is on disk and not in use. Returns how many. */
size_t cache_drop_pool(struct cache *c);

/* Chunks that were filled and are gone, though no SYNC said so, for they could not be written in time. */
uint64_t cache_n_lost(const struct cache *c);
/* Store operations in flight. */
size_t cache_n_busy(const struct cache *c);
/* The counters alone, which takes no time; what is looked up elsewhere is 0. */
const struct cache_stats *cache_counters(const struct cache *c);
/* For looking at, chunk by chunk. */
const struct index *cache_index(const struct cache *c);
void cache_get_stats(struct cache *c, struct cache_stats *out);

#endif
