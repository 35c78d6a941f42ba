/* 8-bit floating point (e4m3), one f32 scale for each layer and plane of a chunk, such that the largest value
 * is the format's largest. No entropy coding: what engines keep today when asked for an fp8 cache. */
#include "tools/bench-rate/codecs/under-test.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "tools/bench-rate/codecs/kvtc.h"

struct fp8_codec {
	struct under_test base;
	const struct learning *l;
};

static void round_all(float *x, size_t n)
{
	float max = 0;

	for (size_t i = 0; i < n; i++)
		max = fmaxf(max, fabsf(x[i]));
	for (size_t i = 0; i < n && max > 0; i++)
		x[i] = kvtc_round_e4m3(x[i] * (448 / max)) * (max / 448);
}

static int code(struct under_test *u, size_t rung, const struct codec_chunk *chunk, const uint8_t *classes,
	struct coded_bytes *out)
{
	const struct fp8_codec *c = (const struct fp8_codec *)u;
	const struct geometry *g = chunk->geometry;
	uint16_t tokens[FRAME_TOKENS_MAX];
	const size_t n = coded_tokens(chunk, classes, tokens);

	(void)rung;
	*out = (struct coded_bytes){.raw = (chunk->n_tokens - n) * geometry_token_bytes(g)};
	for (uint32_t i = 0; i < g->n_layers * g->n_planes && n; i++) {
		const struct plane *p = &g->planes[i % g->n_planes];
		const size_t width = plane_width(p);
		float *x = malloc(n * width * sizeof *x);

		if (!x)
			return -ENOMEM;
		c->l->kernels->gather(
			p, &chunk->pages[i], &chunk->run, tokens, n, NULL, NULL, NULL, x, width);
		round_all(x, n * width);
		c->l->kernels->scatter(
			p, &chunk->pages[i], &chunk->run, tokens, n, NULL, NULL, NULL, x, width);
		free(x);
		out->coded += n * width + sizeof(float);
	}
	return 0;
}

static void free_codec(struct under_test *u)
{
	free(u);
}

int under_test_fp8(const struct learning *l, struct under_test **out)
{
	struct fp8_codec *c = calloc(1, sizeof *c);

	if (!c)
		return -ENOMEM;
	c->base = (struct under_test){
		.name = "fp8", .n_rungs = 1, .rungs = {8}, .code = code, .free = free_codec};
	c->l = l;
	*out = &c->base;
	return 0;
}
