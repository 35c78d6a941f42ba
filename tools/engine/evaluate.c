#include "tools/engine/evaluate.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Over one cache. */
struct view {
	float *logits;    /* [n, vocab] */
	float *attention; /* [n_layers, n, n_heads * head_dim] */
	double *log_p;    /* [vocab], of the row at hand */
};

static int view_new(const struct model *m, size_t n, struct view *v)
{
	v->logits = calloc(n * m->vocab, sizeof *v->logits);
	v->attention = calloc(m->n_layers * n * m->n_heads * m->head_dim, sizeof *v->attention);
	v->log_p = calloc(m->vocab, sizeof *v->log_p);
	return v->logits && v->attention && v->log_p ? 0 : -ENOMEM;
}

static void view_fini(struct view *v)
{
	free(v->logits);
	free(v->attention);
	free(v->log_p);
}

static void log_softmax(const float *logits, size_t n, double *log_p)
{
	double max = -INFINITY, sum = 0;

	for (size_t i = 0; i < n; i++)
		max = fmax(max, (double)logits[i]);
	for (size_t i = 0; i < n; i++)
		sum += exp((double)logits[i] - max);
	for (size_t i = 0; i < n; i++)
		log_p[i] = (double)logits[i] - max - log(sum);
}

static size_t most_likely(const double *log_p, size_t n)
{
	size_t best = 0;

	for (size_t i = 1; i < n; i++)
		if (log_p[i] > log_p[best])
			best = i;
	return best;
}

static void compare_attention(const struct model *m, size_t n, const struct view v[2], struct evaluation *e)
{
	size_t width = n * m->n_heads * m->head_dim;

	for (size_t layer = 0; layer < m->n_layers; layer++) {
		const float *a = v[0].attention + layer * width, *b = v[1].attention + layer * width;

		for (size_t i = 0; i < width; i++) {
			double d = (double)b[i] - (double)a[i];

			e->attention_error[layer] += d * d;
			e->attention_power[layer] += (double)a[i] * (double)a[i];
		}
	}
}

/* Greedy decoding gives the whole answer just when every token of it is the most likely one after those
 * before it, so the teacher-forced pass answers that too. */
static void compare_tokens(const struct model *m, const uint32_t *truth, size_t n, size_t n_given,
	struct view v[2], struct evaluation *e)
{
	bool exact[2] = {true, true};

	for (size_t row = 0; row < n; row++) {
		size_t best[2];
		double kl = 0;

		for (int i = 0; i < 2; i++) {
			log_softmax(v[i].logits + row * m->vocab, m->vocab, v[i].log_p);
			best[i] = most_likely(v[i].log_p, m->vocab);
			e->nll[i] -= v[i].log_p[truth[row]];
			if (row >= n_given) {
				e->answer_nll[i] -= v[i].log_p[truth[row]];
				exact[i] = exact[i] && best[i] == truth[row];
			}
		}
		for (size_t t = 0; t < m->vocab; t++)
			kl += exp(v[0].log_p[t]) * (v[0].log_p[t] - v[1].log_p[t]);
		e->kl += kl;
		e->answer_kl += row >= n_given ? kl : 0;
		e->agree += best[0] == best[1];
	}
	e->n_tokens += n;
	e->n_answer_tokens += n - n_given;
	if (n > n_given) {
		e->asked++;
		e->exact[0] += exact[0];
		e->exact[1] += exact[1];
	}
}

int evaluate_probe(struct forward *f, const struct model *m, const struct kv_cache *cache,
	const struct kv_table *original, const struct kv_table *restored, const struct tokens *prompt,
	const struct probe *probe, struct evaluation *e)
{
	size_t n = probe->given.n + probe->answer.n;
	const struct kv_table *tables[2] = {original, restored};
	struct view views[2] = {0};
	uint32_t *fed;
	int r = 0;

	if (prompt->n == 0 || n == 0 || n > m->context || prompt->n > m->context ||
		m->n_layers > EVALUATE_LAYERS_MAX)
		return -EINVAL;
	fed = calloc(n + 1, sizeof *fed);
	if (!fed)
		return -ENOMEM;
	fed[0] = prompt->list[prompt->n - 1];
	if (probe->given.n)
		memcpy(fed + 1, probe->given.list, probe->given.n * sizeof *fed);
	if (probe->answer.n)
		memcpy(fed + 1 + probe->given.n, probe->answer.list, probe->answer.n * sizeof *fed);
	for (size_t i = 0; i <= n; i++)
		if (fed[i] >= m->vocab)
			r = -EINVAL;
	for (int i = 0; i < 2 && r == 0; i++) {
		r = view_new(m, n, &views[i]);
		if (r == 0)
			r = forward_run(f, &(struct forward_request){
						   .cache = cache,
						   .table = tables[i],
						   .tokens = fed,
						   .n_tokens = (uint32_t)n,
						   .position = (uint32_t)prompt->n - 1,
						   .n_cached = 1,
						   .n_collect = (uint32_t)n,
						   .logits = views[i].logits,
						   .attention_out = views[i].attention,
					   });
	}
	if (r == 0) {
		compare_attention(m, n, views, e);
		compare_tokens(m, fed + 1, n, probe->given.n, views, e);
	}
	view_fini(&views[0]);
	view_fini(&views[1]);
	free(fed);
	return r;
}

double evaluation_attention_error(const struct evaluation *e, uint32_t first, uint32_t end)
{
	double error = 0, power = 0;

	for (uint32_t i = first; i < end; i++) {
		error += e->attention_error[i];
		power += e->attention_power[i];
	}
	return power > 0 ? sqrt(error / power) : 0;
}
