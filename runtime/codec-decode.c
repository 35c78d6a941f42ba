#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"
#include "runtime/codec-internal.h"

/* One call of codec_decode. */
struct decoder {
	struct codec *codec;
	const struct codec_chunk *chunk;
	const struct transform *transform;
	const uint8_t *data;
	struct frame_info info;
	struct frame_section *sections;
	uint16_t *coded, *raw;
	size_t n_coded, n_raw;
	uint32_t first_layer, end_layer; /* wanted */
};

static int open_frame(struct decoder *d, size_t len)
{
	static const uint8_t none[16] = {0};
	const struct geometry *g = d->chunk->geometry;
	uint8_t fingerprint[16];
	int r;

	r = frame_parse(d->data, len, &d->info, NULL, 0);
	if (r)
		return r;
	geometry_fingerprint(g, fingerprint);
	if (memcmp(d->info.fingerprint, fingerprint, 16) != 0 ||
		memcmp(d->info.transform, d->transform ? d->transform->id : none, 16) != 0 ||
		d->info.position != d->chunk->position || d->info.n_tokens != d->chunk->n_tokens)
		return -ESTALE;
	if (d->transform && transform_fits(d->transform, g, NULL, 0))
		return -ESTALE;
	if (d->transform && d->info.rung >= d->transform->n_rungs)
		return -EBADMSG;
	d->sections = scratch_get(&d->codec->sections, d->info.n_sections * sizeof *d->sections);
	if (!d->sections)
		return -ENOMEM;
	return frame_parse(d->data, len, &d->info, d->sections, d->info.n_sections);
}

/* The next section from *at on that is of this kind, plane and part; NULL: none. Sections of a part lie in
 * order, so one pass over the table finds everything. */
static const struct frame_section *next_section(
	const struct decoder *d, uint32_t *at, uint8_t kind, uint32_t plane, uint32_t part)
{
	for (; *at < d->info.n_sections; (*at)++) {
		const struct frame_section *s = &d->sections[*at];

		if (s->kind == kind && s->plane == plane && s->part == part)
			return &d->sections[(*at)++];
	}
	return NULL;
}

static int read_classes(struct decoder *d)
{
	const uint32_t n = d->info.n_tokens;
	const struct frame_section *s = d->info.n_sections ? &d->sections[0] : NULL;
	const uint8_t *body;
	uint32_t t = 0;

	if (!s || s->kind != FRAME_CLASSES || s->encoding != FRAME_STORED || s->len_bytes % 3 ||
		frame_section_check(d->data, s))
		return -EBADMSG;
	d->coded = scratch_get(&d->codec->tokens, 2 * (size_t)n * sizeof *d->coded);
	if (!d->coded)
		return -ENOMEM;
	d->raw = d->coded + n;
	body = d->data + s->offset;
	for (uint32_t at = 0; at < s->len_bytes; at += 3) {
		uint16_t run;

		memcpy(&run, body + at + 1, 2);
		if (!run || run > n - t || body[at] > TOKEN_EXACT)
			return -EBADMSG;
		for (uint32_t end = t + run; t < end; t++)
			if (token_class_is_raw(body[at]))
				d->raw[d->n_raw++] = (uint16_t)t;
			else
				d->coded[d->n_coded++] = (uint16_t)t;
	}
	return t == n && d->n_raw == d->info.n_raw ? 0 : -EBADMSG;
}

static int read_raw(struct decoder *d, uint32_t plane)
{
	const struct geometry *g = d->chunk->geometry;
	const struct plane *p = &g->planes[plane];
	const size_t layer_bytes = d->n_raw * plane_width(p) * dtype_bytes(p->dtype);
	uint32_t at = 0;
	const struct frame_section *s = next_section(d, &at, FRAME_RAW, plane, 0);

	if (!s || s->encoding != FRAME_STORED || s->len_bytes != layer_bytes * g->n_layers ||
		frame_section_check(d->data, s))
		return -EBADMSG;
	for (uint32_t layer = d->first_layer; layer < d->end_layer; layer++)
		d->codec->kernels->scatter_raw(p, codec_pages(d->chunk, layer, plane), &d->chunk->run, d->raw,
			d->n_raw, d->data + s->offset + layer * layer_bytes);
	return 0;
}

/* The section's body, full_bytes long: in the frame, or inflated into out. NULL: damaged. */
static const uint8_t *section_body(struct decoder *d, const struct frame_section *s, uint8_t *out)
{
	z_stream *z = &d->codec->inflater;

	if (frame_section_check(d->data, s))
		return NULL;
	if (s->encoding == FRAME_STORED)
		return d->data + s->offset;
	inflateReset(z);
	z->next_in = (Bytef *)(d->data + s->offset);
	z->avail_in = s->len_bytes;
	z->next_out = out;
	z->avail_out = s->full_bytes;
	if (inflate(z, Z_FINISH) != Z_STREAM_END || z->total_out != s->full_bytes || z->avail_in)
		return NULL;
	return out;
}

/* Components [*next, ...) out of one stream; advances *next over those it held. */
static int read_stream(struct decoder *d, const struct codec_part *part, const uint8_t *packed, size_t len,
	const uint16_t *steps, size_t n_active, float *c, size_t *next)
{
	size_t i = *next;

	while (len) {
		const unsigned bits = i < n_active ? codec_part_bits(part, i) : 0;
		const size_t row = quant_row_bytes(d->n_coded, bits);
		size_t rows = i < n_active ? codec_run_of_bits(part, i) : 0;

		if (!row || row > len)
			return -EBADMSG;
		if (rows > len / row)
			rows = len / row;
		d->codec->kernels->dequantise(
			packed, steps + i, rows, d->n_coded, bits, c + i * d->n_coded, d->n_coded);
		packed += rows * row;
		len -= rows * row;
		i += rows;
	}
	*next = i;
	return 0;
}

/* The part's coefficients: c [n_active, n_coded]. */
static int read_coefficients(struct decoder *d, const struct codec_part *part, size_t n_active, float *c)
{
	const size_t packed_max = codec_codes_bytes(part, 0, n_active, d->n_coded);
	const struct frame_section *s;
	const uint16_t *steps;
	uint32_t at = 0;
	uint8_t *buffer = scratch_get(&d->codec->packed, packed_max);
	uint16_t *steps_buffer = scratch_get(&d->codec->steps, (n_active + 1) * sizeof *steps);
	size_t next = 0;

	if (!buffer || !steps_buffer)
		return -ENOMEM;
	s = next_section(d, &at, FRAME_STEPS, part->plane, part->index);
	if (!s || s->full_bytes != n_active * sizeof *steps)
		return -EBADMSG;
	steps = (const uint16_t *)section_body(d, s, (uint8_t *)steps_buffer);
	if (!steps)
		return -EBADMSG;
	/* Stored steps may lie at an odd address. */
	if ((const void *)steps != (const void *)steps_buffer)
		memcpy(steps_buffer, steps, n_active * sizeof *steps);
	codec_stamp(d->codec, &d->codec->times.deflate);

	at = 0;
	while (next < n_active) {
		const uint8_t *body;
		int r;

		s = next_section(d, &at, FRAME_CODES, part->plane, part->index);
		if (!s || s->full_bytes > packed_max)
			return -EBADMSG;
		body = section_body(d, s, buffer);
		codec_stamp(d->codec, &d->codec->times.deflate);
		if (!body)
			return -EBADMSG;
		r = read_stream(d, part, body, s->full_bytes, steps_buffer, n_active, c, &next);
		codec_stamp(d->codec, &d->codec->times.quantise);
		if (r)
			return r;
	}
	return 0;
}

static int read_part(struct decoder *d, const struct codec_part *part)
{
	const struct plane *plane = &d->chunk->geometry->planes[part->plane];
	const struct kernels *k = d->codec->kernels;
	const size_t width = plane_width(plane), n_active = codec_n_active(part);
	struct rope_table rope;
	float *c = scratch_get(&d->codec->c, (n_active + 1) * d->n_coded * sizeof *c);
	float *x = scratch_get(&d->codec->x, d->n_coded * part->p * sizeof *x);
	int r;

	if (!c || !x)
		return -ENOMEM;
	r = read_coefficients(d, part, n_active, c);
	if (r)
		return r;
	if (part->basis)
		k->reconstruct(part->basis, n_active, part->p, c, d->n_coded, d->n_coded, x, part->p);
	else
		k->transpose(c, d->n_coded, part->p, d->n_coded, x, part->p);
	codec_stamp(d->codec, &d->codec->times.gemm);

	r = codec_rope(d->codec, plane, d->chunk->position, d->coded, d->n_coded, &rope);
	if (r)
		return r;
	for (uint32_t l = 0; l < part->n_layers; l++) {
		const uint32_t layer = part->first_layer + l;

		if (layer >= d->first_layer && layer < d->end_layer)
			k->scatter(plane, codec_pages(d->chunk, layer, part->plane), &d->chunk->run, d->coded,
				d->n_coded, rope.cos ? &rope : NULL,
				part->mean ? part->mean + l * width : NULL, x + l * width, part->p);
	}
	codec_stamp(d->codec, &d->codec->times.gather);
	return 0;
}

static int decode(struct decoder *d, size_t len)
{
	const struct geometry *g = d->chunk->geometry;
	const uint32_t n_parts = codec_n_parts(g, d->transform);
	int r;

	r = open_frame(d, len);
	if (!r)
		r = read_classes(d);
	for (uint32_t plane = 0; !r && d->n_raw && plane < g->n_planes; plane++)
		r = read_raw(d, plane);
	codec_stamp(d->codec, &d->codec->times.other);
	for (uint32_t i = 0; !r && d->n_coded && i < n_parts; i++) {
		struct codec_part part;

		codec_part(g, d->transform, d->info.rung, i, &part);
		if (part.first_layer < d->end_layer && part.first_layer + part.n_layers > d->first_layer)
			r = read_part(d, &part);
	}
	return r;
}

int codec_decode(struct codec *codec, const void *data, size_t len, const struct transform *transform,
	const struct codec_chunk *chunk, uint32_t first_layer, uint32_t n_layers)
{
	struct decoder d = {.codec = codec,
		.chunk = chunk,
		.transform = transform,
		.data = data,
		.first_layer = first_layer,
		.end_layer = first_layer + n_layers};
	int r;

	codec_stamp(codec, NULL);
	r = decode(&d, len);
	codec_settle(codec);
	return r;
}
