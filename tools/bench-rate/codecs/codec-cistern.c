/* Cistern itself: the daemon's codec, its frames counted to the last byte. Raw sections with their entries in
 * the section table belong to the protected tokens; all else, the header included, to the coded ones. */
#include "tools/bench-rate/codecs/under-test.h"

#include <errno.h>
#include <stdlib.h>

enum { SCRATCH_BYTES = 64 << 20, SECTIONS_MAX = 4096 };

struct cistern_codec {
	struct under_test base;
	const struct learning *l;
	struct codec *codec;
	enum codec_entropy entropy;
	double max_error;
};

int cistern_frame_bytes(const uint8_t *data, size_t len, struct coded_bytes *out)
{
	struct frame_section *sections = calloc(SECTIONS_MAX, sizeof *sections);
	struct frame_info info;
	int r = sections ? frame_parse(data, len, &info, sections, SECTIONS_MAX) : -ENOMEM;

	if (r == 0) {
		*out = (struct coded_bytes){0};
		for (uint32_t i = 0; i < info.n_sections; i++)
			if (sections[i].kind == FRAME_RAW)
				out->raw += sections[i].len_bytes + FRAME_SECTION_BYTES;
		out->coded = len - out->raw;
	}
	free(sections);
	return r;
}

static int code(struct under_test *u, size_t rung, const struct codec_chunk *chunk, const uint8_t *classes,
	struct coded_bytes *out)
{
	struct cistern_codec *c = (struct cistern_codec *)u;
	const struct codec_options options = {.transform = c->l->transform,
		.rung = (uint32_t)rung,
		.entropy = c->entropy,
		.classes = classes,
		.max_error = c->max_error};
	uint8_t *data;
	size_t len;
	int r = codec_encode(c->codec, chunk, &options, &data, &len, NULL);

	if (r < 0)
		return r;
	r = cistern_frame_bytes(data, len, out);
	if (r == 0)
		r = codec_decode(c->codec, data, len, c->l->transform, chunk, 0, chunk->geometry->n_layers);
	free(data);
	return r;
}

static void free_codec(struct under_test *u)
{
	struct cistern_codec *c = (struct cistern_codec *)u;

	codec_free(c->codec);
	free(c);
}

static int make(const struct learning *l, const char *name, enum codec_entropy entropy, double max_error,
	struct under_test **out)
{
	struct cistern_codec *c = calloc(1, sizeof *c);

	if (!c)
		return -ENOMEM;
	c->base = (struct under_test){.name = name,
		.ours = true,
		.n_rungs = l->transform ? l->transform->n_rungs : 1,
		.rungs = {2}, /* the plain codec */
		.code = code,
		.free = free_codec};
	for (size_t i = 0; l->transform && i < c->base.n_rungs; i++)
		c->base.rungs[i] = (double)l->transform->rung_ratio[i];
	c->l = l;
	c->entropy = entropy;
	c->max_error = max_error;
	c->codec = codec_new(l->kernels, SCRATCH_BYTES);
	if (!c->codec) {
		free(c);
		return -ENOMEM;
	}
	*out = &c->base;
	return 0;
}

int under_test_cistern(const struct learning *l, struct under_test **out)
{
	return make(l, "cistern", CODEC_RANS, 0, out);
}

int under_test_cistern_deflate(const struct learning *l, struct under_test **out)
{
	return make(l, "cistern-deflate", CODEC_DEFLATE, 0, out);
}

int under_test_cistern_bounded(const struct learning *l, double max_error, struct under_test **out)
{
	return make(l, "cistern", CODEC_RANS, max_error, out);
}
