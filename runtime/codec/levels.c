/*
 * A part's levels of one class of tokens, as a section: docs/frame-format.md, "Levels". Two stages. rANS:
 * first a byte for each band of components, then the stream. DEFLATE: a byte for each component that says how
 * many levels share a byte, then the components so packed, all of it one DEFLATE stream.
 */
#include <errno.h>
#include <string.h>

#include "runtime/codec/internal.h"

enum {
	/* DEFLATE: levels to a byte, and the largest level that goes into it. */
	PACK_FIVE_MAX = 1,
	PACK_TWO_MAX = 7,
	PACK_ONE_MAX = 127,
	/* A new Huffman code costs about 60 bytes: not before so many packed bytes. */
	BLOCK_BYTES_MIN = 4096,
};

/* ---- Offsets. A band whose components have grown or shrunk since calibration is coded with other classes'
 * tables, those that take fewest bits for the levels that are there. */

/* How often each symbol occurs, by table and set, in components whose rows are alike. */
struct histogram {
	uint32_t n[LEVELS_SETS][LEVELS_SYMBOLS];
};

static float histogram_bits(const struct levels_coder *coder, const struct histogram *h, unsigned table)
{
	float bits = 0;

	for (unsigned set = 0; set < LEVELS_SETS; set++)
		for (unsigned k = 0; k < LEVELS_SYMBOLS; k++)
			if (h->n[set][k])
				bits += (float)h->n[set][k] * coder->bits[table][set][k];
	return bits;
}

static void add_histogram(struct histogram *h, const int16_t *codes, size_t n, unsigned shift)
{
	for (size_t t = 0; t < n; t++)
		h->n[levels_set(codes[t])][levels_symbol(levels_level(codes[t]), shift)]++;
}

/* Adds to bits[offset + LEVELS_OFFSET_MAX] what components [first, end), which have one class, take. Offsets
 * that would change what goes around the table are left out. */
static void add_run(const struct codec_levels *l, size_t first, size_t end, int class, float *bits)
{
	const struct levels_row row = levels_row(class);
	struct histogram h = {0};

	for (size_t i = first; i < end; i++)
		add_histogram(&h, l->codes + i * l->stride, l->n, row.shift);
	for (int offset = -LEVELS_OFFSET_MAX; offset <= LEVELS_OFFSET_MAX; offset++) {
		const struct levels_row moved = levels_row(class + offset);

		bits[offset + LEVELS_OFFSET_MAX] +=
			moved.shift == row.shift ? histogram_bits(l->coder, &h, moved.table) : INFINITY;
	}
}

static int8_t band_offset(const struct codec_levels *l, size_t first, size_t end)
{
	float bits[2 * LEVELS_OFFSET_MAX + 1] = {0};
	int best = 0;

	for (size_t i = first, next; i < end; i = next) {
		const int class = levels_class(l->part->deviation[i], l->step);

		for (next = i + 1; next < end && levels_class(l->part->deviation[next], l->step) == class;)
			next++;
		add_run(l, i, next, class, bits);
	}
	for (int offset = -LEVELS_OFFSET_MAX; offset <= LEVELS_OFFSET_MAX; offset++)
		if (bits[offset + LEVELS_OFFSET_MAX] < bits[best + LEVELS_OFFSET_MAX])
			best = offset;
	return (int8_t)best;
}

static void offset_rows(const struct codec_levels *l, const int8_t *offsets, struct levels_row *rows)
{
	for (size_t i = 0; i < l->r; i++)
		rows[i] = levels_row(levels_class(l->part->deviation[i], l->step) + offsets[i / LEVELS_BAND]);
}

static int put_rans(struct codec *c, struct frame_writer *w, struct frame_section *section,
	const struct codec_levels *l, struct levels_row *rows)
{
	const size_t bands = levels_bands(l->r), room = levels_encoded_max(l->r, l->n);
	uint8_t *out = bands + room > UINT32_MAX ? NULL : frame_writer_reserve(w, bands + room);
	int8_t *offsets = (int8_t *)out;

	if (!out)
		return -ENOMEM;
	for (size_t b = 0; b < bands; b++)
		offsets[b] = band_offset(
			l, b * LEVELS_BAND, l->r < (b + 1) * LEVELS_BAND ? l->r : (b + 1) * LEVELS_BAND);
	offset_rows(l, offsets, rows);
	section->encoding = FRAME_RANS;
	section->len_bytes = section->full_bytes =
		(uint32_t)(bands + c->kernels->encode_levels(l->codes, l->stride, l->r, l->n, l->coder, rows,
					   out + bands, room));
	return frame_writer_commit(w, section);
}

static int get_rans(struct codec *c, const uint8_t *body, size_t len, const struct codec_levels *l,
	struct levels_row *rows)
{
	const size_t bands = levels_bands(l->r);
	uint8_t *states = codec_scratch(c, SCRATCH_WORK, l->n);

	if (!states)
		return -ENOMEM;
	if (len < bands)
		return -EBADMSG;
	for (size_t b = 0; b < bands; b++)
		if ((int8_t)body[b] < -LEVELS_OFFSET_MAX || (int8_t)body[b] > LEVELS_OFFSET_MAX)
			return -EBADMSG;
	offset_rows(l, (const int8_t *)body, rows);
	return c->kernels->decode_levels(
		       body + bands, len - bands, l->r, l->n, l->coder, rows, l->codes, l->stride, states)
		       ? -EBADMSG
		       : 0;
}

/* ---- DEFLATE. */

static unsigned levels_to_a_byte(int largest)
{
	return largest <= PACK_FIVE_MAX ? 5 : largest <= PACK_TWO_MAX ? 2 : largest <= PACK_ONE_MAX ? 1 : 0;
}

static size_t packed_bytes(unsigned to_a_byte, size_t n)
{
	return to_a_byte ? (n + to_a_byte - 1) / to_a_byte : 2 * n;
}

/* Levels as digits, the first the lowest: of base 3 for five, 15 for two, 256 for one; 0: 16 bits each. */
static void pack(unsigned to_a_byte, const int16_t *codes, size_t n, uint8_t *out)
{
	const int base = to_a_byte == 5 ? 3 : to_a_byte == 2 ? 15 : 256;

	if (!to_a_byte) {
		for (size_t t = 0; t < n; t++) {
			const int16_t level = (int16_t)levels_level(codes[t]);

			memcpy(out + 2 * t, &level, 2);
		}
		return;
	}
	for (size_t t = 0; t < n; t += to_a_byte) {
		int byte = 0;

		for (size_t k = t + to_a_byte < n ? t + to_a_byte : n; k-- > t;)
			byte = byte * base + levels_level(codes[k]) + base / 2;
		*out++ = (uint8_t)byte;
	}
}

/* Codes out of levels: the trellis of each token is walked. states: [n], as after the component before. */
static int unpack(unsigned to_a_byte, const uint8_t *in, size_t n, uint8_t *states, int16_t *codes)
{
	const int base = to_a_byte == 5 ? 3 : to_a_byte == 2 ? 15 : 256;
	int byte = 0;

	for (size_t t = 0; t < n; t++) {
		int16_t level;

		if (!to_a_byte) {
			memcpy(&level, in + 2 * t, 2);
			if (level > LEVELS_MAX || level < -LEVELS_MAX)
				return -EBADMSG;
		} else {
			byte = t % to_a_byte == 0 ? *in++ : byte / base;
			level = (int16_t)(byte % base - base / 2);
		}
		codes[t] = (int16_t)(level * 2 + (states[t] >> 1));
		states[t] = (uint8_t)levels_next(states[t], (unsigned)level & 1u);
	}
	return 0;
}

static int largest_level(const int16_t *codes, size_t n)
{
	int largest = 0;

	for (size_t t = 0; t < n; t++) {
		const int level = levels_level(codes[t]);

		largest = level > largest ? level : -level > largest ? -level : largest;
	}
	return largest;
}

/* Feeds bytes to the stream; a flush that ends a block makes a new Huffman code for what follows. */
static int feed(z_stream *z, const uint8_t *bytes, size_t len, int flush)
{
	int r;

	z->next_in = (Bytef *)bytes;
	z->avail_in = (uInt)len;
	r = deflate(z, flush);
	return (r == Z_OK || r == Z_STREAM_END || r == Z_BUF_ERROR) && !z->avail_in ? 0 : -ENOMEM;
}

static int put_deflate(
	struct codec *c, struct frame_writer *w, struct frame_section *section, const struct codec_levels *l)
{
	z_stream *z = &c->deflater;
	const size_t most = l->r * (1 + 2 * l->n);
	/* deflateBound is for one call; blocks that are ended by hand take a few bytes more. */
	const size_t room = most > UINT32_MAX / 2 ? 0 : deflateBound(z, most) + 16 * l->r;
	uint8_t *out = room ? frame_writer_reserve(w, room) : NULL;
	uint8_t *packed = codec_scratch(c, SCRATCH_BODY, most + 1);
	size_t len = l->r, fed = 0;
	int last = 0, r = 0;

	if (!out || !packed)
		return -ENOMEM;
	deflateReset(z);
	z->next_out = out;
	z->avail_out = (uInt)room;
	for (size_t i = 0; i < l->r; i++)
		packed[i] = (uint8_t)levels_to_a_byte(largest_level(l->codes + i * l->stride, l->n));
	for (size_t i = 0; i < l->r && !r; i++) {
		const int class = levels_class(l->part->deviation[i], l->step);

		if ((i == 0 || last - class > 2 || packed[i] != packed[i - 1]) &&
			(i == 0 || len - fed >= BLOCK_BYTES_MIN)) {
			r = feed(z, packed + fed, len - fed, Z_BLOCK);
			fed = len;
			last = class;
		}
		pack(packed[i], l->codes + i * l->stride, l->n, packed + len);
		len += packed_bytes(packed[i], l->n);
	}
	if (!r)
		r = feed(z, packed + fed, len - fed, Z_FINISH);
	if (r)
		return r;
	section->encoding = FRAME_DEFLATE;
	section->full_bytes = (uint32_t)len;
	section->len_bytes = (uint32_t)z->total_out;
	return frame_writer_commit(w, section);
}

static int get_deflated(struct codec *c, const uint8_t *body, size_t len, const struct codec_levels *l)
{
	uint8_t *states = codec_scratch(c, SCRATCH_WORK, l->n);
	const uint8_t *modes = body;
	size_t at = l->r;

	if (!states)
		return -ENOMEM;
	memset(states, 0, l->n);
	if (len < l->r)
		return -EBADMSG;
	for (size_t i = 0; i < l->r; i++) {
		const unsigned mode = modes[i];
		int r;

		if ((mode > 2 && mode != 5) || packed_bytes(mode, l->n) > len - at)
			return -EBADMSG;
		r = unpack(mode, body + at, l->n, states, l->codes + i * l->stride);
		if (r)
			return r;
		at += packed_bytes(mode, l->n);
	}
	return at == len ? 0 : -EBADMSG;
}

int codec_put_levels(struct codec *c, struct frame_writer *w, struct frame_section *section,
	const struct codec_levels *l, enum codec_entropy entropy)
{
	struct levels_row *rows = codec_scratch(c, SCRATCH_ROWS, (l->r + 1) * sizeof *rows);

	if (!rows)
		return -ENOMEM;
	return entropy == CODEC_DEFLATE ? put_deflate(c, w, section, l) : put_rans(c, w, section, l, rows);
}

int codec_get_levels(struct codec *c, const uint8_t *frame, const struct frame_section *section,
	const struct codec_levels *l)
{
	const size_t most = l->r * (1 + 2 * l->n);
	struct levels_row *rows = codec_scratch(c, SCRATCH_ROWS, (l->r + 1) * sizeof *rows);
	uint8_t *buffer;
	const uint8_t *body;

	if (!rows)
		return -ENOMEM;
	if (section->encoding == FRAME_RANS)
		return frame_section_check(frame, section)
			       ? -EBADMSG
			       : get_rans(c, frame + section->offset, section->len_bytes, l, rows);
	if (section->full_bytes > most)
		return -EBADMSG;
	buffer = codec_scratch(c, SCRATCH_BODY, most + 1);
	if (!buffer)
		return -ENOMEM;
	body = codec_get_body(c, frame, section, buffer);
	return body ? get_deflated(c, body, section->full_bytes, l) : -EBADMSG;
}
