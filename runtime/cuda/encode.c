/*
 * Chunks in an engine's pages to frames. Features, coefficients and the trellis' decisions take several times
 * the room of the chunks themselves, so blocks go through these in slices; what stays are codes and sums.
 * Three times the host looks at what there is before it goes on: at errors (which tokens need a finer class),
 * at the streams' lengths (where they go in the image), at the images.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"
#include "policy/sinks/rank.h"
#include "runtime/codec/internal.h"
#include "runtime/cuda/encoder.h"

static uint32_t rung_of(const struct device_encoder *e, uint32_t coded)
{
	const struct codec_options *o = e->batch[0].options;

	return coded == 0 ? o->rung : coded == 1 ? o->rung_salient : o->rung_redundant;
}

/* Components of the finest of some classes' rungs. */
static uint32_t components_of(
	const struct device_encoder *e, uint32_t mask, const struct codec_device_part *part)
{
	uint32_t most = 0;

	for (uint32_t k = 0; k < CODEC_CLASSES; k++)
		if (mask >> k & 1 && part->active[rung_of(e, k)] > most)
			most = part->active[rung_of(e, k)];
	return most;
}

/* ---- what stays */

static int add_chunk(struct device_encoder *e, uint32_t number)
{
	const struct codec_chunk *from = e->batch[number].chunk;
	const struct codec_options *o = e->batch[number].options;
	struct codec_device_chunk *chunk = &e->chunks[number];
	const uint32_t stride = round_up(from->n_tokens, CODEC_TILE);
	int r = device_codec_chunk(e->codec, e->t, from, chunk);

	if (r)
		return r;
	for (uint32_t k = 0; k < CODEC_CLASSES; k++)
		chunk->rung[k] = rung_of(e, k);
	for (uint32_t p = 0; p < e->t->n_parts; p++) {
		struct codec_device_block *block = &e->blocks[number * e->t->n_parts + p];
		const uint32_t r_max = components_of(e, (1u << CODEC_CLASSES) - 1, &e->t->parts[p]);
		const CUdeviceptr sums = arena_take(&e->codec->arena, 4 * stride * sizeof(float));
		const CUdeviceptr codes =
			arena_take(&e->codec->arena, ((uint64_t)r_max * stride + 1) * sizeof(int16_t));

		if (!sums || !codes)
			return -ENOSPC;
		*block = (struct codec_device_block){.part = p,
			.chunk = number,
			.stride = stride,
			.energy = (float *)sums,
			.norm = (float *)sums + stride,
			.lost = (float *)sums + 2 * (size_t)stride,
			.kept = (float *)sums + 3 * (size_t)stride,
			.codes = (int16_t *)codes};
	}
	memcpy(e->classes + number * CODEC_TOKENS_MAX, o->classes, from->n_tokens);
	for (uint32_t i = 0; i < from->n_tokens; i++)
		e->todo[number * CODEC_TOKENS_MAX + i] = !token_class_is_raw(o->classes[i]);
	e->tokens_max = from->n_tokens > e->tokens_max ? from->n_tokens : e->tokens_max;
	return 0;
}

static int prepare(struct device_encoder *e)
{
	struct post *p = &e->codec->post;
	const size_t n_errors = e->n * CODEC_PLANES_MAX * CODEC_TOKENS_MAX;
	int r = 0;

	e->chunks = post_take(p, e->n * sizeof *e->chunks, &e->chunks_at);
	e->blocks = post_take(p, e->n * e->t->n_parts * sizeof *e->blocks, &e->blocks_at);
	e->first_block = post_take(p, (e->n + 1) * sizeof *e->first_block, &e->first_block_at);
	e->errors = pinned_take(e->codec, n_errors * sizeof *e->errors);
	e->errors_at = arena_take(&e->codec->arena, n_errors * sizeof *e->errors);
	if (!e->chunks || !e->blocks || !e->first_block || !e->errors || !e->errors_at)
		return -ENOSPC;
	for (uint32_t i = 0; !r && i < e->n; i++)
		r = add_chunk(e, i);
	for (uint32_t i = 0; i <= e->n; i++)
		e->first_block[i] = i * e->t->n_parts;
	e->kept = e->codec->arena.used;
	return r;
}

/* ---- quantising */

/* Coded classes of a chunk's tokens to do, as a mask. */
static uint32_t classes_to_do(const struct device_encoder *e, uint32_t number)
{
	uint32_t mask = 0;

	for (uint32_t i = 0; i < e->batch[number].chunk->n_tokens; i++) {
		const size_t at = number * CODEC_TOKENS_MAX + i;

		if (e->todo[at])
			mask |= 1u << image_coded_class(e->classes[at]);
	}
	return mask;
}

struct slice {
	struct codec_device_block *blocks; /* in the post, [n] */
	CUdeviceptr blocks_at;
	uint32_t n, k_max, stride_max;
};

/* Bytes of the arena that a block takes in a slice, in round numbers. */
static uint64_t slice_bytes(
	const struct device_encoder *e, const struct codec_device_block *block, uint32_t k)
{
	const uint64_t groups = (uint64_t)(k ? codec_groups(k) : 1) * block->stride;

	return (uint64_t)block->stride * e->t->parts[block->part].n_columns * sizeof *block->x +
	       groups * (CODEC_GROUP * sizeof *block->c + sizeof *block->decisions) + 3 * DEVICE_ALIGN;
}

static bool slice_add(
	struct device_encoder *e, struct slice *s, const struct codec_device_block *block, uint32_t k)
{
	const struct codec_device_part *part = &e->t->parts[block->part];
	struct arena *a = &e->codec->arena;
	struct codec_device_block *to = &s->blocks[s->n];
	const uint64_t groups = (uint64_t)(k ? codec_groups(k) : 1) * block->stride;

	*to = *block;
	to->k = k;
	to->x = (uint16_t *)arena_take(a, (uint64_t)block->stride * part->n_columns * sizeof *to->x);
	to->c = (float *)arena_take(a, groups * CODEC_GROUP * sizeof *to->c);
	to->decisions = (uint32_t *)arena_take(a, groups * sizeof *to->decisions);
	if (!to->x || !to->c || !to->decisions)
		return false;
	s->k_max = k > s->k_max ? k : s->k_max;
	s->stride_max = block->stride > s->stride_max ? block->stride : s->stride_max;
	s->n++;
	return true;
}

static int slice_run(struct device_encoder *e, struct slice *s, CUdeviceptr classes_at)
{
	const struct codec_device_part *parts = (const struct codec_device_part *)e->t->parts_at;
	const struct codec_device_chunk *chunks = (const struct codec_device_chunk *)e->chunks_at;
	const struct codec_device_block *blocks = (const struct codec_device_block *)s->blocks_at;
	const struct codec_convert_args convert = {parts, chunks, blocks};
	const struct codec_project_args project = {parts, blocks};
	const struct codec_quantise_args quantise = {parts, chunks, blocks, (const uint8_t *)classes_at};
	const uint32_t tiles = s->stride_max / CODEC_TILE;
	struct device_codec *c = e->codec;
	int r;

	/* Room for all blocks was taken; what this slice did not use is the next one's. */
	c->post.used = round_up((uint32_t)((uint8_t *)(s->blocks + s->n) - c->post.host), DEVICE_ALIGN);
	r = post_send(c);
	if (!r && s->n)
		r = device_codec_launch(c, DEVICE_KERNEL_codec_convert, s->stride_max / CODEC_CONVERT_TILE, 1,
			s->n, CODEC_CONVERT_THREADS, 0, &convert);
	if (!r && s->n && s->k_max)
		r = device_codec_launch(c, DEVICE_KERNEL_codec_project, tiles,
			round_up(s->k_max, CODEC_TILE) / CODEC_TILE, s->n, CODEC_THREADS,
			CODEC_PRODUCT_SHARED, &project);
	if (!r && s->n)
		r = device_codec_launch(
			c, DEVICE_KERNEL_codec_quantise, tiles, 1, s->n, CODEC_TILE, 0, &quantise);
	c->arena.used = e->kept;
	return r;
}

static int slice_new(struct device_encoder *e, struct slice *s)
{
	*s = (struct slice){0};
	s->blocks = post_take(&e->codec->post, e->n * e->t->n_parts * sizeof *s->blocks, &s->blocks_at);
	return s->blocks ? 0 : -ENOSPC;
}

/* How many blocks a slice is to have, so that as few as are needed are about equal: a small one leaves the
 * device half idle. masks: [n] classes to do. */
static uint32_t slice_length(const struct device_encoder *e, const uint32_t *masks)
{
	const struct arena *a = &e->codec->arena;
	uint64_t bytes = 0, n_slices;
	uint32_t n = 0;

	for (uint32_t i = 0; i < e->n; i++)
		for (uint32_t p = 0; masks[i] && p < e->t->n_parts; p++, n++)
			bytes += slice_bytes(e, &e->blocks[i * e->t->n_parts + p],
				components_of(e, masks[i], &e->t->parts[p]));
	n_slices = bytes / (a->size - a->used + 1) + 1;
	return (uint32_t)((n + n_slices - 1) / n_slices);
}

/* Everything that is to do, quantised as its class wants it. */
static int quantise(struct device_encoder *e)
{
	const size_t classes_len = e->n * CODEC_TOKENS_MAX;
	CUdeviceptr classes_at;
	uint8_t *coded = post_take(&e->codec->post, classes_len, &classes_at);
	uint32_t masks[DEVICE_BATCH_MAX], n_max;
	struct slice s;
	int r = coded ? slice_new(e, &s) : -ENOSPC;

	if (r)
		return r;
	for (size_t i = 0; i < classes_len; i++)
		coded[i] = e->todo[i] ? (uint8_t)image_coded_class(e->classes[i]) : CODEC_CLASSES;
	for (uint32_t i = 0; i < e->n; i++)
		masks[i] = classes_to_do(e, i);
	n_max = slice_length(e, masks);
	/* By part, so that a slice's products share few bases: they stay in the cache. */
	for (uint32_t p = 0; p < e->t->n_parts; p++)
		for (uint32_t i = 0; i < e->n; i++) {
			const struct codec_device_block *block = &e->blocks[i * e->t->n_parts + p];
			const uint32_t k = components_of(e, masks[i], &e->t->parts[p]);

			if (!masks[i] || (s.n < n_max && slice_add(e, &s, block, k)))
				continue;
			if (!s.n)
				return -ENOSPC;
			r = slice_run(e, &s, classes_at);
			if (!r)
				r = slice_new(e, &s);
			if (r)
				return r;
			if (!slice_add(e, &s, block, k))
				return -ENOSPC;
		}
	return slice_run(e, &s, classes_at);
}

/* On their way to the host when this returns. */
static int fetch_errors(struct device_encoder *e)
{
	const struct codec_errors_args a = {(const struct codec_device_part *)e->t->parts_at,
		(const struct codec_device_chunk *)e->chunks_at,
		(const struct codec_device_block *)e->blocks_at, (const uint32_t *)e->first_block_at,
		(float *)e->errors_at};
	struct device_codec *c = e->codec;
	int r = device_codec_launch(c, DEVICE_KERNEL_codec_errors, round_up(e->tokens_max, 32) / 32,
		e->geometry->n_planes, (uint32_t)e->n, CODEC_ERRORS_THREADS, 0, &a);

	if (!r)
		r = device_status(c->driver->cuMemcpyDtoHAsync(e->errors, e->errors_at,
			e->n * CODEC_PLANES_MAX * CODEC_TOKENS_MAX * sizeof *e->errors, c->stream));
	return r;
}

static int read_errors(struct device_encoder *e)
{
	const int r = fetch_errors(e);

	return r ? r : device_codec_wait(e->codec);
}

static double worst_error(const struct device_encoder *e, uint32_t number, uint32_t token, bool *finite)
{
	double worst = 0;

	*finite = true;
	for (uint32_t plane = 0; plane < e->geometry->n_planes; plane++) {
		const double error = (double)device_encoder_errors(e, number, plane)[token];

		*finite &= isfinite(error) != 0;
		worst = error > worst ? error : worst;
	}
	return worst;
}

/* As encoder_rank of the host's codec, by fit: plain tokens that were quantised get the classes that the
 * order of their errors asks for. What is to do afterwards is what got another. Returns how many. */
static size_t rank(struct device_encoder *e)
{
	size_t n_changed = 0;

	for (uint32_t i = 0; i < e->n; i++) {
		const struct codec_options *o = e->batch[i].options;
		uint8_t *classes = e->classes + i * CODEC_TOKENS_MAX, *todo = e->todo + i * CODEC_TOKENS_MAX;
		uint8_t ranked[CODEC_TOKENS_MAX];
		float places[CODEC_TOKENS_MAX];
		const uint32_t n = e->batch[i].chunk->n_tokens;

		for (uint32_t t = 0; t < n; t++) {
			bool finite;
			const double worst = worst_error(e, i, t, &finite);
			const bool is_one = todo[t] && classes[t] == TOKEN_PLAIN && finite;

			places[t] = is_one ? (float)worst : NAN;
			ranked[t] = is_one ? TOKEN_PLAIN : TOKEN_EXACT;
		}
		sinks_rank(places, n, o->salient_share, o->redundant_share, ranked);
		for (uint32_t t = 0; t < n; t++) {
			todo[t] = ranked[t] == TOKEN_SALIENT || ranked[t] == TOKEN_REDUNDANT;
			if (todo[t])
				classes[t] = ranked[t];
			n_changed += todo[t];
		}
	}
	return n_changed;
}

/* As encoder_promote of the host's codec. */
int device_encoder_settle(struct device_encoder *e)
{
	bool changed = false;

	for (uint32_t i = 0; i < e->n; i++) {
		const struct codec_options *o = e->batch[i].options;
		const double bound = o->max_error > 0 ? o->max_error : INFINITY;

		for (uint32_t t = 0; t < e->batch[i].chunk->n_tokens; t++) {
			const size_t at = i * CODEC_TOKENS_MAX + t;
			bool finite;
			double worst;

			if (!e->todo[at])
				continue;
			worst = worst_error(e, i, t, &finite);
			e->todo[at] = !finite || worst > bound;
			if (!e->todo[at])
				continue;
			e->classes[at] = finite ? codec_finer(o, e->classes[at]) : TOKEN_EXACT;
			e->todo[at] = e->classes[at] != TOKEN_EXACT;
			changed = true;
		}
	}
	e->settled = !changed;
	return changed ? -EAGAIN : 0;
}

/* A second time what its place in the order asks for; the bound is looked at for all, after. */
static int quantise_ranked(struct device_encoder *e)
{
	const size_t len = e->n * CODEC_TOKENS_MAX;
	uint8_t *all = malloc(len);
	int r = all ? 0 : -ENOMEM;

	if (!r)
		memcpy(all, e->todo, len);
	if (!r && rank(e)) {
		r = quantise(e);
		if (!r)
			r = read_errors(e);
	}
	if (!r)
		memcpy(e->todo, all, len);
	free(all);
	return r;
}

static int run(struct device_encoder *e)
{
	bool promoted = false;
	int r = prepare(e);

	if (!r)
		r = post_send(e->codec);
	if (!r)
		r = device_codec_rope(e->codec, e->t, e->geometry, e->chunks_at, e->n, e->tokens_max);
	if (!r)
		r = quantise(e);
	if (!r && e->batch[0].options->rank) {
		r = read_errors(e);
		r = r ? r : quantise_ranked(e);
	} else if (!r) {
		r = fetch_errors(e);
	}
	/* Tokens beyond the bound are few where a transform fits: streams are made at once, in vain if there
	 * are some after all. The device need not wait for the host to look, unless last time it was in vain.
	 */
	for (;;) {
		if (!r && e->codec->promoted) {
			r = device_codec_wait(e->codec);
			r = r ? r : device_encoder_settle(e);
		}
		r = r ? r : device_encoder_write(e);
		if (r != -EAGAIN)
			break;
		e->codec->promoted = promoted = true;
		r = quantise(e);
		r = r ? r : fetch_errors(e);
	}
	e->codec->promoted = promoted;
	if (r)
		device_codec_wait(e->codec);
	return r;
}

static bool fits(const struct device_encode *batch, size_t n)
{
	const struct codec_options *first = batch[0].options;

	for (size_t i = 0; i < n; i++) {
		const struct codec_options *o = batch[i].options;

		if (!o->transform || o->transform != first->transform || o->rung != first->rung ||
			o->rung_salient != first->rung_salient ||
			o->rung_redundant != first->rung_redundant || o->entropy != CODEC_RANS ||
			codec_check_options(batch[i].chunk->geometry, o) ||
			!device_codec_serves(batch[i].chunk->geometry, o->transform, batch[i].chunk->pages,
				batch[i].chunk->n_tokens))
			return false;
	}
	return true;
}

/* Chunks that fit the scratch memory together. *n_done: how many, from the first on, have a status. */
static int encode_some(struct device_codec *c, struct device_encode *batch, size_t n, size_t *n_done)
{
	struct device_encoder e = {.codec = c, .batch = batch, .n = n};
	int r;

	e.geometry = batch[0].chunk->geometry;
	e.transform = batch[0].options->transform;
	e.classes = calloc(2 * n, CODEC_TOKENS_MAX);
	if (!e.classes)
		return -ENOMEM;
	e.todo = e.classes + n * CODEC_TOKENS_MAX;
	r = device_codec_begin(c);
	if (!r)
		r = device_codec_transform(c, e.geometry, e.transform, &e.t);
	if (!r)
		r = run(&e);
	free(e.classes);
	*n_done = e.n_done;
	return r;
}

int device_codec_encode(struct device_codec *c, struct device_encode *batch, size_t n)
{
	size_t first = 0, together = n;
	int r = 0;

	if (!n || n > DEVICE_BATCH_MAX || !fits(batch, n))
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		batch[i].status = -ECANCELED;
		batch[i].frame = NULL;
		batch[i].image = NULL;
		batch[i].image_at = 0;
	}
	while (!r && first < n) {
		size_t n_done;

		together = together < n - first ? together : n - first;
		r = encode_some(c, batch + first, together, &n_done);
		first += n_done;
		if (r != -ENOSPC)
			continue;
		r = 0;
		if (!n_done && together > 1)
			together /= 2;
		else if (!n_done)
			batch[first++].status = -ENOSPC;
	}
	for (size_t i = 0; i < n; i++)
		if (r || batch[i].status) {
			free(batch[i].frame);
			free(batch[i].image);
			batch[i].frame = NULL;
			batch[i].image = NULL;
			batch[i].image_at = 0;
		}
	return r;
}
