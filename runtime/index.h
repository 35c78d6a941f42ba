/*
 * The chunk index: which chunks are cached and where. A hash table from (namespace, model, key) to an entry,
 * plus the recency order that eviction takes victims from. Owned by the front thread; no lock, no I/O.
 */
#ifndef RUNTIME_INDEX_H
#define RUNTIME_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/store.h"

struct index;

/* What identifies a chunk. owner: XXH3-128 over namespace id and model
 * fingerprint (the key of a chunk alone is chosen by clients). */
struct index_key {
	uint8_t owner[16];
	uint8_t key[32];
};

void index_key_make(struct index_key *out, const uint8_t name_space[16], const uint8_t fingerprint[16],
	const uint8_t key[32]);

struct index_entry {
	struct index_key id;
	uint8_t parent[32];
	uint8_t name_space[16];
	uint8_t fingerprint[16];
	uint8_t transform[16]; /* that the frame is made with; zero: the plain codec */
	void *record;          /* in the pool: STORE_HEADER_BYTES, then the frame; NULL: not there */
	uint32_t frame_bytes;  /* 0: being encoded now */
	uint32_t n_tokens;
	uint64_t raw_bytes;
	uint64_t position;
	struct store_location location; /* len_pages 0: not on disk */
	struct store_location replaced; /* what is on disk until a better frame of the chunk is, or 0 */
	uint64_t serial; /* never given twice: tells a new entry from an old one of the same key */
	uint32_t n_pins;
	uint32_t n_users;  /* operations that read or write the record now: not to be moved or freed */
	bool writing;      /* a store write is in flight */
	bool reading;      /* a store read is in flight */
	bool anew_in_vain; /* making its plain frame anew was tried, and does not pay */
	bool dead;         /* detached while in use: its owner frees it when the last user lets go */
	void *waiters;     /* the cache's: who waits for the record */
	struct index_entry *hash_next;
	struct index_entry *newer, *older; /* recency list of entries that are in the pool */
};

struct index *index_new(void);
/* Frees the table and its entries; pool memory is the caller's to release first (index_each). */
struct index *index_free(struct index *x);

struct index_entry *index_find(struct index *x, const struct index_key *id);
/* A new, empty entry; NULL when out of memory. The key must not be there. */
struct index_entry *index_add(struct index *x, const struct index_key *id);
/* Takes it out of table and list; it is the caller's to free() then. Its key may be added anew at once. */
void index_detach(struct index *x, struct index_entry *e);
/* The same, and frees it. */
void index_remove(struct index *x, struct index_entry *e);

/* Recency: marks as just used (adds to the list when it has a record); takes out of the list. */
void index_touch(struct index *x, struct index_entry *e);
void index_untrack(struct index *x, struct index_entry *e);
/* The least recently used entry in the pool that is neither pinned nor in use nor being written; or NULL.
 * Children go before parents when both are equally old: touch a chain from its end to its start. */
struct index_entry *index_victim(struct index *x);

/* Calls fn for each entry, in no order; fn may remove the entry it is given, but neither another nor add one.
 */
void index_each(struct index *x, void (*fn)(void *arg, struct index_entry *e), void *arg);

size_t index_count(const struct index *x);

#endif
