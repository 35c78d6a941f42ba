/*
 * Which cached chunk goes when room is needed. What is new waits in a small queue, first in first out, and is
 * dropped from it unless it is used meanwhile, so that a document read once passes through a tenth of the
 * cache and leaves the rest alone. What is used goes to the main queue, which is in order of last use; so
 * does at once what continues a chain that is there (the next turn of a conversation), and what comes back
 * soon after it was dropped. A chunk is worth nothing without its parents, so one whose child is there is
 * passed over: chains go from their ends. (The two queues are those of 2Q, T. Johnson and D. Shasha, VLDB
 * 1994, and of S3-FIFO, J. Yang et al., SOSP 2023; `cistern bench evict` compares.)
 *
 * Pure: no I/O, no clock, no thread. Items are numbers from 1 on; what is known of them is their owner's, who
 * is asked through struct evict_items. One item may be in several struct evict (one for each tier), with a
 * node for each.
 */
#ifndef POLICY_EVICT_H
#define POLICY_EVICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	EVICT_OUT = 0, /* in no queue; an item's node begins all zero */
	EVICT_SMALL = 1,
	EVICT_MAIN = 2,
	EVICT_LIST = 3, /* on a list of the owner's own: see evict_list */
	EVICT_ITEMS_MAX = 1 << 30,
};

/* Ten bytes, for there are millions: an item's place in a queue. Nobody else's but for EVICT_LIST. */
struct evict_node {
	uint32_t newer : 30, queue : 2;
	uint32_t older : 30, flags : 2; /* flags: the owner's own */
	uint16_t n_children; /* in queues of the same tier; 65535: at least so many, and never less again */
} __attribute__((packed, aligned(2)));

/* A queue; also for lists of the owner's own, of items that are in no queue of the policy's. */
struct evict_list {
	uint32_t oldest, newest; /* 0: empty */
	uint32_t n;
	uint64_t bytes;
};

/* What the owner knows. id is never 0. */
struct evict_items {
	struct evict_node *(*node)(void *owner, uint32_t id);
	uint64_t (*bytes)(void *owner, uint32_t id);
	/* Tells items apart over time, however often they come and go. */
	uint64_t (*hash)(void *owner, uint32_t id);
	/* 0: none. The same from evict_insert to evict_remove, and a parent's node outlives its children. */
	uint32_t (*parent)(void *owner, uint32_t id);
	void *owner;
};

struct evict {
	struct evict_items items;
	struct evict_list queues[3]; /* by EVICT_SMALL, EVICT_MAIN */
	uint64_t *ghosts;            /* [n_ghosts]: a hash's upper half, and when it went */
	size_t n_ghosts;             /* a power of two */
	uint32_t clock;              /* of items dropped from the small queue */
};

/* n_ghosts: how many dropped items to remember, rounded up to a power of two; as many as fit the cache do
 * well. -ENOMEM. */
int evict_init(struct evict *e, const struct evict_items *items, size_t n_ghosts);
void evict_fini(struct evict *e);

/* An item has come. It must be in no queue. */
void evict_insert(struct evict *e, uint32_t id);
/* It was used. Touch a chain from its start to its end. One that is in no queue is left alone. */
void evict_touch(struct evict *e, uint32_t id);
/* What it takes has changed, from before bytes. Its place stays. */
void evict_resized(struct evict *e, uint32_t id, uint64_t before);
/* It has gone, for whatever reason. One that is in no queue is left alone. */
void evict_remove(struct evict *e, uint32_t id);

/* The next to go, of those that may (may_go NULL: all); 0: none. It stays in its queue: the caller removes
 * it, with evict_dropped if it goes for want of room. Those that may not go keep their places. */
uint32_t evict_victim(const struct evict *e, bool (*may_go)(void *arg, uint32_t id), void *arg);
/* evict_remove, and it is remembered for when it comes back. */
void evict_dropped(struct evict *e, uint32_t id);

/* A walk from the coldest items to the warmer ones, in pieces: what is new and unused, then what was used,
 * each from the oldest on, and of each no more than a share of its bytes. Zeroed: at its beginning, where it
 * also is after its end. Items may come, go and be used meanwhile; a walk that has lost its place begins its
 * queue again. */
struct evict_walk {
	uint32_t queue, id;
	uint64_t bytes; /* passed, of the queue */
};
/* The next one, or 0: that was the last. */
uint32_t evict_next_cold(const struct evict *e, struct evict_walk *w, double share);

uint64_t evict_bytes(const struct evict *e);
size_t evict_count(const struct evict *e);

/* The same nodes as a list of the owner's own: queue becomes EVICT_LIST. bytes is the caller's to keep. */
void evict_list_add(struct evict_list *l, const struct evict_items *items, uint32_t id);
void evict_list_remove(struct evict_list *l, const struct evict_items *items, uint32_t id);

#endif
