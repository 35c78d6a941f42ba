/*
 * Uniform quantisation without a transform, as KIVI does it (arXiv 2402.02750): keys per channel over the
 * tokens of a chunk, as they are cached, with their rotation; values per token and head; least value and step
 * as f16 for each. Codes lie channel by channel, widths that do not divide a byte in bytes of their own, and
 * go through DEFLATE, which KIVI does not have. KIVI's groups are of 32; longer ones spend less on scales,
 * which is what counts at these rates.
 */
#include "tools/bench-rate/codecs/under-test.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

static const unsigned widths[] = {1, 2, 3, 4, 5, 6, 8};
enum { N_WIDTHS = sizeof widths / sizeof *widths };

struct uniform_codec {
	struct under_test base;
	const struct learning *l;
};

/* Where codes and scales go. */
struct sink {
	uint8_t *codes, *scales;
	size_t n_codes, n_scales; /* bytes */
	unsigned bits;
};

/* n values, stride apart, with one least value and step. */
static void quantise(float *x, size_t stride, size_t n, unsigned bits, uint8_t *codes, struct sink *out)
{
	const float top = (float)((1u << bits) - 1);
	float min = INFINITY, max = -INFINITY, shift, step;
	uint16_t halves[2];

	for (size_t i = 0; i < n; i++) {
		min = fminf(min, x[i * stride]);
		max = fmaxf(max, x[i * stride]);
	}
	halves[0] = half_from_float(min);
	halves[1] = half_from_float((max - min) / top);
	memcpy(out->scales + out->n_scales, halves, sizeof halves);
	out->n_scales += sizeof halves;
	shift = half_to_float(halves[0]);
	step = half_to_float(halves[1]);
	for (size_t i = 0; i < n; i++) {
		const float q = step > 0 ? fminf(fmaxf(rintf((x[i * stride] - shift) / step), 0), top) : 0;

		codes[i * stride] = (uint8_t)q;
		x[i * stride] = q * step + shift;
	}
}

/* codes: [n, width], one in a byte. */
static void pack(const uint8_t *codes, size_t n, size_t width, struct sink *out)
{
	const unsigned bits = 8 % out->bits ? 8 : out->bits;

	for (size_t i = 0; i < width; i++, out->n_codes += (n * bits + 7) / 8) {
		uint8_t *row = out->codes + out->n_codes;

		memset(row, 0, (n * bits + 7) / 8);
		for (size_t t = 0; t < n; t++)
			row[t * bits / 8] |= (uint8_t)(codes[t * width + i] << t * bits % 8);
	}
}

static void code_layer(
	const struct plane *plane, int per_channel, float *x, uint8_t *codes, size_t n, struct sink *out)
{
	const size_t width = plane_width(plane), dim = plane->dim;

	for (size_t i = 0; per_channel && i < width; i++)
		quantise(x + i, width, n, out->bits, codes + i, out);
	for (size_t i = 0; !per_channel && i < n * plane->n_heads; i++)
		quantise(x + i * dim, 1, dim, out->bits, codes + i * dim, out);
	pack(codes, n, width, out);
}

static int code_plane(const struct uniform_codec *u, uint32_t plane, unsigned bits,
	const struct codec_chunk *chunk, const uint16_t *tokens, size_t n, uint64_t *bytes)
{
	const struct geometry *g = chunk->geometry;
	const struct plane *p = &g->planes[plane];
	const struct kernels *k = u->l->kernels;
	const size_t width = plane_width(p), all = n * width * g->n_layers;
	float *x = malloc(n * width * sizeof *x);
	uint8_t *codes = malloc(n * width);
	struct sink out = {.codes = malloc(all + width * g->n_layers),
		.scales = malloc(4 * g->n_layers * (width + n * p->n_heads)),
		.bits = bits};
	int64_t coded = -ENOMEM, scales = -ENOMEM;

	if (x && codes && out.codes && out.scales) {
		for (uint32_t l = 0; l < g->n_layers; l++) {
			const struct kv_pages *pages = &chunk->pages[l * g->n_planes + plane];

			k->gather(p, pages, &chunk->run, tokens, n, NULL, NULL, NULL, x, width);
			code_layer(p, plane == 0, x, codes, n, &out);
			k->scatter(p, pages, &chunk->run, tokens, n, NULL, NULL, NULL, x, width);
		}
		coded = deflated_bytes(out.codes, out.n_codes);
		scales = deflated_bytes(out.scales, out.n_scales);
	}
	free(x);
	free(codes);
	free(out.codes);
	free(out.scales);
	if (coded < 0 || scales < 0)
		return -ENOMEM;
	*bytes += (uint64_t)(coded + scales);
	return 0;
}

static int code(struct under_test *u, size_t rung, const struct codec_chunk *chunk, const uint8_t *classes,
	struct coded_bytes *out)
{
	uint16_t tokens[FRAME_TOKENS_MAX];
	const size_t n = coded_tokens(chunk, classes, tokens);
	int r = 0;

	*out = (struct coded_bytes){.raw = (chunk->n_tokens - n) * geometry_token_bytes(chunk->geometry)};
	for (uint32_t plane = 0; plane < chunk->geometry->n_planes && n && r == 0; plane++)
		r = code_plane(
			(const struct uniform_codec *)u, plane, widths[rung], chunk, tokens, n, &out->coded);
	return r;
}

static void free_codec(struct under_test *u)
{
	free(u);
}

int under_test_uniform(const struct learning *l, struct under_test **out)
{
	struct uniform_codec *c = calloc(1, sizeof *c);

	if (!c)
		return -ENOMEM;
	c->base =
		(struct under_test){.name = "uniform", .n_rungs = N_WIDTHS, .code = code, .free = free_codec};
	for (size_t i = 0; i < N_WIDTHS; i++)
		c->base.rungs[i] = widths[i];
	c->l = l;
	*out = &c->base;
	return 0;
}
