/*
 * Rows of coefficients to packed codes and back. Shapes: c [n_rows, c_stride] f32, T tokens used; packed
 * [n_rows, quant_row_bytes(T, bits)]. Traffic a token and row: 4 bytes read, bits / 8 written, and coded and
 * kept, 16 bytes read and written in the first-level cache; the candidates' passes re-read the row there.
 * Floor: arithmetic. Statistics take 5 operations an element, a candidate 9, coding 14, packing 2; with two
 * or three candidates about 45, in 16 lanes at two operations a cycle 1.4 cycles an element.
 *
 * A row is worked on in blocks of QUANT_LANES elements, so that every variant forms the same partial sums;
 * the last block is padded with zeros.
 */
#include "kernels/cpu/simd.h"
#include "kernels/cpu/variant.h"

enum {
	BLOCK = QUANT_LANES,
	PARTS = BLOCK_VECTORS,
	TILE = 512, /* tokens whose codes wait for packing; whole blocks and whole bytes */
};

_Static_assert(BLOCK % VF_LANES == 0 && TILE % BLOCK == 0 && BLOCK % 8 == 0, "blocks do not fit together");

struct quantiser {
	unsigned bits;
	float step;
	float inverse;
	float centre;
	float top;
};

static struct quantiser quantiser_make(unsigned bits, uint16_t step)
{
	const float s = f16_to_f32(step);
	return (struct quantiser){bits, s, s > 0.0f ? 1.0f / s : 0.0f, quant_centre(bits), quant_top(bits)};
}

/* The code's bits with those of 1.5 * 2^23 above them: formula.h, quant_code. */
SIMD_FN vf quantiser_code(const struct quantiser *q, vf x)
{
	const vf v = vf_max(x * q->inverse + q->centre, vf_all(0.0f));
	return vf_min(v, vf_all(q->top)) + 12582912.0f;
}

SIMD_FN vf quantiser_error(const struct quantiser *q, vf x, vf code)
{
	return x - ((code - 12582912.0f) - q->centre) * q->step;
}

static void block_copy(float padded[BLOCK], const float *x, size_t n)
{
	memset(padded, 0, BLOCK * sizeof *padded);
	memcpy(padded, x, n * sizeof *x);
}

struct statistics {
	float square;
	float magnitude;
	float largest;
};

SIMD_FN void statistics_add(vf square[PARTS], vf magnitude[PARTS], vf largest[PARTS], const float *x)
{
	for (int k = 0; k < PARTS; k++) {
		const vf v = vf_load(x + k * VF_LANES);
		square[k] += v * v;
		magnitude[k] += vf_abs(v);
		largest[k] = vf_max(vf_abs(v), largest[k]);
	}
}

static struct statistics statistics_of(const float *row, size_t n)
{
	vf square[PARTS] = {0};
	vf magnitude[PARTS] = {0};
	vf largest[PARTS] = {0};
	size_t t = 0;
	for (; t + BLOCK <= n; t += BLOCK)
		statistics_add(square, magnitude, largest, row + t);
	if (t < n) {
		float padded[BLOCK];
		block_copy(padded, row + t, n - t);
		statistics_add(square, magnitude, largest, padded);
	}
	return (struct statistics){block_sum(square), block_sum(magnitude), block_largest(largest)};
}

/* formula.h, quant_residual, squared. */
SIMD_FN vf residual_square(const struct quantiser *q, vf x)
{
	const vf v = x * q->inverse;
	const vf level = vf_min(vf_max(v, vf_all(-q->centre)), vf_all(q->centre));
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
static uint16_t row_step(unsigned bits, const float *row, size_t n)
{
	const struct statistics s = statistics_of(row, n);
	uint16_t steps[QUANT_CANDIDATES];
	const int count = quant_candidates(bits, s.square, s.magnitude, s.largest, (uint32_t)n, steps);
	if (count == 0)
		return 0;
	uint16_t best = steps[0];
	float least = INFINITY;
	for (int i = 0; i < count && count > 1; i++) {
		const struct quantiser q = quantiser_make(bits, steps[i]);
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

/* Codes of n <= TILE elements, a byte each; what is left of the last block is zero. */
static void tile_code(
	const struct quantiser *q, const float *x, size_t n, uint8_t codes[TILE], float *coded, float *kept)
{
	size_t t = 0;
	for (; t + BLOCK <= n; t += BLOCK)
		block_code(q, x + t, codes + t, coded + t, kept + t);
	if (t == n)
		return;
	float padded[BLOCK];
	float coded_last[BLOCK];
	float kept_last[BLOCK];
	block_copy(padded, x + t, n - t);
	block_copy(coded_last, coded + t, n - t);
	block_copy(kept_last, kept + t, n - t);
	block_code(q, padded, codes + t, coded_last, kept_last);
	memset(codes + n, 0, t + BLOCK - n);
	memcpy(coded + t, coded_last, (n - t) * sizeof *coded);
	memcpy(kept + t, kept_last, (n - t) * sizeof *kept);
}

/* Codes of a tile, a byte each, and as the words they are packed in. */
union tile {
	uint8_t codes[TILE];
	uint64_t words[TILE / 8];
};

/* Eights of codes to packed bytes. A store of eight bytes is cheaper than one of `bits`; what it spills is
 * overwritten by the next, so the last ones before `end` are cut to size. bits is a constant here. */
SIMD_FN void tile_pack(union tile *tile, size_t n, unsigned bits, uint8_t *out, const uint8_t *end)
{
	const size_t groups = (n + 7) / 8;
	for (size_t g = 0; g < groups; g++)
		tile->words[g] = quant_pack8(tile->words[g], bits);
	size_t g = 0;
	for (; g < groups && (size_t)(end - out) >= 8; g++, out += bits)
		memcpy(out, &tile->words[g], 8);
	for (; g < groups; g++, out += bits) {
		const size_t left = (size_t)(end - out);
		memcpy(out, &tile->words[g], left < bits ? left : bits);
	}
}

static void tile_pack_any(union tile *tile, size_t n, unsigned bits, uint8_t *out, const uint8_t *end)
{
	switch (bits) {
	case 1: tile_pack(tile, n, 1, out, end); break;
	case 2: tile_pack(tile, n, 2, out, end); break;
	case 4: tile_pack(tile, n, 4, out, end); break;
	default: memcpy(out, tile->codes, n); break;
	}
}

SIMD_FN void tile_unpack(union tile *tile, size_t n, unsigned bits, const uint8_t *in, const uint8_t *end)
{
	const size_t groups = (n + 7) / 8;
	size_t g = 0;
	for (; g < groups && (size_t)(end - in) >= 8; g++, in += bits)
		memcpy(&tile->words[g], in, 8);
	for (; g < groups; g++, in += bits) {
		const size_t left = (size_t)(end - in);
		tile->words[g] = 0;
		memcpy(&tile->words[g], in, left < bits ? left : bits);
	}
	for (g = 0; g < groups; g++)
		tile->words[g] = quant_unpack8(tile->words[g], bits);
}

static void tile_unpack_any(union tile *tile, size_t n, unsigned bits, const uint8_t *in, const uint8_t *end)
{
	switch (bits) {
	case 1: tile_unpack(tile, n, 1, in, end); break;
	case 2: tile_unpack(tile, n, 2, in, end); break;
	case 4: tile_unpack(tile, n, 4, in, end); break;
	default: memcpy(tile->codes, in, n); break;
	}
}

void VARIANT(quantise)(const float *c, size_t c_stride, size_t n_rows, size_t n_tokens, unsigned bits,
	uint16_t *steps, uint8_t *packed, float *coded, float *kept)
{
	const size_t row_bytes = quant_row_bytes(n_tokens, bits);
	const unsigned packed_bits = quant_packed_bits(bits);
	const uint8_t *end = packed + n_rows * row_bytes;
	union tile tile;
	for (size_t i = 0; i < n_rows; i++) {
		const float *row = c + i * c_stride;
		steps[i] = row_step(bits, row, n_tokens);
		const struct quantiser q = quantiser_make(bits, steps[i]);
		for (size_t t = 0; t < n_tokens; t += TILE) {
			const size_t n = n_tokens - t < TILE ? n_tokens - t : TILE;
			tile_code(&q, row + t, n, tile.codes, coded + t, kept + t);
			tile_pack_any(
				&tile, n, packed_bits, packed + i * row_bytes + t / 8 * packed_bits, end);
		}
	}
}

void VARIANT(dequantise)(const uint8_t *packed, const uint16_t *steps, size_t n_rows, size_t n_tokens,
	unsigned bits, float *c, size_t c_stride)
{
	const size_t row_bytes = quant_row_bytes(n_tokens, bits);
	const unsigned packed_bits = quant_packed_bits(bits);
	const uint8_t *end = packed + n_rows * row_bytes;
	union tile tile;
	for (size_t i = 0; i < n_rows; i++) {
		const float step = f16_to_f32(steps[i]);
		const float centre = quant_centre(bits);
		for (size_t t = 0; t < n_tokens; t += TILE) {
			const size_t n = n_tokens - t < TILE ? n_tokens - t : TILE;
			float *row = c + i * c_stride + t;
			tile_unpack_any(
				&tile, n, packed_bits, packed + i * row_bytes + t / 8 * packed_bits, end);
			size_t k = 0;
			for (; k + VF_LANES <= n; k += VF_LANES)
				vf_store(row + k, (vf_from_u8(tile.codes + k) - centre) * step);
			for (; k < n; k++)
				row[k] = quant_value(tile.codes[k], step, centre);
		}
	}
}
