#include "policy/sinks/learner.h"

#include <errno.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
	ROWS_SINKS = 256,      /* of the reservoir that thresholds are judged by */
	ROWS_OTHERS = 2048,    /* tokens that are none */
	SINKS_SEEN_MIN = 4,    /* fewer sinks than this teach no threshold */
	FREEZES_UNTIL = 65536, /* tokens; then the basis stays */
};

/* What the sums of features of the old basis still count for under a new one. */
static const double AFTER_FREEZE = 0.25;

/* Sums over tokens of one layer and plane: [width] each. */
struct moments {
	double *sum, *square;
	double *seen_sum, *product; /* tokens with attention: of x; of x times attention */
};

/* A row of features beside the attention that was seen. */
struct rows {
	float *features, *attention;
	size_t n, size, next; /* a ring */
};

struct sinks_learner {
	struct sinks_view view;
	struct moments moments[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX];
	double n, n_seen, attention;  /* tokens; with attention; its sum */
	struct sinks_detector *basis; /* the frozen centre, weight and direction: the learner's own */
	double frozen_at, seen_frozen_at;
	double feature_n, *feature_sum, *feature_square;
	double cold_n, cold_sum, cold_square;
	/* Regression: n, sums of features, their products [F, F] (upper half), products with attention. */
	double fit_n, *fit_sum, *fit_square, *fit_product, fit_attention;
	struct rows sinks, others;
	uint64_t n_tokens, n_observed;
	double *memory;
	float *row_memory;
};

struct sinks_learner *sinks_learner_new(const struct sinks_view *view)
{
	const size_t f = view->n_features;
	struct sinks_learner *l = calloc(1, sizeof *l);
	size_t n = f * (f + 4);
	double *at;

	if (!l)
		return NULL;
	l->view = *view;
	for (uint32_t p = 0; p < view->n_planes; p++)
		n += (size_t)view->n_layers * view->width[p] * 4;
	l->memory = calloc(n, sizeof *l->memory);
	l->row_memory = calloc((f + 1) * (ROWS_SINKS + ROWS_OTHERS), sizeof *l->row_memory);
	l->basis = sinks_detector_new(view);
	if (!l->memory || !l->row_memory || !l->basis)
		return sinks_learner_free(l);
	l->basis->cold_scale = 1;
	at = l->memory;
	for (uint32_t i = 0; i < view->n_layers; i++)
		for (uint32_t p = 0; p < view->n_planes; p++) {
			const size_t w = view->width[p];

			l->moments[i][p] = (struct moments){at, at + w, at + 2 * w, at + 3 * w};
			at += 4 * w;
		}
	l->feature_sum = at;
	l->feature_square = at + f;
	l->fit_sum = at + 2 * f;
	l->fit_product = at + 3 * f;
	l->fit_square = at + 4 * f;
	l->sinks = (struct rows){.size = ROWS_SINKS, .features = l->row_memory};
	l->sinks.attention = l->sinks.features + f * ROWS_SINKS;
	l->others = (struct rows){.size = ROWS_OTHERS, .features = l->sinks.attention + ROWS_SINKS};
	l->others.attention = l->others.features + f * ROWS_OTHERS;
	return l;
}

struct sinks_learner *sinks_learner_free(struct sinks_learner *l)
{
	if (!l)
		return NULL;
	sinks_detector_unref(l->basis);
	free(l->memory);
	free(l->row_memory);
	free(l);
	return NULL;
}

/* ---- first: what a mean token is, and where sinks lie ---- */

static bool is_finite(const float *x, size_t n)
{
	float sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += fabsf(x[i]);
	return sum < 1e18f; /* so that squares stay finite; false for a NaN */
}

static bool usable(
	const struct sinks_view *v, const float *x[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX], size_t t)
{
	for (uint32_t i = 0; i < v->n_layers; i++)
		for (uint32_t p = 0; p < v->n_planes; p++)
			if (!is_finite(x[i][p] + t * v->width[p], v->width[p]))
				return false;
	return true;
}

static void add_moments(struct moments *m, const float *x, size_t width, float attention)
{
	for (size_t d = 0; d < width; d++) {
		m->sum[d] += (double)x[d];
		m->square[d] += (double)x[d] * (double)x[d];
	}
	for (size_t d = 0; d < width && !isnan(attention); d++) {
		m->seen_sum[d] += (double)x[d];
		m->product[d] += (double)x[d] * (double)attention;
	}
}

/* The direction is the one along which attention rises most for the spread there is: covariance with
 * attention over variance, scaled to unit spread. */
static void freeze(struct sinks_learner *l)
{
	const struct sinks_view *v = &l->view;
	const bool seen = l->n_seen >= SINKS_OBSERVED_MIN;
	const size_t f = v->n_features;

	for (uint32_t i = 0; i < v->n_layers; i++)
		for (uint32_t p = 0; p < v->n_planes; p++) {
			const struct moments *m = &l->moments[i][p];
			struct sinks_basis *b = &l->basis->basis[i][p];
			double power = 0;

			for (size_t d = 0; d < v->width[p]; d++) {
				const double mean = m->sum[d] / l->n;
				const double variance = fmax(m->square[d] / l->n - mean * mean, 1e-12);
				const double rises =
					seen ? (m->product[d] - m->seen_sum[d] * l->attention / l->n_seen) /
							l->n_seen
					     : 0;

				b->centre[d] = (float)mean;
				b->weight[d] = (float)(1 / variance);
				b->direction[d] = (float)(rises / variance);
				power += rises * rises / variance;
			}
			for (size_t d = 0; d < v->width[p] && power > 0; d++)
				b->direction[d] /= (float)sqrt(power);
		}
	l->frozen_at = l->n;
	l->seen_frozen_at = seen ? l->n_seen : 0;
	for (size_t i = 0; i < f; i++) {
		l->feature_sum[i] *= AFTER_FREEZE;
		l->feature_square[i] *= AFTER_FREEZE;
		l->fit_sum[i] *= AFTER_FREEZE;
		l->fit_product[i] *= AFTER_FREEZE;
	}
	for (size_t i = 0; i < f * f; i++)
		l->fit_square[i] *= AFTER_FREEZE;
	l->feature_n *= AFTER_FREEZE;
	l->cold_n = l->cold_sum = l->cold_square = 0;
	l->fit_n *= AFTER_FREEZE;
	l->fit_attention *= AFTER_FREEZE;
}

static bool should_freeze(const struct sinks_learner *l)
{
	if (!l->frozen_at || (!l->seen_frozen_at && l->n_seen >= SINKS_OBSERVED_MIN))
		return true;
	if (l->seen_frozen_at)
		return l->n_seen >= 4 * l->seen_frozen_at && l->n_seen < FREEZES_UNTIL;
	return l->n >= 4 * l->frozen_at && l->n < FREEZES_UNTIL;
}

static void fade(struct sinks_learner *l)
{
	for (uint32_t i = 0; i < l->view.n_layers; i++)
		for (uint32_t p = 0; p < l->view.n_planes; p++)
			for (size_t d = 0; d < l->view.width[p]; d++) {
				struct moments *m = &l->moments[i][p];

				m->sum[d] *= 0.5;
				m->square[d] *= 0.5;
				m->seen_sum[d] *= 0.5;
				m->product[d] *= 0.5;
			}
	l->n *= 0.5;
	l->n_seen *= 0.5;
	l->attention *= 0.5;
	l->frozen_at *= 0.5;
	l->seen_frozen_at *= 0.5;
}

/* ---- then: how signals are spread, and what they foretell ---- */

static void statistics_of(
	const struct sinks_view *v, const struct sinks_basis *b, uint32_t plane, const float *x, float *out)
{
	const uint32_t dim = v->width[plane] / v->n_heads[plane];

	for (uint32_t h = 0; h < v->n_heads[plane]; h++, out += SINKS_SIGNALS) {
		out[0] = out[1] = out[2] = 0;
		for (uint32_t d = h * dim; d < (h + 1) * dim; d++) {
			const float c = x[d] - b->centre[d];

			out[SINKS_NORM] += x[d] * x[d];
			out[SINKS_DISTANCE] += c * c * b->weight[d];
			out[SINKS_DIRECTION] += c * b->direction[d];
		}
	}
}

static void keep_row(struct rows *r, size_t n_features, const float *features, float attention)
{
	memcpy(r->features + r->next * n_features, features, n_features * sizeof *features);
	r->attention[r->next] = attention;
	r->next = (r->next + 1) % r->size;
	r->n += r->n < r->size;
}

static void add_fit(struct sinks_learner *l, const float *features, float attention)
{
	const size_t f = l->view.n_features;

	for (size_t i = 0; i < f; i++) {
		const double x = (double)features[i];
		double *row = l->fit_square + i * f;

		l->fit_sum[i] += x;
		l->fit_product[i] += x * (double)attention;
		for (size_t j = i; j < f; j++)
			row[j] += x * (double)features[j];
	}
	l->fit_n++;
	l->fit_attention += (double)attention;
}

static void set_spread(const struct sinks_learner *l, struct sinks_detector *d, double n, const double *sum,
	const double *square, size_t square_stride)
{
	for (size_t i = 0; i < l->view.n_features; i++) {
		const double mean = sum[i] / n, variance = square[i * square_stride] / n - mean * mean;

		d->mean[i] = (float)mean;
		d->scale[i] = variance > 1e-9 * (1 + mean * mean) ? (float)(1 / sqrt(variance)) : 0;
	}
}

/* The logarithm of the uniform share's multiple from which on a row counts as a sink in the reservoir. */
static const float SINK_ROW = 2.302585f;

static void add_spread(struct sinks_learner *l, const float *features)
{
	for (size_t i = 0; i < l->view.n_features; i++) {
		l->feature_sum[i] += (double)features[i];
		l->feature_square[i] += (double)features[i] * (double)features[i];
	}
	l->feature_n++;
}

static void add_cold(struct sinks_learner *l, const float *features)
{
	float score;

	sinks_score(l->basis, features, 1, &score);
	l->cold_n++;
	l->cold_sum += (double)score;
	l->cold_square += (double)score * (double)score;
}

static void add_seen(struct sinks_learner *l, const float *features, float attention)
{
	if (isnan(attention) || !l->seen_frozen_at)
		return;
	add_fit(l, features, attention);
	keep_row(attention >= SINK_ROW ? &l->sinks : &l->others, l->view.n_features, features, attention);
}

static void add_tokens(struct sinks_learner *l, const float *x[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX],
	const float *attention, const bool *ok, size_t n_tokens)
{
	const struct sinks_view *v = &l->view;

	for (size_t t = 0; t < n_tokens; t++) {
		const float seen = attention ? attention[t] : NAN;

		if (!ok[t])
			continue;
		for (uint32_t i = 0; i < v->n_layers; i++)
			for (uint32_t p = 0; p < v->n_planes; p++)
				add_moments(&l->moments[i][p], x[i][p] + t * v->width[p], v->width[p], seen);
		l->n++;
		l->n_tokens++;
		if (isnan(seen))
			continue;
		l->n_seen++;
		l->n_observed++;
		l->attention += (double)seen;
	}
}

int sinks_learn(struct sinks_learner *l, const float *x[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX],
	const float *attention, size_t n_tokens)
{
	const struct sinks_view *v = &l->view;
	const size_t heads = v->n_heads[0] > v->n_heads[1] ? v->n_heads[0] : v->n_heads[1], f = v->n_features;
	float *features = malloc((n_tokens * f + heads * SINKS_SIGNALS) * sizeof *features);
	float *statistics = features ? features + n_tokens * f : NULL;
	bool *ok = malloc(n_tokens * sizeof *ok);

	if (!features || !ok) {
		free(features);
		free(ok);
		return -ENOMEM;
	}
	for (size_t t = 0; t < n_tokens; t++)
		ok[t] = usable(v, x, t);
	add_tokens(l, x, attention, ok, n_tokens);
	if (l->n > 0 && should_freeze(l))
		freeze(l);
	for (size_t t = 0; t < n_tokens; t++) {
		for (uint32_t i = 0; i < v->n_layers && ok[t]; i++)
			for (uint32_t p = 0; p < v->n_planes; p++) {
				statistics_of(
					v, &l->basis->basis[i][p], p, x[i][p] + t * v->width[p], statistics);
				sinks_features(v, i, p, statistics, 1, features + t * f);
			}
		if (ok[t])
			add_spread(l, features + t * f);
	}
	if (l->feature_n > 1)
		set_spread(l, l->basis, l->feature_n, l->feature_sum, l->feature_square, 1);
	for (size_t t = 0; t < n_tokens; t++) {
		if (!ok[t])
			continue;
		add_cold(l, features + t * f);
		add_seen(l, features + t * f, attention ? attention[t] : NAN);
	}
	if (l->n > 2 * SINKS_MEMORY_TOKENS)
		fade(l);
	free(features);
	free(ok);
	return 0;
}

/* ---- a detector of it ---- */

/* Ridge regression on standardised features. -EDOM: no solution. */
static int fit(const struct sinks_learner *l, struct sinks_detector *d)
{
	const size_t f = l->view.n_features;
	const double n = l->fit_n, mean = l->fit_attention / n;
	double *a = malloc((f * f + f) * sizeof *a), *b;
	int r;

	if (!a)
		return -ENOMEM;
	b = a + f * f;
	set_spread(l, d, n, l->fit_sum, l->fit_square, f + 1);
	for (size_t i = 0; i < f; i++) {
		const double mi = l->fit_sum[i] / n, si = (double)d->scale[i];

		for (size_t j = i; j < f; j++)
			a[i * f + j] = (l->fit_square[i * f + j] / n - mi * l->fit_sum[j] / n) * si *
				       (double)d->scale[j];
		a[i * f + i] += 10 / n + 1e-3;
		b[i] = (l->fit_product[i] / n - mi * mean) * si;
	}
	r = (int)LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', (lapack_int)f, 1, a, (lapack_int)f, b, 1);
	for (size_t i = 0; !r && i < f; i++)
		d->coefficient[i] = (float)b[i];
	d->offset = (float)mean;
	free(a);
	return r ? -EDOM : 0;
}

static void set_cold(double n, double sum, double square, struct sinks_detector *d)
{
	const double mean = n > 0 ? sum / n : 0, variance = n > 0 ? square / n - mean * mean : 0;

	d->cold_mean = (float)mean;
	d->cold_scale = variance > 0 ? (float)(1 / sqrt(variance)) : 0;
}

static int by_value(const void *a, const void *b)
{
	const float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

static float *sorted_scores(const struct sinks_detector *d, const struct rows *r)
{
	float *scores = malloc((r->n + 1) * sizeof *scores);

	if (scores) {
		sinks_score(d, r->features, r->n, scores);
		qsort(scores, r->n, sizeof *scores, by_value);
	}
	return scores;
}

static float share_above(const float *sorted, size_t n, float threshold)
{
	size_t below = 0;

	while (below < n && sorted[below] < threshold)
		below++;
	return n ? (float)(n - below) / (float)n : 0;
}

/* How unusual tokens are, for a detector whose spreads are of the regression's tokens: over the rows of those
 * that are no sinks. */
static int set_unusual(const struct rows *others, struct sinks_detector *d)
{
	float *unusual = malloc((others->n + 1) * sizeof *unusual);
	double sum = 0, square = 0;

	if (!unusual)
		return -ENOMEM;
	d->cold_mean = 0;
	d->cold_scale = 1;
	sinks_unusual(d, others->features, others->n, unusual);
	for (size_t i = 0; i < others->n; i++) {
		sum += (double)unusual[i];
		square += (double)unusual[i] * (double)unusual[i];
	}
	set_cold((double)others->n, sum, square, d);
	qsort(unusual, others->n, sizeof *unusual, by_value);
	if (others->n)
		d->familiar = (unusual[others->n - 1 - others->n / 500] - d->cold_mean) * d->cold_scale;
	free(unusual);
	return 0;
}

/* Between the scores of most sinks and the scores that too many others reach: half-way where the two are
 * apart, at the others' bound where they are not. */
static int choose_threshold(
	const struct sinks_learner *l, double mistaken_max, double sink, struct sinks_detector *d)
{
	float *sinks = sorted_scores(d, &l->sinks), *others = sorted_scores(d, &l->others);
	float low, high;
	int r = -ENOMEM;

	if (!sinks || !others)
		goto out;
	low = l->others.n ? others[(size_t)((double)(l->others.n - 1) * (1 - mistaken_max))] : (float)sink;
	high = l->sinks.n >= SINKS_SEEN_MIN ? sinks[l->sinks.n / 50] : fmaxf(low, (float)sink);
	d->threshold = high > low ? (low + high) / 2 : low;
	d->caught = share_above(sinks, l->sinks.n, d->threshold);
	d->mistaken = share_above(others, l->others.n, d->threshold);
	r = 0;
out:
	free(sinks);
	free(others);
	return r;
}

static float correlation(const struct sinks_learner *l, const struct sinks_detector *d)
{
	const struct rows *const rows[2] = {&l->sinks, &l->others};
	double n = 0, x1 = 0, x2 = 0, y1 = 0, y2 = 0, xy = 0;

	for (int k = 0; k < 2; k++)
		for (size_t i = 0; i < rows[k]->n; i++) {
			const double y = (double)rows[k]->attention[i];
			float score;

			sinks_score(d, rows[k]->features + i * d->view.n_features, 1, &score);
			n++;
			x1 += (double)score;
			x2 += (double)score * (double)score;
			y1 += y;
			y2 += y * y;
			xy += (double)score * y;
		}
	if (!(n * x2 > x1 * x1) || !(n * y2 > y1 * y1))
		return 0;
	return (float)((n * xy - x1 * y1) / sqrt((n * x2 - x1 * x1) * (n * y2 - y1 * y1)));
}

int sinks_learner_detector(
	struct sinks_learner *l, double mistaken_max, double sink, struct sinks_detector **out)
{
	struct sinks_detector *d;
	int r = 0;

	if (l->feature_n < 2)
		return -ENODATA;
	d = sinks_detector_new(&l->view);
	if (!d)
		return -ENOMEM;
	for (uint32_t i = 0; i < l->view.n_layers; i++)
		for (uint32_t p = 0; p < l->view.n_planes; p++)
			memcpy(d->basis[i][p].centre, l->basis->basis[i][p].centre,
				3 * l->view.width[p] * sizeof(float));
	d->n_tokens = l->n_tokens;
	d->n_observed = l->n_observed;
	if (l->fit_n >= SINKS_OBSERVED_MIN)
		r = fit(l, d);
	if (!r && l->fit_n >= SINKS_OBSERVED_MIN) {
		d->trained = true;
		d->correlation = correlation(l, d);
		r = choose_threshold(l, mistaken_max, sink, d);
		if (!r)
			r = set_unusual(&l->others, d);
	} else if (!r) {
		set_spread(l, d, l->feature_n, l->feature_sum, l->feature_square, 1);
		if (l->cold_n > 1)
			set_cold(l->cold_n, l->cold_sum, l->cold_square, d);
	}
	if (r) {
		sinks_detector_unref(d);
		return r == -EDOM ? -ENODATA : r;
	}
	*out = d;
	return 0;
}
