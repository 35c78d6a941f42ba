/*
 * The bytes of a segment file; docs/store-format.md says the same in prose. This module lays them out and
 * checks them; it does no I/O. Pure functions over memory, any thread.
 *
 * A segment is a header page, records, a footer (copies of the records' headers), and a trailer page, the
 * last of the file. Only a segment that was closed has the last two. Everything begins on a multiple of
 * STORE_ALIGN.
 *
 * Every checksum but the segment header's own is seeded with the segment's salt, a random number. A tenant
 * chooses what its frames hold, so it could put the image of a record of somebody else's inside its own, for
 * a scan to find after a crash; it cannot know the salt.
 */
#ifndef RUNTIME_STORE_FORMAT_H
#define RUNTIME_STORE_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/store.h"

enum {
	FORMAT_VERSION = 2,
	FORMAT_SEGMENT_MAGIC = 0x47455343, /* "CSEG" */
	FORMAT_RECORD_MAGIC = 0x43455243,  /* "CREC" */
	FORMAT_TRAILER_MAGIC = 0x444e4543, /* "CEND" */
	FORMAT_AGAIN = 2048, /* where in its page the header of a tombstone or a purge stands a second time */
};

enum format_kind {
	FORMAT_WRITE = 1,
	FORMAT_TOMBSTONE = 2, /* records of its key with a lower sequence number than its bound do not hold */
	FORMAT_PURGE = 3,     /* the same for all records of its namespace */
};

/* The first bytes of a segment's first page; the rest of the page is zero. Every version keeps this struct,
 * so that an older program knows a newer segment from a damaged one. */
struct format_segment {
	uint32_t magic;
	uint32_t version;
	uint32_t number;
	uint32_t reserved;
	uint64_t salt;
	uint64_t checksum; /* XXH3-64 of what stands before it */
};

struct format_record {
	uint32_t magic;
	uint16_t version;
	uint16_t kind;        /* enum format_kind */
	uint64_t sequence;    /* of two records of one key the one with the higher number holds */
	uint64_t frame_bytes; /* 0 for a tombstone or a purge */
	union {
		uint64_t raw_bytes;
		uint64_t bound; /* of a tombstone or a purge; 0: its own sequence number */
	};
	uint64_t position;
	uint32_t n_tokens;
	uint32_t segment; /* where this record lies, so that one that strayed is known */
	uint64_t offset;
	uint8_t name_space[16];
	uint8_t fingerprint[16];
	uint8_t key[32];
	uint8_t parent[32];
	uint64_t body_checksum; /* XXH3-64 of the frame, seeded */
	uint8_t transform[16];  /* that the frame is made with; zero: none, or a tombstone */
	uint8_t reserved[8];    /* zero */
	uint64_t checksum;      /* XXH3-64 of what stands before it, seeded */
};

/* The first bytes of a closed segment's last page; the rest of the page is zero. */
struct format_trailer {
	uint32_t magic;
	uint32_t version;
	uint32_t number;
	uint32_t n_records;
	uint64_t salt; /* again, should the first page rot */
	uint64_t footer_offset;
	uint64_t footer_checksum; /* XXH3-64 of n_records * STORE_HEADER_BYTES, seeded */
	uint64_t checksum;        /* XXH3-64 of what stands before it */
};

_Static_assert(
	__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian and written as it lies");
_Static_assert(sizeof(struct format_segment) == 32, "store format");
_Static_assert(sizeof(struct format_record) == STORE_HEADER_BYTES, "store format");
_Static_assert(sizeof(struct format_trailer) == 48, "store format");

/* Bytes rounded up to whole pages. The caller keeps them far from overflow. */
static inline uint64_t format_pad(uint64_t len_bytes)
{
	return (len_bytes + STORE_ALIGN - 1) / STORE_ALIGN * STORE_ALIGN;
}

/* Footer and trailer of so many records. */
static inline uint64_t format_footer_bytes(uint64_t n_records)
{
	return format_pad(n_records * STORE_HEADER_BYTES) + STORE_ALIGN;
}

/* XXH3-64. */
uint64_t format_checksum(const void *data, size_t len, uint64_t seed);

/* page: STORE_ALIGN bytes, all of them written. */
void format_segment_encode(void *page, uint32_t number, uint64_t salt);
/* 0; -EBADMSG: damaged; -ENOTSUP: sound, of another version. */
int format_segment_decode(const void *page, struct format_segment *out);

/* Completes h, of which everything but magic, version and checksum is filled in. */
void format_record_seal(struct format_record *h, uint64_t salt);
/* Whether data begins with the sound header of a record that belongs at this place and ends before
 * end_offset. 0 or -EBADMSG. The frame is not looked at. */
int format_record_decode(const void *data, uint64_t salt, uint32_t segment, uint64_t offset,
	uint64_t end_offset, struct format_record *out);
/* What the header says, in the store's words. */
void format_record_describe(const struct format_record *h, struct store_record *out);
/* Bytes of the whole record. */
static inline uint64_t format_record_bytes(const struct format_record *h)
{
	return format_pad(STORE_HEADER_BYTES + h->frame_bytes);
}

/* Writes footer and trailer, format_footer_bytes(n_records) bytes, which begin at footer_offset in the file.
 */
void format_footer_encode(void *out, const struct format_record *headers, uint32_t n_records, uint32_t number,
	uint64_t salt, uint64_t footer_offset);
/* Checks the last page of a file of file_bytes. 0 or -EBADMSG. */
int format_trailer_decode(const void *page, uint32_t number, uint64_t file_bytes, struct format_trailer *out);

#endif
