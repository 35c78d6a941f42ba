#include "tools/bench-online/yardstick.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/chunk-copy.h"
#include "tools/bench-rate/results/curve.h"
#include "tools/bench-rate/codecs/layer-group.h"
#include "tools/bench.h"

enum { COST_CHUNKS_MAX = 512, SCRATCH_BYTES = 64 << 20 };

/* Sums over chunks, at one rung. */
struct sums {
	uint64_t n_tokens;
	struct coded_bytes bytes;
	double error[GEOMETRY_PLANES_MAX], power[GEOMETRY_PLANES_MAX];
};

static struct codec_chunk chunk_of(const struct yardstick *y, const struct capture *c, uint32_t first)
{
	const uint32_t left = c->n_tokens - first;

	return (struct codec_chunk){.geometry = &c->geometry,
		.pages = c->pages,
		.run = capture_run(c, first),
		.n_tokens = left < y->chunk_tokens ? left : y->chunk_tokens,
		.position = c->positions[first]};
}

static void classify(
	const struct yardstick *y, const struct capture *c, const struct codec_chunk *chunk, uint8_t *classes)
{
	policy_classify(&y->policy, chunk->position, chunk->n_tokens, c->positions[0] + c->n_tokens, classes);
}

/* Squared differences of what a and b hold, tokens [n], over all layers, and squares of a. */
static int compare(const struct yardstick *y, const struct codec_chunk *a, const struct codec_chunk *b,
	const uint16_t *tokens, size_t n, struct sums *s)
{
	const struct geometry *g = a->geometry;
	int r = 0;

	for (uint32_t plane = 0; plane < g->n_planes && !r; plane++) {
		const struct layer_group group = {.plane = plane,
			.n_layers = g->n_layers,
			.p = g->n_layers * plane_width(&g->planes[plane])};
		float *x = malloc((n * group.p + 1) * sizeof *x), *z = malloc((n * group.p + 1) * sizeof *z);

		r = x && z ? layer_group_read(y->kernels, a, &group, tokens, n, NULL, x) : -ENOMEM;
		if (!r)
			r = layer_group_read(y->kernels, b, &group, tokens, n, NULL, z);
		for (size_t i = 0; i < n * group.p && !r; i++) {
			const double d = (double)z[i] - (double)x[i];

			s->error[plane] += d * d;
			s->power[plane] += (double)x[i] * (double)x[i];
		}
		free(x);
		free(z);
	}
	return r;
}

static int measure_chunk(const struct yardstick *y, const struct capture *c, uint32_t first,
	struct under_test *u, size_t rung, struct chunk_copy *copy, struct sums *s)
{
	const struct codec_chunk chunk = chunk_of(y, c, first);
	uint8_t classes[FRAME_TOKENS_MAX];
	uint16_t tokens[FRAME_TOKENS_MAX];
	struct coded_bytes bytes;
	struct codec_chunk view;
	size_t n;
	int r;

	classify(y, c, &chunk, classes);
	chunk_copy_take(copy, y->kernels, &chunk);
	view = chunk_copy_view(copy);
	r = u->code(u, rung, &view, classes, &bytes);
	if (r)
		return r;
	n = coded_tokens(&chunk, classes, tokens);
	s->n_tokens += n;
	s->bytes.coded += bytes.coded;
	return n ? compare(y, &chunk, &view, tokens, n, s) : 0;
}

static int measure_rung(const struct yardstick *y, struct under_test *u, size_t rung, struct sums *s)
{
	int r = 0;

	for (size_t i = 0; i < y->n_captures && !r; i++) {
		const struct capture *c = y->captures[i];
		struct chunk_copy *copy = chunk_copy_new(&c->geometry, y->chunk_tokens);

		r = copy ? 0 : -ENOMEM;
		for (uint32_t first = 0; first < c->n_tokens && !r; first += y->chunk_tokens)
			r = measure_chunk(y, c, first, u, rung, copy, s);
		chunk_copy_free(copy);
	}
	return r;
}

int yardstick_measure(const struct yardstick *y, struct transform *t, struct worth *out)
{
	const struct geometry *g = &y->captures[0]->geometry;
	const struct learning learned = {.kernels = y->kernels, .geometry = *g, .transform = t};
	struct under_test *u;
	int r = under_test_cistern(&learned, &u);

	if (r)
		return r;
	*out = (struct worth){.n_rungs = u->n_rungs, .at = t ? transform_rung(t, y->policy.ratio) : 0};
	for (size_t rung = 0; rung < u->n_rungs && !r; rung++) {
		struct sums s = {0};

		r = measure_rung(y, u, rung, &s);
		out->rungs[rung] = u->rungs[rung];
		out->ratio[rung] =
			(double)s.n_tokens * (double)geometry_token_bytes(g) / (double)s.bytes.coded;
		for (uint32_t plane = 0; plane < g->n_planes; plane++)
			out->error[plane][rung] = sqrt(s.error[plane] / s.power[plane]);
	}
	u->free(u);
	return r;
}

double worth_ratio_at(const struct worth *w, const struct worth *other, uint32_t n_planes)
{
	double least = INFINITY;

	for (uint32_t plane = 0; plane < n_planes; plane++) {
		const double ratio =
			curve_at(w->error[plane], w->ratio, w->n_rungs, other->error[plane][other->at]);

		if (isnan(ratio))
			return NAN;
		least = fmin(least, ratio);
	}
	return least;
}

int yardstick_cost(const struct yardstick *y, struct transform *t, double *encode_ns, double *copy_ns)
{
	static double encodes[COST_CHUNKS_MAX], copies[COST_CHUNKS_MAX];
	const struct capture *c = y->captures[0];
	struct chunk_copy *copy = chunk_copy_new(&c->geometry, y->chunk_tokens);
	struct codec *codec = codec_new(y->kernels, SCRATCH_BYTES);
	size_t n = 0;
	int r = copy && codec ? 0 : -ENOMEM;

	/* The first round touches the memory and is overwritten. */
	for (int round = 0; round < 5 && !r; round++) {
		n = round < 2 ? 0 : n;
		for (size_t i = 0; i < y->n_captures && n < COST_CHUNKS_MAX && !r; i++) {
			const struct codec_chunk chunk = chunk_of(y, y->captures[i], y->chunk_tokens);
			uint8_t classes[FRAME_TOKENS_MAX], *frame;
			const struct codec_options options = {.transform = t,
				.rung = transform_rung(t, y->policy.ratio),
				.classes = classes};
			uint64_t start;
			size_t len;

			classify(y, y->captures[i], &chunk, classes);
			start = bench_now_ns();
			r = codec_encode(codec, &chunk, &options, &frame, &len, NULL);
			encodes[n] = (double)(bench_now_ns() - start);
			if (r)
				break;
			start = bench_now_ns();
			chunk_copy_take(copy, y->kernels, &chunk);
			copies[n++] = (double)(bench_now_ns() - start);
			free(frame);
		}
	}
	if (!r) {
		*encode_ns = bench_quantile(encodes, n, 0.5);
		*copy_ns = bench_quantile(copies, n, 0.5);
	}
	codec_free(codec);
	chunk_copy_free(copy);
	return r;
}
