#include "policy/sinks/detector.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* No one signal of one token may outshout the others: what lies further out counts as this far. */
static const float Z_MAX = 8;

struct shared {
	struct sinks_detector detector;
	_Atomic uint32_t n_refs;
	float memory[];
};

struct sinks_detector *sinks_detector_new(const struct sinks_view *view)
{
	size_t n = 0;
	struct shared *s;
	float *at;

	for (uint32_t p = 0; p < view->n_planes; p++)
		n += (size_t)view->n_layers * view->width[p] * 3;
	s = calloc(1, sizeof *s + n * sizeof *s->memory);
	if (!s)
		return NULL;
	s->detector.view = *view;
	s->n_refs = 1;
	at = s->memory;
	for (uint32_t l = 0; l < view->n_layers; l++)
		for (uint32_t p = 0; p < view->n_planes; p++) {
			s->detector.basis[l][p] = (struct sinks_basis){
				at, at + view->width[p], at + 2 * (size_t)view->width[p]};
			at += 3 * (size_t)view->width[p];
		}
	return &s->detector;
}

struct sinks_detector *sinks_detector_ref(struct sinks_detector *d)
{
	/* Nothing is read through the new reference that was not readable through the old one. */
	if (d)
		atomic_fetch_add_explicit(&((struct shared *)d)->n_refs, 1, memory_order_relaxed);
	return d;
}

struct sinks_detector *sinks_detector_unref(struct sinks_detector *d)
{
	/* Release: reads through this reference come before the free; acquire: the one who frees has seen
	 * everybody's release. Pairs with itself. */
	if (d && atomic_fetch_sub_explicit(&((struct shared *)d)->n_refs, 1, memory_order_acq_rel) == 1)
		free(d);
	return NULL;
}

void sinks_features(const struct sinks_view *view, uint32_t layer_index, uint32_t plane,
	const float *statistics, size_t n_tokens, float *features)
{
	const uint32_t n_heads = view->n_heads[plane], n_groups = view->n_groups[plane];

	for (size_t t = 0; t < n_tokens; t++) {
		const float *s = statistics + t * n_heads * SINKS_SIGNALS;
		float *out = features + t * view->n_features +
			     sinks_feature(view, layer_index, plane, 0, SINKS_NORM);

		memset(out, 0, n_groups * SINKS_SIGNALS * sizeof *out);
		for (uint32_t h = 0; h < n_heads; h++)
			for (int k = 0; k < SINKS_SIGNALS; k++)
				out[sinks_group(view, plane, h) * SINKS_SIGNALS + (uint32_t)k] +=
					s[h * SINKS_SIGNALS + (uint32_t)k];
		for (uint32_t g = 0; g < n_groups; g++) {
			out[g * SINKS_SIGNALS + SINKS_NORM] =
				logf(out[g * SINKS_SIGNALS + SINKS_NORM] + 1e-12f);
			out[g * SINKS_SIGNALS + SINKS_DISTANCE] =
				logf(out[g * SINKS_SIGNALS + SINKS_DISTANCE] + 1e-12f);
		}
	}
}

static float z_of(const struct sinks_detector *d, const float *features, uint32_t i)
{
	const float z = (features[i] - d->mean[i]) * d->scale[i];

	if (!(z < Z_MAX)) /* a NaN too */
		return d->scale[i] > 0 ? Z_MAX : 0;
	return z > -Z_MAX ? z : -Z_MAX;
}

static float trained_score(const struct sinks_detector *d, const float *features, uint16_t *top)
{
	float sum = d->offset, most = -INFINITY;

	*top = 0;
	for (uint32_t i = 0; i < d->view.n_features; i++) {
		const float part = d->coefficient[i] * z_of(d, features, i);

		sum += part;
		if (part > most) {
			most = part;
			*top = (uint16_t)i;
		}
	}
	return sum;
}

/* Planes but the first are counted by their most unusual head; a model with one plane has that one. */
static float cold_sum(const struct sinks_detector *d, const float *features, uint16_t *top)
{
	const struct sinks_view *v = &d->view;
	float keys = 0, others = 0, most = -INFINITY;
	uint32_t n_keys = 0;

	*top = 0;
	for (uint32_t i = SINKS_DISTANCE; i < v->n_features; i += SINKS_SIGNALS) {
		const float z = z_of(d, features, i);

		if (i % v->per_layer >= v->first[1] && v->n_planes > 1) {
			others = z > others ? z : others;
		} else {
			keys += z;
			n_keys++;
		}
		if (z > most) {
			most = z;
			*top = (uint16_t)i;
		}
	}
	return keys / (float)n_keys + others;
}

void sinks_score(
	const struct sinks_detector *d, const float *features, size_t n_tokens, float *scores, uint16_t *top)
{
	for (size_t t = 0; t < n_tokens; t++) {
		const float *f = features + t * d->view.n_features;
		uint16_t first;

		scores[t] = d->trained ? trained_score(d, f, &first)
				       : (cold_sum(d, f, &first) - d->cold_mean) * d->cold_scale;
		if (top)
			top[t] = first;
	}
}

float sinks_layer_score(const struct sinks_detector *d, const float *features, uint32_t l)
{
	const struct sinks_view *v = &d->view;
	float sum = 0;

	for (uint32_t i = l * v->per_layer; i < (l + 1) * v->per_layer; i++)
		if (d->trained)
			sum += d->coefficient[i] * z_of(d, features, i);
		else if (i % SINKS_SIGNALS == SINKS_DISTANCE)
			sum += z_of(d, features, i) * (float)SINKS_SIGNALS / (float)v->per_layer;
	return sum;
}
