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

/* The logarithm to base 2, to 0.01 or so: of a sum of squares, which only has to be spread out. A parabola
 * through the mantissa's ends stands for its logarithm. Of zero, -127; NaNs and infinities are large. */
static inline float log_of(float x)
{
	uint32_t bits;
	float mantissa;

	memcpy(&bits, &x, sizeof bits);
	bits &= 0x7fffffff;
	mantissa = (float)(bits & 0x7fffff) * 0x1p-23f;
	return (float)(int32_t)(bits >> 23) - 127 + mantissa * (1.3465f - 0.3465f * mantissa);
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
			out[g * SINKS_SIGNALS + SINKS_NORM] = log_of(out[g * SINKS_SIGNALS + SINKS_NORM]);
			out[g * SINKS_SIGNALS + SINKS_DISTANCE] =
				log_of(out[g * SINKS_SIGNALS + SINKS_DISTANCE]);
		}
	}
}

/* In standard deviations, clipped; a NaN is far out. */
static inline float z_of(const struct sinks_detector *d, const float *features, uint32_t i)
{
	const float z = (features[i] - d->mean[i]) * d->scale[i], less = z < Z_MAX ? z : Z_MAX;

	return less > -Z_MAX ? less : -Z_MAX;
}

/* Sums of eight run side by side, which lets the compiler do eight at a time. */
static float trained_score(const struct sinks_detector *d, const float *features)
{
	enum { SUMS = 8 };
	float sums[SUMS] = {0}, sum = d->offset;
	uint32_t i = 0;

	for (; i + SUMS <= d->view.n_features; i += SUMS)
		for (uint32_t k = 0; k < SUMS; k++)
			sums[k] += d->coefficient[i + k] * z_of(d, features, i + k);
	for (; i < d->view.n_features; i++)
		sum += d->coefficient[i] * z_of(d, features, i);
	for (uint32_t k = 0; k < SUMS; k++)
		sum += sums[k];
	return sum;
}

/* fmaxf() is a call unless NaNs may be ignored; there are none here. */
static inline float larger(float x, float y)
{
	return x > y ? x : y;
}

/* The first plane counts on average, others by their most unusual head; a model with one plane has that one
 * alone. */
static float cold_sum(const struct sinks_detector *d, const float *features)
{
	const struct sinks_view *v = &d->view;
	const uint32_t n_first = v->n_planes > 1 ? v->first[1] : v->per_layer;
	float keys = 0, others = 0;

	for (uint32_t l = 0; l < v->n_layers; l++) {
		const uint32_t first = l * v->per_layer;
		uint32_t i = SINKS_DISTANCE;

		for (; i < n_first; i += SINKS_SIGNALS)
			keys += z_of(d, features, first + i);
		for (; i < v->per_layer; i += SINKS_SIGNALS)
			others = larger(others, z_of(d, features, first + i));
	}
	return keys / (float)(v->n_layers * v->n_groups[0]) + others;
}

static float unusual_of(const struct sinks_detector *d, const float *features)
{
	return (cold_sum(d, features) - d->cold_mean) * d->cold_scale;
}

void sinks_unusual(const struct sinks_detector *d, const float *features, size_t n_tokens, float *unusual)
{
	for (size_t t = 0; t < n_tokens; t++)
		unusual[t] = unusual_of(d, features + t * d->view.n_features);
}

void sinks_score(const struct sinks_detector *d, const float *features, size_t n_tokens, float *scores)
{
	for (size_t t = 0; t < n_tokens; t++) {
		const float *f = features + t * d->view.n_features;

		scores[t] = d->trained ? trained_score(d, f) : unusual_of(d, f);
	}
}

uint16_t sinks_top(const struct sinks_detector *d, const float *features, bool unusual)
{
	const bool learned = d->trained && !unusual;
	float most = -INFINITY;
	uint16_t top = 0;

	for (uint32_t i = 0; i < d->view.n_features; i++) {
		const float part = learned ? d->coefficient[i] * z_of(d, features, i)
				   : i % SINKS_SIGNALS == SINKS_DISTANCE ? z_of(d, features, i)
									 : -INFINITY;

		if (part > most) {
			most = part;
			top = (uint16_t)i;
		}
	}
	return top;
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
