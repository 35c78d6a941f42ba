#include "runtime/codec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "policy/rate.h"
#include "runtime/codec/internal.h"

const uint8_t codec_coded_classes[CODED_CLASSES] = {TOKEN_PLAIN, TOKEN_SALIENT, TOKEN_REDUNDANT};

_Static_assert((int)CODEC_UNRANKED == (int)POLICY_BY_ATTENTION && (int)CODEC_BY_FIT == (int)POLICY_BY_FIT &&
		       (int)CODEC_BY_NEIGHBOURS == (int)POLICY_BY_NEIGHBOURS,
	"attention gives its classes beforehand, encoding the others");

void codec_follow(struct codec_options *o, const struct policy *p, uint32_t rung)
{
	const int ranks = p->salient_share > 0 || p->redundant_share > 0;

	o->rung = rung;
	o->rung_salient = rate_salient_rung(p, rung);
	o->rung_redundant = o->transform ? rate_redundant_rung(p, o->transform, rung) : 0;
	o->rank = ranks ? (enum codec_rank)p->class_by : CODEC_UNRANKED;
	o->salient_share = p->salient_share;
	o->redundant_share = p->redundant_share;
	o->max_error = p->max_error;
	o->policy_version = p->version;
}

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
	free(c->coders);
	free(c);
	return NULL;
}

size_t codec_scratch_bytes(const struct codec *c)
{
	size_t sum = 0;

	for (int i = 0; i < SCRATCHES; i++)
		sum += c->scratch[i].len_bytes;
	return sum;
}

void codec_trim(struct codec *c)
{
	for (int i = 0; i < SCRATCHES; i++)
		scratch_free(&c->scratch[i]);
}

void codec_settle(struct codec *c)
{
	if (codec_scratch_bytes(c) > c->scratch_max_bytes)
		codec_trim(c);
}

void *codec_scratch(struct codec *c, int which, size_t len_bytes)
{
	return scratch_get(&c->scratch[which], len_bytes);
}

uint32_t codec_rung(uint8_t token_class, uint32_t plain, uint32_t salient, uint32_t redundant)
{
	return token_class == TOKEN_SALIENT ? salient : token_class == TOKEN_REDUNDANT ? redundant : plain;
}

uint32_t codec_n_parts(const struct geometry *g, const struct transform *t)
{
	return t ? t->n_parts : g->n_layers * g->n_planes;
}

void codec_part(const struct geometry *g, const struct transform *t, uint32_t i, struct codec_part *out)
{
	const struct transform_part *part;

	if (!t) {
		const uint32_t plane = i / g->n_layers;

		*out = (struct codec_part){
			.plane = plane,
			.index = i % g->n_layers,
			.first_layer = i % g->n_layers,
			.n_layers = 1,
			.p = plane_width(&g->planes[plane]),
		};
		return;
	}
	part = &t->parts[i];
	*out = (struct codec_part){
		.transform = part,
		.plane = part->plane,
		.first_layer = part->first_layer,
		.n_layers = part->n_layers,
		.p = part->n_features,
	};
	for (uint32_t k = i; k > 0 && t->parts[k - 1].plane == part->plane; k--)
		out->index++;
}

const struct kv_pages *codec_pages(const struct codec_chunk *chunk, uint32_t layer, uint32_t plane)
{
	return &chunk->pages[(size_t)layer * chunk->geometry->n_planes + plane];
}

int codec_coders(struct codec *c, const struct transform *t)
{
	if (c->coders && memcmp(c->coders_id, t->id, 16) == 0)
		return 0;
	if (!c->coders)
		c->coders = malloc(GEOMETRY_PLANES_MAX * sizeof *c->coders);
	if (!c->coders)
		return -ENOMEM;
	for (uint32_t plane = 0; plane < t->n_planes; plane++)
		levels_coder_init(&c->coders[plane], &t->tables[plane]);
	memcpy(c->coders_id, t->id, 16);
	return 0;
}

void codec_rows(const struct transform_part *part, float step, size_t r, struct levels_row *rows)
{
	for (size_t i = 0; i < r; i++)
		rows[i] = levels_row(levels_class(part->deviation[i], step));
}

int codec_rope_fill(struct codec *c, const struct plane *plane, uint64_t position, const uint16_t *tokens,
	size_t n_tokens, struct codec_rope *rope)
{
	const size_t half = plane->rope_dim / 2;
	const size_t n = n_tokens * half;
	uint64_t positions[FRAME_TOKENS_MAX];
	float *table;

	if (rope->plane == plane)
		return 0;
	*rope = (struct codec_rope){.plane = plane};
	if (plane->rope_kind == ROPE_NONE || !n)
		return 0;
	table = codec_scratch(c, SCRATCH_ROPE, 2 * n * sizeof *table);
	if (!table) {
		rope->plane = NULL;
		return -ENOMEM;
	}
	for (size_t i = 0; i < n_tokens; i++)
		positions[i] = position + tokens[i];
	c->kernels->rope_fill(plane, positions, n_tokens, table, table + n);
	rope->table = (struct rope_table){.cos = table, .sin = table + n};
	return 0;
}

int codec_put_body(
	struct codec *c, struct frame_writer *w, struct frame_section *section, const void *body, size_t len)
{
	z_stream *z = &c->deflater;
	const size_t bound = deflateBound(z, len);
	uint8_t *out = len > UINT32_MAX ? NULL : frame_writer_reserve(w, bound > len ? bound : len);

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
	return frame_writer_commit(w, section);
}

const uint8_t *codec_get_body(
	struct codec *c, const uint8_t *frame, const struct frame_section *section, uint8_t *out)
{
	z_stream *z = &c->inflater;

	if (frame_section_check(frame, section))
		return NULL;
	if (section->encoding == FRAME_STORED)
		return frame + section->offset;
	inflateReset(z);
	z->next_in = (Bytef *)(frame + section->offset);
	z->avail_in = section->len_bytes;
	z->next_out = out;
	z->avail_out = section->full_bytes;
	if (inflate(z, Z_FINISH) != Z_STREAM_END || z->total_out != section->full_bytes || z->avail_in)
		return NULL;
	return out;
}

const struct frame_section *codec_next_section(const struct frame_section *sections, uint32_t n, uint32_t *at,
	uint8_t kind, uint32_t plane, uint32_t part, uint8_t token_class)
{
	for (; *at < n; (*at)++) {
		const struct frame_section *s = &sections[*at];

		if (s->kind == kind && s->plane == plane && s->part == part && s->token_class == token_class)
			return &sections[(*at)++];
	}
	return NULL;
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
