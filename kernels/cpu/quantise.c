/*
 * The plain codec's quantiser: rows of coefficients to 8-bit codes and back. Shapes: c [n_rows, c_stride]
 * f32, T tokens used; codes [n_rows, T]. Traffic a token and row: 4 bytes read, 1 written, and coded and
 * kept, 16 bytes read and written in the first-level cache; the candidates' passes re-read the row there.
 * Floor: arithmetic. Statistics take 4 operations an element, a candidate 9, coding 14; with two or three
 * candidates about 45, in 16 lanes at two operations a cycle 1.4 cycles an element.
 *
 * A row is worked on in blocks of QUANT_LANES elements, so that every variant forms the same partial sums;
 * the last block is padded with zeros.
 */
#include "kernels/cpu/simd.h"
#include "kernels/cpu/variant.h"

enum {
	BLOCK = QUANT_LANES,
	PARTS = BLOCK_VECTORS,
};

_Static_assert(BLOCK % VF_LANES == 0, "blocks do not fit vectors");

struct quantiser {
	float step;
	float inverse;
};

static struct quantiser quantiser_make(uint16_t step)
{
	const float s = f16_to_f32(step);
	return (struct quantiser){s, s > 0.0f ? 1.0f / s : 0.0f};
}

/* The code's bits with those of 1.5 * 2^23 above them: formula.h, quant_code. */
SIMD_FN vf quantiser_code(const struct quantiser *q, vf x)
{
	const vf v = vf_max(x * q->inverse + (float)QUANT_CENTRE, vf_all(0.0f));
	return vf_min(v, vf_all((float)QUANT_TOP)) + 12582912.0f;
}

SIMD_FN vf quantiser_error(const struct quantiser *q, vf x, vf code)
{
	return x - ((code - 12582912.0f) - (float)QUANT_CENTRE) * q->step;
}

static void block_copy(float padded[BLOCK], const float *x, size_t n)
{
	memset(padded, 0, BLOCK * sizeof *padded);
	memcpy(padded, x, n * sizeof *x);
}

struct statistics {
	float square;
	float largest;
};

SIMD_FN void statistics_add(vf square[PARTS], vf largest[PARTS], const float *x)
{
	for (int k = 0; k < PARTS; k++) {
		const vf v = vf_load(x + k * VF_LANES);
		square[k] += v * v;
		largest[k] = vf_max(vf_abs(v), largest[k]);
	}
}

static struct statistics statistics_of(const float *row, size_t n)
{
	vf square[PARTS] = {0};
	vf largest[PARTS] = {0};
	size_t t = 0;
	for (; t + BLOCK <= n; t += BLOCK)
		statistics_add(square, largest, row + t);
	if (t < n) {
		float padded[BLOCK];
		block_copy(padded, row + t, n - t);
		statistics_add(square, largest, padded);
	}
	return (struct statistics){block_sum(square), block_largest(largest)};
}

/* formula.h, quant_residual, squared. */
SIMD_FN vf residual_square(const struct quantiser *q, vf x)
{
	const float centre = (float)QUANT_CENTRE;
	const vf v = x * q->inverse;
	const vf level = vf_min(vf_max(v, vf_all(-centre)), vf_all(centre));
	const vf residual = v - ((level + 12582912.0f) - 12582912.0f);
	return residual * residual;
}

/* Squared error of a row at one step. */
static float row_error(const struct quantiser *q, const float *row, size_t n)
{
	vf sum[PARTS] = {0};
	size_t t = 0;
	for (; t + BLOCK <= n; t += BLOCK)
		for (int k = 0; k < PARTS; k++)
			sum[k] += residual_square(q, vf_load(row + t + k * VF_LANES));
	if (t < n) {
		/* Zero is a level: the padding adds nothing. */
		float padded[BLOCK];
		block_copy(padded, row + t, n - t);
		for (int k = 0; k < PARTS; k++)
			sum[k] += residual_square(q, vf_load(padded + k * VF_LANES));
	}
	return block_sum(sum) * q->step * q->step;
}

/* The row's step: formula.h, quant_candidates. */
static uint16_t row_step(const float *row, size_t n)
{
	const struct statistics s = statistics_of(row, n);
	uint16_t steps[QUANT_CANDIDATES];
	const int count = quant_candidates(s.square, s.largest, (uint32_t)n, steps);
	if (count == 0)
		return 0;
	uint16_t best = steps[0];
	float least = INFINITY;
	for (int i = 0; i < count; i++) {
		const struct quantiser q = quantiser_make(steps[i]);
		const float error = row_error(&q, row, n);
		if (error >= least)
			break;
		least = error;
		best = steps[i];
	}
	return best;
}

SIMD_FN void block_code(const struct quantiser *q, const float *x, uint8_t *codes, float *coded, float *kept)
{
	for (int k = 0; k < PARTS; k++) {
		const size_t at = (size_t)k * VF_LANES;
		const vf v = vf_load(x + at);
		const vf code = quantiser_code(q, v);
		const vf e = quantiser_error(q, v, code);
		vi_store_low8(codes + at, (vi)code);
		vf_store(coded + at, vf_load(coded + at) + e * e);
		vf_store(kept + at, vf_load(kept + at) + v * v);
	}
}

static void row_code(
	const struct quantiser *q, const float *x, size_t n, uint8_t *codes, float *coded, float *kept)
{
	size_t t = 0;
	for (; t + BLOCK <= n; t += BLOCK)
		block_code(q, x + t, codes + t, coded + t, kept + t);
	if (t == n)
		return;
	float padded[BLOCK];
	float coded_last[BLOCK];
	float kept_last[BLOCK];
	uint8_t codes_last[BLOCK];
	block_copy(padded, x + t, n - t);
	block_copy(coded_last, coded + t, n - t);
	block_copy(kept_last, kept + t, n - t);
	block_code(q, padded, codes_last, coded_last, kept_last);
	memcpy(codes + t, codes_last, n - t);
	memcpy(coded + t, coded_last, (n - t) * sizeof *coded);
	memcpy(kept + t, kept_last, (n - t) * sizeof *kept);
}

void VARIANT(quantise)(const float *c, size_t c_stride, size_t n_rows, size_t n_tokens, uint16_t *steps,
	uint8_t *codes, float *coded, float *kept)
{
	for (size_t i = 0; i < n_rows; i++) {
		const float *row = c + i * c_stride;
		steps[i] = row_step(row, n_tokens);
		const struct quantiser q = quantiser_make(steps[i]);
		row_code(&q, row, n_tokens, codes + i * n_tokens, coded, kept);
	}
}

void VARIANT(dequantise)(const uint8_t *codes, const uint16_t *steps, size_t n_rows, size_t n_tokens,
	float *c, size_t c_stride)
{
	for (size_t i = 0; i < n_rows; i++) {
		const float step = f16_to_f32(steps[i]);
		const uint8_t *in = codes + i * n_tokens;
		float *row = c + i * c_stride;
		size_t t = 0;
		for (; t + VF_LANES <= n_tokens; t += VF_LANES)
			vf_store(row + t, (vf_from_u8(in + t) - (float)QUANT_CENTRE) * step);
		for (; t < n_tokens; t++)
			row[t] = quant_value(in[t], step);
	}
}
