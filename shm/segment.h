/*
 * The segment: the sealed memfd with both rings and the arena that one connection shares. The daemon creates
 * it, the client maps what it was handed; each side owns its own struct segment and unmaps it itself. Fixed
 * size: neither side can shrink it under the other. Used by the thread that owns the connection.
 */
#ifndef SHM_SEGMENT_H
#define SHM_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

#include "shm/protocol.h"
#include "shm/ring.h"

struct segment {
	void *addr; /* NULL: none */
	size_t len_bytes;
	struct wire_ring *sq; /* submissions: the client produces struct wire_sqe */
	struct wire_ring *cq; /* completions: the daemon produces struct wire_cqe */
	uint8_t *arena;       /* written by the client alone */
	uint64_t arena_bytes;
	uint32_t sq_entries;
	uint32_t cq_entries; /* twice sq_entries */
};

/* Whether a hello's numbers are in range: n_entries a power of two up to WIRE_ENTRIES_MAX, arena_bytes from
 * WIRE_ARENA_MIN to WIRE_ARENA_MAX. 0 or -EINVAL. */
int segment_check(uint32_t n_entries, uint64_t arena_bytes);

/* Daemon: makes, seals and maps a segment, all zero, its pages already there so that a later shortage of
 * memory cannot kill the process that touches them. *fd is the caller's: send it, then close it. -EINVAL as
 * segment_check; -errno. */
int segment_create(uint32_t n_entries, uint64_t arena_bytes, struct segment *out, int *fd);

/* Daemon: the welcome that describes the segment, header included. */
void segment_welcome(
	const struct segment *s, uint32_t chunk_tokens, uint32_t session_id, struct wire_welcome *out);

/* Client: maps the segment of a welcome. The caller keeps fd. -EPROTO: an offset, a size or a seal is not as
 * it must be (and why, if not NULL, says which, a constant); -errno of mmap. */
int segment_map(const struct wire_welcome *w, int fd, struct segment *out, const char **why);

/* Unmaps. May be called twice, and on a zeroed struct. */
void segment_fini(struct segment *s);

/* The four handles. */
void segment_sq_producer(const struct segment *s, struct ring_producer *p); /* client */
void segment_sq_consumer(const struct segment *s, struct ring_consumer *c); /* daemon */
void segment_cq_producer(const struct segment *s, struct ring_producer *p); /* daemon */
void segment_cq_consumer(const struct segment *s, struct ring_consumer *c); /* client */

#endif
