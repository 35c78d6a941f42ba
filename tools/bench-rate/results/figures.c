#include "tools/bench-rate/results/figures.h"

#include <math.h>
#include <string.h>

#include "tools/bench-rate/results/curve.h"

void figures_of(const struct under_test *u, size_t rung, const struct measurement *m, const struct bound *b,
	struct figures *out)
{
	const struct geometry *g = &b->l->geometry;
	const struct evaluation *t = &m->texts, *q = &m->recalls;
	const double token_bytes = (double)geometry_token_bytes(g), coded = (double)m->coded_tokens;
	double values = 0, bound = 0;

	*out = (struct figures){.codec = u->name,
		.rung = u->rungs[rung],
		.ratio_coded = coded * token_bytes / (double)m->bytes.coded,
		.ratio_total = (double)(m->coded_tokens + m->raw_tokens) * token_bytes /
			       (double)(m->bytes.coded + m->bytes.raw),
		.attn_error = evaluation_attention_error(t, 0, g->n_layers),
		.attn_error_recall = evaluation_attention_error(q, 0, g->n_layers),
		.n_layers = g->n_layers,
		.kl = t->kl / (double)t->n_tokens,
		.kl_recall = q->answer_kl / (double)q->n_answer_tokens,
		.nll_original = t->nll[0] / (double)t->n_tokens,
		.nll_delta_pct = 100 * (t->nll[1] - t->nll[0]) / t->nll[0],
		.recall = (double)q->exact[1] / (double)q->asked,
		.recall_original = (double)q->exact[0] / (double)q->asked};
	for (uint32_t i = 0; i < g->n_layers; i++)
		out->attn_error_layers[i] = evaluation_attention_error(t, i, i + 1);
	for (uint32_t i = 0; i < g->n_planes; i++) {
		values += (double)plane_width(&g->planes[i]) * g->n_layers;
		out->error[i] = sqrt(m->error[i] / m->power[i]);
		out->error_p99[i] = error_quantile(&m->histogram[i], 0.99);
		bound += bound_bits(b, i, m->error[i] / coded);
	}
	out->bits_per_value = 8 * (double)m->bytes.coded / coded / values;
	out->bound_bits_per_value = bound / values;
}

/* ---- curves ---- */

enum { POINTS_MAX = 16 };

typedef double (*figure)(const struct figures *f);

static double ratio(const struct figures *f)
{
	return f->ratio_coded;
}

static double attn_error(const struct figures *f)
{
	return f->attn_error;
}

static double kl(const struct figures *f)
{
	return f->kl;
}

/* y of a codec's curve where x is at. */
static double on_curve(
	const struct figures *points, size_t n, const char *codec, figure x, figure y, double at)
{
	double xs[POINTS_MAX], ys[POINTS_MAX];
	size_t count = 0;

	for (size_t i = 0; i < n && count < POINTS_MAX; i++)
		if (!strcmp(points[i].codec, codec)) {
			xs[count] = x(&points[i]);
			ys[count++] = y(&points[i]);
		}
	return curve_at(xs, ys, count, at);
}

static double attn_error_recall(const struct figures *f)
{
	return f->attn_error_recall;
}

static double kl_recall(const struct figures *f)
{
	return f->kl_recall;
}

static const struct figures *at_rung(const struct figures *points, size_t n, const char *codec, double rung)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(points[i].codec, codec) && fabs(points[i].rung - rung) < 1e-3)
			return &points[i];
	return NULL;
}

static size_t put_fidelity(const struct figures *at, bool coarse, struct answer *a)
{
	const double lost = 100 * (at->recall_original - at->recall);

	a[0] = (struct answer){coarse ? "kl_20x" : "kl_16x",
		coarse ? "kl at the 20x rung" : "kl at the 16x rung", at->kl, coarse ? 0.02 : 0.01, false};
	a[1] = (struct answer){coarse ? "nll_delta_pct_20x" : "nll_delta_pct_16x",
		coarse ? "loss change at the 20x rung, percent" : "loss change at the 16x rung, percent",
		at->nll_delta_pct, coarse ? 2 : 1, false};
	a[2] = (struct answer){coarse ? "recall_points_lost_20x" : "recall_points_lost_16x",
		coarse ? "recall lost at the 20x rung, points" : "recall lost at the 16x rung, points", lost,
		coarse ? 2 : 1, false};
	return 3;
}

static double ratio_over(const struct figures *points, size_t n, const struct figures *at, const char *other)
{
	return at->ratio_coded / on_curve(points, n, other, attn_error, ratio, at->attn_error);
}

size_t answers_of(
	const struct figures *points, size_t n, const char *codec, struct answer answers[ANSWERS_MAX])
{
	const struct figures *at = at_rung(points, n, codec, 16), *at20 = at_rung(points, n, codec, 20);
	size_t k = 0;

	if (!at)
		return 0;
	answers[k++] = (struct answer){"ratio_over_kvtc",
		"ratio over plain KVTC's, at the attn_error of this codec's 16x rung",
		ratio_over(points, n, at, "kvtc"), 1.6, true};
	answers[k++] = (struct answer){"ratio_over_kvtc_at_its_16x",
		"the same, at the attn_error that plain KVTC has at a ratio of 16",
		on_curve(points, n, codec, attn_error, ratio,
			on_curve(points, n, "kvtc", ratio, attn_error, 16)) /
			16,
		1.6, true};
	answers[k++] = (struct answer){"ratio_over_kvtc_pooled",
		"the first, where KVTC's keys and values share a budget",
		ratio_over(points, n, at, "kvtc-pooled"), NAN, true};
	if (at_rung(points, n, "kvtc-whole", 16))
		answers[k++] = (struct answer){"ratio_over_kvtc_whole",
			"the first, where KVTC has one transform over all layers",
			ratio_over(points, n, at, "kvtc-whole"), NAN, true};
	answers[k++] = (struct answer){"ratio_over_kvtc_recall",
		"the first, by the attention error of recall questions",
		at->ratio_coded /
			on_curve(points, n, "kvtc", attn_error_recall, ratio, at->attn_error_recall),
		NAN, true};
	answers[k++] = (struct answer){"ratio_over_uniform",
		"ratio over uniform quantisation's, at the attn_error of the 16x rung",
		ratio_over(points, n, at, "uniform"), 2.5, true};
	answers[k++] = (struct answer){"kl_over_kvtc", "kl over plain KVTC's, at the bytes of the 16x rung",
		at->kl / on_curve(points, n, "kvtc", ratio, kl, at->ratio_coded), 0.5, false};
	answers[k++] = (struct answer){"kl_recall_over_kvtc", "the same for the answers to recall questions",
		at->kl_recall / on_curve(points, n, "kvtc", ratio, kl_recall, at->ratio_coded), NAN, false};
	answers[k++] =
		(struct answer){"rate_over_bound", "coded rate over the Gaussian bound, at the 16x rung",
			at->bits_per_value / at->bound_bits_per_value, 1.25, false};
	k += put_fidelity(at, false, answers + k);
	if (at20)
		k += put_fidelity(at20, true, answers + k);
	return k;
}

bool answer_met(const struct answer *a)
{
	return a->at_least ? a->value >= a->goal : a->value <= a->goal;
}
