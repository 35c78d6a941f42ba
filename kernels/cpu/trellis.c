/*
 * Coefficients to levels and back, along the trellis of base/levels.h. Shapes: c [r, c_stride] f32, codes
 * [r, codes_stride] i16, T tokens used. A token's path runs through its components, so tokens are
 * independent, and a vector works on VF_LANES of them. Viterbi's algorithm with four states: every state can
 * be left by an even and by an odd level; of each parity the one nearest to the coefficient is tried, and
 * zero.
 *
 * Traffic a coefficient: 4 bytes read, 2 written, and 10 bytes of decisions to and from the second-level
 * cache. Floor: arithmetic, about 110 operations forth and 30 back; in 16 lanes at one operation a cycle 9
 * cycles a coefficient.
 */
#include "kernels/cpu/simd.h"
#include "kernels/cpu/variant.h"
#include "kernels/levels.h"

enum { BRANCHES = 4 };

/* 1.5 * 2^23: adding it rounds to nearest even. */
static const float rounder = 12582912.0f;

SIMD_FN vf vf_select(vi mask, vf a, vf b)
{
	return (vf)vi_select(mask, (vi)a, (vi)b);
}

SIMD_FN vf vf_round(vf v)
{
	return (v + rounder) - rounder;
}

/* -1 where k, a whole number, is odd. */
SIMD_FN vi vf_odd(vf k)
{
	return -((vi)(k + rounder) & 1);
}

SIMD_FN void vi_store_i16(int16_t *p, vi v)
{
	vi_store_high((uint8_t *)p, v << 16);
}

SIMD_FN vi vi_from_i16(const int16_t *p)
{
#if defined(__AVX512F__)
	return (vi)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
	return (vi)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)p));
#else
	return (vi){p[0], p[1], p[2], p[3]};
#endif
}

SIMD_FN vf vf_from_i32(vi v)
{
#if defined(__AVX512F__)
	return (vf)_mm512_cvtepi32_ps((__m512i)v);
#elif defined(__AVX2__)
	return (vf)_mm256_cvtepi32_ps((__m256i)v);
#else
	return __builtin_convertvector(v, vf);
#endif
}

/* One set of one component: what its levels cost and stand for. */
struct quantiser {
	struct levels_cost cost;
	float shrink; /* 2^-shift */
	float set;
	float bias[2];
};

SIMD_FN struct quantiser quantiser_of(const struct levels_coder *coder, struct levels_row row, unsigned set)
{
	struct quantiser q = {coder->cost[row.table][set], 1.0f / (float)(1u << row.shift), (float)set,
		{coder->bias[row.table][set][0], coder->bias[row.table][set][1]}};
	/* Low bits have no table and cost what they take. */
	q.cost.base += LEVELS_LAMBDA * row.shift;
	q.cost.zero += LEVELS_LAMBDA * row.shift;
	return q;
}

SIMD_FN vf level_value(const struct quantiser *q, vf k)
{
	const vf bias = vf_select(k > 1.0f, vf_all(q->bias[1]), vf_all(q->bias[0]));
	const vf value = (k + k) - q->set + bias;
	return vf_select(k > 0.0f, value, vf_all(0.0f));
}

SIMD_FN vf level_cost(const struct quantiser *q, vf a, vf k)
{
	const vf d = a - level_value(q, k);
	const vf v = k * q->shrink;
	const vf bits = (q->cost.bend * v + q->cost.slope) * v + q->cost.base;
	return d * d + vf_select(k > 0.0f, bits, vf_all(q->cost.zero));
}

/* The best even and the best odd level of one set for magnitudes a, and what they cost. */
SIMD_FN void branches(const struct quantiser *q, vf a, vf k[2], vf cost[2])
{
	const vf at = (a + q->set) * 0.5f;
	const vf near = vf_round(at);
	const vf other = near + vf_select(at >= near, vf_all(1.0f), vf_all(-1.0f));
	const vf near_cost = level_cost(q, a, near);
	const vf other_cost = level_cost(q, a, other);
	const vf zero_cost = a * a + q->cost.zero;
	const vi odd = vf_odd(near);
	k[0] = vf_select(odd, other, near);
	cost[0] = vf_select(odd, other_cost, near_cost);
	k[1] = vf_select(odd, near, other);
	cost[1] = vf_select(odd, near_cost, other_cost);
	const vi zero = zero_cost < cost[0];
	k[0] = vf_select(zero, vf_all(0.0f), k[0]);
	cost[0] = vf_select(zero, zero_cost, cost[0]);
}

/* What Viterbi's way back needs of one component and VF_LANES tokens. */
struct decision {
	int16_t level[BRANCHES][VF_LANES]; /* by set * 2 + parity */
	int16_t second[VF_LANES]; /* bit s: state s was reached from the second of its predecessors */
};
_Static_assert(sizeof(struct decision) * 16 / VF_LANES == 16 * 10, "levels_work_bytes");

struct tile {
	const float *c;
	size_t c_stride;
	size_t r;
	const struct levels_coder *coder;
	const struct levels_row *rows;
	float inverse;
	float step;
	int16_t *codes;
	size_t codes_stride;
	float *lost, *kept;
	struct decision *decisions;
};

/* The last tile of a row may be narrower than a vector. */
SIMD_FN vf load_up_to(const float *p, size_t n)
{
	float padded[VF_LANES] = {0};
	if (n >= VF_LANES)
		return vf_load(p);
	memcpy(padded, p, n * sizeof *p);
	return vf_load(padded);
}

SIMD_FN void store_up_to(float *p, vf v, size_t n)
{
	float padded[VF_LANES];
	if (n >= VF_LANES) {
		vf_store(p, v);
		return;
	}
	vf_store(padded, v);
	memcpy(p, padded, n * sizeof *p);
}

/* Forth: cost[s] of the best path to state s. Returns the best last state. */
static vi tile_forth(const struct tile *t, size_t first, size_t n)
{
	/* No path begins anywhere but in state 0. */
	vf cost[4] = {vf_all(0.0f), vf_all(1e30f), vf_all(1e30f), vf_all(1e30f)};
	for (size_t i = 0; i < t->r; i++) {
		const struct quantiser q[2] = {
			quantiser_of(t->coder, t->rows[i], 0), quantiser_of(t->coder, t->rows[i], 1)};
		struct decision *decision = &t->decisions[i];
		vf k[BRANCHES];
		vf step[BRANCHES];
		const vf y = load_up_to(t->c + i * t->c_stride + first, n);
		const vf a = vf_min(vf_abs(y) * t->inverse, vf_all(2.0f * LEVELS_MAX - 4.0f));
		branches(&q[0], a, k, step);
		branches(&q[1], a, k + 2, step + 2);
		const vf even[4] = {
			cost[0] + step[0], cost[1] + step[0], cost[2] + step[2], cost[3] + step[2]};
		const vf odd[4] = {
			cost[0] + step[1], cost[1] + step[1], cost[2] + step[3], cost[3] + step[3]};
		/* levels_next: 0 from 0 even, 1 odd; 1 from 2 even, 3 odd; 2 from 0 odd, 1 even; 3 from 2
		 * odd, 3 even. */
		const vf one[4] = {even[0], even[2], odd[0], odd[2]};
		const vf two[4] = {odd[1], odd[3], even[1], even[3]};
		vi second = {0};
		for (int s = 0; s < 4; s++) {
			const vi better = two[s] < one[s];
			cost[s] = vf_select(better, two[s], one[s]);
			second |= better & 1 << s;
		}
		/* Costs only matter against each other; kept small they lose no digits. */
		const vf least = vf_min(vf_min(cost[0], cost[1]), vf_min(cost[2], cost[3]));
		for (int s = 0; s < 4; s++)
			cost[s] -= least;
		for (int b = 0; b < BRANCHES; b++)
			vi_store_i16(decision->level[b], (vi)(k[b] + rounder) & 0xffff);
		vi_store_i16(decision->second, second);
	}
	vi best = {0};
	vf least = cost[0];
	for (int s = 1; s < 4; s++) {
		best = vi_select(cost[s] < least, s + (vi){0}, best);
		least = vf_min(cost[s], least);
	}
	return best;
}

/* Back along the best path: codes, and what they lose of every token. */
static void tile_back(const struct tile *t, size_t first, size_t n, vi state)
{
	vf lost = load_up_to(t->lost + first, n);
	vf kept = load_up_to(t->kept + first, n);
	for (size_t i = t->r; i-- > 0;) {
		const struct levels_row row = t->rows[i];
		const struct decision *decision = &t->decisions[i];
		const vi bit = vi_from_i16(decision->second);
		/* Variable shifts are not to be had everywhere. */
		const vi second = (((state == 0) & bit) | ((state == 1) & bit >> 1) |
					  ((state == 2) & bit >> 2) | ((state == 3) & bit >> 3)) &
				  1;
		const vi set = state & 1;
		const vi parity = second ^ state >> 1;
		const vi even =
			vi_select(-set, vi_from_i16(decision->level[2]), vi_from_i16(decision->level[0]));
		const vi odd =
			vi_select(-set, vi_from_i16(decision->level[3]), vi_from_i16(decision->level[1]));
		const vi level = vi_select(-parity, odd, even);
		state = set << 1 | second;

		const vf y = load_up_to(t->c + i * t->c_stride + first, n);
		const vf k = vf_from_i32(level);
		const float(*bias)[2] = t->coder->bias[row.table];
		const vf set_f = vf_from_i32(set);
		const vf b = vf_select(-set, vf_select(level > 1, vf_all(bias[1][1]), vf_all(bias[1][0])),
			vf_select(level > 1, vf_all(bias[0][1]), vf_all(bias[0][0])));
		const vf value = vf_select(level > 0, (k + k) - set_f + b, vf_all(0.0f)) * t->step;
		const vf a = vf_abs(y);
		const vf e = a - value;
		/* A coefficient that no level reaches makes its token's error infinite. */
		const vf unreached =
			vf_select(a * t->inverse > 2.0f * LEVELS_MAX - 4.0f, vf_all(INFINITY), vf_all(0.0f));
		lost += e * e + unreached;
		kept += y * y;
		const vi negative = (vi)y >> 31;
		const vi code = ((level ^ negative) - negative) * 2 + set;
		int16_t *out = t->codes + i * t->codes_stride + first;
		if (n >= VF_LANES) {
			vi_store_i16(out, code);
		} else {
			int16_t padded[VF_LANES];
			vi_store_i16(padded, code);
			memcpy(out, padded, n * sizeof *out);
		}
	}
	store_up_to(t->lost + first, lost, n);
	store_up_to(t->kept + first, kept, n);
}

void VARIANT(quantise_levels)(const float *c, size_t c_stride, size_t r, size_t n_tokens,
	const struct levels_coder *coder, const struct levels_row *rows, float step, int16_t *codes,
	size_t codes_stride, float *lost, float *kept, void *work)
{
	const struct tile tile = {
		c, c_stride, r, coder, rows, 1.0f / step, step, codes, codes_stride, lost, kept, work};
	for (size_t t = 0; t < n_tokens; t += VF_LANES) {
		const size_t n = n_tokens - t < VF_LANES ? n_tokens - t : VF_LANES;
		tile_back(&tile, t, n, tile_forth(&tile, t, n));
	}
}

void VARIANT(dequantise_levels)(const int16_t *codes, size_t codes_stride, size_t r, size_t n_tokens,
	const struct levels_coder *coder, const struct levels_row *rows, float step, float *c,
	size_t c_stride)
{
	for (size_t i = 0; i < r; i++) {
		const float(*bias)[2] = coder->bias[rows[i].table];
		const int16_t *in = codes + i * codes_stride;
		float *out = c + i * c_stride;
		size_t t = 0;
		for (; t + VF_LANES <= n_tokens; t += VF_LANES) {
			const vi code = vi_from_i16(in + t);
			const vi set = code & 1;
			const vi level = (code - set) >> 1;
			const vi sign = level >> 31;
			const vi magnitude = (level ^ sign) - sign;
			const vf k = vf_from_i32(magnitude);
			const vf b = vf_select(-set,
				vf_select(magnitude > 1, vf_all(bias[1][1]), vf_all(bias[1][0])),
				vf_select(magnitude > 1, vf_all(bias[0][1]), vf_all(bias[0][0])));
			const vf value =
				vf_select(magnitude > 0, (k + k) - vf_from_i32(set) + b, vf_all(0.0f)) * step;
			vf_store(out + t, (vf)((vi)value ^ (sign & INT32_MIN)));
		}
		for (; t < n_tokens; t++) {
			const int level = levels_level(in[t]);
			const unsigned set = levels_set(in[t]);
			const float value = levels_magnitude(level, set, bias[set]) * step;
			out[t] = level < 0 ? -value : value;
		}
	}
}
