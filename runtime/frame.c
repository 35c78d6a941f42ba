#include "runtime/frame.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "policy/policy.h"

/* Byte offsets of the header's fields; docs/frame-format.md has the same table. */
enum {
	AT_MAGIC = 0,
	AT_VERSION = 4,
	AT_HEADER_BYTES = 6,
	AT_NAME_SPACE = 8,
	AT_FINGERPRINT = 24,
	AT_TRANSFORM = 40,
	AT_KEY = 56,
	AT_PARENT = 88,
	AT_POSITION = 120,
	AT_N_TOKENS = 128,
	AT_N_RAW = 132,
	AT_RUNG = 136,
	AT_RUNG_SALIENT = 137,
	AT_RUNG_REDUNDANT = 138,
	AT_POLICY_VERSION = 140,
	AT_ERROR = 144,
	AT_N_SECTIONS = 160,
	AT_RESERVED = 164,
	AT_LEN_BYTES = 168,
	AT_RAW_BYTES = 176,
	AT_CHECKSUM = 184,
};
_Static_assert(AT_CHECKSUM + 8 == FRAME_HEADER_BYTES, "header layout");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "fields are copied as they lie in memory");

#define PUT(base, at, value)                                                                                 \
	do {                                                                                                 \
		_Static_assert(sizeof(value) <= 32, "a field");                                              \
		memcpy((base) + (at), &(value), sizeof(value));                                              \
	} while (0)
#define GET(base, at, value) memcpy(&(value), (base) + (at), sizeof(value))

/* Over header (but for the checksum itself), whose hash seeds the one over the table. */
static uint64_t head_checksum(const uint8_t *data, uint32_t n_sections)
{
	return XXH3_64bits_withSeed(data + FRAME_HEADER_BYTES, (size_t)n_sections * FRAME_SECTION_BYTES,
		XXH3_64bits(data, AT_CHECKSUM));
}

static void section_put(uint8_t *entry, const struct frame_section *s)
{
	memset(entry, 0, FRAME_SECTION_BYTES);
	PUT(entry, 0, s->kind);
	PUT(entry, 1, s->plane);
	PUT(entry, 2, s->part);
	PUT(entry, 4, s->encoding);
	PUT(entry, 5, s->token_class);
	PUT(entry, 8, s->offset);
	PUT(entry, 16, s->len_bytes);
	PUT(entry, 20, s->full_bytes);
	PUT(entry, 24, s->checksum);
}

static void section_get(const uint8_t *entry, struct frame_section *s)
{
	GET(entry, 0, s->kind);
	GET(entry, 1, s->plane);
	GET(entry, 2, s->part);
	GET(entry, 4, s->encoding);
	GET(entry, 5, s->token_class);
	GET(entry, 8, s->offset);
	GET(entry, 16, s->len_bytes);
	GET(entry, 20, s->full_bytes);
	GET(entry, 24, s->checksum);
}

static bool section_sound(const struct frame_section *s, uint64_t offset, uint64_t len_bytes)
{
	if (s->kind < FRAME_CLASSES || s->kind > FRAME_LEVELS || s->plane > 1)
		return false;
	if (s->encoding > (s->kind == FRAME_LEVELS ? FRAME_RANS : FRAME_DEFLATE) ||
		s->token_class >= TOKEN_CLASSES)
		return false;
	if (s->encoding == FRAME_STORED && s->len_bytes != s->full_bytes)
		return false;
	/* Bodies follow each other without gaps: what a frame holds is accounted for to the last byte. */
	return s->offset == offset && s->len_bytes <= len_bytes - offset;
}

static int writer_grow(struct frame_writer *w, size_t more)
{
	size_t wanted, capacity = w->capacity;
	uint8_t *data;

	if (__builtin_add_overflow(w->len, more, &wanted))
		return -ENOMEM;
	if (wanted <= capacity)
		return 0;
	/* What is asked for at first is mostly what it comes to. */
	while (capacity && capacity < wanted)
		capacity += capacity / 2 + 4096;
	capacity = capacity ? capacity : wanted;
	data = realloc(w->data, capacity);
	if (!data)
		return -ENOMEM;
	w->data = data;
	w->capacity = capacity;
	return 0;
}

int frame_writer_init(struct frame_writer *w, uint32_t n_sections_max, size_t size_hint)
{
	const size_t head = FRAME_HEADER_BYTES + (size_t)n_sections_max * FRAME_SECTION_BYTES;

	*w = (struct frame_writer){.n_sections_max = n_sections_max};
	if (writer_grow(w, head + size_hint))
		return -ENOMEM;
	memset(w->data, 0, head);
	w->len = head;
	return 0;
}

uint8_t *frame_writer_reserve(struct frame_writer *w, size_t max_len)
{
	return writer_grow(w, max_len) ? NULL : w->data + w->len;
}

void frame_writer_take(struct frame_writer *w, const struct frame_section *section)
{
	struct frame_section s = *section;

	assert(w->n_sections < w->n_sections_max);
	assert(s.len_bytes <= w->capacity - w->len);
	s.offset = w->len;
	section_put(w->data + FRAME_HEADER_BYTES + (size_t)w->n_sections * FRAME_SECTION_BYTES, &s);
	w->n_sections++;
	w->raw_section_bytes += s.kind == FRAME_RAW ? s.len_bytes : 0;
	w->len += s.len_bytes;
}

int frame_writer_commit(struct frame_writer *w, const struct frame_section *section)
{
	struct frame_section s = *section;

	s.checksum = XXH3_64bits(w->data + w->len, s.len_bytes);
	frame_writer_take(w, &s);
	return 0;
}

/* The table had room for n_sections_max; what was not used is closed up. */
static void writer_close_up(struct frame_writer *w)
{
	const size_t unused = (size_t)(w->n_sections_max - w->n_sections) * FRAME_SECTION_BYTES;
	const size_t bodies = FRAME_HEADER_BYTES + (size_t)w->n_sections_max * FRAME_SECTION_BYTES;
	uint8_t *table = w->data + FRAME_HEADER_BYTES;

	if (!unused)
		return;
	memmove(w->data + bodies - unused, w->data + bodies, w->len - bodies);
	w->len -= unused;
	for (uint32_t i = 0; i < w->n_sections; i++) {
		struct frame_section s;

		section_get(table + (size_t)i * FRAME_SECTION_BYTES, &s);
		s.offset -= unused;
		section_put(table + (size_t)i * FRAME_SECTION_BYTES, &s);
	}
}

int frame_writer_finish(struct frame_writer *w, const struct frame_info *info, uint8_t **data, size_t *len)
{
	const uint32_t magic = FRAME_MAGIC;
	const uint16_t version = FRAME_VERSION, header_bytes = FRAME_HEADER_BYTES;
	uint64_t len_bytes, checksum;
	uint8_t *p;

	writer_close_up(w);
	p = w->data;
	len_bytes = w->len;
	PUT(p, AT_MAGIC, magic);
	PUT(p, AT_VERSION, version);
	PUT(p, AT_HEADER_BYTES, header_bytes);
	memcpy(p + AT_NAME_SPACE, info->name_space, 16);
	memcpy(p + AT_FINGERPRINT, info->fingerprint, 16);
	memcpy(p + AT_TRANSFORM, info->transform, 16);
	memcpy(p + AT_KEY, info->key, 32);
	memcpy(p + AT_PARENT, info->parent, 32);
	PUT(p, AT_POSITION, info->position);
	PUT(p, AT_N_TOKENS, info->n_tokens);
	PUT(p, AT_N_RAW, info->n_raw);
	PUT(p, AT_RUNG, info->rung);
	PUT(p, AT_RUNG_SALIENT, info->rung_salient);
	PUT(p, AT_RUNG_REDUNDANT, info->rung_redundant);
	p[AT_RUNG_REDUNDANT + 1] = 0;
	PUT(p, AT_POLICY_VERSION, info->policy_version);
	PUT(p, AT_ERROR, info->error);
	PUT(p, AT_N_SECTIONS, w->n_sections);
	PUT(p, AT_LEN_BYTES, len_bytes);
	PUT(p, AT_RAW_BYTES, info->raw_bytes);
	checksum = head_checksum(p, w->n_sections);
	PUT(p, AT_CHECKSUM, checksum);
	*data = p;
	*len = w->len;
	*w = (struct frame_writer){0};
	return 0;
}

void frame_writer_fini(struct frame_writer *w)
{
	free(w->data);
	*w = (struct frame_writer){0};
}

int frame_parse(const void *data, size_t len, struct frame_info *info, struct frame_section *sections,
	uint32_t sections_max)
{
	const uint8_t *p = data;
	struct frame_info i = {0};
	uint32_t magic, reserved;
	uint16_t version, header_bytes;
	uint64_t checksum, offset;

	if (len < FRAME_HEADER_BYTES)
		return -EBADMSG;
	GET(p, AT_MAGIC, magic);
	GET(p, AT_VERSION, version);
	GET(p, AT_HEADER_BYTES, header_bytes);
	if (magic != FRAME_MAGIC)
		return -EBADMSG;
	if (version != FRAME_VERSION)
		return -ENOTSUP;
	memcpy(i.name_space, p + AT_NAME_SPACE, 16);
	memcpy(i.fingerprint, p + AT_FINGERPRINT, 16);
	memcpy(i.transform, p + AT_TRANSFORM, 16);
	memcpy(i.key, p + AT_KEY, 32);
	memcpy(i.parent, p + AT_PARENT, 32);
	GET(p, AT_POSITION, i.position);
	GET(p, AT_N_TOKENS, i.n_tokens);
	GET(p, AT_N_RAW, i.n_raw);
	GET(p, AT_RUNG, i.rung);
	GET(p, AT_RUNG_SALIENT, i.rung_salient);
	GET(p, AT_RUNG_REDUNDANT, i.rung_redundant);
	GET(p, AT_POLICY_VERSION, i.policy_version);
	GET(p, AT_ERROR, i.error);
	GET(p, AT_N_SECTIONS, i.n_sections);
	GET(p, AT_RESERVED, reserved);
	GET(p, AT_LEN_BYTES, i.len_bytes);
	GET(p, AT_RAW_BYTES, i.raw_bytes);
	GET(p, AT_CHECKSUM, checksum);

	if (header_bytes != FRAME_HEADER_BYTES || reserved || i.len_bytes != len)
		return -EBADMSG;
	if (i.n_sections > (len - FRAME_HEADER_BYTES) / FRAME_SECTION_BYTES)
		return -EBADMSG;
	if (checksum != head_checksum(p, i.n_sections))
		return -EBADMSG;
	if (!i.n_tokens || i.n_tokens > FRAME_TOKENS_MAX || i.n_raw > i.n_tokens || p[AT_RUNG_REDUNDANT + 1])
		return -EBADMSG;

	offset = FRAME_HEADER_BYTES + (uint64_t)i.n_sections * FRAME_SECTION_BYTES;
	for (uint32_t k = 0; k < i.n_sections; k++) {
		struct frame_section s;

		section_get(p + FRAME_HEADER_BYTES + (size_t)k * FRAME_SECTION_BYTES, &s);
		if (!section_sound(&s, offset, len))
			return -EBADMSG;
		i.raw_section_bytes += s.kind == FRAME_RAW ? s.len_bytes : 0;
		offset += s.len_bytes;
	}
	if (offset != len)
		return -EBADMSG;

	if (sections) {
		if (i.n_sections > sections_max)
			return -ENOBUFS;
		for (uint32_t k = 0; k < i.n_sections; k++)
			section_get(p + FRAME_HEADER_BYTES + (size_t)k * FRAME_SECTION_BYTES, &sections[k]);
	}
	*info = i;
	return 0;
}

uint8_t frame_rung(const void *data)
{
	return ((const uint8_t *)data)[AT_RUNG];
}

int frame_section_check(const void *data, const struct frame_section *section)
{
	const uint8_t *body = (const uint8_t *)data + section->offset;

	return XXH3_64bits(body, section->len_bytes) == section->checksum ? 0 : -EBADMSG;
}

/* A run of up to 31 tokens of one class is a byte: the class, and from bit 3 on the length less one. 31 there
 * means that two more bytes follow, the length less 32. */
enum { RUN_SHORT_MAX = 31, RUN_CLASS_BITS = 3 };

size_t frame_put_classes(const uint8_t *classes, uint32_t n_tokens, uint8_t *out)
{
	size_t len = 0;

	for (uint32_t t = 0, end; t < n_tokens; t = end) {
		uint32_t run;

		for (end = t + 1; end < n_tokens && classes[end] == classes[t]; end++)
			;
		run = end - t - 1;
		out[len++] =
			(uint8_t)(classes[t] | (run < RUN_SHORT_MAX ? run : RUN_SHORT_MAX) << RUN_CLASS_BITS);
		if (run >= RUN_SHORT_MAX) {
			const uint16_t more = (uint16_t)(run - RUN_SHORT_MAX);

			memcpy(out + len, &more, sizeof more);
			len += sizeof more;
		}
	}
	return len;
}

int frame_get_classes(const uint8_t *map, size_t len, uint32_t n_tokens, uint8_t *classes)
{
	size_t at = 0;
	uint32_t t = 0;

	while (at < len) {
		const uint8_t class = map[at] & ((1 << RUN_CLASS_BITS) - 1);
		uint32_t run = map[at++] >> RUN_CLASS_BITS;

		if (run == RUN_SHORT_MAX) {
			uint16_t more;

			if (len - at < sizeof more)
				return -EBADMSG;
			memcpy(&more, map + at, sizeof more);
			at += sizeof more;
			run += more;
		}
		if (class >= TOKEN_CLASSES || run >= n_tokens - t)
			return -EBADMSG;
		memset(classes + t, class, run + 1);
		t += run + 1;
	}
	return t == n_tokens ? 0 : -EBADMSG;
}

int frame_classes(const void *data, size_t len, uint8_t *classes)
{
	const uint8_t *p = data;
	struct frame_section s;
	struct frame_info info;
	int r = frame_parse(data, len, &info, NULL, 0);

	if (r)
		return r;
	if (!info.n_sections)
		return -EBADMSG;
	section_get(p + FRAME_HEADER_BYTES, &s);
	if (s.kind != FRAME_CLASSES || s.encoding != FRAME_STORED || frame_section_check(data, &s))
		return -EBADMSG;
	return frame_get_classes(p + s.offset, s.len_bytes, info.n_tokens, classes);
}

int frame_restate_error(void *data, size_t len, const struct frame_error error[2])
{
	uint8_t *p = data;
	struct frame_info info;
	uint64_t checksum;
	int r = frame_parse(data, len, &info, NULL, 0);

	if (r)
		return r;
	memcpy(p + AT_ERROR, error, 2 * sizeof *error);
	checksum = head_checksum(p, info.n_sections);
	PUT(p, AT_CHECKSUM, checksum);
	return 0;
}
