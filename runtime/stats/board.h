/*
 * The board: the daemon's own copy of its statistics, and the page that watchers map. Counting is plain
 * additions to the board's structs; now and then, at most once a BOARD_PERIOD_MS and only when something
 * happened, the records that changed are copied into the page under its sequence count (shm/stats/page.h). So
 * the hot path pays for no atomic and no shared cache line, watchers get copies that are whole, and how many
 * watch costs nothing. Front thread alone.
 */
#ifndef RUNTIME_STATS_BOARD_H
#define RUNTIME_STATS_BOARD_H

#include <stdbool.h>
#include <stddef.h>

#include "policy/policy.h"
#include "runtime/frame.h"
#include "runtime/index.h"
#include "shm/protocol.h"
#include "shm/stats/page.h"

enum { BOARD_PERIOD_MS = 50, BOARD_CLASSES = 8 /* room for every enum token_class */ };

struct board {
	struct stats_daemon daemon; /* counted into directly */
	struct board_cache *caches; /* [STATS_CACHES_MAX] */
	uint32_t n_caches, last;    /* last: the one found last */
	bool changed;               /* since the last publication */
	uint64_t published_ms;
	struct stats_header *page;
	size_t page_bytes;
	int fd;
};

/* The record of a namespace and model. */
struct board_cache {
	uint8_t name_space[16];
	uint8_t fingerprint[16];
	bool changed;
	struct stats_cache stats;
};

/* Makes the page: sealed, so that it keeps its size and nobody else can map it writable. -ENOMEM; -errno of
 * memfd_create, fcntl (-EINVAL: a kernel before 5.1) or mmap. */
int board_new(struct board **out);
struct board *board_free(struct board *b);
/* The page, to hand out; the board's. */
int board_fd(const struct board *b);

/* The record to count into; made when it is new. When there are STATS_CACHES_MAX - 1 already, further ones
 * share the last record, whose namespace is "(others)". */
struct stats_cache *board_cache(struct board *b, const uint8_t name_space[16], const uint8_t fingerprint[16]);

/* A request has ended, ns after it was taken. n_chunks: LOOKUP: as many were found of those asked for. */
void board_request(
	struct stats_cache *s, enum wire_op op, int status, uint32_t n_chunks, uint32_t n_asked, uint64_t ns);
/* A chunk was encoded and is kept. n_class: tokens by the class they were given, before encoding; those that
 * the encoder made exact come from info. ns: the worker's. */
void board_encoded(struct stats_cache *s, const struct frame_info *info,
	const uint32_t n_class[BOARD_CLASSES], uint64_t ns);
/* A chunk, or (first false) further layers of one that was counted, was decoded. */
void board_decoded(struct stats_cache *s, uint64_t raw_bytes, uint64_t frame_bytes, bool first, uint64_t ns);

/* An entry of the index counts, as it lies now, towards what its namespace and model keep; with sign -1 no
 * more. */
void board_entry(struct board *b, const struct index_owner *owner, const struct index_entry *e, int sign);
/* An operation of the store, handed over then, has ended now. */
void board_store_op(struct board *b, const struct store_op *op, uint64_t submitted_ns);

/* Writes a span into the trace, at once. */
void board_trace(struct board *b, const struct trace_event *e);

/* Copies what changed into the page. */
void board_publish(struct board *b, uint64_t now_ms);

/* CLOCK_MONOTONIC. */
uint64_t board_now_ns(void);

#endif
