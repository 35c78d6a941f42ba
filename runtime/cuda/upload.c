/* Transforms on the device, and what describes chunks there. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formula.h"
#include "runtime/cuda/codec-internal.h"

/* ---- columns */

/* The octets of a part: of each head first the pairs, then the others. out NULL: counts. Returns how many,
 * whole tiles. */
static uint32_t octets_lay(const struct plane *plane, uint32_t n_layers, struct codec_octet *out)
{
	const struct codec_octet none = {.layer = CODEC_NO_LAYER};
	const uint32_t first = plane->rope_offset, half = plane->rope_dim / 2, end = first + plane->rope_dim;
	const bool paired = plane->rope_kind == ROPE_HALF;
	uint32_t n = 0;

	for (uint32_t layer = 0; layer < n_layers; layer++)
		for (uint32_t head = 0; head < plane->n_heads; head++) {
			struct codec_octet o = {.layer = (uint16_t)layer, .head = (uint16_t)head};

			if (paired && n % 2) {
				if (out)
					out[n] = none;
				n++;
			}
			for (uint32_t d = first; paired && d < first + half; d += 8)
				for (uint32_t side = 0; side < 2; side++, n++) {
					o.dim = (uint16_t)(d + side * half);
					o.angle = (uint16_t)(d - first);
					o.rotation = side ? CODEC_PAIR_HIGH : CODEC_PAIR_LOW;
					if (out)
						out[n] = o;
				}
			for (uint32_t d = 0; d < plane->dim; d += 8) {
				const bool rotated = plane->rope_kind != ROPE_NONE && d >= first && d < end;

				if (rotated && paired)
					continue;
				o.dim = (uint16_t)d;
				o.angle = rotated ? (uint16_t)((d - first) / 2) : 0;
				o.rotation = rotated ? CODEC_INTERLEAVED : CODEC_UNROTATED;
				if (out)
					out[n] = o;
				n++;
			}
		}
	for (; n % (CODEC_TILE / 8); n++)
		if (out)
			out[n] = none;
	return n;
}

bool device_codec_serves(
	const struct geometry *g, const struct transform *t, const struct kv_pages *pages, uint32_t n_tokens)
{
	if (!t || !n_tokens || n_tokens > CODEC_TOKENS_MAX || g->n_planes > CODEC_PLANES_MAX ||
		t->n_rungs > CODEC_RUNGS_MAX)
		return false;
	for (uint32_t i = 0; i < g->n_planes; i++) {
		const struct plane *p = &g->planes[i];
		/* A pair's halves are octets, an interleaved octet four pairs. */
		const uint32_t whole = p->rope_kind == ROPE_HALF ? 16 : 8;

		if (p->dim % 8 || (p->rope_kind != ROPE_NONE && (p->rope_offset % 8 || p->rope_dim % whole)))
			return false;
	}
	for (uint32_t i = 0; pages && i < g->n_layers * g->n_planes; i++)
		if (((uintptr_t)pages[i].base | pages[i].block_stride | pages[i].token_stride |
			    pages[i].head_stride) %
			16)
			return false;
	return true;
}

/* ---- memory */

CUdeviceptr arena_take(struct arena *a, uint64_t len)
{
	const uint64_t whole = (len + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
	const CUdeviceptr at = a->base + a->used;

	if (whole < len || whole > a->size - a->used)
		return 0;
	a->used += whole;
	return at;
}

void *pinned_take(struct device_codec *c, size_t len)
{
	const size_t whole = (len + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
	uint8_t *at = c->pinned + c->pinned_used;

	if (whole < len || whole > c->pinned_size - c->pinned_used)
		return NULL;
	c->pinned_used += whole;
	return at;
}

void *post_take(struct post *p, size_t len, CUdeviceptr *device)
{
	const size_t whole = (len + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
	uint8_t *at = p->host + p->used;

	if (whole < len || whole > p->size - p->used)
		return NULL;
	*device = p->device + p->used;
	p->used += whole;
	return at;
}

int post_send(struct device_codec *c)
{
	struct post *p = &c->post;
	const size_t from = p->sent;

	if (from == p->used)
		return 0;
	p->sent = p->used;
	return device_status(
		c->driver->cuMemcpyHtoDAsync(p->device + from, p->host + from, p->used - from, c->stream));
}

/* ---- transforms */

static float *columns_of(float *to, const struct codec_octet *octets, uint32_t n_columns,
	const struct plane *plane, const float *from, float none)
{
	for (uint32_t i = 0; i < n_columns; i++) {
		const struct codec_octet *o = &octets[i / 8];

		to[i] = o->layer == CODEC_NO_LAYER
				? none
				: from[o->layer * plane_width(plane) + o->head * plane->dim + o->dim + i % 8];
	}
	return to;
}

static void basis_row(uint16_t *to, uint32_t component, uint32_t n_components,
	const struct codec_octet *octets, uint32_t n_columns, const struct plane *plane, const float *from)
{
	for (uint32_t i = 0; i < n_columns; i++) {
		const struct codec_octet *o = &octets[i / 8];

		to[codec_basis_at(component, i, n_components)] =
			o->layer == CODEC_NO_LAYER
				? 0
				: f16_from_f32(from[o->layer * plane_width(plane) + o->head * plane->dim +
						       o->dim + i % 8] *
					       (1 << CODEC_BASIS_SHIFT));
	}
}

/* Lays a transform out: with host NULL only counts. Addresses are those on the device, from base on. */
struct layout {
	uint8_t *host;
	CUdeviceptr base;
	uint64_t used;
};

static void *lay(struct layout *l, uint64_t len, void *device_address)
{
	void *host = l->host ? l->host + l->used : NULL;
	const CUdeviceptr at = l->base + l->used;

	memcpy(device_address, &at, sizeof at);
	l->used += (len + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
	return host;
}

static void lay_rows(const struct transform *t, const struct transform_part *from,
	struct codec_device_part *part, struct levels_row *rows, int8_t *classes, uint32_t *places)
{
	const uint32_t n = part->n_components, n_places = codec_groups(n) * CODEC_GROUP;

	for (uint32_t rung = 0; rung < t->n_rungs; rung++) {
		uint32_t wide = 0;

		part->step[rung] = t->step[rung];
		part->active[rung] = transform_active(from, t->step[rung]);
		while (wide < part->active[rung] &&
			levels_class(from->deviation[wide], t->step[rung]) >= CODEC_WIDE_CLASS)
			wide++;
		part->wide[rung] = wide;
		for (uint32_t i = 0; rows && i < n; i++) {
			const int level_class = levels_class(from->deviation[i], t->step[rung]);

			rows[rung * n + i] = levels_row(level_class);
			classes[rung * n + i] = (int8_t)level_class;
			places[rung * n_places + i] = (uint32_t)(level_class - LEVELS_TABLE_CLASS_MIN) *
						      LEVELS_SETS * sizeof(struct codec_quantiser);
		}
	}
}

/* Powers of two are exact wherever they stand: a division of every level becomes one of constants. */
static void lay_quantisers(struct codec_quantiser *to, const struct levels_coder *coder)
{
	for (uint32_t i = 0; i < CODEC_QUANTISERS; i++)
		for (uint32_t set = 0; set < LEVELS_SETS; set++) {
			const struct levels_row row = levels_row((int)i + LEVELS_TABLE_CLASS_MIN);
			const struct levels_cost *cost = &coder->cost[row.table][set];
			const float shrink = 1.0f / (float)(1u << row.shift);

			to[i * LEVELS_SETS + set] = (struct codec_quantiser){
				.bend = cost->bend * shrink * shrink,
				.slope = cost->slope * shrink,
				.base = cost->base + LEVELS_LAMBDA * (float)row.shift,
				.zero = cost->zero + LEVELS_LAMBDA * (float)row.shift,
				.set = (float)set,
				.bias = {coder->bias[row.table][set][0], coder->bias[row.table][set][1]}};
		}
}

static void lay_levels(struct codec_level *to, const struct levels_coder *coder)
{
	for (uint32_t i = 0; i < CODEC_QUANTISERS; i++)
		for (uint32_t set = 0; set < LEVELS_SETS; set++)
			for (uint32_t k = 0; k < 2 * CODEC_NEAR; k++) {
				const struct levels_row row = levels_row((int)i + LEVELS_TABLE_CLASS_MIN);
				const struct levels_cost *cost = &coder->cost[row.table][set];
				const float v = (float)k / (float)(1u << row.shift);
				const float base = cost->base + LEVELS_LAMBDA * (float)row.shift;

				to[((i * LEVELS_SETS + set) * 2 + k % 2) * CODEC_NEAR + k / 2] =
					(struct codec_level){
						levels_magnitude((int)k, set, coder->bias[row.table][set]),
						k ? (cost->bend * v + cost->slope) * v + base : INFINITY};
			}
}

static void lay_part(struct layout *l, const struct geometry *g, const struct transform *t, uint32_t number,
	const struct levels_coder *const coders[CODEC_PLANES_MAX],
	const struct codec_quantiser *const quantisers[CODEC_PLANES_MAX],
	const struct codec_level *const levels[CODEC_PLANES_MAX], struct codec_device_part *part)
{
	const struct transform_part *from = &t->parts[number];
	const struct plane *plane = &g->planes[from->plane];
	const uint32_t n_octets = octets_lay(plane, from->n_layers, NULL), n_columns = 8 * n_octets;
	const uint32_t r = from->n_components;
	const float scale = plane->rope_scale;
	float *mean, *weight, *inverse;
	int8_t *classes;
	struct codec_octet *octets;
	struct levels_row *rows;
	uint32_t *places;
	uint16_t *basis;

	*part = (struct codec_device_part){.coder = coders[from->plane],
		.quantisers = quantisers[from->plane],
		.levels = levels[from->plane],
		.n_columns = n_columns,
		.n_components = r,
		.plane = from->plane,
		.dtype = plane->dtype,
		.first_layer = from->first_layer,
		.half = plane->rope_kind == ROPE_NONE ? 0 : plane->rope_dim / 2,
		.inverse_square = plane->rope_kind == ROPE_NONE ? 1.0f : 1.0f / (scale * scale)};
	octets = lay(l, n_octets * sizeof *octets, &part->octets);
	basis = lay(l, (uint64_t)codec_basis_rows(r) * n_columns * sizeof *basis, &part->basis);
	mean = lay(l, n_columns * sizeof *mean, &part->mean);
	weight = lay(l, n_columns * sizeof *weight, &part->weight);
	inverse = lay(l, n_columns * sizeof *inverse, &part->inverse);
	classes = lay(l, (uint64_t)t->n_rungs * r * sizeof *classes, &part->classes);
	rows = lay(l, (uint64_t)t->n_rungs * r * sizeof *rows, &part->rows);
	places = lay(l, (uint64_t)t->n_rungs * codec_groups(r) * CODEC_GROUP * sizeof *places, &part->places);
	lay_rows(t, from, part, rows, classes, places);
	if (!l->host)
		return;
	octets_lay(plane, from->n_layers, octets);
	for (uint32_t i = 0; i < r; i++)
		basis_row(basis, i, r, octets, n_columns, plane, from->basis + (size_t)i * from->n_features);
	columns_of(mean, octets, n_columns, plane, from->mean, 0);
	columns_of(weight, octets, n_columns, plane, from->weight, 0);
	columns_of(inverse, octets, n_columns, plane, from->inverse, 0);
}

static void lay_transform(
	struct layout *l, const struct geometry *g, const struct transform *t, struct device_transform *out)
{
	const struct levels_coder *coders[CODEC_PLANES_MAX] = {NULL};
	const struct codec_quantiser *quantisers[CODEC_PLANES_MAX] = {NULL};
	const struct codec_level *levels[CODEC_PLANES_MAX] = {NULL};
	struct codec_device_part *parts;

	for (uint32_t i = 0; i < g->n_planes; i++) {
		const struct plane *plane = &g->planes[i];
		struct levels_coder *coder = lay(l, sizeof *coder, &coders[i]);
		struct codec_quantiser *q =
			lay(l, CODEC_QUANTISERS * LEVELS_SETS * sizeof *q, &quantisers[i]);
		struct codec_level *listed =
			lay(l, CODEC_QUANTISERS * LEVELS_SETS * 2 * CODEC_NEAR * sizeof *listed, &levels[i]);
		float *frequency;

		if (coder) {
			levels_coder_init(coder, &t->tables[i]);
			lay_quantisers(q, coder);
			lay_levels(listed, coder);
		}
		if (plane->rope_kind == ROPE_NONE)
			continue;
		out->half[i] = plane->rope_dim / 2;
		out->scale[i] = (double)plane->rope_scale;
		frequency = lay(l, out->half[i] * sizeof *frequency, &out->frequency[i]);
		if (frequency)
			memcpy(frequency, plane->inv_freq, out->half[i] * sizeof *frequency);
	}
	for (uint32_t i = 0; i < t->n_parts; i++)
		lay_part(l, g, t, i, coders, quantisers, levels, &out->parts[i]);
	parts = lay(l, t->n_parts * sizeof *parts, &out->parts_at);
	if (parts)
		memcpy(parts, out->parts, t->n_parts * sizeof *parts);
}

static void drop(struct device_codec *c, struct device_transform *t)
{
	if (t->memory)
		device_status(c->driver->cuMemFree(t->memory));
	free(t->parts);
	*t = (struct device_transform){0};
}

static int upload(struct device_codec *c, const struct geometry *g, const struct transform *t,
	struct device_transform *out)
{
	struct layout l = {0};
	int r;

	memcpy(out->id, t->id, 16);
	out->n_parts = t->n_parts;
	out->parts = calloc(t->n_parts, sizeof *out->parts);
	if (!out->parts)
		return -ENOMEM;
	lay_transform(&l, g, t, out);
	r = device_status(c->driver->cuMemAlloc(&out->memory, l.used));
	if (r) {
		out->memory = 0;
		return r;
	}
	out->bytes = l.used;
	l = (struct layout){.host = calloc(1, l.used), .base = out->memory};
	if (!l.host)
		return -ENOMEM;
	lay_transform(&l, g, t, out);
	r = device_status(c->driver->cuMemcpyHtoDAsync(out->memory, l.host, l.used, c->stream));
	if (!r)
		r = device_codec_wait(c);
	free(l.host);
	return r;
}

int device_codec_transform(struct device_codec *c, const struct geometry *g, const struct transform *t,
	const struct device_transform **out)
{
	struct device_transform *slot = &c->transforms[0];
	int r;

	c->n_calls++;
	for (int i = 0; i < DEVICE_TRANSFORMS_MAX; i++) {
		struct device_transform *d = &c->transforms[i];

		if (d->memory && memcmp(d->id, t->id, 16) == 0) {
			d->last_use = c->n_calls;
			*out = d;
			return 0;
		}
		if (d->last_use < slot->last_use)
			slot = d;
	}
	drop(c, slot);
	r = upload(c, g, t, slot);
	if (r) {
		drop(c, slot);
		return r;
	}
	slot->last_use = c->n_calls;
	*out = slot;
	return 0;
}

/* ---- chunks */

int device_codec_chunk(struct device_codec *c, const struct device_transform *t,
	const struct codec_chunk *from, struct codec_device_chunk *to)
{
	const struct geometry *g = from->geometry;
	const size_t n_pages = (size_t)g->n_layers * g->n_planes;
	const uint32_t first = from->run.offset / from->run.block_tokens;
	const uint32_t last = (from->run.offset + from->n_tokens - 1) / from->run.block_tokens;
	CUdeviceptr pages_at, blocks_at;
	struct kv_pages *pages = post_take(&c->post, n_pages * sizeof *pages, &pages_at);
	uint32_t *blocks = post_take(&c->post, (last - first + 1) * sizeof *blocks, &blocks_at);

	if (!pages || !blocks)
		return -ENOSPC;
	memcpy(pages, from->pages, n_pages * sizeof *pages);
	memcpy(blocks, from->run.blocks + first, (last - first + 1) * sizeof *blocks);
	*to = (struct codec_device_chunk){
		.run = {.blocks = (const uint32_t *)blocks_at,
			.block_tokens = from->run.block_tokens,
			.offset = from->run.offset - first * from->run.block_tokens},
		.pages = (const struct kv_pages *)pages_at,
		.position = from->position,
		.n_tokens = from->n_tokens,
		.n_planes = g->n_planes};
	for (uint32_t i = 0; i < g->n_planes; i++) {
		const uint64_t len = (uint64_t)from->n_tokens * t->half[i] * sizeof(float);
		const CUdeviceptr at = len ? arena_take(&c->arena, 2 * len) : 0;

		if (len && !at)
			return -ENOSPC;
		to->cos[i] = (float *)at;
		to->sin[i] = (float *)(at + len);
	}
	return 0;
}

int device_codec_list(struct device_codec *c, const uint8_t *classes, struct codec_device_chunk *chunk)
{
	CUdeviceptr at;
	uint16_t *tokens = post_take(&c->post, chunk->n_tokens * sizeof *tokens, &at);
	uint32_t n_of[CODEC_CLASSES + 1] = {0}, next[CODEC_CLASSES + 1] = {0};

	if (!tokens)
		return -ENOSPC;
	for (uint32_t t = 0; t < chunk->n_tokens; t++)
		n_of[image_coded_class(classes[t])]++;
	for (uint32_t k = 0; k < CODEC_CLASSES; k++) {
		chunk->n_of[k] = n_of[k];
		next[k + 1] = next[k] + n_of[k];
	}
	for (uint32_t t = 0; t < chunk->n_tokens; t++)
		tokens[next[image_coded_class(classes[t])]++] = (uint16_t)t;
	chunk->n_raw = n_of[CODEC_CLASSES];
	chunk->n_coded = chunk->n_tokens - chunk->n_raw;
	chunk->tokens = (const uint16_t *)at;
	return 0;
}

uint32_t device_codec_raw_jobs(const struct geometry *g, const struct image *image, CUdeviceptr at,
	uint32_t chunk, struct codec_raw_job jobs[CODEC_PLANES_MAX])
{
	uint32_t n = 0;

	for (uint32_t plane = 0; image->info.n_raw && plane < g->n_planes; plane++) {
		struct codec_raw_job *job = &jobs[n++];

		*job = (struct codec_raw_job){.chunk = chunk,
			.plane = plane,
			.dtype_bytes = (uint32_t)dtype_bytes(g->planes[plane].dtype),
			.n_heads = g->planes[plane].n_heads,
			.dim = g->planes[plane].dim};
		for (uint32_t b = 0; b < job->dtype_bytes; b++)
			job->bodies[b] = (uint8_t *)(at + image->raw[plane][b].offset);
	}
	return n;
}

int device_codec_rope(struct device_codec *c, const struct device_transform *t, const struct geometry *g,
	CUdeviceptr chunks, size_t n, uint32_t tokens_max)
{
	struct codec_rope_args a = {.chunks = (const struct codec_device_chunk *)chunks};
	uint32_t angles = 0;

	for (uint32_t i = 0; i < g->n_planes; i++) {
		a.frequency[i] = t->frequency[i];
		a.half[i] = t->half[i];
		a.scale[i] = t->scale[i];
		angles = t->half[i] > angles ? t->half[i] : angles;
	}
	if (!angles)
		return 0;
	return device_codec_launch(c, DEVICE_KERNEL_codec_rope,
		(angles * tokens_max + CODEC_THREADS - 1) / CODEC_THREADS, g->n_planes, (uint32_t)n,
		CODEC_THREADS, 0, &a);
}
