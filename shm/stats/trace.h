/*
 * The trace: the daemon's last TRACE_EVENTS spans of work, in a ring at the end of the statistics page,
 * always on, so that after a bad minute there is something to look at. One writer, any number of readers, no
 * lock: a span is written into its slot, then head moves on. A reader copies slots, then looks at head again
 * and throws away those that may have been written over meanwhile (`cistern trace`).
 */
#ifndef SHM_STATS_TRACE_H
#define SHM_STATS_TRACE_H

#include <stdatomic.h>
#include <stdint.h>

enum { TRACE_EVENTS = 16384 };

/* What a span lies on: a row of the picture. */
enum trace_track { TRACE_SESSION = 1, TRACE_WORKER = 2, TRACE_STORE = 3, TRACE_UPKEEP = 4 };

/* What was done. Requests have the numbers of enum wire_op. */
enum trace_name {
	TRACE_LOOKUP = 1,
	TRACE_PUT = 2,
	TRACE_GET = 3,
	TRACE_PREFETCH = 4,
	TRACE_PIN = 5,
	TRACE_UNPIN = 6,
	TRACE_REMOVE = 7,
	TRACE_SYNC = 8,
	TRACE_OBSERVE = 9,
	TRACE_ENCODE = 32,
	TRACE_DECODE = 33,
	TRACE_SETTLE = 34,  /* a kept chunk that the window has left behind */
	TRACE_COARSEN = 35, /* a cold one, under pressure */
	TRACE_WRITE = 48,
	TRACE_READ = 49,
	TRACE_TOMBSTONE = 50, /* the store's part of REMOVE */
	TRACE_FLUSH = 51,     /* the store's part of SYNC */
};

struct trace_event {
	uint64_t start_ns; /* CLOCK_MONOTONIC */
	uint64_t duration_ns;
	uint32_t track; /* enum trace_track */
	uint32_t lane;  /* which session or worker; 0 */
	uint32_t name;  /* enum trace_name */
	int32_t status;
	uint64_t request; /* number of the request that it belongs to; 0: none */
	uint32_t n_chunks;
	uint32_t reserved;
	uint64_t bytes; /* of frames */
	uint64_t reserved1;
};

_Static_assert(sizeof(struct trace_event) == 64, "page layout");

#endif
