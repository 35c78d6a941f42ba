/*
 * The client's book-keeping of the arena: which bytes belong to requests in flight. Requests end in any
 * order. The free ranges stand in a sorted array outside the shared memory, so nothing the daemon does can
 * disturb it; there is at most one more of them than there are requests in flight, and in practice a few, for
 * requests mostly end in the order they began. One thread.
 */
#ifndef SHM_ARENA_H
#define SHM_ARENA_H

#include <stdint.h>

enum { ARENA_ALIGN = 64 };

struct arena_range {
	uint64_t offset;
	uint64_t len_bytes;
};

struct arena {
	struct arena_range *free; /* sorted by offset, no two adjacent */
	uint32_t n_free;
	uint32_t n_free_max;
	uint64_t len_bytes; /* whole units of ARENA_ALIGN */
};

/* n_live_max: allocations that can be live at once. -ENOMEM. */
int arena_init(struct arena *a, uint64_t len_bytes, uint32_t n_live_max);
void arena_fini(struct arena *a);

/* Takes len_bytes (over 0), aligned to ARENA_ALIGN. -EAGAIN: no room now; -ENOSPC: not even in an empty
 * arena.
 */
int arena_alloc(struct arena *a, uint64_t len_bytes, uint64_t *offset);
/* Gives an allocation back whole. */
void arena_release(struct arena *a, uint64_t offset, uint64_t len_bytes);

#endif
