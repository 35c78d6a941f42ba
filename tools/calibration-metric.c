#include "tools/calibration-metric.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formula.h"

/* What one query gave to each token, softmax over those up to its own position. Returns how many. */
static size_t attend(const struct capture *c, const float *keys, size_t width, const float *query,
	uint32_t dim, uint64_t position, float *attention)
{
	double sum = 0, largest = -INFINITY;
	size_t n = 0;

	for (; n < c->n_tokens && c->positions[n] <= position; n++) {
		double dot = 0;

		for (uint32_t i = 0; i < dim; i++)
			dot += (double)query[i] * (double)keys[n * width + i];
		attention[n] = (float)(dot / sqrt(dim));
		largest = fmax(largest, (double)attention[n]);
	}
	for (size_t i = 0; i < n; i++)
		sum += exp((double)attention[i] - largest);
	for (size_t i = 0; i < n; i++)
		attention[i] = (float)(exp((double)attention[i] - largest) / sum);
	return n;
}

/* keys: [n_tokens, heads, dim] f32 of the layer, as they are cached. */
static void add_layer(const struct capture *c, uint32_t layer, const float *keys, uint64_t skip_positions,
	uint32_t window_tokens, float *query, float *attention, struct metric *m)
{
	const struct plane *p = &c->geometry.planes[0];
	const struct capture_queries *q = &c->queries;

	for (uint32_t i = 0; i < q->n; i++)
		for (uint32_t h = 0; h < q->n_heads; h++) {
			const uint16_t *from =
				q->values + (((size_t)layer * q->n + i) * q->n_heads + h) * p->dim;
			const uint32_t head = h / (q->n_heads / p->n_heads);
			size_t n, end, first = 0;

			for (uint32_t k = 0; k < p->dim; k++)
				query[k] = f16_to_f32(from[k]);
			metric_add_query(m, layer, h, query, q->positions[i]);
			n = attend(c, keys + head * p->dim, plane_width(p), query, p->dim, q->positions[i],
				attention);
			while (first < n && c->positions[first] < skip_positions)
				first++;
			end = n > window_tokens ? n - window_tokens : 0;
			if (c->geometry.n_planes > 1 && end > first)
				metric_add_attention(m, layer, h, attention + first, end - first);
		}
}

int calibration_metric_add(const struct kernels *kernels, const struct capture *c, uint64_t skip_positions,
	uint32_t window_tokens, struct metric *m)
{
	struct plane as_cached = c->geometry.planes[0];
	const size_t width = plane_width(&as_cached);
	float *keys = malloc((size_t)c->n_tokens * width * sizeof *keys);
	float *attention = malloc(((size_t)c->n_tokens + as_cached.dim) * sizeof *attention);
	int r = keys && attention ? 0 : -ENOMEM;

	as_cached.rope_kind = ROPE_NONE;
	for (uint32_t layer = 0; !r && layer < c->geometry.n_layers; layer++) {
		for (uint32_t t = 0; t < c->n_tokens; t++) {
			const struct kv_run run = capture_run(c, t);
			const uint16_t first = 0;

			kernels->gather(&as_cached, &c->pages[layer * c->geometry.n_planes], &run, &first, 1,
				NULL, NULL, NULL, keys + t * width, width);
		}
		add_layer(
			c, layer, keys, skip_positions, window_tokens, attention + c->n_tokens, attention, m);
	}
	free(attention);
	free(keys);
	return r;
}
