/*
 * Between paged memory and rows of f32. Shapes: n tokens of n_heads x dim elements at any strides; x
 * [n_tokens, x_stride], of which a call touches w = n_heads * dim columns. Traffic a token and layer: w * 2
 * bytes on the paged side (4 in f32), w * 4 on the other; the table of a rotation, rope_dim * 4, is shared by
 * the heads, and mean and scale, w * 8, stay in the first-level cache. Floor: at 10 GB/s a core w = 128 takes
 * 77 ns when nothing is cached; with both sides in the second-level cache the conversions are the floor, one
 * vector of each a cycle.
 */
#include "kernels/cpu/elements.h"
#include "kernels/cpu/variant.h"

SIMD_FN void element_store(uint32_t dtype, uint8_t *p, float x)
{
	if (dtype == DTYPE_F32) {
		memcpy(p, &x, sizeof x);
		return;
	}
	const uint16_t h = dtype == DTYPE_F16 ? f16_from_f32(x) : bf16_from_f32(x);
	memcpy(p, &h, sizeof h);
}

SIMD_FN void vector_store(uint32_t dtype, uint8_t *p, vf v)
{
	if (dtype == DTYPE_F16)
		vf_to_f16(p, v);
	else if (dtype == DTYPE_BF16)
		vf_to_bf16(p, v);
	else
		memcpy(p, &v, sizeof v);
}

/* What a row of one head needs: its bytes in the pages, its place in x, in the mean and in the scale (or
 * NULL), and the rotation's table row. */
struct head {
	uint8_t *page;
	float *x;
	const float *mean;
	const float *scale;
	const float *cos;
	const float *sin;
	float inverse_square;
};

/* On the way in (v - mean) * scale, on the way out v * scale + mean. */
SIMD_FN vf centre(const struct head *head, size_t d, vf v)
{
	if (head->mean)
		v -= vf_load(head->mean + d);
	if (head->scale)
		v *= vf_load(head->scale + d);
	return v;
}

SIMD_FN float centre_one(const struct head *head, size_t d, float x)
{
	if (head->mean)
		x -= head->mean[d];
	return head->scale ? x * head->scale[d] : x;
}

/* Adding a zero would lose the sign of another, so a mean that is not there is not added. */
SIMD_FN vf restore(const struct head *head, size_t d, vf v)
{
	if (head->scale)
		v *= vf_load(head->scale + d);
	if (head->mean)
		v += vf_load(head->mean + d);
	return v;
}

SIMD_FN float restore_one(const struct head *head, size_t d, float x)
{
	if (head->scale)
		x *= head->scale[d];
	return head->mean ? x + head->mean[d] : x;
}

/* Features [from, to) have no rotation. */
SIMD_FN void span_gather(uint32_t dtype, const struct head *head, size_t from, size_t to)
{
	const size_t es = dtype_bytes(dtype);
	size_t d = from;
	for (; d + VF_LANES <= to; d += VF_LANES)
		vf_store(head->x + d, centre(head, d, vector_load(dtype, head->page + d * es)));
	for (; d < to; d++)
		head->x[d] = centre_one(head, d, element_load(dtype, head->page + d * es));
}

SIMD_FN void span_scatter(uint32_t dtype, const struct head *head, size_t from, size_t to)
{
	const size_t es = dtype_bytes(dtype);
	size_t d = from;
	for (; d + VF_LANES <= to; d += VF_LANES)
		vector_store(dtype, head->page + d * es, restore(head, d, vf_load(head->x + d)));
	for (; d < to; d++)
		element_store(dtype, head->page + d * es, restore_one(head, d, head->x[d]));
}

/* Pair j is (first + j, first + n + j) in the half form, (first + 2j, first + 2j + 1) interleaved: a and b
 * below are the features at which vector j of the two begins. */
SIMD_FN void pairs_gather(uint32_t dtype, uint32_t kind, const struct head *head, size_t first, size_t n)
{
	const size_t es = dtype_bytes(dtype);
	size_t j = 0;
	for (; j + VF_LANES <= n; j += VF_LANES) {
		const size_t a = kind == ROPE_HALF ? first + j : first + 2 * j;
		const size_t b = kind == ROPE_HALF ? a + n : a + VF_LANES;
		vf u = vector_load(dtype, head->page + a * es);
		vf v = vector_load(dtype, head->page + b * es);
		if (kind == ROPE_INTERLEAVED)
			vf_split(&u, &v);
		const vf cos_ = vf_load(head->cos + j);
		const vf sin_ = vf_load(head->sin + j);
		vf x = (u * cos_ + v * sin_) * head->inverse_square;
		vf y = (v * cos_ - u * sin_) * head->inverse_square;
		if (kind == ROPE_INTERLEAVED)
			vf_interleave(&x, &y);
		vf_store(head->x + a, centre(head, a, x));
		vf_store(head->x + b, centre(head, b, y));
	}
	for (; j < n; j++) {
		const size_t a = kind == ROPE_HALF ? first + j : first + 2 * j;
		const size_t b = kind == ROPE_HALF ? a + n : a + 1;
		float x = element_load(dtype, head->page + a * es);
		float y = element_load(dtype, head->page + b * es);
		rope_undo(&x, &y, head->cos[j], head->sin[j], head->inverse_square);
		head->x[a] = centre_one(head, a, x);
		head->x[b] = centre_one(head, b, y);
	}
}

SIMD_FN void pairs_scatter(uint32_t dtype, uint32_t kind, const struct head *head, size_t first, size_t n)
{
	const size_t es = dtype_bytes(dtype);
	size_t j = 0;
	for (; j + VF_LANES <= n; j += VF_LANES) {
		const size_t a = kind == ROPE_HALF ? first + j : first + 2 * j;
		const size_t b = kind == ROPE_HALF ? a + n : a + VF_LANES;
		vf x = restore(head, a, vf_load(head->x + a));
		vf y = restore(head, b, vf_load(head->x + b));
		if (kind == ROPE_INTERLEAVED)
			vf_split(&x, &y);
		const vf cos_ = vf_load(head->cos + j);
		const vf sin_ = vf_load(head->sin + j);
		vf u = x * cos_ - y * sin_;
		vf v = y * cos_ + x * sin_;
		if (kind == ROPE_INTERLEAVED)
			vf_interleave(&u, &v);
		vector_store(dtype, head->page + a * es, u);
		vector_store(dtype, head->page + b * es, v);
	}
	for (; j < n; j++) {
		const size_t a = kind == ROPE_HALF ? first + j : first + 2 * j;
		const size_t b = kind == ROPE_HALF ? a + n : a + 1;
		float x = restore_one(head, a, head->x[a]);
		float y = restore_one(head, b, head->x[b]);
		rope_rotate(&x, &y, head->cos[j], head->sin[j]);
		element_store(dtype, head->page + a * es, x);
		element_store(dtype, head->page + b * es, y);
	}
}

enum direction { GATHER, SCATTER };

/* One call's arguments, so that they pass through the levels below as one. x is written by GATHER only. */
struct rows {
	const struct plane *plane;
	const struct kv_pages *pages;
	const struct kv_run *run;
	const uint16_t *tokens;
	size_t n_tokens;
	const struct rope_table *rope;
	const float *mean;
	const float *scale;
	float *x;
	size_t x_stride;
};

/* dtype, kind and direction are constants where this is inlined. */
SIMD_FN void rows_move(const struct rows *r, uint32_t dtype, uint32_t kind, enum direction direction)
{
	const struct plane *plane = r->plane;
	const size_t half = plane->rope_dim / 2;
	const size_t from = plane->rope_offset;
	size_t n_heads = plane->n_heads;
	size_t dim = plane->dim;
	/* Heads side by side are one long head to whoever need not tell their features apart. */
	if (kind == ROPE_NONE && (r->pages->head_stride == dim * dtype_bytes(dtype) || n_heads == 1)) {
		dim *= n_heads;
		n_heads = 1;
	}
	const float square = plane->rope_scale * plane->rope_scale;
	struct head head = {.inverse_square = kind == ROPE_NONE ? 1.0f : 1.0f / square};
	for (size_t i = 0; i < r->n_tokens; i++) {
		uint8_t *token = token_at(r->pages, r->run, r->tokens[i]);
		if (kind != ROPE_NONE) {
			head.cos = r->rope->cos + i * half;
			head.sin = r->rope->sin + i * half;
		}
		for (size_t h = 0; h < n_heads; h++) {
			head.page = token + h * r->pages->head_stride;
			head.x = r->x + i * r->x_stride + h * dim;
			head.mean = r->mean ? r->mean + h * dim : NULL;
			head.scale = r->scale ? r->scale + h * dim : NULL;
			const size_t start = kind == ROPE_NONE ? dim : from;
			const size_t end = kind == ROPE_NONE ? dim : from + 2 * half;
			if (direction == GATHER) {
				span_gather(dtype, &head, 0, start);
				if (kind != ROPE_NONE)
					pairs_gather(dtype, kind, &head, from, half);
				span_gather(dtype, &head, end, dim);
			} else {
				span_scatter(dtype, &head, 0, start);
				if (kind != ROPE_NONE)
					pairs_scatter(dtype, kind, &head, from, half);
				span_scatter(dtype, &head, end, dim);
			}
		}
	}
}

SIMD_FN void rows_by_kind(const struct rows *r, uint32_t dtype, enum direction direction)
{
	if (!r->rope || r->plane->rope_kind == ROPE_NONE)
		rows_move(r, dtype, ROPE_NONE, direction);
	else if (r->plane->rope_kind == ROPE_HALF)
		rows_move(r, dtype, ROPE_HALF, direction);
	else
		rows_move(r, dtype, ROPE_INTERLEAVED, direction);
}

SIMD_FN void rows_by_dtype(const struct rows *r, enum direction direction)
{
	if (r->plane->dtype == DTYPE_F16)
		rows_by_kind(r, DTYPE_F16, direction);
	else if (r->plane->dtype == DTYPE_BF16)
		rows_by_kind(r, DTYPE_BF16, direction);
	else
		rows_by_kind(r, DTYPE_F32, direction);
}

void VARIANT(gather)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	const uint16_t *tokens, size_t n_tokens, const struct rope_table *rope, const float *mean,
	const float *scale, float *x, size_t x_stride)
{
	const struct rows r = {plane, pages, run, tokens, n_tokens, rope, mean, scale, x, x_stride};
	rows_by_dtype(&r, GATHER);
}

void VARIANT(scatter)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	const uint16_t *tokens, size_t n_tokens, const struct rope_table *rope, const float *mean,
	const float *scale, const float *x, size_t x_stride)
{
	const struct rows r = {plane, pages, run, tokens, n_tokens, rope, mean, scale, (float *)x, x_stride};
	rows_by_dtype(&r, SCATTER);
}

/* Raw copies move w elements each way. */
static void raw_move(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	const uint16_t *tokens, size_t n_tokens, uint8_t *raw, enum direction direction)
{
	size_t n_heads = plane->n_heads;
	size_t head_bytes = plane->dim * dtype_bytes(plane->dtype);
	if (pages->head_stride == head_bytes) {
		head_bytes *= n_heads;
		n_heads = 1;
	}
	for (size_t i = 0; i < n_tokens; i++) {
		uint8_t *token = token_at(pages, run, tokens[i]);
		for (size_t h = 0; h < n_heads; h++, raw += head_bytes) {
			uint8_t *page = token + h * pages->head_stride;
			if (direction == GATHER)
				memcpy(raw, page, head_bytes);
			else
				memcpy(page, raw, head_bytes);
		}
	}
}

void VARIANT(gather_raw)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	const uint16_t *tokens, size_t n_tokens, uint8_t *raw)
{
	raw_move(plane, pages, run, tokens, n_tokens, raw, GATHER);
}

void VARIANT(scatter_raw)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	const uint16_t *tokens, size_t n_tokens, const uint8_t *raw)
{
	raw_move(plane, pages, run, tokens, n_tokens, (uint8_t *)raw, SCATTER);
}
