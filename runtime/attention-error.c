#include "runtime/attention-error.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

/* One layer of one copy, in f32. */
struct side {
	float *keys;   /* [n_tokens, width of plane 0] */
	float *values; /* [n_tokens, width of the values' plane]; with one plane: the keys */
};

/* Memory for one layer of both, and for one head's queries. */
struct work {
	const struct plane *key, *value;
	uint32_t value_dim, value_offset; /* of a head: which of its features are values */
	struct side original, restored;
	float *queries; /* [n_queries, n_heads, dim] */
	float *head;    /* [n_queries, dim], scaled */
	float *weights; /* [n_queries, n_tokens] */
	float *outputs; /* [2, n_queries, value_dim] */
};

static void work_fini(struct work *w)
{
	free(w->original.keys);
	free(w->restored.keys);
	free(w->queries);
}

/* Sums of squares of one head's outputs; false: not all are finite. */
static bool compare(const float *o, const float *changed, size_t n, double *error, double *power)
{
	*error = *power = 0;
	for (size_t i = 0; i < n; i++) {
		const double difference = (double)changed[i] - (double)o[i];

		*error += difference * difference;
		*power += (double)o[i] * (double)o[i];
	}
	return isfinite(*error) && isfinite(*power);
}

/* What is value of a head: all of it, or with one plane what is not rotated. */
static void find_values(const struct geometry *g, struct work *w)
{
	const struct plane *p = w->value;

	w->value_dim = p->dim;
	if (g->n_planes > 1 || p->rope_kind == ROPE_NONE || !p->rope_dim || p->rope_dim == p->dim)
		return;
	/* The rotated part stands at one end of a latent. */
	w->value_offset = p->rope_offset ? 0 : p->rope_dim;
	w->value_dim = p->rope_offset ? p->rope_offset : p->dim - p->rope_dim;
}

static int side_init(struct side *s, const struct work *w, uint32_t n_tokens)
{
	const size_t keys = (size_t)n_tokens * plane_width(w->key);
	const size_t values = w->value == w->key ? 0 : (size_t)n_tokens * plane_width(w->value);

	s->keys = malloc((keys + values) * sizeof *s->keys);
	s->values = values && s->keys ? s->keys + keys : s->keys;
	return s->keys ? 0 : -ENOMEM;
}

static int work_init(
	struct work *w, const struct geometry *g, uint32_t n_tokens, const struct attention_queries *q)
{
	const size_t vectors = (size_t)q->n_queries * w->key->dim;

	find_values(g, w);
	w->queries = malloc((vectors * (q->n_heads + 1) + (size_t)q->n_queries * n_tokens +
				    2 * (size_t)q->n_queries * w->value_dim) *
			    sizeof *w->queries);
	if (!w->queries || side_init(&w->original, w, n_tokens) || side_init(&w->restored, w, n_tokens))
		return -ENOMEM;
	w->head = w->queries + vectors * q->n_heads;
	w->weights = w->head + vectors;
	w->outputs = w->weights + (size_t)q->n_queries * n_tokens;
	return 0;
}

static void read_plane(const struct kernels *k, const struct chunk_copy *c, uint32_t layer, uint32_t plane,
	const uint16_t *tokens, float *out)
{
	const struct codec_chunk chunk = chunk_copy_view(c);
	const struct plane *p = &c->geometry->planes[plane];

	k->gather(p, &c->pages[(size_t)layer * c->geometry->n_planes + plane], &chunk.run, tokens,
		c->n_tokens, NULL, NULL, NULL, out, plane_width(p));
}

static void read_side(const struct kernels *k, const struct chunk_copy *c, uint32_t layer,
	const uint16_t *tokens, const struct side *s)
{
	read_plane(k, c, layer, 0, tokens, s->keys);
	if (s->values != s->keys)
		read_plane(k, c, layer, 1, tokens, s->values);
}

/* A layer's queries lie in memory like one block of tokens with more heads. */
static void read_queries(
	const struct kernels *k, const struct work *w, const struct attention_queries *q, uint32_t layer)
{
	static const uint32_t block;
	const size_t element = dtype_bytes(w->key->dtype), vector = w->key->dim * element;
	const struct plane plane = {.n_heads = q->n_heads, .dim = w->key->dim, .dtype = w->key->dtype};
	const struct kv_pages pages = {
		.base = (uint8_t *)(uintptr_t)q->values + (size_t)layer * q->n_queries * q->n_heads * vector,
		.token_stride = q->n_heads * vector,
		.head_stride = vector};
	const struct kv_run run = {&block, q->n_queries, 0};
	uint16_t tokens[FRAME_TOKENS_MAX];

	for (uint32_t i = 0; i < q->n_queries; i++)
		tokens[i] = (uint16_t)i;
	k->gather(&plane, &pages, &run, tokens, q->n_queries, NULL, NULL, NULL, w->queries,
		plane_width(&plane));
}

static void softmax(float *row, size_t n)
{
	float largest = -INFINITY, sum = 0;

	for (size_t t = 0; t < n; t++)
		largest = row[t] > largest ? row[t] : largest;
	for (size_t t = 0; t < n; t++) {
		row[t] = expf(row[t] - largest);
		sum += row[t];
	}
	for (size_t t = 0; t < n; t++)
		row[t] /= sum;
}

/* o(q) of one head, [n_queries, value_dim]. */
static void attend(const struct kernels *k, const struct work *w, const struct attention_queries *q,
	const struct side *s, uint32_t head, uint32_t n_tokens, float *out)
{
	const size_t key_width = plane_width(w->key), value_width = plane_width(w->value);
	const float *keys = s->keys + head / (q->n_heads / w->key->n_heads) * w->key->dim;
	const float *values =
		s->values + head / (q->n_heads / w->value->n_heads) * w->value->dim + w->value_offset;

	k->project(w->head, q->n_queries, w->key->dim, keys, key_width, n_tokens, w->weights, n_tokens);
	for (uint32_t i = 0; i < q->n_queries; i++, out += w->value_dim) {
		const float *row = w->weights + (size_t)i * n_tokens;

		softmax(w->weights + (size_t)i * n_tokens, n_tokens);
		for (uint32_t d = 0; d < w->value_dim; d++)
			out[d] = 0;
		for (uint32_t t = 0; t < n_tokens; t++)
			for (uint32_t d = 0; d < w->value_dim; d++)
				out[d] += row[t] * values[t * value_width + d];
	}
}

/* e(layer, head); false: there is nothing to compare. */
static bool head_error(const struct kernels *k, struct work *w, const struct attention_queries *q,
	uint32_t head, uint32_t n_tokens, double *out)
{
	const uint32_t dim = w->key->dim;
	const size_t n = (size_t)q->n_queries * w->value_dim;
	double error, power;

	for (uint32_t i = 0; i < q->n_queries; i++)
		for (uint32_t d = 0; d < dim; d++)
			w->head[i * dim + d] =
				q->scale * w->queries[((size_t)i * q->n_heads + head) * dim + d];
	attend(k, w, q, &w->original, head, n_tokens, w->outputs);
	attend(k, w, q, &w->restored, head, n_tokens, w->outputs + n);
	if (!compare(w->outputs, w->outputs + n, n, &error, &power) || power == 0)
		return false;
	*out = sqrt(error / power);
	return true;
}

static void note(struct attention_error *e, double error, uint32_t layer, uint32_t head)
{
	if (!e->n_compared || error > e->worst) {
		e->worst = error;
		e->worst_layer = layer;
		e->worst_head = head;
	}
	e->n_compared++;
	e->mean += (error - e->mean) / e->n_compared;
}

int attention_error_measure(const struct kernels *kernels, const struct chunk_copy *original,
	const struct chunk_copy *restored, const struct attention_queries *q, bool (*rest)(void *arg),
	void *arg, struct attention_error *out)
{
	const struct geometry *g = original->geometry;
	const uint32_t n_tokens = original->n_tokens;
	struct work w = {.key = &g->planes[0], .value = &g->planes[g->n_planes - 1]};
	struct attention_error e = {0};
	uint16_t tokens[FRAME_TOKENS_MAX];
	int r = 0;

	if (q->n_heads % w.key->n_heads || q->n_heads % w.value->n_heads)
		return -ENOTSUP;
	r = work_init(&w, g, n_tokens, q);
	for (uint32_t t = 0; t < n_tokens; t++)
		tokens[t] = (uint16_t)t;
	for (uint32_t l = 0; l < q->n_layers && !r; l++) {
		read_side(kernels, original, q->first_layer + l, tokens, &w.original);
		read_side(kernels, restored, q->first_layer + l, tokens, &w.restored);
		read_queries(kernels, &w, q, l);
		for (uint32_t head = 0; head < q->n_heads; head++) {
			double error;

			if (head_error(kernels, &w, q, head, n_tokens, &error))
				note(&e, error, q->first_layer + l, head);
		}
		if (rest && !rest(arg))
			r = -ECANCELED;
	}
	work_fini(&w);
	if (!r && !e.n_compared)
		r = -ENODATA;
	if (!r)
		*out = e;
	return r;
}
