#include "tools/bench-sinks/sequence.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { PLAIN_TOKEN = 8 }; /* whose key and value the first token takes */

int sequence_new(const char *model, struct sequence **out)
{
	struct sequence *s = calloc(1, sizeof *s);
	char why[512] = "";
	int r = s ? model_load(model, &s->model, why, sizeof why) : -ENOMEM;

	if (!r)
		r = forward_new(s->model, &s->forward);
	if (!r && s->model->context < SEQUENCE_TOKENS)
		r = -ERANGE;
	if (!r)
		r = kv_cache_new(s->model, 2 * SEQUENCE_TOKENS, KV_NHD, 1, &s->cache);
	if (!r)
		r = kv_table_new(s->cache, SEQUENCE_TOKENS, &s->table);
	if (!r)
		r = kv_table_new(s->cache, SEQUENCE_TOKENS, &s->copy);
	if (!r) {
		s->kernels = kernels_cpu();
		model_geometry(s->model, &s->geometry);
		s->pages = kv_cache_pages(s->cache);
		r = s->pages ? 0 : -ENOMEM;
	}
	if (r) {
		fprintf(stderr, "cistern bench sinks: %s\n", why[0] ? why : strerror(-r));
		sequence_free(s);
		return r;
	}
	*out = s;
	return 0;
}

struct sequence *sequence_free(struct sequence *s)
{
	if (!s)
		return NULL;
	truth_fini(&s->truth);
	free(s->pages);
	if (s->cache) {
		kv_table_free(s->cache, &s->table);
		kv_table_free(s->cache, &s->copy);
	}
	kv_cache_free(s->cache);
	forward_free(s->forward);
	model_free(s->model);
	free(s);
	return NULL;
}

struct codec_chunk sequence_chunk(const struct sequence *s, const struct kv_table *table, uint32_t chunk)
{
	return (struct codec_chunk){.geometry = &s->geometry,
		.pages = s->pages,
		.run = {.blocks = table->blocks,
			.block_tokens = KV_BLOCK_TOKENS,
			.offset = chunk * FORWARD_CHUNK},
		.n_tokens = FORWARD_CHUNK,
		.position = (uint64_t)chunk * FORWARD_CHUNK};
}

/* ---- in the text ---- */

static int by_position(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* The first somewhere, the others at equal steps from there, all of them behind the first chunk's first half
 * and before the window. */
static void choose_places(struct sequence *s, uint32_t i, uint32_t n)
{
	enum { FROM = 200, ROOM = SEQUENCE_PROMPT - SEQUENCE_WINDOW - FROM };

	s->n_planted = n;
	for (uint32_t k = 0; k < n; k++)
		s->planted[k] = FROM + (100 + i * 211 + k * ROOM / n) % ROOM;
	qsort(s->planted, n, sizeof *s->planted, by_position);
}

static bool is_planted(const struct sequence *s, uint32_t position)
{
	for (uint32_t k = 0; k < s->n_planted; k++)
		if (s->planted[k] == position)
			return true;
	return false;
}

/* BOS, then text; after a separator the text goes on elsewhere. */
static void compose(struct sequence *s, const struct tokens *text, size_t start, bool separators)
{
	const size_t room = text->n - SEQUENCE_TOKENS;
	size_t at = start % room;

	s->tokens[0] = TEXT_BOS;
	for (uint32_t i = 1; i < SEQUENCE_TOKENS; i++) {
		if (separators && is_planted(s, i)) {
			s->tokens[i] = i % 2 ? TEXT_SEP : TEXT_BOS;
			at = (at + room / 3) % room;
		} else {
			s->tokens[i] = text->list[at++];
		}
	}
}

/* ---- in the cache ---- */

/* Features of tokens of one layer and plane, rotation undone: read, or written with `write`. x: [n, width] */
static int move_features(const struct sequence *s, uint32_t layer, uint32_t p, const uint16_t *positions,
	size_t n, float *x, bool write)
{
	const struct plane *plane = &s->geometry.planes[p];
	const struct kv_pages *pages = &s->pages[2 * layer + p];
	const struct kv_run run = {.blocks = s->table.blocks, .block_tokens = KV_BLOCK_TOKENS};
	const size_t half = plane->rope_dim / 2, width = plane_width(plane);
	float *table = malloc((2 * n * half + 1) * sizeof *table);
	uint64_t *wide = malloc(n * sizeof *wide);
	const struct rope_table rope = {table, table + n * half}, *used = NULL;

	if (!table || !wide) {
		free(table);
		free(wide);
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++)
		wide[i] = positions[i];
	if (plane->rope_kind != ROPE_NONE) {
		s->kernels->rope_fill(plane, wide, n, table, table + n * half);
		used = &rope;
	}
	if (write)
		s->kernels->scatter(plane, pages, &run, positions, n, used, NULL, NULL, x, width);
	else
		s->kernels->gather(plane, pages, &run, positions, n, used, NULL, NULL, x, width);
	free(table);
	free(wide);
	return 0;
}

/* The mean key of the prompt in a layer; mean: [width]. */
static int mean_key(const struct sequence *s, uint32_t layer, float *mean)
{
	const size_t width = plane_width(&s->geometry.planes[0]);
	uint16_t positions[SEQUENCE_PROMPT];
	float *x = malloc(SEQUENCE_PROMPT * width * sizeof *x);
	int r = x ? 0 : -ENOMEM;

	for (uint16_t t = 0; t < SEQUENCE_PROMPT; t++)
		positions[t] = t;
	if (!r)
		r = move_features(s, layer, 0, positions, SEQUENCE_PROMPT, x, false);
	for (size_t d = 0; d < width && !r; d++) {
		double sum = 0;

		for (size_t t = 0; t < SEQUENCE_PROMPT; t++)
			sum += (double)x[t * width + d];
		mean[d] = (float)(sum / SEQUENCE_PROMPT);
	}
	free(x);
	return r;
}

/* The first component of the rotary pair in which the queries on a key head have least energy. */
static uint32_t least_read(const struct sequence *s, uint32_t layer, uint32_t head)
{
	const struct model *m = s->model;
	const uint32_t half = m->head_dim / 2, group = m->n_heads / m->n_kv_heads;
	const size_t width = (size_t)m->n_heads * m->head_dim;
	double least = INFINITY;
	uint32_t best = 0;

	for (uint32_t d = 0; d < half; d++) {
		double energy = 0;

		for (size_t t = 0; t < SEQUENCE_TOKENS; t++)
			for (uint32_t h = head * group; h < (head + 1) * group; h++) {
				const float *q = s->truth.queries +
						 ((size_t)layer * SEQUENCE_TOKENS + t) * width +
						 (size_t)h * m->head_dim;

				energy += (double)q[d] * (double)q[d] +
					  (double)q[d + half] * (double)q[d + half];
			}
		if (energy < least) {
			least = energy;
			best = d;
		}
	}
	return best;
}

/* key: [width], of a layer. */
static int make_outlying(const struct sequence *s, const struct construction *c, uint32_t layer, float *key)
{
	const uint32_t dim = s->model->head_dim;
	const size_t width = plane_width(&s->geometry.planes[0]);
	float *mean = malloc(width * sizeof *mean);
	int r = mean ? mean_key(s, layer, mean) : -ENOMEM;

	for (size_t d = 0; d < width && !r && c->louder > 0; d++)
		key[d] = mean[d] + c->louder * (key[d] - mean[d]);
	for (uint32_t h = 0; h < s->model->n_kv_heads && !r && c->aside > 0; h++) {
		float *own = key + h * dim, norm = 0;

		for (uint32_t d = 0; d < dim; d++)
			norm += own[d] * own[d];
		own[least_read(s, layer, h)] += c->aside * sqrtf(norm);
	}
	free(mean);
	return r;
}

static int copy_first(struct sequence *s, const struct construction *c, uint32_t layer, uint32_t plane)
{
	const size_t width = plane_width(&s->geometry.planes[plane]);
	const uint16_t first = 0, plain = PLAIN_TOKEN;
	float *x = malloc(2 * width * sizeof *x), *other = x + width;
	int r = x ? move_features(s, layer, plane, &first, 1, x, false) : -ENOMEM;

	if (!r)
		r = move_features(s, layer, plane, &plain, 1, other, false);
	if (!r && plane == 0)
		r = make_outlying(s, c, layer, x);
	for (uint32_t k = 0; k < s->n_planted && !r; k++) {
		const uint16_t place = (uint16_t)s->planted[k];

		r = move_features(s, layer, plane, &place, 1, x, true);
	}
	if (!r && c->first_is_plain)
		r = move_features(s, layer, plane, &first, 1, other, true);
	free(x);
	return r;
}

int sequence_make(
	struct sequence *s, const struct tokens *text, uint32_t i, uint32_t n, const struct construction *c)
{
	int r;

	if (text->n <= 2 * SEQUENCE_TOKENS)
		return -ENODATA;
	choose_places(s, i, c->n_separators_max ? 1 + i % c->n_separators_max : c->n_copies);
	compose(s, text, i * text->n / n, c->n_separators_max > 0);
	truth_fini(&s->truth);
	r = truth_compute(s->forward, s->model, s->cache, &s->table, s->tokens, SEQUENCE_TOKENS,
		SEQUENCE_FIRST, &s->truth);
	for (uint32_t l = 0; l < s->model->n_layers && c->n_copies; l++)
		for (uint32_t p = 0; p < 2 && !r; p++)
			r = copy_first(s, c, l, p);
	return r;
}

int sequence_planted_attention(struct sequence *s, double *out)
{
	enum { N = SEQUENCE_TOKENS - SEQUENCE_PROMPT };
	const size_t rows = (size_t)s->model->n_layers * s->model->n_heads;
	double *received = calloc(rows * SEQUENCE_TOKENS, sizeof *received), uniform = 0;
	int r = received ? forward_run(s->forward, &(struct forward_request){.cache = s->cache,
							   .table = &s->table,
							   .tokens = s->tokens + SEQUENCE_PROMPT,
							   .n_tokens = N,
							   .position = SEQUENCE_PROMPT,
							   .received = received,
							   .received_stride = SEQUENCE_TOKENS})
			 : -ENOMEM;

	for (uint32_t i = 0; i < N; i++)
		uniform += 1.0 / (SEQUENCE_PROMPT + i + 1);
	for (uint32_t k = 0; k < s->n_planted && !r; k++) {
		out[k] = 0;
		for (size_t row = 0; row < rows; row++)
			out[k] = fmax(out[k], received[row * SEQUENCE_TOKENS + s->planted[k]] / uniform);
	}
	free(received);
	return r;
}
