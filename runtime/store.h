/*
 * The store: frames on disk, in append-only segment files of one directory, O_DIRECT through one io_uring
 * that a thread of the store's own drives. The front thread hands it operations and takes finished ones back;
 * it never waits for the disk. Every record is aligned to 4 KiB and carries a header with what is needed to
 * rebuild the index from the files alone (namespace, fingerprint, key, parent, lengths, checksums).
 *
 * A record is header (STORE_HEADER_BYTES) + frame + padding to 4 KiB; the pool keeps a frame in just that
 * form, with room for the header in front, so that a write needs no copy.
 */
#ifndef RUNTIME_STORE_H
#define RUNTIME_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { STORE_HEADER_BYTES = 192, STORE_ALIGN = 4096 };

struct store;

struct store_config {
	const char *directory; /* made if missing; one store (flock) at a time */
	uint64_t limit_bytes; /* hard: the lengths of all files; two segments of it are for removals and moves
			       */
	uint64_t segment_bytes; /* 0: 64 to 256 MiB, a 64th of the limit; cut to a quarter of it */
	uint32_t depth;  /* operations in flight, reads and others each, and together a quarter more; 0: 32 */
	void *pool_addr; /* to register as fixed buffers; NULL for none */
	size_t pool_bytes;
};

/* Where a record lies. */
struct store_location {
	uint32_t segment;
	uint32_t len_pages; /* of 4 KiB */
	uint64_t offset;
};

/* As on disk. */
enum store_record_kind { STORE_RECORD_FRAME = 1, STORE_RECORD_REMOVAL = 2, STORE_RECORD_PURGE = 3 };

/* What the record header says; on open, one for every sound record found. */
struct store_record {
	uint8_t name_space[16];
	uint8_t fingerprint[16];
	uint8_t key[32];
	uint8_t parent[32];
	uint8_t transform[16]; /* that the frame needs; the store does not look into frames */
	uint64_t frame_bytes;
	uint64_t raw_bytes;          /* in lists, of a removal or a purge: its bound */
	enum store_record_kind kind; /* in lists alone; 0 elsewhere */
	uint32_t n_tokens;
	uint64_t position;
	struct store_location location;
};

enum store_op_kind {
	/* Puts data, STORE_HEADER_BYTES of room and then the frame, in its place and sets location. Header
	 * and padding are filled in by the store. */
	STORE_WRITE = 1,
	/* Reads location into data, the whole record. -EBADMSG: rotten, or not the record that was asked for;
	 * -ENOENT: no such place. */
	STORE_READ = 2,
	/* Forgets durably, every record of the key that was submitted before: writes a tombstone and
	 * completes when it is on stable storage. The location that the caller knows is still to be given to
	 * store_forget. */
	STORE_REMOVE = 3,
	/* Completes when all writes submitted before it are on stable storage. */
	STORE_SYNC = 4,
	/* The same as STORE_REMOVE for every record of a namespace. */
	STORE_PURGE = 5,
	/* Chooses the segment that is cheapest to empty and says what is still wanted of it: live records,
	 * and removals and purges that keep something dead. Whoever writes those anew (or does without the
	 * records), syncs, and forgets the old ones, has made room: the segment is deleted when room is
	 * needed. None is given again before all were. -ENOENT: there is none of which max_share or less is
	 * live. */
	STORE_LIST = 6,
};

struct store_list {
	uint32_t segment, n;
	struct store_record records[];
};

/* An operation. Owned by the caller, given to the store from store_submit until store_reap returns it. */
struct store_op {
	enum store_op_kind kind;
	int status;  /* out: 0 or -errno; -EDQUOT: over the limit; -ENOSPC: the disk is full; -EIO; -EINVAL:
			unaligned, lengths */
	bool moving; /* WRITE: the record is in a segment that is being emptied, and may take the room kept
			for such */
	uint64_t bound; /* REMOVE, PURGE: what came later than this holds all the same; 0: than this operation
			 */
	double max_share;        /* LIST: in */
	struct store_list *list; /* LIST: out, malloc'd, the caller's */
	void *data; /* WRITE, READ: STORE_ALIGN-aligned, whole pages; unchanged by the caller meanwhile */
	struct store_record record; /* WRITE: in, location out; READ: in; REMOVE: name_space, fingerprint,
				       key, bound in; PURGE: name_space, bound in */
	void *user;
	struct store_op *next; /* the store's own while it has the op; on return, the list of finished ones */
	/* The store's own: of a write that waits for its turn, the frame's checksum as the segment of this
	 * number has it. */
	uint64_t checksum;
	uint32_t checksum_segment; /* 0: none yet */
};

typedef void (*store_found_fn)(void *arg, const struct store_record *record);

/* Opens the directory, scans every segment and calls found once for each live record (later records of the
 * same key replace earlier ones, tombstones remove them). Torn and rotten records are dropped and counted.
 * Blocks. Says in one log line how many records, bytes, dropped; and which way it does I/O (falls back,
 * saying so, without O_DIRECT, fixed buffers and files, or io_uring). -EBUSY: another process has it open;
 * -ENOTSUP: a segment of another version (nothing is touched); -EINVAL: limit under 256 KiB, segments that
 * are no multiple of STORE_ALIGN, depth over 4096; -errno of the directory. */
int store_open(const struct store_config *config, store_found_fn found, void *arg, struct store **out);
/* Waits for what was submitted, syncs, closes. Operations that were not reaped are the caller's again, their
 * status set. NULL is fine. */
struct store *store_close(struct store *s);

/* Hands over an operation. Never blocks; from the front thread only. */
void store_submit(struct store *s, struct store_op *op);
/* Readable when finished operations wait. */
int store_fd(const struct store *s);
/* Takes all finished operations, a linked list in order of completion, or NULL. Front thread only. */
struct store_op *store_reap(struct store *s);

/* The header's room in front of a frame, between the frame's coming into being and its being written: says
 * what the record will be of, and keeps one location. store_describe reads that back, and what a header that
 * was written says. */
void store_draft(void *header, const struct store_record *record);
void store_describe(const void *header, struct store_record *out);

/* A record is no longer wanted (replaced, evicted, removed): its space counts as free for reclamation, and
 * until that happens the next store_open finds it again, unless it was removed or replaced. Front thread
 * only. */
void store_forget(struct store *s, const struct store_location *location);

struct store_stats {
	uint64_t limit_bytes, segment_bytes, used_bytes, live_bytes;
	uint64_t n_segments, n_records;
	uint64_t slot_bytes; /* of memory, for what is known of each record */
	uint64_t written_bytes, read_bytes, n_writes, n_reads;
	uint64_t n_dropped; /* torn or rotten records met */
	uint64_t n_errors;
	uint32_t direct, fixed_buffers, fixed_files; /* 1: in use */
};
void store_get_stats(struct store *s, struct store_stats *out);

#endif
