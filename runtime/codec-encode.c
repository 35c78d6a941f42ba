#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"
#include "runtime/codec-internal.h"

enum {
	/* A stream of fewer codes than this spends more on its Huffman table than a table of its own saves:
	 * it is joined to its neighbour. */
	STREAM_CODES_MIN = 2048,
	STREAMS_MAX = 10,
	/* Promotions make new steps, which may push another token over the bound; in practice one round
	 * settles it. Past this many, offenders' neighbours go too (see promote). */
	ROUNDS_MAX = 8,
};

/* One call of codec_encode. */
struct encoder {
	struct codec *codec;
	const struct codec_chunk *chunk;
	const struct codec_options *options;
	struct frame_writer writer;
	uint8_t *classes; /* [n_tokens], a copy that promotions change */
	uint16_t *coded, *raw;
	size_t n_coded, n_raw;
	/* [n_planes][n_tokens]: squared error, and squared norm, of every coded token */
	float *error, *norm;
	/* [n_tokens], of one part: energy of centred features, quantiser error, energy kept, x . mean */
	float *energy, *lost, *kept, *dots;
};

static void split_tokens(struct encoder *e)
{
	e->n_coded = e->n_raw = 0;
	for (uint32_t t = 0; t < e->chunk->n_tokens; t++)
		if (token_class_is_raw(e->classes[t]))
			e->raw[e->n_raw++] = (uint16_t)t;
		else
			e->coded[e->n_coded++] = (uint16_t)t;
}

/* Body in the writer's reserve: DEFLATE if that is shorter, else as it is. */
static int put_body(struct encoder *e, struct frame_section *section, const void *body, size_t len)
{
	z_stream *z = &e->codec->deflater;
	const size_t bound = deflateBound(z, len);
	uint8_t *out = frame_writer_reserve(&e->writer, bound > len ? bound : len);

	if (!out)
		return -ENOMEM;
	deflateReset(z);
	z->next_in = (Bytef *)body;
	z->avail_in = (uInt)len;
	z->next_out = out;
	z->avail_out = (uInt)bound;
	section->full_bytes = (uint32_t)len;
	if (deflate(z, Z_FINISH) == Z_STREAM_END && z->total_out < len) {
		section->encoding = FRAME_DEFLATE;
		section->len_bytes = (uint32_t)z->total_out;
	} else {
		section->encoding = FRAME_STORED;
		section->len_bytes = (uint32_t)len;
		memcpy(out, body, len);
	}
	return frame_writer_commit(&e->writer, section);
}

/* Runs of equal class: class (1 byte), length (2 bytes). */
static int put_classes(struct encoder *e)
{
	struct frame_section section = {.kind = FRAME_CLASSES};
	const uint32_t n = e->chunk->n_tokens;
	uint8_t *out = frame_writer_reserve(&e->writer, 3 * (size_t)n);
	size_t len = 0;

	if (!out)
		return -ENOMEM;
	for (uint32_t t = 0, end; t < n; t = end) {
		uint16_t run;

		for (end = t + 1; end < n && e->classes[end] == e->classes[t]; end++)
			;
		run = (uint16_t)(end - t);
		out[len] = e->classes[t];
		memcpy(out + len + 1, &run, 2);
		len += 3;
	}
	section.len_bytes = section.full_bytes = (uint32_t)len;
	return frame_writer_commit(&e->writer, &section);
}

/* [n_layers, n_raw, heads, dim] elements as they lie in memory. */
static int put_raw(struct encoder *e, uint32_t plane)
{
	const struct geometry *g = e->chunk->geometry;
	const struct plane *p = &g->planes[plane];
	const size_t layer_bytes = e->n_raw * plane_width(p) * dtype_bytes(p->dtype);
	const size_t len = layer_bytes * g->n_layers;
	struct frame_section section = {.kind = FRAME_RAW, .plane = (uint8_t)plane};
	uint8_t *out;

	if (len > UINT32_MAX)
		return -EINVAL;
	out = frame_writer_reserve(&e->writer, len);
	if (!out)
		return -ENOMEM;
	for (uint32_t layer = 0; layer < g->n_layers; layer++)
		e->codec->kernels->gather_raw(p, codec_pages(e->chunk, layer, plane), &e->chunk->run, e->raw,
			e->n_raw, out + layer * layer_bytes);
	section.len_bytes = section.full_bytes = (uint32_t)len;
	return frame_writer_commit(&e->writer, &section);
}

/* Where streams end: runs of equal bits, small ones joined to their neighbours. Returns how many. */
static size_t cut_streams(
	const struct codec_part *part, size_t n_active, size_t n_tokens, size_t ends[STREAMS_MAX])
{
	size_t n = 0, first = 0, end = 0;

	while (end < n_active) {
		end += codec_run_of_bits(part, end);
		if (end > n_active)
			end = n_active;
		if ((end - first) * n_tokens >= STREAM_CODES_MIN || end == n_active) {
			if (n && (end - first) * n_tokens < STREAM_CODES_MIN)
				n--;
			ends[n++] = end;
			first = end;
		}
	}
	return n;
}

/* Quantises components [first, end), a run of equal bits at a time, and lays them down as one stream. */
static int put_stream(struct encoder *e, const struct codec_part *part, const float *c, uint16_t *steps,
	size_t first, size_t end)
{
	const struct kernels *k = e->codec->kernels;
	struct frame_section section = {
		.kind = FRAME_CODES, .plane = (uint8_t)part->plane, .part = (uint16_t)part->index};
	const size_t len = codec_codes_bytes(part, first, end, e->n_coded);
	uint8_t *packed;
	size_t rows;

	packed = scratch_get(&e->codec->packed, len);
	if (!packed || len > UINT32_MAX)
		return -ENOMEM;
	for (size_t i = first; i < end; i += rows) {
		const unsigned bits = codec_part_bits(part, i);

		rows = codec_run_of_bits(part, i);
		if (rows > end - i)
			rows = end - i;
		k->quantise(c + i * e->n_coded, e->n_coded, rows, e->n_coded, bits, steps + i, packed,
			e->lost, e->kept);
		packed += rows * quant_row_bytes(e->n_coded, bits);
		section.bits = section.bits == 0 || section.bits == bits ? (uint8_t)bits : 255;
	}
	if (section.bits == 255)
		section.bits = 0; /* several widths */
	codec_stamp(e->codec, &e->codec->times.quantise);
	return put_body(e, &section, packed - len, len);
}

/* The part's coded tokens: x [n_coded, p] centred, un-rotated; and their energy. */
static int gather_part(struct encoder *e, const struct codec_part *part, float **x_out)
{
	const struct plane *plane = &e->chunk->geometry->planes[part->plane];
	const size_t width = plane_width(plane);
	float *x = scratch_get(&e->codec->x, e->n_coded * part->p * sizeof *x);
	struct rope_table rope;
	int r;

	if (!x)
		return -ENOMEM;
	r = codec_rope(e->codec, plane, e->chunk->position, e->coded, e->n_coded, &rope);
	if (r)
		return r;
	for (uint32_t l = 0; l < part->n_layers; l++)
		e->codec->kernels->gather(plane, codec_pages(e->chunk, part->first_layer + l, part->plane),
			&e->chunk->run, e->coded, e->n_coded, rope.cos ? &rope : NULL,
			part->mean ? part->mean + l * width : NULL, x + l * width, part->p);
	e->codec->kernels->token_energy(x, part->p, part->p, e->n_coded, e->energy);
	*x_out = x;
	return 0;
}

/* Tokens whose features are not finite cannot be coded. Returns how many were taken out. */
static size_t promote_unfinite(struct encoder *e)
{
	size_t n = 0;

	for (size_t i = 0; i < e->n_coded; i++)
		if (!isfinite(e->energy[i])) {
			e->classes[e->coded[i]] = TOKEN_EXACT;
			n++;
		}
	return n;
}

/* ||x||^2 of the tokens as they were, from the centred ones: ||x - m||^2 + 2 (x - m).m + ||m||^2. */
static void add_norms(struct encoder *e, const struct codec_part *part, const float *x)
{
	float *norm = e->norm + (size_t)part->plane * e->chunk->n_tokens;
	double mean_energy = 0;

	if (part->mean) {
		e->codec->kernels->project(
			part->mean, 1, part->p, x, part->p, e->n_coded, e->dots, e->n_coded);
		for (size_t i = 0; i < part->p; i++)
			mean_energy += (double)part->mean[i] * part->mean[i];
	} else {
		memset(e->dots, 0, e->n_coded * sizeof *e->dots);
	}
	for (size_t t = 0; t < e->n_coded; t++)
		norm[t] += fmaxf(0, (float)(e->energy[t] + 2 * (double)e->dots[t] + mean_energy));
}

/* 1: some tokens were promoted, start again. */
static int put_part(struct encoder *e, const struct codec_part *part)
{
	struct codec *codec = e->codec;
	const size_t n_active = codec_n_active(part);
	float *error = e->error + (size_t)part->plane * e->chunk->n_tokens;
	struct frame_section section = {
		.kind = FRAME_STEPS, .plane = (uint8_t)part->plane, .part = (uint16_t)part->index};
	size_t ends[STREAMS_MAX], n_streams, first = 0;
	uint16_t *steps;
	float *x, *c;
	int r;

	r = gather_part(e, part, &x);
	if (r)
		return r;
	if (promote_unfinite(e))
		return 1;
	codec_stamp(codec, &codec->times.gather);

	c = scratch_get(&codec->c, part->r * e->n_coded * sizeof *c);
	steps = scratch_get(&codec->steps, (part->r + 1) * sizeof *steps);
	if (!c || !steps)
		return -ENOMEM;
	add_norms(e, part, x);
	if (part->basis)
		codec->kernels->project(
			part->basis, n_active, part->p, x, part->p, e->n_coded, c, e->n_coded);
	else
		codec->kernels->transpose(x, part->p, e->n_coded, part->p, c, e->n_coded);
	codec_stamp(codec, &codec->times.gemm);

	memset(e->lost, 0, e->n_coded * sizeof *e->lost);
	memset(e->kept, 0, e->n_coded * sizeof *e->kept);
	n_streams = cut_streams(part, n_active, e->n_coded, ends);
	for (size_t i = 0; i < n_streams; first = ends[i++]) {
		r = put_stream(e, part, c, steps, first, ends[i]);
		codec_stamp(codec, &codec->times.deflate);
		if (r)
			return r;
	}
	for (size_t t = 0; t < e->n_coded; t++)
		error[t] += e->lost[t] + (part->basis ? fmaxf(0, e->energy[t] - e->kept[t]) : 0);
	r = put_body(e, &section, steps, n_active * sizeof *steps);
	codec_stamp(codec, &codec->times.deflate);
	return r;
}

/* Worst and mean relative error of each plane into info; tokens over the bound become TOKEN_EXACT. Returns
 * how many did. After ROUNDS_MAX the bound is tightened each time, so that the rounds end. */
static size_t promote(struct encoder *e, unsigned round, struct frame_info *info)
{
	double bound = e->options->max_error;
	size_t n = 0;

	for (unsigned i = ROUNDS_MAX; i < round; i++)
		bound *= 0.5;
	for (uint32_t plane = 0; plane < e->chunk->geometry->n_planes; plane++) {
		const float *error = e->error + (size_t)plane * e->chunk->n_tokens;
		const float *norm = e->norm + (size_t)plane * e->chunk->n_tokens;
		double sum = 0, worst = 0;

		for (size_t i = 0; i < e->n_coded; i++) {
			const double relative = error[i] == 0 ? 0 : sqrt((double)error[i] / (double)norm[i]);
			uint8_t *class = &e->classes[e->coded[i]];

			sum += relative;
			worst = relative > worst ? relative : worst;
			if (e->options->max_error > 0 && relative > e->options->max_error)
				n++;
			if (e->options->max_error > 0 && relative > bound)
				*class = TOKEN_EXACT;
		}
		info->error[plane].max = (float)worst;
		info->error[plane].mean = e->n_coded ? (float)(sum / (double)e->n_coded) : 0;
	}
	return n;
}

/* All sections, with the classes as they are now. 1: start again. */
static int encode_round(struct encoder *e)
{
	const struct geometry *g = e->chunk->geometry;
	const struct transform *t = e->options->transform;
	const uint32_t n_parts = codec_n_parts(g, t);
	int r;

	split_tokens(e);
	memset(e->error, 0, (size_t)g->n_planes * e->chunk->n_tokens * sizeof *e->error);
	memset(e->norm, 0, (size_t)g->n_planes * e->chunk->n_tokens * sizeof *e->norm);
	r = frame_writer_init(&e->writer, 1 + g->n_planes + n_parts * (1 + STREAMS_MAX),
		geometry_token_bytes(g) * (e->n_raw + e->n_coded / 8 + 8));
	if (r)
		return r;
	r = put_classes(e);
	for (uint32_t plane = 0; !r && e->n_raw && plane < g->n_planes; plane++)
		r = put_raw(e, plane);
	codec_stamp(e->codec, &e->codec->times.other);
	for (uint32_t i = 0; r == 0 && e->n_coded && i < n_parts; i++) {
		struct codec_part part;

		codec_part(g, t, e->options->rung, i, &part);
		r = put_part(e, &part);
	}
	return r;
}

static int encoder_init(struct encoder *e)
{
	const size_t n = e->chunk->n_tokens, n_planes = e->chunk->geometry->n_planes;
	struct codec *c = e->codec;

	e->coded = scratch_get(&c->tokens, 2 * n * sizeof *e->coded);
	e->classes = scratch_get(&c->classes, n);
	e->error = scratch_get(&c->sums, (2 * n_planes + 4) * n * sizeof *e->error);
	if (!e->coded || !e->classes || !e->error)
		return -ENOMEM;
	e->raw = e->coded + n;
	e->norm = e->error + n_planes * n;
	e->energy = e->norm + n_planes * n;
	e->lost = e->energy + n;
	e->kept = e->lost + n;
	e->dots = e->kept + n;
	memcpy(e->classes, e->options->classes, n);
	return 0;
}

int codec_encode(struct codec *codec, const struct codec_chunk *chunk, const struct codec_options *options,
	uint8_t **data, size_t *len, struct frame_info *info_out)
{
	struct encoder e = {.codec = codec, .chunk = chunk, .options = options};
	struct frame_info info = {.position = chunk->position,
		.n_tokens = chunk->n_tokens,
		.rung = options->rung,
		.policy_version = options->policy_version,
		.raw_bytes = geometry_token_bytes(chunk->geometry) * chunk->n_tokens};
	int r;

	if (!chunk->n_tokens || chunk->n_tokens > FRAME_TOKENS_MAX)
		return -EINVAL;
	if (options->transform) {
		r = transform_fits(options->transform, chunk->geometry, NULL, 0);
		if (r || options->rung >= options->transform->n_rungs)
			return -EINVAL;
		memcpy(info.transform, options->transform->id, 16);
	}
	memcpy(info.name_space, options->name_space, 16);
	memcpy(info.key, options->key, 32);
	memcpy(info.parent, options->parent, 32);
	geometry_fingerprint(chunk->geometry, info.fingerprint);

	codec_stamp(codec, NULL);
	r = encoder_init(&e);
	for (unsigned round = 0; !r; round++) {
		r = encode_round(&e);
		if (r == 0 && !promote(&e, round, &info))
			break;
		if (r < 0)
			break;
		frame_writer_fini(&e.writer);
		r = 0;
	}
	if (!r) {
		info.n_raw = (uint32_t)e.n_raw;
		info.n_sections = e.writer.n_sections;
		info.len_bytes = 0;
		r = frame_writer_finish(&e.writer, &info, data, len);
		info.len_bytes = *len;
	}
	frame_writer_fini(&e.writer);
	codec_stamp(codec, &codec->times.other);
	codec_settle(codec);
	if (!r && info_out)
		*info_out = info;
	return r;
}
