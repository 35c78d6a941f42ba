/*
 * The segments of a store: which files there are, what of each is still wanted, which may go. Made while the
 * store is opened, owned by the store's thread after that; no lock. What is slow (records, footers, syncs) is
 * the store's to do through its ring; making, opening and unlinking files happens here.
 */
#ifndef RUNTIME_STORE_SEGMENT_H
#define RUNTIME_STORE_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/store/format.h"
#include "runtime/store/io.h"
#include "runtime/store.h"

enum segment_state {
	SEGMENT_SPARE,   /* has its file and nothing in it: its header is being written, or was */
	SEGMENT_OPEN,    /* records are appended */
	SEGMENT_CLOSING, /* waits for its writes, then for its footer */
	SEGMENT_CLOSED,
};

/* One record, good or not, as long as its segment lasts. */
struct slot {
	uint32_t hash; /* of namespace, fingerprint and key: segment_hash */
	uint32_t page; /* where it begins */
	uint32_t n_pages : 29;
	uint32_t live : 1;
	uint32_t tombstone : 1; /* or a purge */
	uint32_t purge : 1;
};

struct segment {
	uint32_t number;
	enum segment_state state;
	uint64_t salt;
	uint64_t len_bytes; /* of the file */
	uint64_t end;       /* where the next record goes */
	int fd;             /* -1: not open at the moment */
	uint64_t used_at;   /* when fd was last asked for, on the table's clock */

	struct slot *slots; /* in order of page */
	uint32_t n_slots, slots_capacity;
	struct format_record *headers; /* for the footer: of what was written; NULL once closed */
	uint32_t n_headers, headers_capacity;
	uint32_t n_tombstones; /* purges among them */
	uint32_t n_purges;
	uint32_t n_live;
	uint64_t live_bytes;

	uint32_t n_in_flight; /* requests on fd, of any kind */
	uint32_t n_writing;   /* records being written */
	bool no_footer;       /* a header could not be kept: better none than one that lacks a record */
	bool dirty;           /* written to since the last sync began */
	bool footer_dirty;    /* its footer was */
	bool in_sync;         /* that sync has not ended */
	bool listed;          /* the caller is emptying it */
	bool has_footer;      /* from end to the end of the file */
	bool doubtful;        /* could not be read to its end: may hold records that are not in slots */

	struct io_request closing; /* of a spare, its header's write; the footer's, then the sync after it */
	struct io_request syncing;
	void *footer; /* what closing writes */
	void *owner;  /* what the two requests' done functions belong to */
};

struct segments {
	int dir_fd;    /* the caller's */
	struct io *io; /* told of descriptors that are closed; NULL: nobody is */
	bool direct;
	bool dir_dirty;        /* files were made since the directory was last synced */
	struct segment **list; /* in order of number */
	size_t n, capacity;
	uint32_t next_number;
	uint64_t used_bytes; /* lengths of all files */
	uint64_t live_bytes;
	uint64_t n_live;
	uint64_t slot_bytes; /* of memory */
	uint32_t n_fds;
	uint64_t clock;
	bool nothing_to_reclaim; /* and no record was forgotten since that was found out */
	void *page;              /* STORE_ALIGN bytes */
};

enum { SEGMENT_NAME_MAX = 32 };

/* -ENOMEM. */
int segments_init(struct segments *t, int dir_fd, bool direct);
/* Closes files, deletes none. No request may be in flight. */
void segments_fini(struct segments *t);

void segment_name(uint32_t number, char out[SEGMENT_NAME_MAX]);
/* Whether a directory entry is a segment, and which. */
bool segment_parse_name(const char *name, uint32_t *number);
/* What tells keys apart in slots; a collision keeps a tombstone longer than needed and does no other harm. */
uint32_t segment_hash(const uint8_t name_space[16], const uint8_t fingerprint[16], const uint8_t key[32]);

/* Where in the list it is, or would be. */
uint32_t segments_place(const struct segments *t, uint32_t number);
struct segment *segments_find(const struct segments *t, uint32_t number);

/* Takes in a file that is there: closed, with no slots. -ENOMEM. */
int segments_adopt(
	struct segments *t, uint32_t number, uint64_t salt, uint64_t len_bytes, struct segment **out);
/* Makes a file of len_bytes, as a spare, whose header is the caller's to write. -errno, -ENOSPC among them;
 * nothing is left behind then. */
int segments_make(struct segments *t, uint64_t len_bytes, struct segment **out);
/* The same, with its header, as the one open segment. Blocks for one small write. */
int segments_create(struct segments *t, uint64_t len_bytes, struct segment **out);
/* Unlinks the file and frees the segment, which must have nothing in flight. -errno: it is still there. */
int segments_remove(struct segments *t, struct segment *g);
/* The same for one that nothing is in. Should it still be there, reclaiming will try again. */
void segments_discard(struct segments *t, struct segment *g);
/* Notes that the file is shorter now. */
void segments_shrink(struct segments *t, struct segment *g, uint64_t len_bytes);

/* The descriptor to read or write with; opened if it is not, at the cost of one that was not used for long.
 * It stays valid while n_in_flight > 0, or until the next call. -errno. */
int segment_fd(struct segments *t, struct segment *g);

/* Adds a slot after the others, not live. Its place in *index. -ENOMEM. */
int segment_add_slot(
	struct segments *t, struct segment *g, uint32_t hash, const struct format_record *h, uint32_t *index);
/* No more slots will come: gives back the memory kept for them. */
void segment_trim(struct segments *t, struct segment *g);
/* Keeps a header for the footer. -ENOMEM: the segment will have no footer, and be scanned. */
int segment_add_header(struct segment *g, const struct format_record *h);
void segment_set_live(struct segments *t, struct segment *g, uint32_t index, bool live);

/* The record at a place is no longer wanted. What is not there, or was forgotten before, is ignored. */
void segments_forget(struct segments *t, const struct store_location *location);

/* The closed segment with a footer that is cheapest to empty: the fewest live bytes for its length, and not
 * over max_share of it. NULL: none. */
struct segment *segments_cheapest(const struct segments *t, double max_share);
/* wanted: [n_slots]; whether the record is live, or is a tombstone or a purge that keeps something dead. */
void segment_find_wanted(const struct segments *t, const struct segment *g, bool *wanted);
/* The slot of the record that begins at this offset, or -1. */
int64_t segment_slot_at(const struct segment *g, uint64_t offset);

/* Deletes the oldest segment that nobody misses: closed, idle, with no live record, and with no tombstone
 * that still covers a record in an older file. False: there is none. */
bool segments_reclaim(struct segments *t);

#endif
