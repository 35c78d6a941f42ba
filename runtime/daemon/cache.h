/*
 * The cache: which chunks there are, and their records in the pool and on disk. It joins index, pool and
 * store and decides nothing else: what a frame holds is the codec's business. Every function runs on the
 * front thread and none blocks; what takes time calls back later, from cache_reap() or from whichever call
 * made room.
 *
 * The life of an entry: reserved (being encoded, found by nobody) -> filled (record in the pool, then written
 * to the store in the background) -> evicted (on disk only) -> fetched (in both again) -> removed. Without a
 * store, or when its write failed, an entry that is evicted is gone.
 *
 * Holding an entry keeps the record where it is while a worker reads it. An entry that is removed meanwhile
 * is dead: it can no longer be found, and goes when the last holder lets go.
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

struct cache_stats {
	uint64_t n_entries, n_in_pool, n_on_disk;
	uint64_t n_hits, n_misses; /* chunks looked up */
	uint64_t n_filled, n_evicted, n_dropped, n_removed, n_fetched, n_replaced;
	uint64_t n_write_errors, n_read_errors;
	uint64_t frame_bytes, raw_bytes; /* of all entries */
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

/* A chunk that is there in full, counted as a hit or a miss, and as used. NULL: not cached. */
struct index_entry *cache_find(struct cache *c, const struct index_key *id);
/* The same, not counted. */
struct index_entry *cache_peek(struct cache *c, const struct index_key *id);
/* Whether the chunk is being encoded now. */
bool cache_is_reserved(struct cache *c, const struct index_key *id);

void cache_hold(struct index_entry *e);
void cache_release(struct cache *c, struct index_entry *e);

/* A new entry for a chunk about to be encoded, held by the caller. NULL: out of memory. */
struct index_entry *cache_reserve(struct cache *c, const struct index_key *id);
/* Puts the frame into the pool and starts writing it to the store; calls wait->fn with 0 when it is in the
 * pool, or -ENOSPC when the pool can never take it. frame is malloc'd and the cache's from now on. The
 * entry's n_tokens, position, raw_bytes, parent, name_space, fingerprint and transform are set by the caller
 * before. The caller's hold stays. */
void cache_fill(
	struct cache *c, struct index_entry *e, uint8_t *frame, size_t frame_bytes, struct cache_wait *wait);
/* Puts another frame of the same chunk in the place of the one that a held entry has in the pool; the old one
 * goes from the store when the new one is there. Does not wait: -EBUSY: others use the record, or it is on
 * its way to or from the disk; -ENOSPC: no room now; both leave everything as it was and the frame to the
 * caller. With 0 the frame is the cache's. The hold stays. */
int cache_replace(struct cache *c, struct index_entry *e, uint8_t *frame, size_t frame_bytes,
	const uint8_t transform[16]);
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

/* Calls wait->fn when every write started so far is on stable storage. -ENOTSUP: no store. */
void cache_sync(struct cache *c, struct cache_wait *wait);

/* Calls fn for every entry, in no order. It may hold the entry, and is to leave the cache alone otherwise. */
void cache_each(struct cache *c, void (*fn)(void *arg, struct index_entry *e), void *arg);

/* Takes what the store has finished. To be called when store_fd() is readable. */
void cache_reap(struct cache *c);

/* Drops the pool's copy of everything that is on disk and not in use. Returns how many. */
size_t cache_drop_pool(struct cache *c);

/* Writes to the store that have failed so far. */
uint64_t cache_n_write_errors(const struct cache *c);
/* Store operations in flight. */
size_t cache_n_busy(const struct cache *c);
void cache_get_stats(struct cache *c, struct cache_stats *out);
/* The counters alone, which takes no time; what is a sum over entries is 0. */
const struct cache_stats *cache_counters(const struct cache *c);

#endif
