#include "runtime/store/format.h"

#include <errno.h>
#include <string.h>

/* Compiled for any x86-64, xxHash runs at a tenth of the speed that the machine has for it; its own dispatch
 * finds out which. */
#ifdef HAVE_XXH_DISPATCH
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

uint64_t format_checksum(const void *data, size_t len, uint64_t seed)
{
	return XXH3_64bits_withSeed(data, len, seed);
}

void format_segment_encode(void *page, uint32_t number, uint64_t salt)
{
	struct format_segment h = {
		.magic = FORMAT_SEGMENT_MAGIC, .version = FORMAT_VERSION, .number = number, .salt = salt};

	h.checksum = format_checksum(&h, offsetof(struct format_segment, checksum), 0);
	memset(page, 0, STORE_ALIGN);
	memcpy(page, &h, sizeof h);
}

int format_segment_decode(const void *page, struct format_segment *out)
{
	struct format_segment h;

	memcpy(&h, page, sizeof h);
	if (h.magic != FORMAT_SEGMENT_MAGIC ||
		h.checksum != format_checksum(&h, offsetof(struct format_segment, checksum), 0))
		return -EBADMSG;
	if (h.version != FORMAT_VERSION)
		return -ENOTSUP;
	*out = h;
	return 0;
}

void format_record_seal(struct format_record *h, uint64_t salt)
{
	h->magic = FORMAT_RECORD_MAGIC;
	h->version = FORMAT_VERSION;
	h->checksum = format_checksum(h, offsetof(struct format_record, checksum), salt);
}

int format_record_decode(const void *data, uint64_t salt, uint32_t segment, uint64_t offset,
	uint64_t end_offset, struct format_record *out)
{
	struct format_record h;

	memcpy(&h, data, sizeof h);
	if (h.magic != FORMAT_RECORD_MAGIC || h.version != FORMAT_VERSION ||
		h.checksum != format_checksum(&h, offsetof(struct format_record, checksum), salt))
		return -EBADMSG;
	if (h.segment != segment || h.offset != offset)
		return -EBADMSG;
	if ((h.kind != FORMAT_WRITE || h.frame_bytes == 0) &&
		((h.kind != FORMAT_TOMBSTONE && h.kind != FORMAT_PURGE) || h.frame_bytes != 0))
		return -EBADMSG;
	/* The first comparison keeps the sum in the second from overflowing. */
	if (offset % STORE_ALIGN || offset > end_offset || h.frame_bytes > end_offset - offset ||
		format_record_bytes(&h) > end_offset - offset)
		return -EBADMSG;
	*out = h;
	return 0;
}

void format_record_describe(const struct format_record *h, struct store_record *out)
{
	*out = (struct store_record){
		.frame_bytes = h->frame_bytes,
		.raw_bytes = h->raw_bytes,
		.n_tokens = h->n_tokens,
		.position = h->position,
		.location = {.segment = h->segment,
			.len_pages = (uint32_t)(format_record_bytes(h) / STORE_ALIGN),
			.offset = h->offset},
	};
	memcpy(out->name_space, h->name_space, sizeof out->name_space);
	memcpy(out->fingerprint, h->fingerprint, sizeof out->fingerprint);
	memcpy(out->key, h->key, sizeof out->key);
	memcpy(out->parent, h->parent, sizeof out->parent);
	memcpy(out->transform, h->transform, sizeof out->transform);
}

void store_draft(void *header, const struct store_record *record)
{
	struct format_record h = {.kind = FORMAT_WRITE,
		.frame_bytes = record->frame_bytes,
		.raw_bytes = record->raw_bytes,
		.position = record->position,
		.n_tokens = record->n_tokens,
		.segment = record->location.segment,
		.offset = record->location.offset};

	memcpy(h.name_space, record->name_space, sizeof h.name_space);
	memcpy(h.fingerprint, record->fingerprint, sizeof h.fingerprint);
	memcpy(h.key, record->key, sizeof h.key);
	memcpy(h.parent, record->parent, sizeof h.parent);
	memcpy(h.transform, record->transform, sizeof h.transform);
	memcpy(header, &h, sizeof h);
}

void store_describe(const void *header, struct store_record *out)
{
	struct format_record h;

	memcpy(&h, header, sizeof h);
	format_record_describe(&h, out);
}

void format_footer_encode(void *out, const struct format_record *headers, uint32_t n_records, uint32_t number,
	uint64_t salt, uint64_t footer_offset)
{
	size_t len = (size_t)n_records * STORE_HEADER_BYTES;
	struct format_trailer t = {
		.magic = FORMAT_TRAILER_MAGIC,
		.version = FORMAT_VERSION,
		.number = number,
		.n_records = n_records,
		.salt = salt,
		.footer_offset = footer_offset,
		.footer_checksum = format_checksum(headers, len, salt),
	};

	t.checksum = format_checksum(&t, offsetof(struct format_trailer, checksum), 0);
	memset(out, 0, format_footer_bytes(n_records));
	if (len)
		memcpy(out, headers, len);
	memcpy((char *)out + format_footer_bytes(n_records) - STORE_ALIGN, &t, sizeof t);
}

int format_trailer_decode(const void *page, uint32_t number, uint64_t file_bytes, struct format_trailer *out)
{
	struct format_trailer t;

	memcpy(&t, page, sizeof t);
	if (t.magic != FORMAT_TRAILER_MAGIC || t.version != FORMAT_VERSION || t.number != number ||
		t.checksum != format_checksum(&t, offsetof(struct format_trailer, checksum), 0))
		return -EBADMSG;
	if (t.footer_offset < STORE_ALIGN || t.footer_offset > file_bytes ||
		file_bytes - t.footer_offset != format_footer_bytes(t.n_records))
		return -EBADMSG;
	*out = t;
	return 0;
}
