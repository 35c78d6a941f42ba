#include "policy/metric.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { POSITIONS = 16 }; /* of keys that a query is taken to look at, evenly spread behind it */

/* Of the mean over a head's features, added to each: no feature is free. */
static const double FLOOR = 1e-3;

struct metric {
	struct geometry geometry;
	uint32_t n_query_heads;
	double *keys;                    /* [n_layers, key heads, dim]: sums of squares */
	double *values;                  /* [n_layers, value heads]: sums over attention squared */
	double *n_queries, *n_attention; /* [n_layers, n_query_heads] added */
};

int metric_new(const struct geometry *g, uint32_t n_query_heads, struct metric **out)
{
	const struct plane *k = &g->planes[0], *v = &g->planes[g->n_planes - 1];
	struct metric *m;

	if (!n_query_heads || n_query_heads % k->n_heads || n_query_heads % v->n_heads)
		return -EINVAL;
	m = calloc(1, sizeof *m);
	if (!m)
		return -ENOMEM;
	m->geometry = *g;
	m->n_query_heads = n_query_heads;
	m->keys = calloc(g->n_layers * plane_width(k), sizeof *m->keys);
	m->values = calloc((size_t)g->n_layers * v->n_heads, sizeof *m->values);
	m->n_queries = calloc(2 * (size_t)g->n_layers * n_query_heads, sizeof *m->n_queries);
	m->n_attention = m->n_queries + (size_t)g->n_layers * n_query_heads;
	if (!m->keys || !m->values || !m->n_queries) {
		metric_free(m);
		return -ENOMEM;
	}
	*out = m;
	return 0;
}

struct metric *metric_free(struct metric *m)
{
	if (!m)
		return NULL;
	free(m->keys);
	free(m->values);
	free(m->n_queries);
	free(m);
	return NULL;
}

/* The two squares of a rotated pair, as keys at the positions behind the query see them. */
static void add_pair(double sums[2], double x, double y, double frequency, uint64_t position)
{
	for (int i = 0; i < POSITIONS; i++) {
		const double angle = frequency * floor(((double)i + 0.5) * (double)position / POSITIONS);
		const double a = x * cos(angle) + y * sin(angle), b = y * cos(angle) - x * sin(angle);

		sums[0] += a * a / POSITIONS;
		sums[1] += b * b / POSITIONS;
	}
}

void metric_add_query(
	struct metric *m, uint32_t layer, uint32_t query_head, const float *query, uint64_t position)
{
	const struct plane *p = &m->geometry.planes[0];
	const uint32_t head = query_head / (m->n_query_heads / p->n_heads);
	double *sum = m->keys + layer * plane_width(p) + head * p->dim;
	const uint32_t rotated = p->rope_kind == ROPE_NONE ? 0 : p->rope_dim;

	for (uint32_t i = 0; i < p->dim; i++)
		if (!rotated || i < p->rope_offset || i >= p->rope_offset + rotated)
			sum[i] += (double)query[i] * (double)query[i];
	for (uint32_t i = 0; i < rotated / 2; i++) {
		const uint32_t a = p->rope_offset + (p->rope_kind == ROPE_HALF ? i : 2 * i);
		const uint32_t b = a + (p->rope_kind == ROPE_HALF ? rotated / 2 : 1);
		double sums[2] = {0};

		add_pair(sums, (double)query[a], (double)query[b], (double)p->inv_freq[i], position);
		sum[a] += sums[0];
		sum[b] += sums[1];
	}
	m->n_queries[layer * m->n_query_heads + query_head]++;
}

void metric_add_attention(
	struct metric *m, uint32_t layer, uint32_t query_head, const float *attention, size_t n)
{
	const struct plane *p = &m->geometry.planes[m->geometry.n_planes - 1];
	double sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += (double)attention[i] * (double)attention[i];
	m->values[layer * p->n_heads + query_head / (m->n_query_heads / p->n_heads)] += sum;
	m->n_attention[layer * m->n_query_heads + query_head]++;
}

/* How many were added for a layer. */
static double seen(const struct metric *m, const double *n, uint32_t layer)
{
	double sum = 0;

	for (uint32_t h = 0; h < m->n_query_heads; h++)
		sum += n[layer * m->n_query_heads + h];
	return sum;
}

static void key_weights(const struct metric *m, uint32_t layer, float *weight)
{
	const struct plane *p = &m->geometry.planes[0];
	const double n = seen(m, m->n_queries, layer);

	for (uint32_t h = 0; h < p->n_heads; h++) {
		const double *sum = m->keys + layer * plane_width(p) + h * p->dim;
		double mean = 0;

		for (uint32_t i = 0; i < p->dim; i++)
			mean += sum[i] / p->dim;
		for (uint32_t i = 0; i < p->dim; i++)
			weight[h * p->dim + i] =
				n > 0 && mean > 0 ? (float)sqrt((sum[i] + FLOOR * mean) / n) : 1.0f;
	}
}

static void value_weights(const struct metric *m, uint32_t layer, float *weight)
{
	const struct plane *p = &m->geometry.planes[1];
	const double n = seen(m, m->n_attention, layer);

	for (uint32_t h = 0; h < p->n_heads; h++) {
		const double cost = n > 0 ? m->values[layer * p->n_heads + h] / n : 0;

		for (uint32_t i = 0; i < p->dim; i++)
			weight[h * p->dim + i] = cost > 0 ? (float)sqrt(sqrt(cost)) : 1.0f;
	}
}

void metric_weights(
	const struct metric *m, uint32_t plane, uint32_t first_layer, uint32_t n_layers, float *weight)
{
	const size_t width = plane_width(&m->geometry.planes[plane]);

	for (uint32_t l = 0; l < n_layers; l++)
		(plane ? value_weights : key_weights)(m, first_layer + l, weight + l * width);
}
