/*
 * What the search for attention sinks looks at: three sums over the features of every head of every token.
 * Traffic a token and layer: w * 2 bytes read from the pages (4 in f32); centre, weight and direction, 12 w
 * bytes, stay in the first-level cache. Floor: at 10 GB/s a core w = 128 takes 26 ns when nothing is cached;
 * else eight operations on each vector.
 *
 * Order of the sums, which every variant keeps: sixteen partial sums. Of a rotated span in the half form,
 * pair j goes to sum j % 16, its first feature, then its second; of anything else, feature d of the span goes
 * to sum d % 16. Pairs (or features without a rotation) past the last whole sixteen go to one sum of their
 * own, span after span.
 */
#include "kernels/cpu/elements.h"
#include "kernels/cpu/variant.h"

struct sums {
	vf norm[BLOCK_VECTORS], distance[BLOCK_VECTORS], dot[BLOCK_VECTORS];
	struct token_statistic tail;
};

/* One head of one token. */
struct head {
	const uint8_t *page;
	const float *centre, *weight, *direction;
	const float *cos, *sin;
	float inverse_square;
	struct sums sums;
};

SIMD_FN void add_vector(struct head *head, int k, size_t d, vf x)
{
	const vf c = x - vf_load(head->centre + d);
	head->sums.norm[k] += x * x;
	head->sums.distance[k] += c * c * vf_load(head->weight + d);
	head->sums.dot[k] += c * vf_load(head->direction + d);
}

SIMD_FN void add_one(struct head *head, size_t d, float x)
{
	const float c = x - head->centre[d];
	head->sums.tail.norm += x * x;
	head->sums.tail.distance += c * c * head->weight[d];
	head->sums.tail.dot += c * head->direction[d];
}

/* Features [from, to) have no rotation. */
SIMD_FN void span_add(uint32_t dtype, struct head *head, size_t from, size_t to)
{
	const size_t es = dtype_bytes(dtype);
	size_t d = from;
	for (; d + QUANT_LANES <= to; d += QUANT_LANES)
		for (int k = 0; k < BLOCK_VECTORS; k++)
			add_vector(head, k, d + k * VF_LANES,
				vector_load(dtype, head->page + (d + k * VF_LANES) * es));
	for (; d < to; d++)
		add_one(head, d, element_load(dtype, head->page + d * es));
}

SIMD_FN void half_add(uint32_t dtype, struct head *head, size_t first, size_t n)
{
	const size_t es = dtype_bytes(dtype);
	size_t j = 0;
	for (; j + QUANT_LANES <= n; j += QUANT_LANES)
		for (int k = 0; k < BLOCK_VECTORS; k++) {
			const size_t at = j + k * VF_LANES, a = first + at, b = a + n;
			const vf u = vector_load(dtype, head->page + a * es);
			const vf v = vector_load(dtype, head->page + b * es);
			const vf cos_ = vf_load(head->cos + at), sin_ = vf_load(head->sin + at);
			add_vector(head, k, a, (u * cos_ + v * sin_) * head->inverse_square);
			add_vector(head, k, b, (v * cos_ - u * sin_) * head->inverse_square);
		}
	for (; j < n; j++) {
		float x = element_load(dtype, head->page + (first + j) * es);
		float y = element_load(dtype, head->page + (first + n + j) * es);
		rope_undo(&x, &y, head->cos[j], head->sin[j], head->inverse_square);
		add_one(head, first + j, x);
		add_one(head, first + n + j, y);
	}
}

/* The widest variant needs sixteen pairs for its two vectors, so all go by sixteens of pairs. */
SIMD_FN void interleaved_add(uint32_t dtype, struct head *head, size_t first, size_t n)
{
	const size_t es = dtype_bytes(dtype);
	size_t j = 0;
	for (; j + QUANT_LANES <= n; j += QUANT_LANES)
		for (int k = 0; k < 2 * BLOCK_VECTORS; k += 2) {
			const size_t at = j + k / 2 * VF_LANES, a = first + 2 * at, b = a + VF_LANES;
			vf u = vector_load(dtype, head->page + a * es);
			vf v = vector_load(dtype, head->page + b * es);
			vf_split(&u, &v);
			const vf cos_ = vf_load(head->cos + at), sin_ = vf_load(head->sin + at);
			vf x = (u * cos_ + v * sin_) * head->inverse_square;
			vf y = (v * cos_ - u * sin_) * head->inverse_square;
			vf_interleave(&x, &y);
			add_vector(head, k % BLOCK_VECTORS, a, x);
			add_vector(head, (k + 1) % BLOCK_VECTORS, b, y);
		}
	for (; j < n; j++) {
		float x = element_load(dtype, head->page + (first + 2 * j) * es);
		float y = element_load(dtype, head->page + (first + 2 * j + 1) * es);
		rope_undo(&x, &y, head->cos[j], head->sin[j], head->inverse_square);
		add_one(head, first + 2 * j, x);
		add_one(head, first + 2 * j + 1, y);
	}
}

struct rows {
	const struct plane *plane;
	const struct kv_pages *pages;
	const struct kv_run *run;
	size_t n_tokens;
	const struct rope_table *rope;
	const struct statistics_basis *basis;
	struct token_statistic *out;
};

/* dtype and kind are constants where this is inlined. */
SIMD_FN void rows_add(const struct rows *r, uint32_t dtype, uint32_t kind)
{
	const struct plane *plane = r->plane;
	const size_t half = plane->rope_dim / 2, from = plane->rope_offset, dim = plane->dim;
	const size_t start = kind == ROPE_NONE ? dim : from, end = kind == ROPE_NONE ? dim : from + 2 * half;
	const float square = plane->rope_scale * plane->rope_scale;
	struct token_statistic *out = r->out;
	for (size_t i = 0; i < r->n_tokens; i++) {
		const uint8_t *token = token_at(r->pages, r->run, (uint32_t)i);
		for (size_t h = 0; h < plane->n_heads; h++, out++) {
			struct head head = {.page = token + h * r->pages->head_stride,
				.centre = r->basis->centre + h * dim,
				.weight = r->basis->weight + h * dim,
				.direction = r->basis->direction + h * dim,
				.cos = kind == ROPE_NONE ? NULL : r->rope->cos + i * half,
				.sin = kind == ROPE_NONE ? NULL : r->rope->sin + i * half,
				.inverse_square = kind == ROPE_NONE ? 1.0f : 1.0f / square};
			span_add(dtype, &head, 0, start);
			if (kind == ROPE_HALF)
				half_add(dtype, &head, from, half);
			else if (kind == ROPE_INTERLEAVED)
				interleaved_add(dtype, &head, from, half);
			span_add(dtype, &head, end, dim);
			out->norm = block_sum(head.sums.norm) + head.sums.tail.norm;
			out->distance = block_sum(head.sums.distance) + head.sums.tail.distance;
			out->dot = block_sum(head.sums.dot) + head.sums.tail.dot;
		}
	}
}

SIMD_FN void rows_by_kind(const struct rows *r, uint32_t dtype)
{
	if (!r->rope || r->plane->rope_kind == ROPE_NONE)
		rows_add(r, dtype, ROPE_NONE);
	else if (r->plane->rope_kind == ROPE_HALF)
		rows_add(r, dtype, ROPE_HALF);
	else
		rows_add(r, dtype, ROPE_INTERLEAVED);
}

void VARIANT(statistics)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	size_t n_tokens, const struct rope_table *rope, const struct statistics_basis *basis,
	struct token_statistic *out)
{
	const struct rows r = {plane, pages, run, n_tokens, rope, basis, out};
	if (plane->dtype == DTYPE_F16)
		rows_by_kind(&r, DTYPE_F16);
	else if (plane->dtype == DTYPE_BF16)
		rows_by_kind(&r, DTYPE_BF16);
	else
		rows_by_kind(&r, DTYPE_F32);
}
