#include "runtime/detection.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/codec/internal.h"

_Static_assert(sizeof(struct token_statistic) == SINKS_SIGNALS * sizeof(float), "the same three sums");
_Static_assert(offsetof(struct token_statistic, norm) == SINKS_NORM * sizeof(float) &&
		       offsetof(struct token_statistic, distance) == SINKS_DISTANCE * sizeof(float) &&
		       offsetof(struct token_statistic, dot) == SINKS_DIRECTION * sizeof(float),
	"in the same order");

enum { TILE = 1024 }; /* tokens of which keys are expanded at a time */

struct detection {
	const struct kernels *kernels;
	struct scratch rope, statistics, features, scores, x, attention;
};

struct detection *detection_new(const struct kernels *kernels)
{
	struct detection *d = calloc(1, sizeof *d);

	if (d)
		d->kernels = kernels;
	return d;
}

struct detection *detection_free(struct detection *d)
{
	if (d)
		detection_trim(d);
	free(d);
	return NULL;
}

size_t detection_scratch_bytes(const struct detection *d)
{
	return d->rope.len_bytes + d->statistics.len_bytes + d->features.len_bytes + d->scores.len_bytes +
	       d->x.len_bytes + d->attention.len_bytes;
}

void detection_trim(struct detection *d)
{
	struct scratch *const all[] = {
		&d->rope, &d->statistics, &d->features, &d->scores, &d->x, &d->attention};

	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		free(all[i]->data);
		*all[i] = (struct scratch){0};
	}
}

/* The table of tokens at these positions; NULLs for a plane without rotation. */
static int fill_rope(struct detection *d, const struct plane *plane, const uint64_t *positions, size_t n,
	struct rope_table *out)
{
	const size_t entries = n * (plane->rope_dim / 2);
	float *table;

	*out = (struct rope_table){0};
	if (plane->rope_kind == ROPE_NONE || !entries)
		return 0;
	table = scratch_get(&d->rope, 2 * entries * sizeof *table);
	if (!table)
		return -ENOMEM;
	d->kernels->rope_fill(plane, positions, n, table, table + entries);
	*out = (struct rope_table){table, table + entries};
	return 0;
}

static void positions_of(const struct codec_chunk *chunk, uint64_t positions[FRAME_TOKENS_MAX])
{
	for (size_t i = 0; i < chunk->n_tokens; i++)
		positions[i] = chunk->position + i;
}

/* Room for the features of n tokens, and for two scores of each. */
static int make_room(struct detection *d, const struct sinks_detector *detector, size_t n, float **features,
	float **scores)
{
	*features = scratch_get(&d->features, n * detector->view.n_features * sizeof **features);
	*scores = scratch_get(&d->scores, 2 * n * sizeof **scores);
	return *features && *scores ? 0 : -ENOMEM;
}

static void tell(const struct sinks_detector *detector, const float *features, size_t n, float *scores,
	struct sinks_evidence *evidence)
{
	sinks_score(detector, features, n, scores);
	evidence->scores = scores;
	evidence->trained = detector->trained;
	evidence->threshold = detector->threshold;
	evidence->familiar = detector->familiar;
	evidence->unusual = NULL;
	if (detector->trained) {
		sinks_unusual(detector, features, n, scores + n);
		evidence->unusual = scores + n;
	}
}

int detection_score_at(struct detection *d, const struct codec_chunk *chunk, const uint64_t *positions,
	const struct sinks_detector *detector, struct sinks_evidence *evidence)
{
	const struct sinks_view *v = &detector->view;
	const size_t n = chunk->n_tokens;
	const uint32_t heads = v->n_heads[0] > v->n_heads[1] ? v->n_heads[0] : v->n_heads[1];
	struct token_statistic *statistics = scratch_get(&d->statistics, n * heads * sizeof *statistics);
	float *features, *scores;
	int r = make_room(d, detector, n, &features, &scores);

	if (!statistics || r)
		return -ENOMEM;
	for (uint32_t p = 0; p < v->n_planes; p++) {
		const struct plane *plane = &chunk->geometry->planes[p];
		struct rope_table rope;

		r = fill_rope(d, plane, positions, n, &rope);
		if (r)
			return r;
		for (uint32_t l = 0; l < v->n_layers; l++) {
			const struct sinks_basis *b = &detector->basis[l][p];

			d->kernels->statistics(plane, codec_pages(chunk, v->layers[l], p), &chunk->run, n,
				rope.cos ? &rope : NULL,
				&(struct statistics_basis){b->centre, b->weight, b->direction}, statistics);
			sinks_features(v, l, p, (const float *)statistics, n, features);
		}
	}
	tell(detector, features, n, scores, evidence);
	return 0;
}

int detection_score(struct detection *d, const struct codec_chunk *chunk,
	const struct sinks_detector *detector, struct sinks_evidence *evidence)
{
	uint64_t positions[FRAME_TOKENS_MAX];

	positions_of(chunk, positions);
	return detection_score_at(d, chunk, positions, detector, evidence);
}

int detection_score_given(struct detection *d, const struct detection_statistics *statistics, size_t n_tokens,
	const struct sinks_detector *detector, struct sinks_evidence *evidence)
{
	const struct sinks_view *v = &detector->view;
	float *features, *scores;
	const int r = make_room(d, detector, n_tokens, &features, &scores);

	if (r)
		return r;
	for (uint32_t p = 0; p < v->n_planes; p++)
		for (uint32_t l = 0; l < v->n_layers; l++)
			sinks_features(v, l, p, (const float *)statistics->of[l][p], n_tokens, features);
	tell(detector, features, n_tokens, scores, evidence);
	return 0;
}

uint16_t detection_top(
	const struct detection *d, const struct sinks_detector *detector, const struct sinks_finding *finding)
{
	return sinks_top(detector,
		(const float *)d->features.data + (size_t)finding->token * detector->view.n_features,
		finding->reason == SINKS_UNUSUAL);
}

void detection_by_layer(
	const struct detection *d, const struct sinks_detector *detector, size_t n_tokens, float *out)
{
	const float *features = d->features.data;

	for (uint32_t l = 0; l < detector->view.n_layers; l++)
		for (size_t t = 0; t < n_tokens; t++)
			out[l * n_tokens + t] =
				sinks_layer_score(detector, features + t * detector->view.n_features, l);
}

int detection_learn(struct detection *d, const struct codec_chunk *chunk, struct sinks_learner *learner,
	const float *attention)
{
	const float *x[SINKS_LAYERS_MAX][GEOMETRY_PLANES_MAX] = {0};
	const size_t n = chunk->n_tokens;
	uint64_t positions[FRAME_TOKENS_MAX];
	struct sinks_view v;
	uint16_t tokens[FRAME_TOKENS_MAX];
	size_t floats = 0;
	float *at;

	sinks_view_init(&v, chunk->geometry);
	for (uint32_t p = 0; p < v.n_planes; p++)
		floats += (size_t)v.n_layers * v.width[p];
	at = scratch_get(&d->x, n * floats * sizeof *at);
	if (!at)
		return -ENOMEM;
	positions_of(chunk, positions);
	for (size_t i = 0; i < n; i++)
		tokens[i] = (uint16_t)i;
	for (uint32_t p = 0; p < v.n_planes; p++) {
		const struct plane *plane = &chunk->geometry->planes[p];
		struct rope_table rope;
		int r = fill_rope(d, plane, positions, n, &rope);

		if (r)
			return r;
		for (uint32_t l = 0; l < v.n_layers; l++, at += n * v.width[p]) {
			d->kernels->gather(plane, codec_pages(chunk, v.layers[l], p), &chunk->run, tokens, n,
				rope.cos ? &rope : NULL, NULL, NULL, at, v.width[p]);
			x[l][p] = at;
		}
	}
	return sinks_learn(learner, x, attention, n);
}

/* ---- attention ---- */

/* Scores of one head's queries [first, first + n) with all tokens: [n, n_tokens]. */
static int score_head(struct detection *d, const float *keys, size_t width, uint32_t dim, uint32_t n_tokens,
	const struct detection_queries *q, uint32_t head, uint32_t first, uint32_t n, float **out)
{
	const uint32_t group = q->n_heads / (uint32_t)(width / dim);
	float *scores = scratch_get(&d->attention, ((size_t)n * n_tokens + (size_t)n * dim) * sizeof *scores);
	float *queries = scores ? scores + (size_t)n * n_tokens : NULL;

	if (!scores)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t k = 0; k < dim; k++)
			queries[(size_t)i * dim + k] =
				q->scale * q->values[((size_t)(first + i) * q->n_heads + head) * dim + k];
	d->kernels->project(queries, n, dim, keys + head / group * dim, width, n_tokens, scores, n_tokens);
	*out = scores;
	return 0;
}

int detection_observe(struct detection *d, const struct plane *plane, const struct kv_pages *pages,
	const struct kv_run *run, uint32_t n_tokens, uint32_t chunk_tokens, const struct detection_queries *q,
	const struct observed *out)
{
	const size_t width = plane_width(plane);
	float *keys = scratch_get(&d->x, (size_t)n_tokens * width * sizeof *keys);
	uint32_t judged = 0;
	int r = 0;

	if (!keys)
		return -ENOMEM;
	for (uint32_t t = 0; t < n_tokens; t += TILE) {
		const struct kv_run tile = {run->blocks, run->block_tokens, run->offset + t};
		const uint32_t n = n_tokens - t < TILE ? n_tokens - t : TILE;
		uint16_t tokens[TILE];

		for (uint32_t i = 0; i < n; i++)
			tokens[i] = (uint16_t)i;
		d->kernels->gather(plane, pages, &tile, tokens, n, NULL, NULL, NULL, keys + t * width, width);
	}
	for (uint32_t first = 0, end; first < q->n_queries && !r; first = end) {
		const uint64_t chunk = q->positions[first] / chunk_tokens;
		const uint32_t limit = (uint32_t)(chunk * chunk_tokens);

		for (end = first + 1; end < q->n_queries && q->positions[end] / chunk_tokens == chunk; end++)
			;
		for (uint32_t h = 0; h < q->n_heads && limit > judged && !r; h++) {
			float *scores;

			r = score_head(
				d, keys, width, plane->dim, n_tokens, q, h, first, end - first, &scores);
			if (!r)
				observe_head(scores, n_tokens, q->positions + first, end - first, judged,
					limit, out);
		}
		judged = limit > judged ? limit : judged;
	}
	return r;
}
