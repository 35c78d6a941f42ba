/* Plain KVTC: kvtc.h on the components of the calibrated basis, every layer group of keys and of values with
 * the same nominal ratio (or with one budget for all of them), DEFLATE for each kind of code of a group and
 * chunk. */
#include "tools/bench-rate/codecs/under-test.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench-rate/codecs/kvtc.h"

enum { N_RATIOS = sizeof under_test_ratios / sizeof *under_test_ratios };

struct kvtc_codec {
	struct under_test base;
	const struct learning *l;
	size_t n_groups;
	const struct learned_group *groups;
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
	for (size_t i = 0; i < c->n_groups && n && r == 0; i++)
		r = code_group(
			c, &c->groups[i], &c->plans[i * N_RATIOS + rung], chunk, tokens, n, &out->coded);
	return r;
}

static void free_codec(struct under_test *u)
{
	struct kvtc_codec *c = (struct kvtc_codec *)u;

	for (size_t i = 0; i < c->n_groups * N_RATIOS; i++)
		kvtc_plan_fini(&c->plans[i]);
	free(c->plans);
	free(c);
}

static size_t budget_of(const struct kvtc_codec *c, size_t group, double ratio)
{
	const struct layer_group *g = &c->groups[group].group;
	const double source_bits =
		8.0 * (double)g->p * (double)dtype_bytes(c->l->geometry.planes[g->plane].dtype);

	return (size_t)(source_bits / ratio);
}

static int allocate_group(const struct kvtc_codec *c, size_t i, size_t max_bits, struct kvtc_allocation **out)
{
	const struct learned_group *g = &c->groups[i];

	return kvtc_allocate(g->sample, g->n_sample, g->group.p, g->n_sample, max_bits, out);
}

/* A budget for each group. One solution holds the plans of all rates. */
static int plan_each(struct kvtc_codec *c)
{
	int r = 0;

	for (size_t i = 0; i < c->n_groups && r == 0; i++) {
		struct kvtc_allocation *a;

		r = allocate_group(c, i, budget_of(c, i, (double)under_test_ratios[0]), &a);
		for (size_t k = 0; r == 0 && k < N_RATIOS; k++) {
			double error;

			r = kvtc_plan_new(a, budget_of(c, i, (double)under_test_ratios[k]),
				&c->plans[i * N_RATIOS + k], &error);
			if (r < 0 || k + 1 == N_RATIOS)
				a = kvtc_allocation_free(a);
		}
	}
	return r;
}

/* One budget for all: dynamic programming once more, over groups. */
struct pool {
	size_t total;                    /* bits */
	struct kvtc_allocation **solved; /* [n_groups] */
	double *error;                   /* [total + 1]: least of the groups so far */
	double *next;                    /* [total + 1] */
	uint32_t *share;                 /* [n_groups][total + 1]: what the group gets of it */
};

static void add_to_pool(struct pool *p, size_t group)
{
	uint32_t *share = p->share + group * (p->total + 1);
	double *const before = p->error;

	for (size_t bits = 0; bits <= p->total; bits++) {
		p->next[bits] = INFINITY;
		for (size_t own = 0; own <= bits; own++) {
			const double error =
				before[bits - own] + kvtc_allocation_error(p->solved[group], own);

			if (error < p->next[bits]) {
				p->next[bits] = error;
				share[bits] = (uint32_t)own;
			}
		}
	}
	p->error = p->next;
	p->next = before;
}

static int divide(struct kvtc_codec *c, struct pool *p)
{
	int r = 0;

	for (size_t i = 0; i < c->n_groups && r == 0; i++) {
		r = allocate_group(c, i, p->total, &p->solved[i]);
		if (r == 0)
			add_to_pool(p, i);
	}
	for (size_t k = 0; k < N_RATIOS && r == 0; k++) {
		size_t left = 0;

		for (size_t i = 0; i < c->n_groups; i++)
			left += budget_of(c, i, (double)under_test_ratios[k]);
		for (size_t i = c->n_groups; i-- > 0 && r == 0;) {
			const size_t own = p->share[i * (p->total + 1) + left];
			double error;

			r = kvtc_plan_new(p->solved[i], own, &c->plans[i * N_RATIOS + k], &error);
			left -= own;
		}
	}
	return r;
}

static int plan_pooled(struct kvtc_codec *c)
{
	struct pool p = {0};
	int r = -ENOMEM;

	for (size_t i = 0; i < c->n_groups; i++)
		p.total += budget_of(c, i, (double)under_test_ratios[0]);
	p.solved = calloc(c->n_groups, sizeof(struct kvtc_allocation *));
	p.error = calloc(p.total + 1, sizeof *p.error);
	p.next = calloc(p.total + 1, sizeof *p.next);
	p.share = calloc(c->n_groups * (p.total + 1), sizeof *p.share);
	if (p.solved && p.error && p.next && p.share)
		r = divide(c, &p);
	for (size_t i = 0; p.solved && i < c->n_groups; i++)
		kvtc_allocation_free(p.solved[i]);
	free(p.solved);
	free(p.error);
	free(p.next);
	free(p.share);
	return r;
}

static int make(const struct learning *l, const char *name, size_t n_groups,
	const struct learned_group *groups, int (*plan)(struct kvtc_codec *c), struct under_test **out)
{
	struct kvtc_codec *c = calloc(1, sizeof *c);
	int r;

	if (!c)
		return -ENOMEM;
	c->base = (struct under_test){.name = name, .n_rungs = N_RATIOS, .code = code, .free = free_codec};
	for (size_t i = 0; i < N_RATIOS; i++)
		c->base.rungs[i] = (double)under_test_ratios[i];
	c->l = l;
	c->groups = groups;
	c->plans = calloc(n_groups * N_RATIOS, sizeof *c->plans);
	c->n_groups = c->plans ? n_groups : 0;
	r = c->plans ? plan(c) : -ENOMEM;
	if (r < 0)
		free_codec(&c->base);
	else
		*out = &c->base;
	return r;
}

int under_test_kvtc(const struct learning *l, struct under_test **out)
{
	return make(l, "kvtc", l->n_groups, l->groups, plan_each, out);
}

int under_test_kvtc_pooled(const struct learning *l, struct under_test **out)
{
	return make(l, "kvtc-pooled", l->n_groups, l->groups, plan_pooled, out);
}

int under_test_kvtc_whole(const struct learning *l, struct under_test **out)
{
	return l->n_whole ? make(l, "kvtc-whole", l->n_whole, l->whole, plan_each, out) : -ENOENT;
}
