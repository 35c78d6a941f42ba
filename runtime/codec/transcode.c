/*
 * Frames from frames, in the transform's domain: coarser rungs, and raw tokens that need be raw no longer.
 * The levels that stay are the ones that were read; nothing but tokens that leave the window is projected.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/codec/encoder.h"
#include "runtime/codec/raw-tokens.h"

/* One call. The frame's own rungs and those of the new one differ in transcoding only. */
struct transcoder {
	struct encoder e;
	const struct codec_options *options;
	const uint8_t *data;
	struct frame_info info; /* of the old frame */
	struct frame_section *sections;
	uint8_t *old_classes;
	struct codec_chunk chunk;
};

static float old_step(const struct transcoder *x, uint8_t token_class)
{
	const struct frame_info *i = &x->info;

	return x->options->transform
		->step[codec_rung(token_class, i->rung, i->rung_salient, i->rung_redundant)];
}

static int transcoder_open(struct transcoder *x, struct codec *codec, const struct geometry *g,
	const void *data, size_t len, uint8_t *classes)
{
	int r;

	if (!x->options->transform)
		return -ERANGE;
	if (codec_check_options(g, x->options))
		return -EINVAL;
	codec_stamp(codec, NULL);
	r = codec_open_frame(codec, g, x->options->transform, data, len, &x->info, &x->sections, classes);
	if (r)
		return r;
	x->data = data;
	x->old_classes = classes;
	x->chunk = (struct codec_chunk){
		.geometry = g, .n_tokens = x->info.n_tokens, .position = x->info.position};
	x->e = (struct encoder){.codec = codec, .chunk = &x->chunk, .options = x->options};
	return 0;
}

/* The levels of one part and class as the old frame has them, n tokens side by side: codes [r, n]. */
static int read_levels(
	struct transcoder *x, uint32_t index, uint8_t token_class, size_t n, struct codec_levels *out)
{
	struct codec *c = x->e.codec;
	const struct frame_section *section;
	struct codec_part part;
	uint32_t at = 0;

	codec_part(x->chunk.geometry, x->options->transform, index, &part);
	*out = (struct codec_levels){.part = part.transform,
		.coder = &c->coders[part.plane],
		.step = old_step(x, token_class),
		.n = n,
		.stride = n};
	out->r = transform_active(part.transform, out->step);
	out->codes = codec_scratch(c, SCRATCH_CODES, (out->r + 1) * n * sizeof *out->codes);
	if (!out->codes)
		return -ENOMEM;
	section = codec_next_section(
		x->sections, x->info.n_sections, &at, FRAME_LEVELS, part.plane, part.index, token_class);
	return section ? codec_get_levels(c, x->data, section, out) : -EBADMSG;
}

/* ---- Coarser rungs. */

/* Squared norm of what c [r, n] stands for, mean and all, and of c alone. */
static void norms(const struct codec_levels *l, const float *c, float *norm, float *energy)
{
	const struct transform_part *t = l->part;

	for (size_t k = 0; k < l->n; k++)
		norm[k] = energy[k] = 0;
	for (size_t i = 0; i < l->r; i++)
		for (size_t k = 0; k < l->n; k++) {
			norm[k] += 2 * t->centre_part[i] * c[i * l->n + k];
			energy[k] += c[i * l->n + k] * c[i * l->n + k];
		}
	for (size_t k = 0; k < l->n; k++)
		norm[k] = fmaxf(0, norm[k] + energy[k] + t->centre_energy);
}

static int coarsen_class(struct transcoder *x, uint32_t index, uint8_t token_class)
{
	struct encoder *e = &x->e;
	struct codec *c = e->codec;
	size_t n_of[CODED_CLASSES] = {0};
	const size_t n = encoder_list(e, e->tokens, NULL, token_class);
	struct levels_row *rows;
	struct codec_levels old;
	struct codec_part part;
	float *coefficients, *norm;
	int r;

	if (!n)
		return 0;
	for (int k = 0; k < CODED_CLASSES; k++)
		n_of[k] = codec_coded_classes[k] == token_class ? n : 0;
	r = read_levels(x, index, token_class, n, &old);
	if (r)
		return r;
	rows = codec_scratch(c, SCRATCH_ROWS, (old.r + 1) * sizeof *rows);
	coefficients = codec_scratch(c, SCRATCH_C, (old.r + 1) * n * sizeof *coefficients);
	if (!rows || !coefficients)
		return -ENOMEM;
	codec_rows(old.part, old.step, old.r, rows);
	c->kernels->dequantise_levels(old.codes, n, old.r, n, old.coder, rows, old.step, coefficients, n);
	codec_part(x->chunk.geometry, x->options->transform, index, &part);
	norms(&old, coefficients, e->dots, e->energy);
	norm = e->norm + (size_t)part.plane * x->chunk.n_tokens;
	for (size_t k = 0; k < n; k++)
		norm[e->tokens[k]] += e->dots[k];
	return encoder_quantise(e, index, e->tokens, n_of, coefficients, n, e->energy);
}

/* Raw sections go over as they are. */
static int copy_raw(struct transcoder *x)
{
	struct encoder *e = &x->e;
	uint8_t *out;
	int r = 0;

	for (uint32_t i = 0; !r && i < x->info.n_sections; i++) {
		const struct frame_section *s = &x->sections[i];

		if (s->kind != FRAME_RAW && s->kind != FRAME_CLASSES)
			continue;
		r = frame_section_check(x->data, s);
		out = r ? NULL : frame_writer_reserve(&e->writer, s->len_bytes);
		if (!r && !out)
			r = -ENOMEM;
		if (!r) {
			memcpy(out, x->data + s->offset, s->len_bytes);
			r = frame_writer_commit(&e->writer, s);
		}
	}
	return r;
}

static int coarsen(struct transcoder *x, struct frame_info *info)
{
	struct encoder *e = &x->e;
	int r = encoder_init(e);

	for (uint32_t i = 0; !r && i < e->n_parts; i++)
		for (int k = 0; !r && k < CODED_CLASSES; k++)
			r = coarsen_class(x, i, codec_coded_classes[k]);
	if (r)
		return r;
	encoder_state_error(e, info);
	for (uint32_t plane = 0; plane < x->chunk.geometry->n_planes; plane++) {
		const struct frame_error *first = &x->info.error[plane];
		struct frame_error *second = &info->error[plane];

		second->mean = first->mean + second->mean * (1 + first->max);
		second->max = first->max + second->max * (1 + first->max);
		if (!isfinite(second->max) ||
			(x->options->max_error > 0 && (double)second->max > x->options->max_error))
			return -ERANGE;
	}
	e->n_raw = x->info.n_raw;
	r = frame_writer_init(&e->writer, x->info.n_sections, x->info.len_bytes);
	if (!r)
		r = copy_raw(x);
	return r ? r : encoder_write_levels(e);
}

/* The old frame's header with what the new one is. */
static struct frame_info info_of(const struct transcoder *x)
{
	struct frame_info info = x->info;

	info.rung = (uint8_t)x->options->rung;
	info.rung_salient = (uint8_t)x->options->rung_salient;
	info.rung_redundant = (uint8_t)x->options->rung_redundant;
	info.policy_version = x->options->policy_version;
	return info;
}

static int finish(struct transcoder *x, int r, struct frame_info *info, uint8_t **out, size_t *out_len,
	struct frame_info *info_out)
{
	struct codec *codec = x->e.codec;
	uint8_t *made = NULL;
	size_t made_len = 0;

	if (!r)
		r = encoder_finish(&x->e, info, &made, &made_len);
	if (!r && made_len >= x->info.len_bytes) {
		free(made);
		r = -ERANGE;
	}
	frame_writer_fini(&x->e.writer);
	if (codec) {
		codec_stamp(codec, &codec->times.other);
		codec_settle(codec);
	}
	if (r)
		return r;
	*out = made;
	*out_len = made_len;
	if (info_out)
		*info_out = *info;
	return 0;
}

int codec_transcode(struct codec *codec, const struct geometry *g, const void *data, size_t len,
	const struct codec_options *options, uint8_t **out, size_t *out_len, struct frame_info *info_out)
{
	uint8_t classes[FRAME_TOKENS_MAX];
	struct codec_options with_classes = *options;
	struct transcoder x = {.options = &with_classes};
	struct frame_info info = {0};
	int r;

	with_classes.classes = classes;
	with_classes.counts = NULL;
	with_classes.rank = CODEC_UNRANKED;
	r = transcoder_open(&x, codec, g, data, len, classes);
	if (!r && (options->rung < x.info.rung || options->rung_salient < x.info.rung_salient ||
			  options->rung_redundant < x.info.rung_redundant))
		r = -EINVAL;
	if (!r) {
		info = info_of(&x);
		r = coarsen(&x, &info);
	}
	return finish(&x, r, &info, out, out_len, info_out);
}

/* ---- Tokens that leave the window. */

/* The old levels, put where encoder_write_levels looks for them. */
static int keep_levels(struct transcoder *x, uint32_t index, uint8_t token_class)
{
	struct encoder *e = &x->e;
	int16_t *to = encoder_levels(e, index);
	struct codec_levels old;
	size_t n = 0;
	int r;

	for (uint32_t t = 0; t < x->info.n_tokens; t++)
		if (x->old_classes[t] == token_class)
			e->tokens[n++] = (uint16_t)t;
	if (!n)
		return 0;
	r = read_levels(x, index, token_class, n, &old);
	for (size_t i = 0; !r && i < old.r; i++)
		for (size_t k = 0; k < n; k++)
			to[i * x->info.n_tokens + e->tokens[k]] = old.codes[i * n + k];
	return r;
}

int codec_resettle(struct codec *codec, const struct geometry *g, const void *data, size_t len,
	const struct codec_options *options, uint8_t **out, size_t *out_len, struct frame_info *info_out)
{
	uint8_t old[FRAME_TOKENS_MAX], classes[FRAME_TOKENS_MAX];
	struct codec_options with_classes = *options;
	struct transcoder x = {.options = &with_classes};
	struct raw_tokens raw = {0};
	struct frame_info info = {0};
	size_t n = 0;
	int r;

	with_classes.classes = classes;
	r = transcoder_open(&x, codec, g, data, len, old);
	if (!r && (options->rung != x.info.rung || options->rung_salient != x.info.rung_salient ||
			  options->rung_redundant != x.info.rung_redundant))
		r = -ESTALE;
	for (uint32_t t = 0; !r && t < x.info.n_tokens; t++) {
		const int stays = !token_class_is_raw(old[t]) || old[t] == TOKEN_EXACT;

		classes[t] = stays ? old[t] : options->classes[t];
		n += token_class_is_raw(old[t]) && !token_class_is_raw(classes[t]);
	}
	if (!r && !n)
		r = -ERANGE;
	if (!r)
		r = raw_tokens_init(&raw, codec, g, options->transform, data, len);
	if (!r) {
		info = info_of(&x);
		x.chunk.pages = raw.pages;
		x.chunk.run = raw_tokens_run(&raw);
		x.e.slot = raw.slot;
		r = encoder_init(&x.e);
	}
	for (uint32_t t = 0; !r && t < x.info.n_tokens; t++)
		x.e.todo[t] = token_class_is_raw(old[t]) && !token_class_is_raw(classes[t]);
	for (uint32_t i = 0; !r && i < x.e.n_parts; i++)
		for (int k = 0; !r && k < CODED_CLASSES; k++)
			r = keep_levels(&x, i, codec_coded_classes[k]);
	if (!r)
		r = encoder_quantise_todo(&x.e);
	if (!r) {
		encoder_state_error(&x.e, &info);
		for (uint32_t plane = 0; plane < g->n_planes; plane++) {
			const double before = x.info.n_tokens - x.info.n_raw;
			double after = 0;
			struct frame_error *e = &info.error[plane];

			/* Tokens of the old frame have no error of their own here: theirs is its mean. */
			for (uint32_t t = 0; t < x.info.n_tokens; t++)
				after += !token_class_is_raw(x.e.classes[t]);
			e->mean = (float)(((double)x.info.error[plane].mean * before +
						  (double)e->mean * after) /
					  (after > 0 ? after : 1));
			e->max = fmaxf(e->max, x.info.error[plane].max);
		}
		r = encoder_write_head(&x.e);
	}
	if (!r)
		r = encoder_write_levels(&x.e);
	raw_tokens_fini(&raw);
	return finish(&x, r, &info, out, out_len, info_out);
}
