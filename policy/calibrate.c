#include "policy/calibrate.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

#include "policy/covariance.h"
#include "policy/ladder.h"
#include "policy/pca.h"

enum {
	/* No power of two: sequences of 2048 tokens would always give their last chunk. */
	HELD_OUT_EVERY = 7,
	HELD_OUT_TOKENS_MIN = 256,
	CHUNK_TOKENS_MAX = 4096,
};

/* Rungs are made this much coarser than they are called: the last chunk of a sequence, with the window in it,
 * spends its headers on few tokens, text unlike that of calibration takes a few percent more, and the ratio
 * is promised for what comes. */
static const double MARGIN = 1.05;

/* Of a part's variance: the components that hold it are where learning again starts from. */
static const double KNOWN_SHARE = 0.999;

/* Products of f16-rounded rows; more than this and the errors that the codec reports would be wrong. */
static const double DEVIATION_MAX = 0.01;

struct part {
	uint32_t plane, first_layer, n_layers;
	size_t p;
	uint64_t n_given; /* tokens, with those that were left out */
	struct covariance *learning,
		*held_out; /* NULL before the first token and, but for keep, after learning */
	int has_held_out;
	size_t n_known;     /* components that a next learning may start from; 0: none */
	uint64_t n_learned; /* tokens; 0 before learning */
	float *weight;      /* [p]; NULL: 1 */
	/* Once learned: */
	float *mean;     /* [p] */
	float *basis;    /* [p, p] */
	float *variance; /* [p], falling, weighted as the next two */
	double total;    /* of all components */
	double mean_energy;
};

struct calibrate {
	struct geometry geometry;
	struct calibrate_options options;
	struct levels_model models[GEOMETRY_PLANES_MAX];
	uint32_t n_parts;
	struct part parts[];
};

void calibrate_options_init(struct calibrate_options *o)
{
	static const float ladder[] = {4, 6, 8, 12, 16, 20, 32, 40};

	*o = (struct calibrate_options){.chunk_tokens = 256, .plane_weight = {1, 0.5}};
	o->n_rungs = sizeof ladder / sizeof ladder[0];
	memcpy(o->rungs, ladder, sizeof ladder);
}

static int check_options(const struct calibrate_options *o, char *why, size_t why_len)
{
	if (o->chunk_tokens == 0 || o->chunk_tokens > CHUNK_TOKENS_MAX)
		return fault_say(-EINVAL, why, why_len, "chunks of %u tokens, not 1 to %d", o->chunk_tokens,
			CHUNK_TOKENS_MAX);
	for (uint32_t plane = 0; plane < GEOMETRY_PLANES_MAX; plane++)
		if (!(o->plane_weight[plane] > 0 && o->plane_weight[plane] <= 1e6))
			return fault_say(-EINVAL, why, why_len,
				"plane %u: weight is not over 0 and at most 1e6", plane);
	if (o->n_rungs == 0 || o->n_rungs > TRANSFORM_RUNGS_MAX)
		return fault_say(
			-EINVAL, why, why_len, "%u rungs, not 1 to %d", o->n_rungs, TRANSFORM_RUNGS_MAX);
	for (uint32_t i = 0; i < o->n_rungs; i++)
		if (!isfinite(o->rungs[i]) || o->rungs[i] < 1 || (i && o->rungs[i] <= o->rungs[i - 1]))
			return fault_say(
				-EINVAL, why, why_len, "rung %u: ratio is not a number from 1 that rises", i);
	return 0;
}

static uint32_t group_layers(const struct geometry *g, uint32_t plane, uint32_t wanted)
{
	size_t width = plane_width(&g->planes[plane]), n = wanted;

	if (n == 0)
		n = CALIBRATE_GROUP_FEATURES_MAX / width;
	if (n == 0)
		n = 1;
	return n < g->n_layers ? (uint32_t)n : g->n_layers;
}

int calibrate_new(const struct geometry *g, const struct calibrate_options *options, struct calibrate **out,
	char *why, size_t why_len)
{
	uint32_t n_parts = 0;
	struct calibrate *c;
	int r = geometry_check(g, why, why_len);

	if (r < 0)
		return r;
	r = check_options(options, why, why_len);
	if (r < 0)
		return r;
	for (uint32_t plane = 0; plane < g->n_planes; plane++) {
		uint32_t n = group_layers(g, plane, options->layers_per_group);

		if (n * plane_width(&g->planes[plane]) > CALIBRATE_FEATURES_MAX)
			return fault_say(-EINVAL, why, why_len,
				"plane %u: groups of %u layers have %zu features, over %d", plane, n,
				n * plane_width(&g->planes[plane]), CALIBRATE_FEATURES_MAX);
		n_parts += (g->n_layers + n - 1) / n;
	}
	c = calloc(1, sizeof *c + n_parts * sizeof c->parts[0]);
	if (!c)
		return -ENOMEM;
	c->geometry = *g;
	c->options = *options;
	for (uint32_t plane = 0; plane < GEOMETRY_PLANES_MAX; plane++)
		levels_model_default(&c->models[plane]);
	for (uint32_t plane = 0; plane < g->n_planes; plane++) {
		uint32_t n = group_layers(g, plane, options->layers_per_group);

		for (uint32_t layer = 0; layer < g->n_layers; layer += n) {
			struct part *part = &c->parts[c->n_parts++];

			part->plane = plane;
			part->first_layer = layer;
			part->n_layers = g->n_layers - layer < n ? g->n_layers - layer : n;
			part->p = part->n_layers * plane_width(&g->planes[plane]);
		}
	}
	*out = c;
	return 0;
}

static void forget_learned(struct part *part)
{
	free(part->mean);
	free(part->basis);
	free(part->variance);
}

struct calibrate *calibrate_free(struct calibrate *c)
{
	for (uint32_t i = 0; c && i < c->n_parts; i++) {
		covariance_free(c->parts[i].learning);
		covariance_free(c->parts[i].held_out);
		forget_learned(&c->parts[i]);
		free(c->parts[i].weight);
	}
	free(c);
	return NULL;
}

uint32_t calibrate_n_parts(const struct calibrate *c)
{
	return c->n_parts;
}

void calibrate_part(const struct calibrate *c, uint32_t i, struct transform_part *part)
{
	const struct part *from = &c->parts[i];

	*part = (struct transform_part){.plane = from->plane,
		.first_layer = from->first_layer,
		.n_layers = from->n_layers,
		.n_features = (uint32_t)from->p};
}

int calibrate_add(struct calibrate *c, uint32_t part, const float *x, size_t x_stride, size_t n_tokens)
{
	struct part *to = &c->parts[part];

	while (n_tokens) {
		uint64_t chunk = to->n_given / c->options.chunk_tokens;
		size_t n = c->options.chunk_tokens - (size_t)(to->n_given % c->options.chunk_tokens);
		struct covariance **covariance =
			chunk % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 ? &to->held_out : &to->learning;

		if (n > n_tokens)
			n = n_tokens;
		if (!*covariance)
			*covariance = covariance_new(to->p);
		if (!*covariance)
			return -ENOMEM;
		covariance_add(*covariance, x, x_stride, n);
		to->n_given += n;
		x += n * x_stride;
		n_tokens -= n;
	}
	return 0;
}

uint64_t calibrate_count(const struct calibrate *c, uint32_t part)
{
	const struct part *p = &c->parts[part];

	if (!p->learning && !p->held_out)
		return p->n_learned;
	return (p->learning ? covariance_count(p->learning) : 0) +
	       (p->held_out ? covariance_count(p->held_out) : 0);
}

void calibrate_fade(struct calibrate *c, uint32_t part, uint64_t n_tokens)
{
	struct part *p = &c->parts[part];
	const uint64_t n_held_out = n_tokens / HELD_OUT_EVERY;

	if (p->learning)
		covariance_fade(p->learning, n_tokens - n_held_out);
	if (p->held_out)
		covariance_fade(p->held_out, n_held_out);
	p->n_known = 0;
}

int calibrate_set_weight(struct calibrate *c, uint32_t part, const float *weight)
{
	struct part *p = &c->parts[part];

	if (!p->weight)
		p->weight = malloc(p->p * sizeof *p->weight);
	if (!p->weight)
		return -ENOMEM;
	memcpy(p->weight, weight, p->p * sizeof *weight);
	p->n_known = 0; /* the last basis is of another metric */
	return 0;
}

/* Two covariances a part (covariance.h) with room for a batch, and basis; once, what learning one part takes:
 * a third covariance, the matrix, the new basis and its copies. */
uint64_t calibrate_bytes(const struct calibrate *c)
{
	uint64_t sum = 0, largest = 0;

	for (uint32_t i = 0; i < c->n_parts; i++) {
		const uint64_t p = c->parts[i].p;

		sum += 2 * (12 * p * p + 4 * 256 * p) + 4 * p * p;
		largest = p > largest ? p : largest;
	}
	return sum + (12 + 8 + 16) * largest * largest;
}

/* What a part learns from, and where its variances are measured. */
struct source {
	struct covariance *learning, *measured;
	struct covariance *all; /* both are this one, when too few tokens were held out; NULL: they are not */
};

static int source_init(struct source *s, struct part *part)
{
	*s = (struct source){.learning = part->learning, .measured = part->held_out};
	if (s->learning && s->measured && covariance_count(s->measured) >= HELD_OUT_TOKENS_MIN &&
		covariance_count(s->learning) >= HELD_OUT_TOKENS_MIN)
		return 0;
	s->all = covariance_new(part->p);
	if (!s->all)
		return -ENOMEM;
	if (part->learning)
		covariance_merge(s->all, part->learning);
	if (part->held_out)
		covariance_merge(s->all, part->held_out);
	s->learning = s->measured = s->all;
	return 0;
}

/* The mean of all tokens. other: [p], room. */
static void source_mean(const struct source *s, size_t p, double *mean, double *other)
{
	double share = (double)covariance_count(s->measured) /
		       (double)(covariance_count(s->measured) + covariance_count(s->learning));

	covariance_mean(s->learning, mean);
	covariance_mean(s->measured, other);
	for (size_t i = 0; i < p; i++)
		mean[i] += share * (other[i] - mean[i]);
}

struct order {
	double variance;
	size_t row;
};

static int by_variance(const void *a, const void *b)
{
	const struct order *x = a, *y = b;

	if (x->variance != y->variance)
		return x->variance > y->variance ? -1 : 1;
	return (x->row > y->row) - (x->row < y->row);
}

/* Rows in the order of the variances that were measured, which is not quite that of the eigenvalues. */
static int sort_rows(struct part *part, const double *variance)
{
	size_t p = part->p;
	float *sorted = malloc(p * p * sizeof *sorted);
	struct order *order = malloc(p * sizeof *order);

	if (!sorted || !order) {
		free(sorted);
		free(order);
		return -ENOMEM;
	}
	for (size_t i = 0; i < p; i++)
		order[i] = (struct order){variance[i], i};
	qsort(order, p, sizeof *order, by_variance);
	for (size_t i = 0; i < p; i++) {
		memcpy(sorted + i * p, part->basis + order[i].row * p, p * sizeof *sorted);
		part->variance[i] = (float)order[i].variance;
	}
	free(order);
	free(part->basis);
	part->basis = sorted;
	return 0;
}

/* Components that hold nearly all of the variance; 0: so many that starting from them would not pay. */
static size_t components_known(const struct part *part)
{
	double sum = 0;
	size_t k = 0;

	while (k < part->p && sum < KNOWN_SHARE * part->total)
		sum += (double)part->variance[k++];
	return k <= part->p / 3 ? k : 0;
}

static double weight_of(const struct part *part, size_t i)
{
	return part->weight ? (double)part->weight[i] : 1;
}

/* As covariance_matrix, of the weighted features. */
static void weighted_matrix(
	const struct part *part, struct covariance *covariance, const double *centre, double *matrix)
{
	size_t p = part->p;

	covariance_matrix(covariance, centre, matrix);
	for (size_t i = 0; part->weight && i < p; i++)
		for (size_t j = 0; j < p; j++)
			matrix[i * p + j] *= weight_of(part, i) * weight_of(part, j);
}

/* From the last one when there is one. Each such step adds its rounding; when it gets too much, the next
 * starts from nothing. mean: [p], room. */
static int find_basis(struct part *part, double *matrix, const struct source *source, double *mean)
{
	size_t p = part->p;
	int r = -EDOM;

	covariance_mean(source->learning, mean);
	if (part->n_known) {
		weighted_matrix(part, source->learning, mean, matrix);
		r = pca_refine(matrix, p, part->n_known, part->basis);
		if (r == 0 && pca_deviation(part->basis, p, p) > DEVIATION_MAX / 2)
			r = -EDOM;
	}
	if (r != -EDOM)
		return r;
	weighted_matrix(part, source->learning, mean, matrix);
	r = pca(matrix, p, part->basis);
	return r == 0 && pca_deviation(part->basis, p, p) > DEVIATION_MAX ? -EDOM : r;
}

static int decompose(
	struct part *part, const struct source *source, double *matrix, double *mean, double *variance)
{
	size_t p = part->p;
	int r;

	r = find_basis(part, matrix, source, variance);
	if (r < 0)
		return r;
	weighted_matrix(part, source->measured, mean, matrix);
	r = pca_variance(matrix, part->basis, p, p, variance);
	if (r < 0)
		return r;
	part->total = part->mean_energy = 0;
	for (size_t i = 0; i < p; i++) {
		part->total += matrix[i * p + i];
		part->mean_energy += mean[i] * mean[i] * weight_of(part, i) * weight_of(part, i);
		part->mean[i] = (float)mean[i];
	}
	return sort_rows(part, variance);
}

/* Into a copy of part, so that what was learned before holds when this fails. */
static int learn_anew(struct part *part)
{
	size_t p = part->p;
	double *matrix = malloc(p * p * sizeof *matrix);
	double *mean = malloc(2 * p * sizeof *mean);
	struct part fresh = *part;
	struct source source = {0};
	int r = -ENOMEM;

	fresh.mean = malloc(p * sizeof *fresh.mean);
	fresh.basis = malloc(p * p * sizeof *fresh.basis);
	fresh.variance = malloc(p * sizeof *fresh.variance);
	if (!matrix || !mean || !fresh.mean || !fresh.basis || !fresh.variance)
		goto out;
	r = source_init(&source, part);
	if (r < 0)
		goto out;
	if (part->n_known)
		memcpy(fresh.basis, part->basis, p * p * sizeof *fresh.basis);
	source_mean(&source, p, mean, mean + p);
	r = decompose(&fresh, &source, matrix, mean, mean + p);
	if (r < 0)
		goto out;
	fresh.has_held_out = !source.all;
	fresh.n_known = components_known(&fresh);
	forget_learned(part);
	*part = fresh;
out:
	if (r < 0)
		forget_learned(&fresh);
	covariance_free(source.all);
	free(mean);
	free(matrix);
	return r;
}

int calibrate_learn(struct calibrate *c, uint32_t part)
{
	struct part *to = &c->parts[part];
	uint64_t n_tokens = calibrate_count(c, part);
	int r;

	if ((to->n_learned && !c->options.keep) || n_tokens < 2)
		return -ENODATA;
	r = learn_anew(to);
	if (r < 0)
		return r;
	to->n_learned = n_tokens;
	if (!c->options.keep) {
		to->learning = covariance_free(to->learning);
		to->held_out = covariance_free(to->held_out);
	}
	return 0;
}

void calibrate_count_levels(struct calibrate *c, const struct levels_counts *counts)
{
	for (uint32_t plane = 0; plane < c->geometry.n_planes; plane++)
		levels_model_update(&c->models[plane], &counts[plane]);
}

/* A transform on its way. */
struct draft {
	struct transform transform;
	struct transform_part parts[GEOMETRY_PLANES_MAX * GEOMETRY_LAYERS_MAX];
	struct ladder_part ladder[GEOMETRY_PLANES_MAX * GEOMETRY_LAYERS_MAX];
	struct levels_tables tables[GEOMETRY_PLANES_MAX];
	double lost[GEOMETRY_PLANES_MAX * GEOMETRY_LAYERS_MAX]; /* of a rung */
	uint32_t coded[GEOMETRY_PLANES_MAX * GEOMETRY_LAYERS_MAX];
	float *memory; /* weights and deviations of all parts */
};

static struct draft *draft_free(struct draft *d)
{
	if (d)
		free(d->memory);
	free(d);
	return NULL;
}

/* Weights such that a plane's variance is its plane_weight, and deviations to match. */
static struct draft *draft_new(const struct calibrate *c)
{
	struct draft *d = calloc(1, sizeof *d);
	double total[GEOMETRY_PLANES_MAX] = {0};
	size_t n = 0;
	float *at;

	for (uint32_t i = 0; i < c->n_parts; i++) {
		total[c->parts[i].plane] += c->parts[i].total;
		n += 2 * c->parts[i].p;
	}
	if (d)
		d->memory = malloc(n * sizeof *d->memory);
	if (!d || !d->memory)
		return draft_free(d);
	at = d->memory;
	for (uint32_t i = 0; i < c->n_parts; i++) {
		const struct part *part = &c->parts[i];
		const double scale = total[part->plane] > 0
					     ? sqrt(c->options.plane_weight[part->plane] / total[part->plane])
					     : 1;
		float *weight = at, *deviation = at + part->p;

		at += 2 * part->p;
		for (size_t k = 0; k < part->p; k++) {
			weight[k] = (float)(weight_of(part, k) * scale);
			deviation[k] = (float)(sqrt(fmax(0, (double)part->variance[k])) * scale);
		}
		calibrate_part(c, i, &d->parts[i]);
		d->parts[i].mean = part->mean;
		d->parts[i].weight = weight;
		d->parts[i].basis = part->basis;
		d->parts[i].deviation = deviation;
		d->ladder[i] = (struct ladder_part){deviation, (uint32_t)part->p, &c->models[part->plane]};
	}
	for (uint32_t plane = 0; plane < c->geometry.n_planes; plane++)
		d->tables[plane] = c->models[plane].tables;
	d->transform = (struct transform){.n_rungs = c->options.n_rungs,
		.n_planes = c->geometry.n_planes,
		.tables = d->tables,
		.n_parts = c->n_parts,
		.parts = d->parts};
	memcpy(d->transform.rung_ratio, c->options.rungs, sizeof d->transform.rung_ratio);
	geometry_fingerprint(&c->geometry, d->transform.fingerprint);
	return d;
}

/* The ratio counts 16 bits a feature, whatever the source's element type. */
static double source_bits(const struct calibrate *c)
{
	double bits = 0;

	for (uint32_t i = 0; i < c->n_parts; i++)
		bits += 16.0 * (double)c->parts[i].p;
	return bits;
}

static void solve_rung(
	const struct calibrate *c, struct draft *d, uint32_t rung, struct calibrate_report *report)
{
	struct ladder_point point = {.lost = d->lost, .coded = d->coded};
	const double target = source_bits(c) / (MARGIN * (double)c->options.rungs[rung]);
	const float step = (float)ladder_step(d->ladder, c->n_parts, c->options.chunk_tokens, target);
	double lost[GEOMETRY_PLANES_MAX] = {0};

	d->transform.step[rung] =
		rung && step < d->transform.step[rung - 1] ? d->transform.step[rung - 1] : step;
	ladder_at(d->ladder, c->n_parts, c->options.chunk_tokens, (double)d->transform.step[rung], &point);
	report->rungs[rung].ratio = source_bits(c) / point.bits;
	for (uint32_t i = 0; i < c->n_parts; i++) {
		lost[c->parts[i].plane] += d->lost[i];
		report->rungs[rung].components[c->parts[i].plane] += d->coded[i];
		/* One at least, as a part without any has no shape. */
		if (d->parts[i].n_components < d->coded[i] || !d->parts[i].n_components)
			d->parts[i].n_components = d->coded[i] ? d->coded[i] : 1;
	}
	for (uint32_t plane = 0; plane < c->geometry.n_planes; plane++) {
		/* The ladder's variance of a plane is its weight. */
		const double energy = report->variance[plane] > 0
					      ? c->options.plane_weight[plane] * report->energy[plane] /
							report->variance[plane]
					      : 0;

		if (energy > 0)
			report->rungs[rung].error[plane] = sqrt(lost[plane] / energy);
	}
}

static void report_planes(const struct calibrate *c, struct calibrate_report *report)
{
	report->n_tokens = UINT64_MAX;
	report->held_out = 1;
	for (uint32_t i = 0; i < c->n_parts; i++) {
		const struct part *part = &c->parts[i];
		double sum = 0;
		size_t k = 0;

		if (part->n_learned < report->n_tokens)
			report->n_tokens = part->n_learned;
		report->held_out &= part->has_held_out;
		report->variance[part->plane] += part->total;
		report->energy[part->plane] += part->total + part->mean_energy;
		report->n_features[part->plane] += (uint32_t)part->p;
		while (k < part->p && sum < 0.99 * part->total)
			sum += (double)part->variance[k++];
		report->components_99[part->plane] += (uint32_t)k;
	}
}

int calibrate_finish(
	struct calibrate *c, const char *note, void **data, size_t *len, struct calibrate_report *report)
{
	struct calibrate_report found = {0};
	struct draft *d;
	int r;

	for (uint32_t i = 0; i < c->n_parts; i++)
		if (!c->parts[i].n_learned)
			return -EINVAL;
	d = draft_new(c);
	if (!d)
		return -ENOMEM;
	report_planes(c, &found);
	for (uint32_t rung = 0; rung < c->options.n_rungs; rung++)
		solve_rung(c, d, rung, &found);
	r = transform_serialise(&d->transform, found.n_tokens, note, data, len);
	if (r == 0 && report)
		*report = found;
	draft_free(d);
	return r;
}
