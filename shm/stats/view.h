/*
 * Reading a statistics page: maps it read-only, checks what it says about itself, takes consistent copies of
 * its records, and finds fields by name. One thread at a time for each struct; any number of views of one
 * page. The daemon does nothing for it and does not notice.
 */
#ifndef SHM_STATS_VIEW_H
#define SHM_STATS_VIEW_H

#include <stdbool.h>
#include <stddef.h>

#include "shm/stats/page.h"

struct stats_view {
	const struct stats_header *header; /* the mapped page; NULL: none */
	size_t len_bytes;
};

/* Maps the page; the caller keeps fd. -EPROTO with a constant sentence in *why: it is not a page, or of a
 * version that this reader does not know; -errno of mmap. */
int stats_view_map(int fd, struct stats_view *out, const char **why);
/* Unmaps. May be called twice, and on a zeroed struct. */
void stats_view_fini(struct stats_view *v);

/* The fields of a group, [*n]. Immutable. */
const struct stats_field *stats_view_fields(
	const struct stats_view *v, enum stats_group_id group, uint32_t *n);
/* NULL: this page has none of that name. */
const struct stats_field *stats_view_field(
	const struct stats_view *v, enum stats_group_id group, const char *id);

/* A copy of all records, as they were at one moment. */
struct stats_snapshot {
	uint64_t published_ns; /* CLOCK_MONOTONIC: when the daemon wrote it */
	uint32_t n[STATS_GROUPS];
	uint8_t *records[STATS_GROUPS]; /* [n][record_bytes]; in one malloc'd block that records[0] begins */
};

/* Takes a copy; out is zeroed, or from an earlier call, whose memory it gives back. -EAGAIN: no moment came
 * in 100 ms in which the writer was not writing, as when it was killed amid it; -ENOMEM. On failure out keeps
 * what it had. */
int stats_snapshot_take(const struct stats_view *v, struct stats_snapshot *out);
void stats_snapshot_fini(struct stats_snapshot *s);

/* Copies the trace's spans that are whole, oldest first, at most n_max; n_max of view->header->n_traces gets
 * all. Returns how many. The daemon may go on tracing meanwhile. */
size_t stats_trace(const struct stats_view *v, struct trace_event *out, size_t n_max);

const void *stats_record(
	const struct stats_view *v, const struct stats_snapshot *s, enum stats_group_id group, uint32_t i);

/* Values of a record. field NULL, or of another kind: 0, or the empty text, or NULL. */
uint64_t stats_number(const void *record, const struct stats_field *field); /* COUNTER, GAUGE but REAL */
double stats_real(const void *record, const struct stats_field *field);     /* the same, and REAL */
const char *stats_text(const void *record, const struct stats_field *field);
const struct histogram *stats_histogram(const void *record, const struct stats_field *field);

#endif
