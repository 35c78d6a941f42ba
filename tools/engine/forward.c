#include "tools/engine/forward.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>

#include "tools/engine/vector.h"

/*
 * Per token: 2 * (parameters) flops, and 4 * n_heads * head_dim flops per layer and earlier token. Keys and
 * values are expanded to f32 once per chunk, layer and head; then a tile of queries at a time meets just the
 * keys that it may see, so that its scores stay in the second-level cache.
 */
enum { QUERY_TILE = 64 };

struct forward {
	const struct model *model;
	const struct vector_ops *ops;
	float *cosine, *sine; /* [context, head_dim / 2] */
	float *x;             /* [FORWARD_CHUNK, hidden]: the residual stream */
	float *normed;        /* [FORWARD_CHUNK, hidden] */
	float *qkv;           /* [FORWARD_CHUNK, (n_heads + 2 n_kv_heads) * head_dim] */
	float *attention;     /* [FORWARD_CHUNK, n_heads * head_dim] */
	float *gate_up;       /* [FORWARD_CHUNK, 2 * ffn] */
	float *inner;         /* [FORWARD_CHUNK, ffn] */
	float *keys, *values; /* [context, head_dim] */
	float *scores;        /* [QUERY_TILE, context] */
	float *memory;
};

/* One chunk of a request: n tokens from position on. */
struct chunk {
	const struct forward_request *request;
	uint32_t first; /* index of its first token in the request */
	uint32_t n;
	uint32_t position;
};

static uint32_t qkv_width(const struct model *m)
{
	return (m->n_heads + 2 * m->n_kv_heads) * m->head_dim;
}

static uint32_t q_width(const struct model *m)
{
	return m->n_heads * m->head_dim;
}

/* y [n, out] = x [n, in] * w [out, in]^T + add * y */
static void linear(const float *x, uint32_t n, uint32_t in, const float *w, uint32_t out, float add, float *y)
{
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)out, (int)in, 1, x, (int)in, w,
		(int)in, add, y, (int)out);
}

static void norm_rows(const struct forward *f, uint32_t n, const float *weight)
{
	uint32_t hidden = f->model->hidden;

	for (size_t i = 0; i < n; i++)
		f->ops->rms_norm(
			f->x + i * hidden, weight, hidden, f->model->rms_eps, f->normed + i * hidden);
}

/* Rotates queries and keys, and stores keys and values. */
static void rotate_and_store(struct forward *f, const struct chunk *c, uint32_t layer)
{
	const struct model *m = f->model;
	const struct forward_request *r = c->request;
	uint32_t dim = m->head_dim;

	for (uint32_t i = 0; i < c->n; i++) {
		uint32_t position = c->position + i;
		const float *cosine = f->cosine + (size_t)position * dim / 2;
		const float *sine = f->sine + (size_t)position * dim / 2;
		float *q = f->qkv + (size_t)i * qkv_width(m);
		float *k = q + q_width(m);
		float *v = k + m->n_kv_heads * dim;

		for (uint32_t h = 0; h < m->n_heads + m->n_kv_heads; h++)
			f->ops->rotate(q + h * dim, cosine, sine, dim);
		if (c->first + i < r->n_cached)
			continue;
		for (uint32_t h = 0; h < m->n_kv_heads; h++) {
			f->ops->to_half(k + h * dim, dim, kv_at(r->cache, r->table, layer, 0, position, h));
			f->ops->to_half(v + h * dim, dim, kv_at(r->cache, r->table, layer, 1, position, h));
		}
	}
}

static void expand(const struct forward *f, const struct forward_request *r, uint32_t layer, uint32_t plane,
	uint32_t head, uint32_t n, float *out)
{
	uint32_t dim = f->model->head_dim;

	for (uint32_t t = 0; t < n; t++)
		f->ops->from_half(
			kv_at(r->cache, r->table, layer, plane, t, head), dim, out + (size_t)t * dim);
}

/* Rows [first, first + n) of the chunk against keys and values of one head. */
static void attend_tile(
	struct forward *f, const struct chunk *c, uint32_t layer, uint32_t head, uint32_t first, uint32_t n)
{
	const struct model *m = f->model;
	const struct forward_request *r = c->request;
	uint32_t dim = m->head_dim;
	uint32_t seen = c->position + first + n;
	const size_t place = ((size_t)layer * m->n_heads + head) * r->received_stride;
	double *received = r->received ? r->received + place : NULL;
	uint16_t *resting = r->resting ? r->resting + place : NULL;

	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)seen, (int)dim, 1,
		f->qkv + (size_t)first * qkv_width(m) + head * dim, (int)qkv_width(m), f->keys, (int)dim, 0,
		f->scores, (int)seen);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t visible = c->position + first + i + 1;
		float *row = f->scores + (size_t)i * seen;

		f->ops->softmax(row, visible, 1.0f / sqrtf((float)dim));
		memset(row + visible, 0, (seen - visible) * sizeof *row);
		for (uint32_t t = 0; received && t < visible; t++)
			received[t] += (double)row[t];
		for (uint32_t t = 0; resting && t < visible; t++)
			resting[t] = (uint16_t)(resting[t] + (row[t] * (float)visible >= FORWARD_RESTING));
	}
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)dim, (int)seen, 1, f->scores,
		(int)seen, f->values, (int)dim, 0, f->attention + (size_t)first * q_width(m) + head * dim,
		(int)q_width(m));
}

static void attend(struct forward *f, const struct chunk *c, uint32_t layer)
{
	const struct model *m = f->model;
	uint32_t group = m->n_heads / m->n_kv_heads;

	for (uint32_t g = 0; g < m->n_kv_heads; g++) {
		expand(f, c->request, layer, 0, g, c->position + c->n, f->keys);
		expand(f, c->request, layer, 1, g, c->position + c->n, f->values);
		for (uint32_t h = g * group; h < (g + 1) * group; h++)
			for (uint32_t i = 0; i < c->n; i += QUERY_TILE)
				attend_tile(f, c, layer, h, i, c->n - i < QUERY_TILE ? c->n - i : QUERY_TILE);
	}
}

/* How many of the chunk's tokens, at its end, are to be collected, and the row of the first of them. */
static uint32_t collected(const struct chunk *c, uint32_t *row)
{
	const struct forward_request *r = c->request;
	uint32_t begin = r->n_tokens - r->n_collect;
	uint32_t end = c->first + c->n;

	*row = c->first > begin ? c->first - begin : 0;
	return end <= begin ? 0 : end - begin < c->n ? end - begin : c->n;
}

static void layer_run(struct forward *f, const struct chunk *c, uint32_t layer)
{
	const struct model *m = f->model;
	const struct model_layer *l = &m->layers[layer];
	uint32_t row, n = collected(c, &row);

	norm_rows(f, c->n, l->attention_norm);
	linear(f->normed, c->n, m->hidden, l->qkv, qkv_width(m), 0, f->qkv);
	rotate_and_store(f, c, layer);
	for (uint32_t i = 0; c->request->queries && i < n; i++)
		memcpy(c->request->queries + ((size_t)layer * c->request->n_collect + row + i) * q_width(m),
			f->qkv + (size_t)(c->n - n + i) * qkv_width(m), q_width(m) * sizeof(float));
	attend(f, c, layer);
	if (c->request->attention_out && n)
		memcpy(c->request->attention_out + ((size_t)layer * c->request->n_collect + row) * q_width(m),
			f->attention + (size_t)(c->n - n) * q_width(m), n * q_width(m) * sizeof(float));
	linear(f->attention, c->n, q_width(m), l->out, m->hidden, 1, f->x);

	norm_rows(f, c->n, l->ffn_norm);
	linear(f->normed, c->n, m->hidden, l->gate_up, 2 * m->ffn, 0, f->gate_up);
	for (size_t i = 0; i < c->n; i++)
		f->ops->swiglu(f->gate_up + i * 2 * m->ffn, f->gate_up + i * 2 * m->ffn + m->ffn, m->ffn,
			f->inner + i * m->ffn);
	linear(f->inner, c->n, m->ffn, l->down, m->hidden, 1, f->x);
}

static void chunk_run(struct forward *f, const struct chunk *c)
{
	const struct model *m = f->model;
	const struct forward_request *r = c->request;
	uint32_t row, n = collected(c, &row);

	for (size_t i = 0; i < c->n; i++)
		memcpy(f->x + i * m->hidden, m->embedding + (size_t)r->tokens[c->first + i] * m->hidden,
			m->hidden * sizeof(float));
	for (uint32_t layer = 0; layer < m->n_layers; layer++)
		layer_run(f, c, layer);
	if (!r->logits || !n)
		return;
	norm_rows(f, c->n, m->norm);
	linear(f->normed + (size_t)(c->n - n) * m->hidden, n, m->hidden, m->embedding, m->vocab, 0,
		r->logits + (size_t)row * m->vocab);
}

static int request_check(const struct model *m, const struct forward_request *r)
{
	if (r->n_tokens == 0 || r->n_tokens > m->context || r->position > m->context - r->n_tokens)
		return -EINVAL;
	if (r->position + r->n_tokens > r->table->n_blocks * KV_BLOCK_TOKENS)
		return -EINVAL;
	if (r->n_cached > r->n_tokens || r->n_collect > r->n_tokens)
		return -EINVAL;
	if ((r->received || r->resting) && r->received_stride < r->position + r->n_tokens)
		return -EINVAL;
	for (uint32_t i = 0; i < r->n_tokens; i++)
		if (r->tokens[i] >= m->vocab)
			return -EINVAL;
	return 0;
}

int forward_run(struct forward *f, const struct forward_request *request)
{
	int r = request_check(f->model, request);

	for (uint32_t done = 0; r == 0 && done < request->n_tokens;) {
		uint32_t position = request->position + done;
		uint32_t n = FORWARD_CHUNK - position % FORWARD_CHUNK;

		if (n > request->n_tokens - done)
			n = request->n_tokens - done;
		chunk_run(f, &(struct chunk){request, done, n, position});
		done += n;
	}
	return r;
}

static void rotation_fill(struct forward *f)
{
	uint32_t half = f->model->head_dim / 2;

	for (size_t position = 0; position < f->model->context; position++)
		for (size_t i = 0; i < half; i++) {
			double angle = (double)position * (double)f->model->inv_freq[i];

			f->cosine[position * half + i] = (float)cos(angle);
			f->sine[position * half + i] = (float)sin(angle);
		}
}

int forward_new(const struct model *m, struct forward **out)
{
	struct forward *f = calloc(1, sizeof *f);
	const struct {
		float **at;
		size_t n;
	} parts[] = {
		{&f->cosine, (size_t)m->context * m->head_dim / 2},
		{&f->sine, (size_t)m->context * m->head_dim / 2},
		{&f->x, (size_t)FORWARD_CHUNK * m->hidden},
		{&f->normed, (size_t)FORWARD_CHUNK * m->hidden},
		{&f->qkv, (size_t)FORWARD_CHUNK * qkv_width(m)},
		{&f->attention, (size_t)FORWARD_CHUNK * q_width(m)},
		{&f->gate_up, (size_t)FORWARD_CHUNK * 2 * m->ffn},
		{&f->inner, (size_t)FORWARD_CHUNK * m->ffn},
		{&f->keys, (size_t)m->context * m->head_dim},
		{&f->values, (size_t)m->context * m->head_dim},
		{&f->scores, (size_t)QUERY_TILE * m->context},
	};
	size_t total = 0;

	if (!f)
		return -ENOMEM;
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
		total += (parts[i].n + 15) & ~(size_t)15;
	f->memory = aligned_alloc(64, total * sizeof(float));
	if (!f->memory) {
		free(f);
		return -ENOMEM;
	}
	total = 0;
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
		*parts[i].at = f->memory + total;
		total += (parts[i].n + 15) & ~(size_t)15;
	}
	f->model = m;
	f->ops = vector_ops();
	rotation_fill(f);
	openblas_set_num_threads(1);
	*out = f;
	return 0;
}

struct forward *forward_free(struct forward *f)
{
	if (f) {
		free(f->memory);
		free(f);
	}
	return NULL;
}
