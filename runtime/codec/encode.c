#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/codec/encoder.h"

size_t encoder_list(struct encoder *e, uint16_t *list, const uint8_t *wanted, uint8_t token_class)
{
	size_t n = 0;

	for (uint32_t t = 0; t < e->chunk->n_tokens; t++)
		if (e->classes[t] == token_class && (!wanted || wanted[t]))
			list[n++] = (uint16_t)t;
	return n;
}

static float step_of(const struct encoder *e, uint8_t token_class)
{
	const struct codec_options *o = e->options;

	return o->transform->step[codec_rung(token_class, o->rung, o->rung_salient, o->rung_redundant)];
}

int encoder_init(struct encoder *e)
{
	const size_t n = e->chunk->n_tokens, n_planes = e->chunk->geometry->n_planes;
	const struct transform *t = e->options->transform;
	size_t components = 0;
	struct codec *c = e->codec;

	e->n_parts = codec_n_parts(e->chunk->geometry, t);
	e->tokens = codec_scratch(c, SCRATCH_TOKENS, 3 * n * sizeof *e->tokens);
	e->classes = codec_scratch(c, SCRATCH_CLASSES, 3 * n);
	e->error = codec_scratch(c, SCRATCH_SUMS, (2 * n_planes + 6) * n * sizeof *e->error);
	for (uint32_t i = 0; t && i < t->n_parts; i++)
		components += t->parts[i].n_components;
	e->levels = codec_scratch(c, SCRATCH_LEVELS, components * n * sizeof *e->levels);
	if (!e->tokens || !e->classes || !e->error || !e->levels)
		return -ENOMEM;
	e->todo = e->classes + n;
	e->norm = e->error + n_planes * n;
	e->energy = e->norm + n_planes * n;
	e->lost = e->energy + n;
	e->kept = e->lost + n;
	e->dots = e->kept + n;
	e->unforetold = e->dots + n;
	e->all = e->unforetold + n;
	memset(e->unforetold, 0, 2 * n * sizeof *e->unforetold);
	memcpy(e->classes, e->options->classes, n);
	for (uint32_t i = 0; i < n; i++)
		e->todo[i] = !token_class_is_raw(e->classes[i]);
	memset(e->error, 0, 2 * n_planes * n * sizeof *e->error);
	return t ? codec_coders(c, t) : 0;
}

/* Where tokens stand in the pages' run. */
static const uint16_t *places_of(struct encoder *e, const uint16_t *tokens, size_t n)
{
	uint16_t *places = e->tokens + 2 * (size_t)e->chunk->n_tokens;

	if (!e->slot)
		return tokens;
	for (size_t i = 0; i < n; i++)
		places[i] = e->slot[tokens[i]];
	return places;
}

int encoder_gather(
	struct encoder *e, const struct codec_part *part, const uint16_t *tokens, size_t n, float **out)
{
	const struct plane *plane = &e->chunk->geometry->planes[part->plane];
	const uint16_t *places = places_of(e, tokens, n);
	const size_t width = plane_width(plane);
	float *x = codec_scratch(e->codec, SCRATCH_X, n * part->p * sizeof *x);
	int r;

	if (!x)
		return -ENOMEM;
	r = codec_rope_fill(e->codec, plane, e->chunk->position, tokens, n, &e->rope);
	if (r)
		return r;
	for (uint32_t l = 0; l < part->n_layers; l++)
		e->codec->kernels->gather(plane, codec_pages(e->chunk, part->first_layer + l, part->plane),
			&e->chunk->run, places, n, e->rope.table.cos ? &e->rope.table : NULL,
			part->transform ? part->transform->mean + l * width : NULL,
			part->transform ? part->transform->weight + l * width : NULL, x + l * width, part->p);
	e->codec->kernels->token_energy(x, part->p, part->p, n, e->energy);
	codec_stamp(e->codec, &e->codec->times.gather);
	*out = x;
	return 0;
}

/* ||w x||^2 from z = w (x - m): ||z||^2 + 2 z . w m + ||w m||^2. */
static void add_norms(
	struct encoder *e, const struct codec_part *part, const uint16_t *tokens, size_t n, const float *x)
{
	const struct transform_part *t = part->transform;
	float *norm = e->norm + (size_t)part->plane * e->chunk->n_tokens;

	e->codec->kernels->project(t->centre, 1, part->p, x, part->p, n, e->dots, n);
	for (size_t i = 0; i < n; i++)
		norm[tokens[i]] += fmaxf(
			0, (float)((double)e->energy[i] + 2 * (double)e->dots[i] + (double)t->centre_energy));
}

int16_t *encoder_levels(struct encoder *e, uint32_t part)
{
	const struct transform *t = e->options->transform;
	size_t before = 0;

	for (uint32_t i = 0; i < part; i++)
		before += t->parts[i].n_components;
	return e->levels + before * e->chunk->n_tokens;
}

/* Quantises n tokens of one class, columns of c, into the part's levels. */
static int quantise_class(struct encoder *e, const struct codec_part *part, int16_t *levels,
	const uint16_t *tokens, size_t n, uint8_t token_class, const float *c, size_t c_stride)
{
	const struct transform_part *t = part->transform;
	const struct levels_coder *coder = &e->codec->coders[part->plane];
	const float step = step_of(e, token_class);
	const size_t r = transform_active(t, step), stride = e->chunk->n_tokens;
	struct levels_row *rows = codec_scratch(e->codec, SCRATCH_ROWS, (r + 1) * sizeof *rows);
	int16_t *codes = codec_scratch(e->codec, SCRATCH_CODES, (r + 1) * n * sizeof *codes);
	void *work = codec_scratch(e->codec, SCRATCH_WORK, levels_work_bytes(r));
	/* Tokens that follow each other need no second copy. */
	const int in_place = tokens[n - 1] - tokens[0] == (int)n - 1;

	if (!rows || !codes || !work)
		return -ENOMEM;
	codec_rows(t, step, r, rows);
	if (in_place)
		codes = levels + tokens[0];
	e->codec->kernels->quantise_levels(
		c, c_stride, r, n, coder, rows, step, codes, in_place ? stride : n, e->lost, e->kept, work);
	if (e->options->counts)
		levels_count(c, c_stride, codes, in_place ? stride : n, r, n, coder, rows, step,
			&e->options->counts[part->plane]);
	for (size_t i = 0; !in_place && i < r; i++)
		for (size_t k = 0; k < n; k++)
			levels[i * stride + tokens[k]] = codes[i * n + k];
	return 0;
}

int encoder_quantise(struct encoder *e, uint32_t index, const uint16_t *tokens,
	const size_t n_of[CODED_CLASSES], const float *c, size_t c_stride, const float *energy)
{
	struct codec_part part;
	float *error;
	int r = 0;

	codec_part(e->chunk->geometry, e->options->transform, index, &part);
	error = e->error + (size_t)part.plane * e->chunk->n_tokens;
	for (int k = 0; k < CODED_CLASSES && !r; k++) {
		const size_t n = n_of[k];

		if (!n)
			continue;
		memset(e->lost, 0, n * sizeof *e->lost);
		memset(e->kept, 0, n * sizeof *e->kept);
		r = quantise_class(
			e, &part, encoder_levels(e, index), tokens, n, codec_coded_classes[k], c, c_stride);
		for (size_t i = 0; i < n; i++)
			error[tokens[i]] += e->lost[i] + fmaxf(0, energy[i] - e->kept[i]);
		tokens += n;
		c += n;
		energy += n;
	}
	codec_stamp(e->codec, &e->codec->times.quantise);
	return r;
}

/* The tokens to do, by class: n_of of each. Returns how many. */
static size_t list_todo(struct encoder *e, uint16_t *list, size_t n_of[CODED_CLASSES])
{
	size_t n = 0;

	for (int k = 0; k < CODED_CLASSES; k++) {
		n_of[k] = encoder_list(e, list + n, e->todo, codec_coded_classes[k]);
		n += n_of[k];
	}
	e->rope = (struct codec_rope){0};
	return n;
}

static int quantise_part(
	struct encoder *e, uint32_t index, const uint16_t *tokens, size_t n, const size_t n_of[CODED_CLASSES])
{
	struct codec_part part;
	uint32_t r = 0;
	float *x, *c;
	int result;

	codec_part(e->chunk->geometry, e->options->transform, index, &part);
	result = encoder_gather(e, &part, tokens, n, &x);
	if (result)
		return result;
	for (int k = 0; k < CODED_CLASSES; k++) {
		const uint32_t active =
			n_of[k] ? transform_active(part.transform, step_of(e, codec_coded_classes[k])) : 0;

		r = active > r ? active : r;
	}
	c = codec_scratch(e->codec, SCRATCH_C, (r + 1) * n * sizeof *c);
	if (!c)
		return -ENOMEM;
	add_norms(e, &part, tokens, n, x);
	e->codec->kernels->project(part.transform->basis, r, part.p, x, part.p, n, c, n);
	if (e->foretells)
		encoder_foretell(e, tokens, n_of[0], c, n, r);
	codec_stamp(e->codec, &e->codec->times.gemm);
	return encoder_quantise(e, index, tokens, n_of, c, n, e->energy);
}

void encoder_forget(struct encoder *e, uint32_t token)
{
	const size_t n = e->chunk->n_tokens;

	for (uint32_t plane = 0; plane < e->chunk->geometry->n_planes; plane++)
		e->error[plane * n + token] = e->norm[plane * n + token] = 0;
}

double encoder_relative_error(const struct encoder *e, uint32_t plane, uint32_t token)
{
	const size_t at = (size_t)plane * e->chunk->n_tokens + token;

	return e->error[at] == 0 ? 0 : sqrt((double)e->error[at] / (double)e->norm[at]);
}

uint8_t codec_finer(const struct codec_options *o, uint8_t token_class)
{
	if (token_class == TOKEN_REDUNDANT && o->rung < o->rung_redundant)
		return TOKEN_PLAIN;
	if (token_class != TOKEN_SALIENT &&
		o->rung_salient < codec_rung(token_class, o->rung, o->rung_salient, o->rung_redundant))
		return TOKEN_SALIENT;
	return TOKEN_EXACT;
}

int encoder_promote(struct encoder *e)
{
	const uint32_t n = e->chunk->n_tokens, n_planes = e->chunk->geometry->n_planes;
	const double bound = e->options->max_error > 0 ? e->options->max_error : INFINITY;
	int again = 0;

	for (uint32_t t = 0; t < n; t++) {
		double worst = 0;
		int finite = 1;

		if (!e->todo[t])
			continue;
		for (uint32_t plane = 0; plane < n_planes; plane++) {
			const double error = encoder_relative_error(e, plane, t);

			finite &= isfinite(error) != 0;
			worst = error > worst ? error : worst;
		}
		e->todo[t] = !finite || worst > bound;
		if (!e->todo[t])
			continue;
		e->classes[t] = finite && e->options->transform ? codec_finer(e->options, e->classes[t])
								: TOKEN_EXACT;
		e->todo[t] = e->classes[t] != TOKEN_EXACT;
		again |= e->todo[t];
		encoder_forget(e, t);
	}
	return again;
}

static int quantise_once(struct encoder *e)
{
	size_t n_of[CODED_CLASSES];
	const size_t n = list_todo(e, e->tokens, n_of);
	int r = 0;

	for (uint32_t i = 0; !r && n && i < e->n_parts; i++)
		r = quantise_part(e, i, e->tokens, n, n_of);
	return r;
}

/* Those whose class their order changes are quantised a second time; the bound is looked at for all, after.
 */
static int quantise_ranked(struct encoder *e)
{
	const size_t n = e->chunk->n_tokens;
	uint8_t *changed = e->todo + n, *todo = e->todo;
	int r;

	e->foretells = e->options->rank == CODEC_BY_NEIGHBOURS;
	r = quantise_once(e);
	e->foretells = 0;
	if (r || !encoder_rank(e, changed))
		return r;
	e->todo = changed;
	r = quantise_once(e);
	e->todo = todo;
	return r;
}

int encoder_quantise_todo(struct encoder *e)
{
	int r = e->options->rank ? quantise_ranked(e) : quantise_once(e);

	while (!r && encoder_promote(e))
		r = quantise_once(e);
	return r;
}

static int put_classes(struct encoder *e)
{
	struct frame_section section = {.kind = FRAME_CLASSES};
	uint8_t *out = frame_writer_reserve(&e->writer, FRAME_CLASSES_MAX(e->chunk->n_tokens));

	if (!out)
		return -ENOMEM;
	section.len_bytes = section.full_bytes =
		(uint32_t)frame_put_classes(e->classes, e->chunk->n_tokens, out);
	return frame_writer_commit(&e->writer, &section);
}

/* [n_layers, n_raw, heads, dim] elements as they lie in memory, byte by byte: the high ones, sign and
 * exponent, are worth coding. */
static int put_raw(struct encoder *e, uint32_t plane, const uint16_t *tokens, size_t n)
{
	const struct geometry *g = e->chunk->geometry;
	const struct plane *p = &g->planes[plane];
	const size_t size = dtype_bytes(p->dtype), elements = n * plane_width(p) * g->n_layers;
	uint8_t *raw = codec_scratch(e->codec, SCRATCH_RAW, 2 * size * elements);
	uint8_t *bytes = raw + size * elements;
	const uint16_t *places = places_of(e, tokens, n);
	int r = raw ? 0 : -ENOMEM;

	for (uint32_t layer = 0; !r && layer < g->n_layers; layer++)
		e->codec->kernels->gather_raw(p, codec_pages(e->chunk, layer, plane), &e->chunk->run, places,
			n, raw + layer * (size * elements / g->n_layers));
	for (size_t b = 0; !r && b < size; b++) {
		struct frame_section section = {
			.kind = FRAME_RAW, .plane = (uint8_t)plane, .part = (uint16_t)b};

		for (size_t i = 0; i < elements; i++)
			bytes[i] = raw[i * size + b];
		r = codec_put_body(e->codec, &e->writer, &section, bytes, elements);
	}
	codec_stamp(e->codec, &e->codec->times.other);
	return r;
}

static int put_levels(struct encoder *e, uint32_t index, uint8_t token_class)
{
	const size_t stride = e->chunk->n_tokens, n = encoder_list(e, e->tokens, NULL, token_class);
	struct frame_section section = {.kind = FRAME_LEVELS, .token_class = token_class};
	struct codec_levels levels;
	struct codec_part part;
	int r;

	if (!n)
		return 0;
	codec_part(e->chunk->geometry, e->options->transform, index, &part);
	section.plane = (uint8_t)part.plane;
	section.part = (uint16_t)part.index;
	levels = (struct codec_levels){.part = part.transform,
		.coder = &e->codec->coders[part.plane],
		.step = step_of(e, token_class),
		.n = n,
		.codes = encoder_levels(e, index) + e->tokens[0],
		.stride = stride};
	levels.r = transform_active(part.transform, levels.step);
	if (e->tokens[n - 1] - e->tokens[0] != (int)n - 1) {
		const int16_t *from = encoder_levels(e, index);

		levels.codes = codec_scratch(e->codec, SCRATCH_CODES, (levels.r + 1) * n * sizeof *from);
		levels.stride = n;
		if (!levels.codes)
			return -ENOMEM;
		for (size_t i = 0; i < levels.r; i++)
			for (size_t k = 0; k < n; k++)
				levels.codes[i * n + k] = from[i * stride + e->tokens[k]];
	}
	r = codec_put_levels(e->codec, &e->writer, &section, &levels, e->options->entropy);
	codec_stamp(e->codec, &e->codec->times.entropy);
	return r;
}

/* A layer with the plain codec: 8 bits a feature, one step for each over the chunk. */
static int put_plain(struct encoder *e, uint32_t index, const uint16_t *tokens, size_t n)
{
	const struct kernels *k = e->codec->kernels;
	struct frame_section section = {.kind = FRAME_STEPS};
	struct codec_part part;
	uint16_t *steps;
	uint8_t *codes;
	float *x, *c, *error, *norm;
	int r;

	codec_part(e->chunk->geometry, NULL, index, &part);
	r = encoder_gather(e, &part, tokens, n, &x);
	if (r)
		return r;
	c = codec_scratch(e->codec, SCRATCH_C, part.p * n * sizeof *c);
	steps = codec_scratch(e->codec, SCRATCH_STEPS, part.p * sizeof *steps);
	codes = codec_scratch(e->codec, SCRATCH_BODY, part.p * n);
	if (!c || !steps || !codes)
		return -ENOMEM;
	k->transpose(x, part.p, n, part.p, c, n);
	memset(e->lost, 0, n * sizeof *e->lost);
	memset(e->kept, 0, n * sizeof *e->kept);
	k->quantise(c, n, part.p, n, steps, codes, e->lost, e->kept);
	error = e->error + (size_t)part.plane * e->chunk->n_tokens;
	norm = e->norm + (size_t)part.plane * e->chunk->n_tokens;
	for (size_t i = 0; i < n; i++) {
		error[tokens[i]] += isfinite(e->energy[i]) ? e->lost[i] : INFINITY;
		norm[tokens[i]] += e->energy[i];
	}
	codec_stamp(e->codec, &e->codec->times.quantise);
	section.plane = (uint8_t)part.plane;
	section.part = (uint16_t)part.index;
	r = codec_put_body(e->codec, &e->writer, &section, steps, part.p * sizeof *steps);
	section.kind = FRAME_CODES;
	if (!r)
		r = codec_put_body(e->codec, &e->writer, &section, codes, part.p * n);
	codec_stamp(e->codec, &e->codec->times.entropy);
	return r;
}

int encoder_write_head(struct encoder *e)
{
	const struct geometry *g = e->chunk->geometry;
	size_t n_raw = 0;
	uint16_t *raw = e->tokens + e->chunk->n_tokens;
	int r;

	for (uint32_t t = 0; t < e->chunk->n_tokens; t++)
		if (token_class_is_raw(e->classes[t]))
			raw[n_raw++] = (uint16_t)t;
	e->n_raw = n_raw;
	r = frame_writer_init(&e->writer, 1 + 4 * g->n_planes + e->n_parts * CODED_CLASSES,
		geometry_token_bytes(g) * (n_raw + (e->chunk->n_tokens - n_raw) / 8 + 8));
	if (!r)
		r = put_classes(e);
	for (uint32_t plane = 0; !r && n_raw && plane < g->n_planes; plane++)
		r = put_raw(e, plane, raw, n_raw);
	return r;
}

int encoder_write_levels(struct encoder *e)
{
	int r = 0;

	for (uint32_t i = 0; !r && i < e->n_parts; i++)
		for (int k = 0; !r && k < CODED_CLASSES; k++)
			r = put_levels(e, i, codec_coded_classes[k]);
	return r;
}

static int encode_with_transform(struct encoder *e)
{
	int r = encoder_quantise_todo(e);

	if (!r)
		r = encoder_write_head(e);
	return r ? r : encoder_write_levels(e);
}

/* Steps are shared by a chunk's tokens: when one is taken out, all is done again. Past ROUNDS_MAX the bound
 * is made tighter each time, so that this ends. */
static int encode_plain(struct encoder *e)
{
	enum { ROUNDS_MAX = 8 };
	struct codec_options options = *e->options;
	const struct codec_options *given = e->options;
	int r;

	e->options = &options;
	for (unsigned round = 0;; round++) {
		const size_t n_planes = e->chunk->geometry->n_planes, n_tokens = e->chunk->n_tokens;
		size_t before, n;

		for (uint32_t t = 0; t < n_tokens; t++)
			e->todo[t] = !token_class_is_raw(e->classes[t]);
		before = encoder_list(e, e->tokens, e->todo, TOKEN_PLAIN);
		memset(e->error, 0, 2 * n_planes * n_tokens * sizeof *e->error);
		e->rope = (struct codec_rope){0};
		r = encoder_write_head(e);
		for (uint32_t i = 0; !r && before && i < e->n_parts; i++)
			r = put_plain(e, i, e->tokens, before);
		if (r)
			break;
		if (round >= ROUNDS_MAX)
			options.max_error *= 0.5;
		encoder_promote(e);
		n = encoder_list(e, e->tokens, NULL, TOKEN_PLAIN);
		if (n == before)
			break;
		frame_writer_fini(&e->writer);
	}
	e->options = given;
	return r;
}

/* Worst and mean relative error of each plane's coded tokens. */
void encoder_state_error(const struct encoder *e, struct frame_info *info)
{
	for (uint32_t plane = 0; plane < e->chunk->geometry->n_planes; plane++) {
		double sum = 0, worst = 0;
		size_t n = 0;

		for (uint32_t t = 0; t < e->chunk->n_tokens; t++) {
			double relative;

			if (token_class_is_raw(e->classes[t]))
				continue;
			relative = encoder_relative_error(e, plane, t);
			sum += relative;
			worst = relative > worst ? relative : worst;
			n++;
		}
		info->error[plane].max = (float)worst;
		info->error[plane].mean = n ? (float)(sum / (double)n) : 0;
	}
}

int codec_check_options(const struct geometry *g, const struct codec_options *o)
{
	const struct transform *t = o->transform;

	if (t && (transform_fits(t, g, NULL, 0) || o->rung >= t->n_rungs || o->rung_salient >= t->n_rungs ||
			 o->rung_redundant >= t->n_rungs))
		return -EINVAL;
	return 0;
}

int encoder_finish(struct encoder *e, struct frame_info *info, uint8_t **data, size_t *len)
{
	int r;

	info->n_raw = (uint32_t)e->n_raw;
	info->n_sections = e->writer.n_sections;
	info->raw_section_bytes = e->writer.raw_section_bytes;
	info->len_bytes = 0;
	r = frame_writer_finish(&e->writer, info, data, len);
	info->len_bytes = *len;
	return r;
}

int codec_encode(struct codec *codec, const struct codec_chunk *chunk, const struct codec_options *options,
	uint8_t **data, size_t *len, struct frame_info *info_out)
{
	struct encoder e = {.codec = codec, .chunk = chunk, .options = options};
	struct frame_info info = {.position = chunk->position,
		.n_tokens = chunk->n_tokens,
		.rung = (uint8_t)options->rung,
		.rung_salient = (uint8_t)options->rung_salient,
		.rung_redundant = (uint8_t)options->rung_redundant,
		.policy_version = options->policy_version,
		.raw_bytes = geometry_token_bytes(chunk->geometry) * chunk->n_tokens};
	uint8_t plain[FRAME_TOKENS_MAX];
	struct codec_options without;
	int r;

	if (!chunk->n_tokens || chunk->n_tokens > FRAME_TOKENS_MAX ||
		codec_check_options(chunk->geometry, options))
		return -EINVAL;
	if (options->transform) {
		memcpy(info.transform, options->transform->id, 16);
	} else {
		/* The plain codec knows one kind of coded token. */
		without = *options;
		for (uint32_t t = 0; t < chunk->n_tokens; t++)
			plain[t] =
				token_class_is_raw(options->classes[t]) ? options->classes[t] : TOKEN_PLAIN;
		without.classes = plain;
		e.options = &without;
		info.rung = info.rung_salient = info.rung_redundant = 0;
	}
	memcpy(info.name_space, options->name_space, 16);
	memcpy(info.key, options->key, 32);
	memcpy(info.parent, options->parent, 32);
	geometry_fingerprint(chunk->geometry, info.fingerprint);

	codec_stamp(codec, NULL);
	r = encoder_init(&e);
	if (!r)
		r = options->transform ? encode_with_transform(&e) : encode_plain(&e);
	if (!r) {
		encoder_state_error(&e, &info);
		r = encoder_finish(&e, &info, data, len);
	}
	frame_writer_fini(&e.writer);
	codec_stamp(codec, &codec->times.other);
	codec_settle(codec);
	if (!r && info_out)
		*info_out = info;
	return r;
}
