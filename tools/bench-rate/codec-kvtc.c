/* Plain KVTC: kvtc.h on the components of the calibrated basis, every layer group of keys and of values with
 * the same nominal ratio, DEFLATE for each kind of code of a group and chunk. */
#include "tools/bench-rate/under-test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench-rate/kvtc.h"

enum { N_RATIOS = sizeof under_test_ratios / sizeof *under_test_ratios };

struct kvtc_codec {
	struct under_test base;
	const struct learning *l;
	struct kvtc_plan *plans; /* [n_groups][N_RATIOS] */
};

static int code_streams(
	const struct kvtc_plan *plan, float *c, size_t stride, size_t n_tokens, uint64_t *bytes)
{
	struct kvtc_streams streams = {0};
	int r = 0;

	for (int s = 0; s < KVTC_STREAMS && r == 0; s++) {
		streams.data[s] = malloc(kvtc_stream_bytes(plan, s, n_tokens) + 1);
		r = streams.data[s] ? 0 : -ENOMEM;
	}
	if (r == 0)
		r = kvtc_quantise(plan, c, stride, n_tokens, &streams);
	for (int s = 0; s < KVTC_STREAMS && r == 0; s++) {
		const int64_t n = streams.len[s] ? deflated_bytes(streams.data[s], streams.len[s]) : 0;

		r = n < 0 ? (int)n : 0;
		*bytes += r == 0 ? (uint64_t)n : 0;
	}
	for (int s = 0; s < KVTC_STREAMS; s++)
		free(streams.data[s]);
	return r;
}

static int code_group(const struct kvtc_codec *u, const struct learned_group *g, const struct kvtc_plan *plan,
	const struct codec_chunk *chunk, const uint16_t *tokens, size_t n, uint64_t *bytes)
{
	const struct kernels *k = u->l->kernels;
	const size_t p = g->group.p, n_components = plan->n_components;
	float *x = malloc(n * p * sizeof *x), *c = malloc((n_components + 1) * n * sizeof *c);
	int r = x && c ? layer_group_read(k, chunk, &g->group, tokens, n, g->mean, x) : -ENOMEM;

	if (r == 0 && n_components) {
		k->project(g->basis, n_components, p, x, p, n, c, n);
		r = code_streams(plan, c, n, n, bytes);
	}
	if (r == 0) {
		memset(x, 0, n * p * sizeof *x); /* what no component at all makes */
		if (n_components)
			k->reconstruct(g->basis, n_components, p, c, n, n, x, p);
		r = layer_group_write(k, chunk, &g->group, tokens, n, g->mean, x);
	}
	free(x);
	free(c);
	return r;
}

static int code(struct under_test *u, size_t rung, const struct codec_chunk *chunk, const uint8_t *classes,
	struct coded_bytes *out)
{
	const struct kvtc_codec *c = (const struct kvtc_codec *)u;
	uint16_t tokens[FRAME_TOKENS_MAX];
	const size_t n = coded_tokens(chunk, classes, tokens);
	int r = 0;

	*out = (struct coded_bytes){.raw = (chunk->n_tokens - n) * geometry_token_bytes(chunk->geometry)};
	for (size_t i = 0; i < c->l->n_groups && n && r == 0; i++)
		r = code_group(
			c, &c->l->groups[i], &c->plans[i * N_RATIOS + rung], chunk, tokens, n, &out->coded);
	return r;
}

static void free_codec(struct under_test *u)
{
	struct kvtc_codec *c = (struct kvtc_codec *)u;

	for (size_t i = 0; i < c->l->n_groups * N_RATIOS; i++)
		kvtc_plan_fini(&c->plans[i]);
	free(c->plans);
	free(c);
}

/* One solution holds the plans of all rates. */
static int make_plans(struct kvtc_codec *c, size_t i)
{
	const struct learned_group *g = &c->l->groups[i];
	const double source_bits =
		8.0 * (double)g->group.p * (double)dtype_bytes(c->l->geometry.planes[g->group.plane].dtype);
	struct kvtc_allocation *a;
	int r = kvtc_allocate(g->sample, g->n_sample, g->group.p, g->n_sample,
		(size_t)(source_bits / (double)under_test_ratios[0]), &a);

	if (r < 0)
		return r;
	for (size_t k = 0; k < N_RATIOS && r == 0; k++) {
		double error;

		r = kvtc_plan_new(a, (size_t)(source_bits / (double)under_test_ratios[k]),
			&c->plans[i * N_RATIOS + k], &error);
	}
	kvtc_allocation_free(a);
	return r;
}

int under_test_kvtc(const struct learning *l, struct under_test **out)
{
	struct kvtc_codec *c = calloc(1, sizeof *c);
	int r = 0;

	if (!c)
		return -ENOMEM;
	c->base = (struct under_test){.name = "kvtc", .n_rungs = N_RATIOS, .code = code, .free = free_codec};
	for (size_t i = 0; i < N_RATIOS; i++)
		c->base.rungs[i] = (double)under_test_ratios[i];
	c->l = l;
	c->plans = calloc(l->n_groups * N_RATIOS, sizeof *c->plans);
	if (!c->plans) {
		free(c);
		return -ENOMEM;
	}
	for (size_t i = 0; i < l->n_groups && r == 0; i++)
		r = make_plans(c, i);
	if (r < 0)
		free_codec(&c->base);
	else
		*out = &c->base;
	return r;
}
