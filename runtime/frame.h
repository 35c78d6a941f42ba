/*
 * A frame: one encoded chunk, self-describing and checksummed; docs/frame-format.md is its specification.
 * This module lays out and checks the bytes; it knows nothing of numbers (codec.h does). A frame is header
 * (FRAME_HEADER_BYTES) | section table (n_sections x FRAME_SECTION_BYTES) | section bodies with the header's
 * checksum over header and table, and one checksum per section body. Pure functions over memory.
 */
#ifndef RUNTIME_FRAME_H
#define RUNTIME_FRAME_H

#include <stddef.h>
#include <stdint.h>

enum {
	FRAME_MAGIC = 0x46545343, /* "CSTF" */
	FRAME_VERSION = 2,
	FRAME_HEADER_BYTES = 192,
	FRAME_SECTION_BYTES = 40,
	FRAME_TOKENS_MAX = 4096,
};

#define FRAME_CLASSES_MAX(n_tokens) (3 * (size_t)(n_tokens))

enum frame_section_kind {
	FRAME_CLASSES = 1, /* the token class map, as runs; first section, once */
	FRAME_RAW = 2, /* one byte of every element of one plane's raw tokens: [layers, n_raw, heads, dim] */
	FRAME_STEPS = 3,  /* plain codec, one layer: quantiser steps, f16 for each component */
	FRAME_CODES = 4,  /* plain codec, one layer: 8-bit codes, component-major */
	FRAME_LEVELS = 5, /* one part's levels of one class of tokens, component-major */
};

enum frame_encoding {
	FRAME_STORED = 0,
	FRAME_DEFLATE = 1, /* a raw DEFLATE stream (RFC 1951) */
	FRAME_RANS = 2,    /* levels only */
};

/* Worst and mean relative L2 error of the coded tokens of one plane, as known when encoding. */
struct frame_error {
	float max;
	float mean;
};

/* The header, in host form. */
struct frame_info {
	uint8_t name_space[16];  /* XXH3-128 of the namespace's name */
	uint8_t fingerprint[16]; /* of the geometry */
	uint8_t transform[16];   /* id; all zero: the plain 8-bit codec */
	uint8_t key[32];
	uint8_t parent[32];
	uint64_t position; /* of the first token */
	uint32_t n_tokens;
	uint32_t n_raw; /* tokens kept bit-exact */
	uint8_t rung;   /* of plain tokens */
	uint8_t rung_salient;
	uint8_t rung_redundant;
	uint32_t policy_version;
	struct frame_error error[2]; /* per plane */
	uint32_t n_sections;
	uint64_t len_bytes;         /* the whole frame */
	uint64_t raw_bytes;         /* what the chunk took uncompressed */
	uint64_t raw_section_bytes; /* of the frame: bodies of raw tokens' sections. Counted, not stored */
};

struct frame_section {
	uint8_t kind;
	uint8_t plane;
	uint16_t part; /* index of the layer group within the plane; of raw tokens which byte, lowest first */
	uint8_t encoding;
	uint8_t token_class; /* levels: of which tokens */
	uint64_t offset;     /* from the frame's start */
	uint32_t len_bytes;  /* as stored */
	uint32_t full_bytes; /* decoded */
	uint64_t checksum;   /* XXH3-64 of the stored body */
};

/* Grows a frame in a malloc'd buffer. Sections are laid down in the order they are added; the number must be
 * known at the start, so that the table has its room. Owned by one thread. */
struct frame_writer {
	uint8_t *data;
	size_t len;
	size_t capacity;
	uint32_t n_sections;
	uint32_t n_sections_max;
	uint64_t raw_section_bytes;
};

int frame_writer_init(struct frame_writer *w, uint32_t n_sections_max, size_t size_hint);
/* Room for at least max_len bytes of the next section's body; valid until the next call. NULL: no memory. */
uint8_t *frame_writer_reserve(struct frame_writer *w, size_t max_len);
/* Takes the first len_bytes of what was reserved as the body of a section. */
int frame_writer_commit(struct frame_writer *w, const struct frame_section *section);
/* The same for a body whose checksum, section->checksum, is known already. */
void frame_writer_take(struct frame_writer *w, const struct frame_section *section);
/* Completes the frame: fills header and table, checksums. *data is malloc'd and the caller's; w is empty
 * after. */
int frame_writer_finish(struct frame_writer *w, const struct frame_info *info, uint8_t **data, size_t *len);
void frame_writer_fini(struct frame_writer *w);

/* Reads and checks header and table: magic, version, checksum, every offset and length inside len, counts in
 * range. Bodies are not touched. sections (room for sections_max) may be NULL. -EBADMSG: damaged or cut
 * short; -ENOTSUP: another version; -ENOBUFS: more sections than room. */
int frame_parse(const void *data, size_t len, struct frame_info *info, struct frame_section *sections,
	uint32_t sections_max);

/* The rung of plain tokens, of a frame that was parsed before: for looking at many. */
uint8_t frame_rung(const void *data);

/* Checks one section's body against its checksum. 0 or -EBADMSG. */
int frame_section_check(const void *data, const struct frame_section *section);

/* Writes the class map of n tokens: at most FRAME_CLASSES_MAX(n) bytes, and says how many. */
size_t frame_put_classes(const uint8_t *classes, uint32_t n_tokens, uint8_t *out);
/* Reads one: 0, or -EBADMSG when it is not one of just n tokens. */
int frame_get_classes(const uint8_t *map, size_t len, uint32_t n_tokens, uint8_t *classes);

/* The frame's class map: classes gets as many as it has tokens, FRAME_TOKENS_MAX at most. -EBADMSG, -ENOTSUP.
 */
int frame_classes(const void *data, size_t len, uint8_t *classes);
/* Has the frame say another error: of one that was made from what another frame had already lost something
 * of. -EBADMSG, -ENOTSUP. */
int frame_restate_error(void *data, size_t len, const struct frame_error error[2]);

#endif
