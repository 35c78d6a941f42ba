/*
 * The chunk index: which chunks are cached and where. A hash table from (namespace, model, key) to an entry.
 * There may be millions of entries, so each takes 104 bytes and 4 to 8 of the table: entries lie in blocks
 * and have numbers, which links are made of; what all chunks of one namespace and model have in common stands
 * once. An entry stays where it is as long as it lives. Owned by the front thread; no lock, no I/O.
 */
#ifndef RUNTIME_INDEX_H
#define RUNTIME_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "policy/evict.h"
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

/* A model in a namespace. */
struct index_owner {
	uint8_t digest[16]; /* as in struct index_key */
	uint8_t name_space[16];
	uint8_t fingerprint[16];
	uint32_t tag;  /* the caller's, as given to index_name_owner; 0 before */
	uint32_t next; /* the index's own */
};

enum { INDEX_PINS_MAX = INT16_MAX, INDEX_PRESET_UNKNOWN = 7 };

struct index_entry {
	uint8_t key[32];
	void *record;          /* in the pool: STORE_HEADER_BYTES, then the frame; NULL: not there */
	void *waiters;         /* the cache's: who waits for the record */
	uint16_t owner;        /* see index_owner; 0: the entry is free */
	uint16_t transform;    /* that the frame is made with: see index_transform */
	uint32_t hash_next;    /* the index's own */
	uint32_t parent;       /* the number of the entry before it in its chain; 0: none, or not known */
	uint32_t frame_bytes;  /* 0: being encoded now */
	uint32_t segment;      /* where it is on disk: see index_location */
	uint32_t page;         /* 0: not on disk */
	uint32_t raw_bytes;    /* before encoding; UINT32_MAX: at least so many */
	uint32_t n_users : 24; /* operations that read or write the record now: not to be moved or freed */
	uint32_t preset : 3;   /* that it was put with, enum policy_preset; INDEX_PRESET_UNKNOWN */
	uint32_t settled : 1;  /* its frame has no window that could move on, as far as is known */
	uint32_t awaits : 1;   /* it is in line to be settled */
	uint32_t coarse_in_vain : 1; /* making it coarser was tried, and would pass the bound or not pay */
	struct evict_node in_pool, on_disk; /* its place among what may have to go, in either tier */
	uint16_t n_pins : 15;
	uint16_t anew_in_vain : 1; /* making its plain frame anew was tried, and does not pay */
	uint16_t n_tokens : 13;
	uint16_t writing : 1; /* a store write is in flight */
	uint16_t reading : 1; /* a store read is in flight, or waits for room */
	uint16_t dead : 1;    /* detached: its owner frees it when nobody has it any more */
};

struct index *index_new(void);
/* Frees the table and its entries; pool memory is the caller's to release first (index_each). */
struct index *index_free(struct index *x);

struct index_entry *index_find(struct index *x, const struct index_key *id);
/* The same for many keys of one owner at once, which is faster, for memory is waited for once: out[i] is NULL
 * for what is not there. */
void index_find_many(struct index *x, const uint8_t owner[16], const uint8_t (*keys)[32], size_t n,
	struct index_entry **out);
/* A new, empty entry; NULL when out of memory. The key must not be there. */
struct index_entry *index_add(struct index *x, const struct index_key *id);
/* -ENOMEM is not an answer here: a transform that finds no number any more is one that nobody knows. */
void index_set_transform(struct index *x, struct index_entry *e, const uint8_t id[16]);
/* All zero: the plain codec. */
const uint8_t *index_transform(const struct index *x, const struct index_entry *e);
/* Says what the owner's digest stands for: once for each owner does, more do no harm. */
void index_name_owner(struct index *x, const struct index_entry *e, const uint8_t name_space[16],
	const uint8_t fingerprint[16], uint32_t tag);
/* Takes it out of the table and marks it dead; it is the caller's to give back then. Its key may be added
 * anew at once. */
void index_detach(struct index *x, struct index_entry *e);
/* Gives back a detached entry. Its number may be another's next. */
void index_give_back(struct index *x, struct index_entry *e);
/* The two together. */
void index_remove(struct index *x, struct index_entry *e);

/* Numbers, from 1 on, and entries. number must be one of an entry that was not given back. */
uint32_t index_number(const struct index *x, const struct index_entry *e);
struct index_entry *index_at(const struct index *x, uint32_t number);
const struct index_owner *index_owner(const struct index *x, uint32_t owner);
void index_id(const struct index *x, const struct index_entry *e, struct index_key *out);

/* Where it is on disk; len_pages 0: it is not. */
struct store_location index_location(const struct index_entry *e);

/* Calls fn for each entry that is not dead, in no order; fn may remove the entry it is given, but neither
 * another nor add one. */
void index_each(struct index *x, void (*fn)(void *arg, struct index_entry *e), void *arg);

/* One more than the largest number there may be; those below it that are free have owner 0. For walking
 * through all in pieces. */
uint32_t index_end(const struct index *x);

size_t index_count(const struct index *x);
/* Of memory, all in all. */
size_t index_memory_bytes(const struct index *x);

#endif
