#include "tools/bench-rate/judge.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

enum { CHUNK_TOKENS = 256, CACHES = 2 };

struct judge {
	struct model *model;
	struct forward *forward;
	struct kv_cache *cache;
	struct kv_pages *pages; /* [n_layers][2] */
	struct prompts prompts;
	/* The prompt at hand: */
	const struct prompt *prompt;
	struct kv_table original, copy;
	struct view **views; /* [n_probes], over the original */
};

int judge_new(const struct judge_options *o, struct judge **out)
{
	struct judge *j = calloc(1, sizeof *j);
	char why[512] = "";
	int r = j ? model_load(o->model, &j->model, why, sizeof why) : -ENOMEM;

	if (r == 0)
		r = prompts_read(o->prompts, &j->prompts, why, sizeof why);
	if (r == 0)
		r = forward_new(j->model, &j->forward);
	if (r == 0)
		r = kv_cache_new(
			j->model, CACHES * (j->model->context + KV_BLOCK_TOKENS), KV_NHD, 1, &j->cache);
	if (r == 0) {
		j->pages = calloc(2 * (size_t)j->model->n_layers, sizeof *j->pages);
		r = j->pages ? 0 : -ENOMEM;
	}
	for (uint32_t i = 0; r == 0 && i < 2 * j->model->n_layers; i++) {
		const struct cistern_layout *l = &j->cache->layouts[i];

		j->pages[i] = (struct kv_pages){
			j->cache->memory + l->base, l->block_stride, l->token_stride, l->head_stride};
	}
	if (r < 0) {
		fprintf(stderr, "cistern bench rate: %s\n", why[0] ? why : strerror(-r));
		judge_free(j);
		return r;
	}
	*out = j;
	return 0;
}

static void forget_prompt(struct judge *j)
{
	for (size_t i = 0; j->views && i < j->prompt->n_probes; i++)
		view_free(j->views[i]);
	free(j->views);
	j->views = NULL;
	j->prompt = NULL;
	kv_table_free(j->cache, &j->original);
	kv_table_free(j->cache, &j->copy);
}

struct judge *judge_free(struct judge *j)
{
	if (!j)
		return NULL;
	if (j->cache)
		forget_prompt(j);
	kv_cache_free(j->cache);
	forward_free(j->forward);
	prompts_fini(&j->prompts);
	model_free(j->model);
	free(j->pages);
	free(j);
	return NULL;
}

size_t judge_n_prompts(const struct judge *j)
{
	return j->prompts.n;
}

uint64_t judge_n_tokens(const struct judge *j)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < j->prompts.n; i++)
		sum += j->prompts.list[i].tokens.n;
	return sum;
}

static uint32_t longest_probe(const struct prompt *p)
{
	size_t longest = 0;

	for (size_t i = 0; i < p->n_probes; i++) {
		const size_t n = p->probes[i].given.n + p->probes[i].answer.n;

		longest = n > longest ? n : longest;
	}
	return (uint32_t)longest;
}

int judge_prompt(struct judge *j, size_t i)
{
	const struct prompt *p = &j->prompts.list[i];
	const uint32_t n = (uint32_t)p->tokens.n, room = n + longest_probe(p);
	int r;

	forget_prompt(j);
	if (n == 0 || p->n_probes == 0 || room > j->model->context)
		return -EINVAL;
	j->prompt = p;
	j->views = calloc(p->n_probes, sizeof(struct view *));
	r = j->views ? kv_table_new(j->cache, room, &j->original) : -ENOMEM;
	if (r == 0)
		r = kv_table_new(j->cache, room, &j->copy);
	if (r == 0)
		r = forward_run(j->forward, &(struct forward_request){.cache = j->cache,
						    .table = &j->original,
						    .tokens = p->tokens.list,
						    .n_tokens = n});
	for (size_t k = 0; k < p->n_probes && r == 0; k++)
		r = view_new(j->forward, j->model, j->cache, &j->original, &p->tokens, &p->probes[k],
			&j->views[k]);
	return r;
}

static int for_each_chunk(struct judge *j, const struct kv_table *table, const struct geometry *g,
	const struct policy *policy,
	int (*each)(void *arg, const struct codec_chunk *chunk, const uint8_t *classes), void *arg)
{
	const uint32_t n = (uint32_t)j->prompt->tokens.n;
	int r = 0;

	for (uint32_t at = 0; at < n && r == 0; at += CHUNK_TOKENS) {
		const struct codec_chunk chunk = {.geometry = g,
			.pages = j->pages,
			.run = {.blocks = table->blocks, .block_tokens = KV_BLOCK_TOKENS, .offset = at},
			.n_tokens = n - at < CHUNK_TOKENS ? n - at : CHUNK_TOKENS,
			.position = at};
		uint8_t classes[CHUNK_TOKENS];

		policy_classify(policy, at, chunk.n_tokens, n, classes);
		r = each(arg, &chunk, classes);
	}
	return r;
}

int judge_for_each_chunk(struct judge *j, const struct geometry *g, const struct policy *policy,
	int (*each)(void *arg, const struct codec_chunk *chunk, const uint8_t *classes), void *arg)
{
	return for_each_chunk(j, &j->original, g, policy, each, arg);
}

struct coding {
	struct judge *judge;
	struct under_test *u;
	size_t rung;
	struct measurement *m;
};

static const double ERROR_LEAST = 1e-4, ERROR_STEP = 1.02;

static void histogram_add(struct error_histogram *h, double relative)
{
	const double bin = relative > ERROR_LEAST ? ceil(log(relative / ERROR_LEAST) / log(ERROR_STEP)) : 0;

	h->count[bin < ERROR_BINS ? (size_t)bin : ERROR_BINS - 1]++;
}

double error_quantile(const struct error_histogram *h, double q)
{
	uint64_t total = 0, seen = 0;
	size_t bin = 0;

	for (size_t i = 0; i < ERROR_BINS; i++)
		total += h->count[i];
	while (bin + 1 < ERROR_BINS && (double)(seen += h->count[bin]) < q * (double)total)
		bin++;
	return ERROR_LEAST * pow(ERROR_STEP, (double)bin);
}

/* Squared differences of a token, and squares of the original, over all layers. Protected tokens must not
 * differ. */
static int compare_token(const struct judge *j, uint32_t position, bool raw, struct measurement *m)
{
	const struct kv_cache *c = j->cache;
	double error[2] = {0}, power[2] = {0};

	for (uint32_t i = 0; i < 2 * c->n_layers * c->n_heads; i++) {
		const uint32_t plane = i % 2, layer = i / 2 % c->n_layers, head = i / 2 / c->n_layers;
		const uint16_t *a = kv_at(c, &j->original, layer, plane, position, head);
		const uint16_t *b = kv_at(c, &j->copy, layer, plane, position, head);

		for (uint32_t d = 0; d < c->head_dim; d++) {
			const double x = (double)half_to_float(a[d]), y = (double)half_to_float(b[d]);

			if (raw && a[d] != b[d])
				return -EBADMSG;
			error[plane] += (x - y) * (x - y);
			power[plane] += x * x;
		}
	}
	for (int plane = 0; plane < 2 && !raw; plane++) {
		m->error[plane] += error[plane];
		m->power[plane] += power[plane];
		histogram_add(&m->histogram[plane], sqrt(error[plane] / power[plane]));
	}
	return 0;
}

static int code_chunk(void *arg, const struct codec_chunk *chunk, const uint8_t *classes)
{
	struct coding *c = arg;
	struct coded_bytes bytes = {0};
	int r = c->u->code(c->u, c->rung, chunk, classes, &bytes);

	c->m->bytes.coded += bytes.coded;
	c->m->bytes.raw += bytes.raw;
	for (uint32_t t = 0; t < chunk->n_tokens && r == 0; t++) {
		const bool raw = token_class_is_raw(classes[t]);

		c->m->raw_tokens += raw;
		c->m->coded_tokens += !raw;
		r = compare_token(c->judge, (uint32_t)chunk->position + t, raw, c->m);
		if (r < 0)
			fprintf(stderr, "cistern bench rate: %s changed protected token %u\n", c->u->name,
				(uint32_t)chunk->position + t);
	}
	return r;
}

int judge_measure(struct judge *j, const struct geometry *g, const struct policy *policy,
	struct under_test *u, size_t rung, struct measurement *m)
{
	struct coding coding = {j, u, rung, m};
	int r;

	kv_table_copy(j->cache, &j->original, &j->copy);
	r = for_each_chunk(j, &j->copy, g, policy, code_chunk, &coding);
	for (size_t k = 0; k < j->prompt->n_probes && r == 0; k++) {
		const struct probe *probe = &j->prompt->probes[k];
		struct view *restored;

		r = view_new(j->forward, j->model, j->cache, &j->copy, &j->prompt->tokens, probe, &restored);
		if (r < 0)
			break;
		r = evaluate_views(
			j->model, probe, j->views[k], restored, probe->answer.n ? &m->recalls : &m->texts);
		view_free(restored);
	}
	return r;
}
