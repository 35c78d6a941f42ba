#include "runtime/cuda/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "policy/policy.h"

/* As image_coded_class has them. */
static const uint8_t coded_classes[CODEC_CLASSES] = {TOKEN_PLAIN, TOKEN_SALIENT, TOKEN_REDUNDANT};

struct image *image_new(const struct frame_info *info, uint32_t n_parts, const uint8_t *classes)
{
	struct image *image = calloc(1, sizeof *image + n_parts * sizeof image->streams[0] + info->n_tokens);

	if (!image)
		return NULL;
	image->info = *info;
	image->n_parts = n_parts;
	image->classes = (uint8_t *)image->streams[n_parts];
	memcpy(image->classes, classes, info->n_tokens);
	return image;
}

static uint64_t raw_elements(const struct image *image, const struct geometry *g, uint32_t plane)
{
	return (uint64_t)image->info.n_raw * plane_width(&g->planes[plane]) * g->n_layers;
}

/* The number of a part from its plane and its place there. */
static uint32_t part_number(const struct transform *t, uint32_t plane, uint32_t index)
{
	for (uint32_t i = 0; i < t->n_parts; i++)
		if (t->parts[i].plane == plane && index-- == 0)
			return i;
	return UINT32_MAX;
}

static int read_classes(const void *frame, size_t len, const struct frame_info *info, uint8_t *classes)
{
	uint32_t n_raw = 0;
	const int r = frame_classes(frame, len, classes);

	for (uint32_t t = 0; !r && t < info->n_tokens; t++)
		n_raw += (uint32_t)token_class_is_raw(classes[t]);
	return r ? r : n_raw == info->n_raw ? 0 : -EBADMSG;
}

/* Where each body goes, in the order of the table: -EBADMSG when one is missing or there twice. */
static int place(struct image *image, const struct geometry *g, const struct transform *t,
	const struct frame_section *sections)
{
	uint32_t n_of[CODEC_CLASSES + 1] = {0}, n_raw = 0, n_raw_wanted = 0, n_streams = 0, n_wanted = 0;

	for (uint32_t i = 0; i < image->info.n_tokens; i++)
		n_of[image_coded_class(image->classes[i])]++;
	for (uint32_t plane = 0; n_of[CODEC_CLASSES] && plane < g->n_planes; plane++)
		n_raw_wanted += (uint32_t)dtype_bytes(g->planes[plane].dtype);
	for (uint32_t k = 0; k < CODEC_CLASSES; k++)
		n_wanted += n_of[k] ? t->n_parts : 0;
	for (uint32_t i = 0; i < image->info.n_sections; i++) {
		const struct frame_section *s = &sections[i];

		if (s->kind == FRAME_RAW) {
			if (s->plane >= g->n_planes || s->part >= dtype_bytes(g->planes[s->plane].dtype) ||
				s->full_bytes != raw_elements(image, g, s->plane))
				return -EBADMSG;
			image->raw[s->plane][s->part] =
				(struct image_stream){.offset = image->len_bytes, .len = s->full_bytes};
			image->len_bytes += s->full_bytes;
			n_raw++;
		} else if (s->kind == FRAME_LEVELS) {
			const uint32_t part = part_number(t, s->plane, s->part);
			const uint32_t k = image_coded_class(s->token_class);

			if (s->encoding != FRAME_RANS)
				return -ENOTSUP;
			if (part == UINT32_MAX || k == CODEC_CLASSES || !n_of[k] ||
				image->streams[part][k].len || !s->len_bytes)
				return -EBADMSG;
			image->streams[part][k] =
				(struct image_stream){.offset = image->len_bytes, .len = s->len_bytes};
			image->len_bytes += s->len_bytes;
			n_streams++;
		} else if (s->kind != FRAME_CLASSES || i) {
			return -EBADMSG;
		}
	}
	return n_raw == n_raw_wanted && n_streams == n_wanted ? 0 : -EBADMSG;
}

int image_read(const void *frame, size_t len, const struct geometry *g, const struct transform *transform,
	struct image **out)
{
	uint8_t classes[FRAME_TOKENS_MAX], fingerprint[16];
	struct frame_section *sections = NULL;
	struct image *image = NULL;
	struct frame_info info;
	int r = frame_parse(frame, len, &info, NULL, 0);

	if (r)
		return r;
	if (!transform)
		return -ENOTSUP;
	geometry_fingerprint(g, fingerprint);
	if (memcmp(info.fingerprint, fingerprint, 16) != 0 ||
		memcmp(info.transform, transform->id, 16) != 0 || transform_fits(transform, g, NULL, 0))
		return -ESTALE;
	if (info.rung >= transform->n_rungs || info.rung_salient >= transform->n_rungs ||
		info.rung_redundant >= transform->n_rungs)
		return -EBADMSG;
	sections = malloc((info.n_sections + 1) * sizeof *sections);
	if (!sections)
		return -ENOMEM;
	r = frame_parse(frame, len, &info, sections, info.n_sections);
	if (!r)
		r = read_classes(frame, len, &info, classes);
	if (!r)
		image = image_new(&info, transform->n_parts, classes);
	if (!r)
		r = image ? place(image, g, transform, sections) : -ENOMEM;
	free(sections);
	if (r)
		free(image);
	else
		*out = image;
	return r;
}

static int inflate_body(const uint8_t *from, uint32_t len, uint8_t *to, uint32_t full)
{
	z_stream z = {.next_in = (Bytef *)from, .avail_in = len, .next_out = to, .avail_out = full};
	int r;

	if (inflateInit2(&z, -15) != Z_OK)
		return -ENOMEM;
	r = inflate(&z, Z_FINISH) == Z_STREAM_END && z.total_out == full && !z.avail_in ? 0 : -EBADMSG;
	inflateEnd(&z);
	return r;
}

int image_fill(const struct image *image, const void *frame, size_t len, uint8_t *to)
{
	const uint8_t *end = to + image->len_bytes;
	struct frame_section *sections = NULL;
	struct frame_info info;
	int r = frame_parse(frame, len, &info, NULL, 0);

	if (!r) {
		sections = malloc((info.n_sections + 1) * sizeof *sections);
		r = sections ? frame_parse(frame, len, &info, sections, info.n_sections) : -ENOMEM;
	}
	/* In the order in which they were placed. */
	for (uint32_t i = 0; !r && i < info.n_sections; i++) {
		const struct frame_section *s = &sections[i];
		const uint8_t *body = (const uint8_t *)frame + s->offset;
		const uint32_t becomes = s->kind == FRAME_RAW ? s->full_bytes : s->len_bytes;

		if (s->kind == FRAME_CLASSES)
			continue;
		r = frame_section_check(frame, s);
		/* Another frame than the one that was read. */
		if (!r && becomes > end - to)
			r = -EBADMSG;
		if (!r && s->kind == FRAME_RAW && s->encoding == FRAME_DEFLATE)
			r = inflate_body(body, s->len_bytes, to, becomes);
		else if (!r)
			memcpy(to, body, becomes);
		to += r ? 0 : becomes;
	}
	free(sections);
	return r ? r : to == end ? 0 : -EBADMSG;
}

/* A section over bytes that are in the frame already. */
static void take(struct frame_writer *w, struct frame_section section, const struct image_stream *s)
{
	section.len_bytes = section.full_bytes = s->len;
	section.checksum = s->checksum;
	frame_writer_take(w, &section);
}

static void take_levels(struct frame_writer *w, const struct image *image, const struct transform *t)
{
	for (uint32_t i = 0, index = 0; i < image->n_parts; i++) {
		index = i && t->parts[i - 1].plane == t->parts[i].plane ? index + 1 : 0;
		for (uint32_t k = 0; k < CODEC_CLASSES; k++)
			if (image->streams[i][k].len)
				take(w,
					(struct frame_section){.kind = FRAME_LEVELS,
						.plane = (uint8_t)t->parts[i].plane,
						.part = (uint16_t)index,
						.encoding = FRAME_RANS,
						.token_class = coded_classes[k]},
					&image->streams[i][k]);
	}
}

static uint32_t count_sections(const struct image *image, const struct geometry *g)
{
	uint32_t n = 1;

	for (uint32_t plane = 0; image->info.n_raw && plane < g->n_planes; plane++)
		n += (uint32_t)dtype_bytes(g->planes[plane].dtype);
	for (uint32_t i = 0; i < image->n_parts; i++)
		for (uint32_t k = 0; k < CODEC_CLASSES; k++)
			n += image->streams[i][k].len != 0;
	return n;
}

int image_frame(const struct image *image, const uint8_t *bytes, const struct geometry *g,
	const struct transform *transform, struct frame_info *info, uint8_t **data, size_t *len)
{
	uint8_t map[FRAME_CLASSES_MAX(FRAME_TOKENS_MAX)], *to;
	const size_t map_bytes = frame_put_classes(image->classes, image->info.n_tokens, map);
	struct frame_writer w;
	int r = frame_writer_init(&w, count_sections(image, g), map_bytes + image->len_bytes);

	if (r)
		return r;
	to = frame_writer_reserve(&w, map_bytes + image->len_bytes);
	memcpy(to, map, map_bytes);
	memcpy(to + map_bytes, bytes, image->len_bytes);
	r = frame_writer_commit(&w, &(struct frame_section){.kind = FRAME_CLASSES,
					    .len_bytes = (uint32_t)map_bytes,
					    .full_bytes = (uint32_t)map_bytes});
	if (!r) {
		for (uint32_t plane = 0; image->info.n_raw && plane < g->n_planes; plane++)
			for (uint32_t b = 0; b < dtype_bytes(g->planes[plane].dtype); b++)
				take(&w,
					(struct frame_section){.kind = FRAME_RAW,
						.plane = (uint8_t)plane,
						.part = (uint16_t)b},
					&image->raw[plane][b]);
		take_levels(&w, image, transform);
		*info = image->info;
		info->n_sections = w.n_sections;
		info->raw_section_bytes = w.raw_section_bytes;
		r = frame_writer_finish(&w, info, data, len);
		info->len_bytes = *len;
	}
	frame_writer_fini(&w);
	return r;
}
