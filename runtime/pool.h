/*
 * Memory for frames: one reserved range with a hard limit, cut into extents of whole 4 KiB pages, best fit,
 * merged on free. The book-keeping lies outside the range, so that the same allocator serves memory that the
 * CPU cannot touch (pool_over). The host pool is anonymous memory with huge pages asked for (I/O from 4 KiB
 * pages runs at a third of the speed). Thread-safe: one short lock; never blocks on anything else.
 */
#ifndef RUNTIME_POOL_H
#define RUNTIME_POOL_H

#include <stddef.h>
#include <stdint.h>

enum { POOL_PAGE_BYTES = 4096 };

struct pool;

struct pool_stats {
	uint64_t limit_bytes;
	uint64_t used_bytes; /* whole pages */
	uint64_t largest_free_bytes;
	uint64_t n_extents;
};

/* limit_bytes is rounded down to whole pages. -EINVAL: under one page, or 16 TiB and over; -ENOMEM. */
int pool_new(uint64_t limit_bytes, struct pool **out);
/* Over somebody else's range, which is never touched, and whose first limit_bytes are handed out; 0: none
 * yet. -EINVAL, as above for room_bytes, or the limit is over it; -ENOMEM. */
int pool_over(void *range, uint64_t room_bytes, uint64_t limit_bytes, struct pool **out);
struct pool *pool_free(struct pool *p);
/* Of one made by pool_over. Less: -EBUSY, and nothing changes, when something beyond the new limit is in use.
 * -EINVAL: over its room. */
int pool_set_limit(struct pool *p, uint64_t limit_bytes);

/* A page-aligned extent of at least len_bytes. -ENOSPC: no room (evict and try again); -EINVAL: 0. */
int pool_alloc(struct pool *p, size_t len_bytes, void **addr);
/* Gives an extent back whole. len_bytes as allocated. Asserts that it is one. */
void pool_release(struct pool *p, void *addr, size_t len_bytes);
/* Gives the end of an extent back, from shorter_bytes on (over 0): len_bytes as allocated. Its beginning
 * stays where it is, allocated with shorter_bytes from now on. */
void pool_shrink(struct pool *p, void *addr, size_t len_bytes, size_t shorter_bytes);

void pool_get_stats(struct pool *p, struct pool_stats *out);
/* The range, for registering it with io_uring. */
void pool_range(const struct pool *p, void **addr, size_t *len_bytes);

#endif
