#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/codec/internal.h"

/* One call of codec_decode. */
struct decoder {
	struct codec *codec;
	const struct codec_chunk *chunk;
	const struct transform *transform;
	const uint8_t *data;
	struct frame_info info;
	struct frame_section *sections;
	const uint8_t *classes;
	uint16_t *coded, *raw;      /* coded: by class, in the order of codec_coded_classes */
	size_t n_of[CODED_CLASSES]; /* coded tokens of each */
	size_t n_coded, n_raw;
	struct codec_rope rope;          /* of the coded tokens */
	uint32_t first_layer, end_layer; /* wanted */
};

int codec_open_frame(struct codec *c, const struct geometry *g, const struct transform *t,
	const uint8_t *data, size_t len, struct frame_info *info, struct frame_section **sections,
	uint8_t *classes)
{
	static const uint8_t none[16] = {0};
	uint8_t fingerprint[16];
	struct frame_section *s;
	uint32_t n_raw = 0;
	int r = frame_parse(data, len, info, NULL, 0);

	if (r)
		return r;
	geometry_fingerprint(g, fingerprint);
	if (memcmp(info->fingerprint, fingerprint, 16) != 0 ||
		memcmp(info->transform, t ? t->id : none, 16) != 0 || (t && transform_fits(t, g, NULL, 0)))
		return -ESTALE;
	if (t && (info->rung >= t->n_rungs || info->rung_salient >= t->n_rungs ||
			 info->rung_redundant >= t->n_rungs))
		return -EBADMSG;
	s = codec_scratch(c, SCRATCH_SECTIONS, info->n_sections * sizeof *s);
	if (!s)
		return -ENOMEM;
	r = frame_parse(data, len, info, s, info->n_sections);
	if (!r)
		r = frame_classes(data, len, classes);
	for (uint32_t i = 0; !r && i < info->n_tokens; i++) {
		n_raw += token_class_is_raw(classes[i]);
		if (!t && classes[i] != TOKEN_PLAIN && !token_class_is_raw(classes[i]))
			r = -EBADMSG;
	}
	if (!r && n_raw != info->n_raw)
		r = -EBADMSG;
	if (!r)
		*sections = s;
	return r;
}

const uint8_t *codec_read_raw(struct codec *c, const struct geometry *g, const uint8_t *data,
	const struct frame_info *info, const struct frame_section *sections, uint32_t plane)
{
	const struct plane *p = &g->planes[plane];
	const size_t size = dtype_bytes(p->dtype), elements = info->n_raw * plane_width(p) * g->n_layers;
	uint8_t *raw = codec_scratch(c, SCRATCH_RAW, 2 * size * elements);
	uint32_t at = 0;

	for (size_t b = 0; raw && b < size; b++) {
		const struct frame_section *s =
			codec_next_section(sections, info->n_sections, &at, FRAME_RAW, plane, (uint32_t)b, 0);
		const uint8_t *body;

		if (!s || s->full_bytes != elements)
			return NULL;
		body = codec_get_body(c, data, s, raw + size * elements);
		if (!body)
			return NULL;
		for (size_t i = 0; i < elements; i++)
			raw[i * size + b] = body[i];
	}
	return raw;
}

static int open_frame(struct decoder *d, size_t len)
{
	uint8_t *classes = codec_scratch(d->codec, SCRATCH_CLASSES, FRAME_TOKENS_MAX);
	int r;

	if (!classes)
		return -ENOMEM;
	r = codec_open_frame(
		d->codec, d->chunk->geometry, d->transform, d->data, len, &d->info, &d->sections, classes);
	if (!r && (d->info.position != d->chunk->position || d->info.n_tokens != d->chunk->n_tokens))
		r = -ESTALE;
	if (r)
		return r;
	d->classes = classes;
	d->coded = codec_scratch(d->codec, SCRATCH_TOKENS, 2 * (size_t)d->info.n_tokens * sizeof *d->coded);
	if (!d->coded)
		return -ENOMEM;
	d->raw = d->coded + d->info.n_tokens;
	for (uint32_t t = 0; t < d->info.n_tokens; t++)
		if (token_class_is_raw(classes[t]))
			d->raw[d->n_raw++] = (uint16_t)t;
	for (int k = 0; k < CODED_CLASSES; k++)
		for (uint32_t t = 0; t < d->info.n_tokens; t++)
			if (classes[t] == codec_coded_classes[k]) {
				d->coded[d->n_coded++] = (uint16_t)t;
				d->n_of[k]++;
			}
	return d->transform ? codec_coders(d->codec, d->transform) : 0;
}

static int read_raw(struct decoder *d, uint32_t plane)
{
	const struct geometry *g = d->chunk->geometry;
	const struct plane *p = &g->planes[plane];
	const size_t layer_bytes = d->n_raw * plane_width(p) * dtype_bytes(p->dtype);
	const uint8_t *raw = codec_read_raw(d->codec, g, d->data, &d->info, d->sections, plane);

	if (!raw)
		return -EBADMSG;
	for (uint32_t layer = d->first_layer; layer < d->end_layer; layer++)
		d->codec->kernels->scatter_raw(p, codec_pages(d->chunk, layer, plane), &d->chunk->run, d->raw,
			d->n_raw, raw + layer * layer_bytes);
	return 0;
}

/* Coefficients of one class's tokens: columns of c. */
static int read_class(struct decoder *d, const struct codec_part *part, uint8_t token_class, size_t n,
	size_t r_max, float *c)
{
	const struct transform_part *t = part->transform;
	const struct frame_info *i = &d->info;
	const float step =
		d->transform->step[codec_rung(token_class, i->rung, i->rung_salient, i->rung_redundant)];
	const size_t r = transform_active(t, step);
	int16_t *codes = codec_scratch(d->codec, SCRATCH_CODES, (r + 1) * n * sizeof *codes);
	const struct codec_levels levels = {.part = t,
		.coder = &d->codec->coders[part->plane],
		.step = step,
		.r = r,
		.n = n,
		.codes = codes,
		.stride = n};
	const struct frame_section *section;
	struct levels_row *rows;
	uint32_t at = 0;
	int result;

	section = codec_next_section(
		d->sections, i->n_sections, &at, FRAME_LEVELS, part->plane, part->index, token_class);
	if (!codes)
		return -ENOMEM;
	result = section ? codec_get_levels(d->codec, d->data, section, &levels) : -EBADMSG;
	codec_stamp(d->codec, &d->codec->times.entropy);
	if (result)
		return result;
	rows = codec_scratch(d->codec, SCRATCH_ROWS, (r + 1) * sizeof *rows);
	if (!rows)
		return -ENOMEM;
	codec_rows(t, step, r, rows);
	d->codec->kernels->dequantise_levels(codes, n, r, n, levels.coder, rows, step, c, d->n_coded);
	for (size_t k = r; k < r_max; k++)
		memset(c + k * d->n_coded, 0, n * sizeof *c);
	codec_stamp(d->codec, &d->codec->times.quantise);
	return 0;
}

static int read_coefficients(struct decoder *d, const struct codec_part *part, float **out, size_t *r_out)
{
	const struct frame_info *i = &d->info;
	size_t r = 0, first = 0;
	float *c;
	int result = 0;

	for (int k = 0; k < CODED_CLASSES; k++) {
		const uint32_t rung =
			codec_rung(codec_coded_classes[k], i->rung, i->rung_salient, i->rung_redundant);
		const size_t active =
			d->n_of[k] ? transform_active(part->transform, d->transform->step[rung]) : 0;

		r = active > r ? active : r;
	}
	c = codec_scratch(d->codec, SCRATCH_C, (r + 1) * d->n_coded * sizeof *c);
	if (!c)
		return -ENOMEM;
	for (int k = 0; k < CODED_CLASSES && !result; k++) {
		if (d->n_of[k])
			result = read_class(d, part, codec_coded_classes[k], d->n_of[k], r, c + first);
		first += d->n_of[k];
	}
	*out = c;
	*r_out = r;
	return result;
}

/* A layer of the plain codec: c [p, n]. */
static int read_plain(struct decoder *d, const struct codec_part *part, float **out)
{
	const struct frame_section *s;
	uint32_t at = 0;
	uint8_t *buffer = codec_scratch(d->codec, SCRATCH_BODY, part->p * d->n_coded);
	uint16_t *steps = codec_scratch(d->codec, SCRATCH_STEPS, part->p * sizeof *steps);
	float *c = codec_scratch(d->codec, SCRATCH_C, part->p * d->n_coded * sizeof *c);
	const uint8_t *body;

	if (!buffer || !steps || !c)
		return -ENOMEM;
	s = codec_next_section(
		d->sections, d->info.n_sections, &at, FRAME_STEPS, part->plane, part->index, 0);
	if (!s || s->full_bytes != part->p * sizeof *steps)
		return -EBADMSG;
	body = codec_get_body(d->codec, d->data, s, (uint8_t *)steps);
	if (!body)
		return -EBADMSG;
	/* Stored steps may lie at an odd address. */
	if (body != (const uint8_t *)steps)
		memcpy(steps, body, part->p * sizeof *steps);
	s = codec_next_section(
		d->sections, d->info.n_sections, &at, FRAME_CODES, part->plane, part->index, 0);
	if (!s || s->full_bytes != part->p * d->n_coded)
		return -EBADMSG;
	body = codec_get_body(d->codec, d->data, s, buffer);
	if (!body)
		return -EBADMSG;
	codec_stamp(d->codec, &d->codec->times.entropy);
	d->codec->kernels->dequantise(body, steps, part->p, d->n_coded, c, d->n_coded);
	codec_stamp(d->codec, &d->codec->times.quantise);
	*out = c;
	return 0;
}

static int read_part(struct decoder *d, const struct codec_part *part)
{
	const struct plane *plane = &d->chunk->geometry->planes[part->plane];
	const struct transform_part *t = part->transform;
	const struct kernels *k = d->codec->kernels;
	const size_t width = plane_width(plane);
	float *x = codec_scratch(d->codec, SCRATCH_X, d->n_coded * part->p * sizeof *x);
	size_t rows = 0;
	float *c;
	int r;

	if (!x)
		return -ENOMEM;
	r = t ? read_coefficients(d, part, &c, &rows) : read_plain(d, part, &c);
	if (r)
		return r;
	if (t)
		k->reconstruct(t->basis, rows, part->p, c, d->n_coded, d->n_coded, x, part->p);
	else
		k->transpose(c, d->n_coded, part->p, d->n_coded, x, part->p);
	codec_stamp(d->codec, &d->codec->times.gemm);

	r = codec_rope_fill(d->codec, plane, d->chunk->position, d->coded, d->n_coded, &d->rope);
	if (r)
		return r;
	for (uint32_t l = 0; l < part->n_layers; l++) {
		const uint32_t layer = part->first_layer + l;

		if (layer >= d->first_layer && layer < d->end_layer)
			k->scatter(plane, codec_pages(d->chunk, layer, part->plane), &d->chunk->run, d->coded,
				d->n_coded, d->rope.table.cos ? &d->rope.table : NULL,
				t ? t->mean + l * width : NULL, t ? t->inverse + l * width : NULL,
				x + l * width, part->p);
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
	for (uint32_t plane = 0; !r && d->n_raw && plane < g->n_planes; plane++)
		r = read_raw(d, plane);
	codec_stamp(d->codec, &d->codec->times.other);
	for (uint32_t i = 0; !r && d->n_coded && i < n_parts; i++) {
		struct codec_part part;

		codec_part(g, d->transform, i, &part);
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
