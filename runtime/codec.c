#include "runtime/codec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/codec-internal.h"

struct codec *codec_new(const struct kernels *kernels, size_t scratch_max_bytes)
{
	struct codec *c = calloc(1, sizeof *c);

	if (!c)
		return NULL;
	c->kernels = kernels;
	c->scratch_max_bytes = scratch_max_bytes;
	/* Huffman only: on packed codes match search finds nothing and costs a factor of four in time. Raw
	 * streams: the frame has checksums of its own. */
	c->deflater_ready =
		deflateInit2(&c->deflater, Z_BEST_SPEED, Z_DEFLATED, -15, 9, Z_HUFFMAN_ONLY) == Z_OK;
	c->inflater_ready = inflateInit2(&c->inflater, -15) == Z_OK;
	if (!c->deflater_ready || !c->inflater_ready)
		return codec_free(c);
	return c;
}

struct codec *codec_free(struct codec *c)
{
	if (!c)
		return NULL;
	codec_trim(c);
	if (c->deflater_ready)
		deflateEnd(&c->deflater);
	if (c->inflater_ready)
		inflateEnd(&c->inflater);
	free(c);
	return NULL;
}

static struct scratch *const *all_scratch(struct codec *c, struct scratch *list[9])
{
	struct scratch *all[] = {&c->x, &c->c, &c->rope, &c->tokens, &c->sums, &c->packed, &c->steps,
		&c->sections, &c->classes};

	memcpy(list, all, sizeof all);
	return list;
}

size_t codec_scratch_bytes(const struct codec *c)
{
	struct scratch *list[9];
	size_t sum = 0;

	all_scratch((struct codec *)c, list);
	for (size_t i = 0; i < 9; i++)
		sum += list[i]->len_bytes;
	return sum;
}

void codec_trim(struct codec *c)
{
	struct scratch *list[9];

	all_scratch(c, list);
	for (size_t i = 0; i < 9; i++) {
		free(list[i]->data);
		*list[i] = (struct scratch){0};
	}
}

void codec_settle(struct codec *c)
{
	if (codec_scratch_bytes(c) > c->scratch_max_bytes)
		codec_trim(c);
}

void *scratch_get(struct scratch *s, size_t len_bytes)
{
	const size_t wanted = (len_bytes + 4095) & ~(size_t)4095;

	if (s->len_bytes < len_bytes || !s->data) {
		free(s->data);
		s->data = aligned_alloc(64, wanted ? wanted : 4096);
		s->len_bytes = s->data ? (wanted ? wanted : 4096) : 0;
	}
	return s->data;
}

uint32_t codec_n_parts(const struct geometry *g, const struct transform *t)
{
	return t ? t->n_parts : g->n_layers * g->n_planes;
}

void codec_part(const struct geometry *g, const struct transform *t, uint32_t rung, uint32_t i,
	struct codec_part *out)
{
	const struct transform_part *part;

	if (!t) {
		const uint32_t plane = i / g->n_layers;
		const size_t width = plane_width(&g->planes[plane]);

		*out = (struct codec_part){
			.plane = plane,
			.index = i % g->n_layers,
			.first_layer = i % g->n_layers,
			.n_layers = 1,
			.p = width,
			.r = width,
		};
		return;
	}
	part = &t->parts[i];
	*out = (struct codec_part){
		.plane = part->plane,
		.first_layer = part->first_layer,
		.n_layers = part->n_layers,
		.p = part->n_features,
		.r = part->n_components,
		.mean = part->mean,
		.basis = part->basis,
		.bits = part->bits + (size_t)rung * part->n_components,
	};
	for (uint32_t k = i; k > 0 && t->parts[k - 1].plane == part->plane; k--)
		out->index++;
}

unsigned codec_part_bits(const struct codec_part *part, size_t component)
{
	return part->bits ? part->bits[component] : 8;
}

size_t codec_run_of_bits(const struct codec_part *part, size_t first)
{
	size_t end = first + 1;

	while (end < part->r && codec_part_bits(part, end) == codec_part_bits(part, first))
		end++;
	return end - first;
}

size_t codec_n_active(const struct codec_part *part)
{
	size_t n = part->r;

	while (n && !codec_part_bits(part, n - 1))
		n--;
	return n;
}

size_t codec_codes_bytes(const struct codec_part *part, size_t first, size_t end, size_t n_tokens)
{
	size_t sum = 0;

	for (size_t i = first; i < end; i++)
		sum += quant_row_bytes(n_tokens, codec_part_bits(part, i));
	return sum;
}

const struct kv_pages *codec_pages(const struct codec_chunk *chunk, uint32_t layer, uint32_t plane)
{
	return &chunk->pages[(size_t)layer * chunk->geometry->n_planes + plane];
}

int codec_rope(struct codec *c, const struct plane *plane, uint64_t position, const uint16_t *tokens,
	size_t n_tokens, struct rope_table *out)
{
	const size_t half = plane->rope_dim / 2;
	const size_t n = n_tokens * half;
	uint64_t positions[FRAME_TOKENS_MAX];
	float *table;

	*out = (struct rope_table){0};
	if (plane->rope_kind == ROPE_NONE || !n)
		return 0;
	table = scratch_get(&c->rope, 2 * n * sizeof *table);
	if (!table)
		return -ENOMEM;
	for (size_t i = 0; i < n_tokens; i++)
		positions[i] = position + tokens[i];
	c->kernels->rope_fill(plane, positions, n_tokens, table, table + n);
	*out = (struct rope_table){.cos = table, .sin = table + n};
	return 0;
}

void codec_stamp(struct codec *c, uint64_t *sum)
{
	struct timespec now;
	uint64_t now_ns;

	clock_gettime(CLOCK_MONOTONIC, &now);
	now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	if (sum)
		*sum += now_ns - c->stamp_ns;
	c->stamp_ns = now_ns;
}

void codec_take_times(struct codec *c, struct codec_times *out)
{
	*out = c->times;
	c->times = (struct codec_times){0};
}
