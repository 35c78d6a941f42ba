/*
 * The statistics page: a memfd that the daemon alone can write, handed to whoever may watch it
 * (WIRE_STATISTICS). It describes itself: the header names groups of records and, for each group, its fields
 * with kind, unit and place, so that a reader of another version finds what it knows by name.
 * docs/statistics.md is the same in prose.
 *
 * One writer, any number of readers, no lock: the records are under a sequence count (a seqlock). The writer
 * makes it odd, writes, makes it even; a reader copies and takes the copy only when it saw the same even
 * number before and after. All words of records are u64 and accessed as atomics, so that a copy that
 * is thrown away was no data race (Boehm, "Can seqlocks get along with programming language memory models?",
 * MSPC 2012). What is not under the sequence count never changes once a reader has the page.
 */
#ifndef SHM_STATS_PAGE_H
#define SHM_STATS_PAGE_H

#include <stdatomic.h>
#include <stdint.h>

#include "shm/stats/histogram.h"
#include "shm/stats/trace.h"

enum {
	STATS_MAGIC = 0x54535343, /* "CSST" */
	STATS_VERSION = 1, /* of header, groups and fields' descriptions; not of which fields there are */
	STATS_CACHES_MAX = 256,
};

enum stats_kind { STATS_COUNTER = 1, STATS_GAUGE = 2, STATS_HISTOGRAM = 3, STATS_TEXT = 4 };
enum stats_unit { STATS_PLAIN = 0, STATS_BYTES = 1, STATS_NS = 2, STATS_REAL = 3 };
enum stats_group_id { STATS_DAEMON = 0, STATS_CACHE = 1, STATS_GROUPS = 2 };

/* What fields.h says about a field, and where it lies in its record. */
struct stats_field {
	char id[40];
	char metric[48];
	char labels[32];
	char help[120];
	uint32_t offset; /* bytes, in the record */
	uint32_t len_bytes;
	uint32_t kind; /* enum stats_kind */
	uint32_t unit; /* enum stats_unit */
};

struct stats_group {
	char name[16];
	uint32_t record_bytes;
	uint32_t n_records_max;
	uint64_t records_off; /* bytes, in the page */
	uint64_t fields_off;
	uint32_t n_fields;
	uint32_t reserved;
};

struct stats_header {
	uint32_t magic;
	uint32_t version;
	uint64_t len_bytes; /* of the page */
	uint32_t n_groups;
	uint32_t histogram_buckets;
	uint32_t histogram_first_ns;
	uint32_t histogram_steps;
	uint64_t pid;       /* of the daemon, in its own pid namespace */
	uint64_t trace_off; /* struct trace_event[n_traces], see trace.h */
	uint32_t n_traces;
	uint32_t trace_bytes; /* of one */
	uint64_t reserved;
	struct stats_group groups[STATS_GROUPS];
	/* From here on things change. n_records and published_ns belong to what the sequence covers. */
	_Alignas(64) _Atomic uint64_t sequence;
	_Atomic uint64_t published_ns; /* CLOCK_MONOTONIC */
	_Atomic uint64_t n_records[STATS_GROUPS];
	_Atomic uint64_t trace_head; /* spans written so far; not under the sequence count */
};

/* The records as structs, for the daemon; readers go by the fields' descriptions. */
#define STATS_MEMBER_COUNTER(unit, id) uint64_t id;
#define STATS_MEMBER_GAUGE(unit, id) STATS_MEMBER_GAUGE_##unit(id)
#define STATS_MEMBER_GAUGE_PLAIN(id) uint64_t id;
#define STATS_MEMBER_GAUGE_BYTES(id) uint64_t id;
#define STATS_MEMBER_GAUGE_NS(id) uint64_t id;
#define STATS_MEMBER_GAUGE_REAL(id) double id;
#define STATS_MEMBER_HISTOGRAM(unit, id) struct histogram id;
#define STATS_MEMBER_TEXT(unit, id) char id[unit];
#define STATS_ONLY_DAEMON_DAEMON(member) member
#define STATS_ONLY_DAEMON_CACHE(member)
#define STATS_ONLY_CACHE_DAEMON(member)
#define STATS_ONLY_CACHE_CACHE(member) member

struct stats_daemon {
#define FIELD(group, kind, unit, id, ...) STATS_ONLY_DAEMON_##group(STATS_MEMBER_##kind(unit, id))
#include "shm/stats/fields.h"
};

struct stats_cache {
#define FIELD(group, kind, unit, id, ...) STATS_ONLY_CACHE_##group(STATS_MEMBER_##kind(unit, id))
#include "shm/stats/fields.h"
};

_Static_assert(sizeof(struct stats_field) == 256, "page layout");
_Static_assert(sizeof(struct stats_group) == 48, "page layout");
_Static_assert(sizeof(struct stats_daemon) % 8 == 0 && sizeof(struct stats_cache) % 8 == 0, "whole words");

#endif
