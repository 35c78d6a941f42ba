#include "kernels/cuda/measure/statistics.h"

#include "base/geometry.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/formula.h"

static_assert(STATISTICS_LANES == (int)QUANT_LANES, "the host's partial sums");

/* Sums over the features of one head of one token: this lane's part of them. */
struct statistics_sums {
	float norm, distance, dot;
};

/* One head of one token. */
struct statistics_head {
	const uint8_t *at; /* its first feature */
	uint32_t angles;   /* index of the token's row in the rotation's table */
};

/* STATISTICS_TOKENS tokens of one head. */
struct statistics_row {
	struct statistics_head head[STATISTICS_TOKENS]; /* a token past the last is the last again */
	const float *centre, *weight, *direction;       /* of the head */
	const float *cos, *sin;
	float inverse_square;
	uint32_t lane, mask;
};

template <uint32_t DTYPE> static __device__ float statistics_load(const uint8_t *head, uint32_t d)
{
	if (DTYPE == DTYPE_F32)
		return ((const float *)head)[d];
	return DTYPE == DTYPE_F16 ? simt_float(((const uint16_t *)head)[d])
				  : bf16_to_f32(((const uint16_t *)head)[d]);
}

static __device__ void statistics_add(
	struct statistics_sums *s, float x, float centre, float weight, float direction)
{
	const float c = x - centre;

	s->norm += x * x;
	s->distance += c * c * weight;
	s->dot += c * direction;
}

/* ---- Whole sixteens: lane l has feature (or pair) l of each. */

/* Features [from, from + n) have no rotation. */
template <uint32_t DTYPE>
static __device__ void statistics_span(const struct statistics_row &r, uint32_t from, uint32_t n,
	struct statistics_sums sums[STATISTICS_TOKENS])
{
#pragma unroll 1
	for (uint32_t d = from + r.lane; d < from + n / STATISTICS_LANES * STATISTICS_LANES;
		d += STATISTICS_LANES) {
		const float centre = r.centre[d], weight = r.weight[d], direction = r.direction[d];
		float x[STATISTICS_TOKENS];

#pragma unroll
		for (int k = 0; k < STATISTICS_TOKENS; k++)
			x[k] = statistics_load<DTYPE>(r.head[k].at, d);
#pragma unroll
		for (int k = 0; k < STATISTICS_TOKENS; k++)
			statistics_add(&sums[k], x[k], centre, weight, direction);
	}
}

/* Pair j is features first + j and first + n + j. */
template <uint32_t DTYPE>
static __device__ void statistics_half(const struct statistics_row &r, uint32_t first, uint32_t n,
	struct statistics_sums sums[STATISTICS_TOKENS])
{
#pragma unroll 1
	for (uint32_t j = r.lane; j < n / STATISTICS_LANES * STATISTICS_LANES; j += STATISTICS_LANES) {
		const uint32_t a = first + j, b = a + n;
		const float centre[2] = {r.centre[a], r.centre[b]}, weight[2] = {r.weight[a], r.weight[b]};
		const float direction[2] = {r.direction[a], r.direction[b]};
		float x[STATISTICS_TOKENS], y[STATISTICS_TOKENS];

#pragma unroll
		for (int k = 0; k < STATISTICS_TOKENS; k++) {
			x[k] = statistics_load<DTYPE>(r.head[k].at, a);
			y[k] = statistics_load<DTYPE>(r.head[k].at, b);
		}
#pragma unroll
		for (int k = 0; k < STATISTICS_TOKENS; k++) {
			rope_undo(&x[k], &y[k], r.cos[r.head[k].angles + j], r.sin[r.head[k].angles + j],
				r.inverse_square);
			statistics_add(&sums[k], x[k], centre[0], weight[0], direction[0]);
			statistics_add(&sums[k], y[k], centre[1], weight[1], direction[1]);
		}
	}
}

/* Pair j is features first + 2 j and the next; the other of a pair is the neighbouring lane's. */
template <uint32_t DTYPE>
static __device__ void statistics_interleaved(const struct statistics_row &r, uint32_t first, uint32_t n,
	struct statistics_sums sums[STATISTICS_TOKENS])
{
#pragma unroll 1
	for (uint32_t o = r.lane; o < n / STATISTICS_LANES * STATISTICS_LANES * 2; o += STATISTICS_LANES) {
		const uint32_t d = first + o;
		const float centre = r.centre[d], weight = r.weight[d], direction = r.direction[d];
		float x[STATISTICS_TOKENS];

#pragma unroll
		for (int k = 0; k < STATISTICS_TOKENS; k++)
			x[k] = statistics_load<DTYPE>(r.head[k].at, d);
#pragma unroll
		for (int k = 0; k < STATISTICS_TOKENS; k++) {
			const float other = __shfl_xor_sync(r.mask, x[k], 1);
			float a = o % 2 ? other : x[k], b = o % 2 ? x[k] : other;

			rope_undo(&a, &b, r.cos[r.head[k].angles + o / 2], r.sin[r.head[k].angles + o / 2],
				r.inverse_square);
			statistics_add(&sums[k], o % 2 ? b : a, centre, weight, direction);
		}
	}
}

/* ---- What is left of spans, one after the other, into one sum: a lane for each token. */

template <uint32_t DTYPE>
static __device__ void statistics_rest(const struct statistics_row &r, const struct statistics_head &h,
	uint32_t d, struct statistics_sums *sums)
{
	statistics_add(sums, statistics_load<DTYPE>(h.at, d), r.centre[d], r.weight[d], r.direction[d]);
}

template <uint32_t DTYPE, uint32_t KIND>
static __device__ struct statistics_sums statistics_tail(const struct statistics_row &r,
	const struct statistics_head &h, uint32_t dim, uint32_t from, uint32_t n)
{
	const uint32_t start = KIND == ROPE_NONE ? dim : from, end = KIND == ROPE_NONE ? dim : from + 2 * n;
	struct statistics_sums sums = {0, 0, 0};

#pragma unroll 1
	for (uint32_t d = start / STATISTICS_LANES * STATISTICS_LANES; d < start; d++)
		statistics_rest<DTYPE>(r, h, d, &sums);
#pragma unroll 1
	for (uint32_t j = n / STATISTICS_LANES * STATISTICS_LANES; KIND != ROPE_NONE && j < n; j++) {
		const uint32_t a = KIND == ROPE_HALF ? from + j : from + 2 * j,
			       b = KIND == ROPE_HALF ? a + n : a + 1;
		float x = statistics_load<DTYPE>(h.at, a), y = statistics_load<DTYPE>(h.at, b);

		rope_undo(&x, &y, r.cos[h.angles + j], r.sin[h.angles + j], r.inverse_square);
		statistics_add(&sums, x, r.centre[a], r.weight[a], r.direction[a]);
		statistics_add(&sums, y, r.centre[b], r.weight[b], r.direction[b]);
	}
#pragma unroll 1
	for (uint32_t d = end + (dim - end) / STATISTICS_LANES * STATISTICS_LANES; d < dim; d++)
		statistics_rest<DTYPE>(r, h, d, &sums);
	return sums;
}

/* The partial sums, halves added to each other until one is left: quant_fold's order. */
static __device__ float statistics_fold(uint32_t mask, float sum)
{
	for (int half = STATISTICS_LANES / 2; half > 0; half /= 2)
		sum += __shfl_xor_sync(mask, sum, half);
	return sum;
}

/* Where token t, or the last when that is past it, has a head. */
static __device__ struct statistics_head statistics_find(
	const struct statistics_item &item, uint32_t half, uint32_t head, uint32_t t)
{
	const uint32_t token = t < item.n_tokens ? t : item.n_tokens - 1, at = item.offset + token;
	const uint32_t block = at / item.block_tokens;

	return {item.base + (item.blocks ? item.blocks[block] : block) * item.block_stride +
			at % item.block_tokens * item.token_stride + head * item.head_stride,
		token * half};
}

template <uint32_t DTYPE, uint32_t KIND>
static __device__ void statistics_run(const struct statistics_item &item, const struct statistics_plane &p)
{
	const uint32_t row = blockIdx.y * STATISTICS_ROWS + threadIdx.x / STATISTICS_LANES;
	const uint32_t head = row % p.n_heads, token = row / p.n_heads * STATISTICS_TOKENS,
		       half = p.rope_dim / 2;
	struct statistics_sums sums[STATISTICS_TOKENS] = {}, mine = {0, 0, 0};
	struct statistics_row r;

	if (token >= item.n_tokens)
		return;
	r.lane = threadIdx.x % STATISTICS_LANES;
	r.mask = 0xffffu << threadIdx.x % 32 / STATISTICS_LANES * STATISTICS_LANES;
	r.centre = item.centre + head * p.dim;
	r.weight = item.weight + head * p.dim;
	r.direction = item.direction + head * p.dim;
	r.cos = item.cos;
	r.sin = item.sin;
	r.inverse_square = KIND == ROPE_NONE ? 1.0f : 1.0f / (p.rope_scale * p.rope_scale);
#pragma unroll
	for (uint32_t k = 0; k < STATISTICS_TOKENS; k++)
		r.head[k] = statistics_find(item, half, head, token + k);
	statistics_span<DTYPE>(r, 0, KIND == ROPE_NONE ? p.dim : p.rope_offset, sums);
	if (KIND == ROPE_HALF)
		statistics_half<DTYPE>(r, p.rope_offset, half, sums);
	if (KIND == ROPE_INTERLEAVED)
		statistics_interleaved<DTYPE>(r, p.rope_offset, half, sums);
	if (KIND != ROPE_NONE)
		statistics_span<DTYPE>(r, p.rope_offset + 2 * half, p.dim - p.rope_offset - 2 * half, sums);
#pragma unroll
	for (uint32_t k = 0; k < STATISTICS_TOKENS; k++) {
		const struct statistics_sums all = {statistics_fold(r.mask, sums[k].norm),
			statistics_fold(r.mask, sums[k].distance), statistics_fold(r.mask, sums[k].dot)};

		mine = r.lane == k ? all : mine;
	}
	if (r.lane < STATISTICS_TOKENS && token + r.lane < item.n_tokens) {
		const struct statistics_sums tail = statistics_tail<DTYPE, KIND>(
			r, statistics_find(item, half, head, token + r.lane), p.dim, p.rope_offset, half);
		float *const out = item.out + ((uint64_t)(token + r.lane) * p.n_heads + head) * 3;

		out[0] = mine.norm + tail.norm;
		out[1] = mine.distance + tail.distance;
		out[2] = mine.dot + tail.dot;
	}
}

template <uint32_t DTYPE>
static __device__ void statistics_by_kind(
	const struct statistics_item &item, const struct statistics_plane &p)
{
	if (!item.cos || p.rope_kind == ROPE_NONE)
		statistics_run<DTYPE, ROPE_NONE>(item, p);
	else if (p.rope_kind == ROPE_HALF)
		statistics_run<DTYPE, ROPE_HALF>(item, p);
	else
		statistics_run<DTYPE, ROPE_INTERLEAVED>(item, p);
}

extern "C" __global__ void __launch_bounds__(STATISTICS_THREADS, 3)
	statistics_tokens(const struct statistics_tokens_args a)
{
	const struct statistics_item item = a.items[blockIdx.x];
	const struct statistics_plane p = item.plane ? a.planes[1] : a.planes[0];

	if (p.dtype == DTYPE_F16)
		statistics_by_kind<DTYPE_F16>(item, p);
	else if (p.dtype == DTYPE_BF16)
		statistics_by_kind<DTYPE_BF16>(item, p);
	else
		statistics_by_kind<DTYPE_F32>(item, p);
}
