/*
 * cistern-engine continue: what a prompt's cache is worth to a process that has just started. Every prompt is
 * computed afresh and restored from the daemon into other blocks; then its continuations run over both.
 */
#include "tools/engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tools/engine/evaluate.h"

struct restored {
	uint32_t n_chunks; /* that the look-up found */
	uint32_t n_tokens; /* that came back */
	uint64_t bytes;
	double lookup_ms, get_ms, forward_ms;
};

/* Raw tokens, the ones that the policy keeps at 16 bits, and whether all are as they were. */
struct fidelity {
	uint32_t raw_tokens, raw_exact, exact_tokens;
};

/* Computes tokens [first, n) of the prompt, or its last one where all are cached, up to its logits. */
static int compute(struct engine *e, const struct kv_table *table, const struct tokens *t, uint32_t cached,
	float *logits, double *ms)
{
	uint32_t n = (uint32_t)t->n;
	uint32_t first = cached < n ? cached : n - 1;
	double start = engine_now_ms();
	int r = forward_run(e->forward, &(struct forward_request){
						.cache = e->cache,
						.table = table,
						.tokens = t->list + first,
						.n_tokens = n - first,
						.position = first,
						.n_cached = cached < n ? 0 : 1,
						.n_collect = 1,
						.logits = logits,
					});

	*ms = engine_now_ms() - start;
	return r;
}

static int restore(struct engine *e, const struct kv_table *table, const struct tokens *t, float *logits,
	struct restored *out)
{
	uint32_t n = (uint32_t)t->n, chunk = remote_chunk_tokens(e->remote);
	struct outcome found, got = {0};
	double start = engine_now_ms(), looked_up;
	int r = remote_lookup(e->remote, t->list, n, &found);

	if (r < 0)
		return r;
	looked_up = engine_now_ms();
	out->n_chunks = found.n_chunks;
	out->n_tokens = found.n_chunks > n / chunk ? n : found.n_chunks * chunk;
	if (out->n_tokens) {
		r = remote_get(e->remote, table, t->list, out->n_tokens, &got);
		if (r == -EIO || r == -EBADMSG)
			fprintf(stderr, "cistern-engine: computed instead: %s\n", remote_error(e->remote));
		else if (r < 0)
			return r;
		if (got.n_chunks < found.n_chunks)
			out->n_tokens = got.n_chunks * chunk;
	}
	out->bytes = got.bytes;
	out->lookup_ms = looked_up - start;
	out->get_ms = engine_now_ms() - looked_up;
	return compute(e, table, t, out->n_tokens, logits, &out->forward_ms);
}

static bool token_equal(
	const struct kv_cache *c, const struct kv_table *a, const struct kv_table *b, uint32_t position)
{
	for (uint32_t layer = 0; layer < c->n_layers; layer++)
		for (uint32_t plane = 0; plane < 2; plane++)
			for (uint32_t head = 0; head < c->n_heads; head++)
				if (memcmp(kv_at(c, a, layer, plane, position, head),
					    kv_at(c, b, layer, plane, position, head),
					    c->head_dim * sizeof(uint16_t)) != 0)
					return false;
	return true;
}

static struct fidelity compare(const struct options *o, const struct kv_cache *c, const struct kv_table *a,
	const struct kv_table *b, uint32_t n_tokens, uint32_t n_restored)
{
	struct fidelity f = {0};

	for (uint32_t t = 0; t < n_restored; t++) {
		bool raw = t < o->sink_tokens || t + o->window_tokens >= n_tokens;
		bool equal = token_equal(c, a, b, t);

		f.raw_tokens += raw;
		f.raw_exact += raw && equal;
		f.exact_tokens += equal;
	}
	return f;
}

static json_t *fidelity_json(const struct evaluation *v, uint32_t n_layers)
{
	double n = v->n_tokens ? (double)v->n_tokens : 1;
	double answers = v->n_answer_tokens ? (double)v->n_answer_tokens : 1;
	json_t *layers = json_array();
	json_t *object = json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "continuation_tokens",
		(json_int_t)v->n_tokens, "kl", v->kl / n, "nll_original", v->nll[0] / n, "nll_restored",
		v->nll[1] / n, "top1_agreement", (double)v->agree / n, "attn_error",
		evaluation_attention_error(v, 0, n_layers));

	for (uint32_t i = 0; i < n_layers; i++)
		json_array_append_new(layers, json_real(evaluation_attention_error(v, i, i + 1)));
	json_object_set_new(object, "attn_error_layers", layers);
	if (v->asked)
		json_object_set_new(object, "recall",
			json_pack("{s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "asked", (json_int_t)v->asked,
				"exact_original", (json_int_t)v->exact[0], "exact_restored",
				(json_int_t)v->exact[1], "answer_tokens", (json_int_t)v->n_answer_tokens,
				"kl", v->answer_kl / answers, "nll_original", v->answer_nll[0] / answers,
				"nll_restored", v->answer_nll[1] / answers));
	return object;
}

static int report(const struct engine *e, const struct prompt *p, const struct restored *b, double full_ms,
	const struct fidelity *f, const struct evaluation *v)
{
	json_t *object = json_pack("{s:o, s:i, s:i, s:i, s:I, s:f, s:f, s:f, s:f, s:f, s:i, s:b, s:i}", "id",
		json_loads(p->id, JSON_DECODE_ANY, NULL), "tokens", (int)p->tokens.n, "lookup_hits",
		(int)b->n_chunks, "restored_tokens", (int)b->n_tokens, "restored_bytes", (json_int_t)b->bytes,
		"ttft_recompute_ms", full_ms, "ttft_restored_ms", b->lookup_ms + b->get_ms + b->forward_ms,
		"lookup_ms", b->lookup_ms, "get_ms", b->get_ms, "forward_ms", b->forward_ms, "raw_tokens",
		(int)f->raw_tokens, "raw_exact", f->raw_exact == f->raw_tokens, "exact_tokens",
		(int)f->exact_tokens);
	json_t *quality = v->n_tokens ? fidelity_json(v, e->model->n_layers) : NULL;
	int r = -EIO;

	if (object && (!quality || json_object_update(object, quality) == 0) &&
		json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(7)) == 0 &&
		putchar('\n') == '\n' && fflush(stdout) == 0)
		r = 0;
	json_decref(quality);
	json_decref(object);
	return r;
}

static uint32_t longest_probe(const struct prompt *p)
{
	size_t longest = 0;

	for (size_t i = 0; i < p->n_probes; i++) {
		size_t n = p->probes[i].given.n + p->probes[i].answer.n;

		longest = n > longest ? n : longest;
	}
	return (uint32_t)longest;
}

static int continue_prompt(struct engine *e, const struct options *o, const struct prompt *p)
{
	uint32_t n = (uint32_t)p->tokens.n, room = n + longest_probe(p);
	struct kv_table original = {0}, other = {0};
	struct evaluation v = {0};
	struct restored back = {0};
	struct fidelity f;
	float *logits = calloc(e->model->vocab, sizeof *logits);
	double full_ms = 0;
	int r = logits ? 0 : -ENOMEM;

	if (r == 0 && (n == 0 || room > e->model->context))
		r = -EINVAL;
	if (r == 0)
		r = kv_table_new(e->cache, room, &original);
	if (r == 0)
		r = kv_table_new(e->cache, room, &other);
	if (r == 0)
		r = compute(e, &original, &p->tokens, 0, logits, &full_ms);
	if (r < 0) {
		fprintf(stderr, "cistern-engine: prompt %s with %u tokens: %s\n", p->id, room, strerror(-r));
		goto out;
	}
	r = restore(e, &other, &p->tokens, logits, &back);
	if (r < 0) {
		fprintf(stderr, "cistern-engine: prompt %s: %s\n", p->id, remote_error(e->remote));
		goto out;
	}
	f = compare(o, e->cache, &original, &other, n, back.n_tokens);
	for (size_t i = 0; i < p->n_probes && r == 0; i++)
		r = evaluate_probe(
			e->forward, e->model, e->cache, &original, &other, &p->tokens, &p->probes[i], &v);
	if (r == 0)
		r = report(e, p, &back, full_ms, &f, &v);
	if (r < 0)
		fprintf(stderr, "cistern-engine: prompt %s: %s\n", p->id, strerror(-r));
out:
	kv_table_free(e->cache, &original);
	kv_table_free(e->cache, &other);
	free(logits);
	return r;
}

int engine_continue(const struct options *o)
{
	struct engine e;
	int r = engine_open(o, 2, true, &e);

	if (r < 0)
		return r;
	for (size_t i = 0; i < e.prompts.n && (!o->limit || i < o->limit) && r == 0; i++)
		r = continue_prompt(&e, o, &e.prompts.list[i]);
	engine_close(&e);
	return r;
}
