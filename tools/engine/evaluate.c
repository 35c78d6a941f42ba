#include "tools/engine/evaluate.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct view {
	size_t n;         /* tokens of the probe */
	float *logits;    /* [n, vocab] */
	float *attention; /* [n_layers, n, n_heads * head_dim] */
};

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

static void compare_attention(
	const struct model *m, const struct view *original, const struct view *restored, struct evaluation *e)
{
	size_t width = original->n * m->n_heads * m->head_dim;

	for (size_t layer = 0; layer < m->n_layers; layer++) {
		const float *a = original->attention + layer * width,
			    *b = restored->attention + layer * width;

		for (size_t i = 0; i < width; i++) {
			double d = (double)b[i] - (double)a[i];

			e->attention_error[layer] += d * d;
			e->attention_power[layer] += (double)a[i] * (double)a[i];
		}
	}
}

static uint32_t token_of(const struct probe *probe, size_t i)
{
	return i < probe->given.n ? probe->given.list[i] : probe->answer.list[i - probe->given.n];
}

/* Greedy decoding gives the whole answer just when every token of it is the most likely one after those
 * before it, so the teacher-forced pass answers that too. log_p: [2][vocab], of the row at hand. */
static void compare_tokens(const struct model *m, const struct probe *probe,
	const struct view *const views[2], double *const log_p[2], struct evaluation *e)
{
	const size_t n = probe->given.n + probe->answer.n, n_given = probe->given.n;
	bool exact[2] = {true, true};

	for (size_t row = 0; row < n; row++) {
		const uint32_t truth = token_of(probe, row);
		size_t best[2];
		double kl = 0;

		for (int i = 0; i < 2; i++) {
			log_softmax(views[i]->logits + row * m->vocab, m->vocab, log_p[i]);
			best[i] = most_likely(log_p[i], m->vocab);
			e->nll[i] -= log_p[i][truth];
			if (row >= n_given) {
				e->answer_nll[i] -= log_p[i][truth];
				exact[i] = exact[i] && best[i] == truth;
			}
		}
		for (size_t t = 0; t < m->vocab; t++)
			kl += exp(log_p[0][t]) * (log_p[0][t] - log_p[1][t]);
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

/* The last token of the prompt and the probe's; malloc'd. */
static int fed_tokens(
	const struct model *m, const struct tokens *prompt, const struct probe *probe, uint32_t **out)
{
	const size_t n = probe->given.n + probe->answer.n;
	uint32_t *fed;

	if (prompt->n == 0 || n == 0 || n > m->context || prompt->n > m->context ||
		m->n_layers > EVALUATE_LAYERS_MAX)
		return -EINVAL;
	fed = calloc(n + 1, sizeof *fed);
	if (!fed)
		return -ENOMEM;
	fed[0] = prompt->list[prompt->n - 1];
	for (size_t i = 0; i < n; i++)
		fed[i + 1] = token_of(probe, i);
	for (size_t i = 0; i <= n; i++)
		if (fed[i] >= m->vocab) {
			free(fed);
			return -EINVAL;
		}
	*out = fed;
	return 0;
}

int view_new(struct forward *f, const struct model *m, const struct kv_cache *cache,
	const struct kv_table *table, const struct tokens *prompt, const struct probe *probe,
	struct view **out)
{
	struct view *v;
	uint32_t *fed;
	int r = fed_tokens(m, prompt, probe, &fed);

	if (r < 0)
		return r;
	v = calloc(1, sizeof *v);
	if (v) {
		v->n = probe->given.n + probe->answer.n;
		v->logits = calloc(v->n * m->vocab, sizeof *v->logits);
		v->attention = calloc(m->n_layers * v->n * m->n_heads * m->head_dim, sizeof *v->attention);
	}
	r = v && v->logits && v->attention ? 0 : -ENOMEM;
	if (r == 0)
		r = forward_run(f, &(struct forward_request){
					   .cache = cache,
					   .table = table,
					   .tokens = fed,
					   .n_tokens = (uint32_t)v->n,
					   .position = (uint32_t)prompt->n - 1,
					   .n_cached = 1,
					   .n_collect = (uint32_t)v->n,
					   .logits = v->logits,
					   .attention_out = v->attention,
				   });
	free(fed);
	if (r < 0)
		view_free(v);
	else
		*out = v;
	return r;
}

struct view *view_free(struct view *v)
{
	if (v) {
		free(v->logits);
		free(v->attention);
	}
	free(v);
	return NULL;
}

int evaluate_views(const struct model *m, const struct probe *probe, const struct view *original,
	const struct view *restored, struct evaluation *e)
{
	const struct view *const views[2] = {original, restored};
	double *const log_p[2] = {calloc(m->vocab, sizeof(double)), calloc(m->vocab, sizeof(double))};
	const int r = log_p[0] && log_p[1] ? 0 : -ENOMEM;

	if (r == 0) {
		compare_attention(m, original, restored, e);
		compare_tokens(m, probe, views, log_p, e);
	}
	free(log_p[0]);
	free(log_p[1]);
	return r;
}

int evaluate_probe(struct forward *f, const struct model *m, const struct kv_cache *cache,
	const struct kv_table *original, const struct kv_table *restored, const struct tokens *prompt,
	const struct probe *probe, struct evaluation *e)
{
	struct view *views[2] = {NULL, NULL};
	int r = view_new(f, m, cache, original, prompt, probe, &views[0]);

	if (r == 0)
		r = view_new(f, m, cache, restored, prompt, probe, &views[1]);
	if (r == 0)
		r = evaluate_views(m, probe, views[0], views[1], e);
	view_free(views[0]);
	view_free(views[1]);
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
