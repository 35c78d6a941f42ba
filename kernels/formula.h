/*
 * The formulae that every backend shares, each standing once: element conversion, rotation, quantiser, bit
 * packing. Compiles as C17 and as CUDA C++. A backend may compute them in another way, for instance a vector
 * at a time, but must give the same bits: no term is ever fused into a multiply-add, sums have a stated
 * order. Pure functions, any thread.
 */
#ifndef KERNELS_FORMULA_H
#define KERNELS_FORMULA_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define KERNELS_FN static __host__ __device__ inline
#else
#define KERNELS_FN static inline
#endif

/* ---- Elements. Both narrow types round to nearest even; what is too large, infinities too, becomes the
 * largest finite value; a NaN stays a NaN, made quiet, with its sign and the top of its payload. */

#define F16_MAX 65504.0f
#define BF16_MAX 3.38953138925153547590e38f

KERNELS_FN uint32_t f32_bits(float x)
{
	uint32_t u;
	memcpy(&u, &x, sizeof u);
	return u;
}

KERNELS_FN float f32_from_bits(uint32_t u)
{
	float x;
	memcpy(&x, &u, sizeof x);
	return x;
}

KERNELS_FN float f16_to_f32(uint16_t h)
{
	const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
	const uint32_t exponent = (h >> 10) & 31u;
	const uint32_t mantissa = h & 0x3ffu;
	if (exponent == 31)
		return f32_from_bits(
			sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x00400000u : 0u));
	if (exponent != 0)
		return f32_from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
	/* Zero or subnormal: mantissa * 2^-24 is exact in f32. */
	return f32_from_bits(sign | f32_bits((float)mantissa * 0x1p-24f));
}

KERNELS_FN uint16_t f16_from_f32(float x)
{
	const uint32_t bits = f32_bits(x);
	const uint32_t sign = (bits >> 16) & 0x8000u;
	const uint32_t magnitude = bits & 0x7fffffffu;
	if (magnitude > 0x7f800000u)
		return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
	if (magnitude > 0x477fe000u)
		return (uint16_t)(sign | 0x7bffu);
	if (magnitude < 0x38800000u) {
		/* Adding 0.5 makes the sum's last place 2^-24, an f16 subnormal's: the addition rounds. */
		const uint32_t rounded = f32_bits(f32_from_bits(magnitude) + 0.5f);
		return (uint16_t)(sign | (rounded - 0x3f000000u));
	}
	const uint32_t odd = (magnitude >> 13) & 1u;
	return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

KERNELS_FN float bf16_to_f32(uint16_t h)
{
	return f32_from_bits((uint32_t)h << 16);
}

KERNELS_FN uint16_t bf16_from_f32(float x)
{
	const uint32_t bits = f32_bits(x);
	const uint32_t magnitude = bits & 0x7fffffffu;
	if (magnitude > 0x7f800000u)
		return (uint16_t)((bits >> 16) | 0x40u);
	if (magnitude > 0x7f7f0000u)
		return (uint16_t)(((bits >> 16) & 0x8000u) | 0x7f7fu);
	return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* ---- Rotation of one pair. The table's entries are cos and sin of the angle, both times rope_scale, so the
 * way back divides by the scale twice: inverse_square is 1 / rope_scale^2. */

KERNELS_FN void rope_rotate(float *a, float *b, float cos_, float sin_)
{
	const float x = *a;
	const float y = *b;
	*a = x * cos_ - y * sin_;
	*b = y * cos_ + x * sin_;
}

KERNELS_FN void rope_undo(float *a, float *b, float cos_, float sin_, float inverse_square)
{
	const float x = *a;
	const float y = *b;
	*a = (x * cos_ + y * sin_) * inverse_square;
	*b = (y * cos_ - x * sin_) * inverse_square;
}

/* ---- Uniform quantiser. A row of n coefficients has one step, an f16. Two bits and more: 2^bits - 1 levels
 * at multiples of the step, zero among them (mid-tread), code = level + 2^(bits-1) - 1. One bit: +-step / 2.
 * So value = (code - centre) * step for all. docs/decisions.md has the measurements behind the choice. */

enum {
	QUANT_CANDIDATES = 5,
	QUANT_LANES = 16, /* sums over a row: 16 partial sums, element t in sum t % 16, see quant_fold */
};

KERNELS_FN float quant_centre(unsigned bits)
{
	return bits == 1 ? 0.5f : (float)((1u << (bits - 1)) - 1);
}

/* The largest code. */
KERNELS_FN float quant_top(unsigned bits)
{
	return bits == 1 ? 1.0f : (float)((1u << bits) - 2);
}

/* inverse is 1.0f / step, or 0 for step 0. A NaN gets code 0. */
KERNELS_FN uint32_t quant_code(float x, float inverse, float centre, float top)
{
	float v = x * inverse + centre;
	v = v > 0.0f ? v : 0.0f;
	v = v < top ? v : top;
	/* At 1.5 * 2^23 the last place is one: the addition rounds to nearest even, the low bits are the
	 * code. */
	return f32_bits(v + 12582912.0f) & 0xffu;
}

KERNELS_FN float quant_value(uint32_t code, float step, float centre)
{
	return ((float)code - centre) * step;
}

/* How far x lies from its level, in steps, for two bits and more. */
KERNELS_FN float quant_residual(float x, float inverse, float centre)
{
	const float v = x * inverse;
	float level = v > -centre ? v : -centre;
	level = level < centre ? level : centre;
	return v - ((level + 12582912.0f) - 12582912.0f);
}

/* The stated order: halves are added to each other until one is left. */
KERNELS_FN float quant_fold(const float lanes[QUANT_LANES])
{
	float sum[QUANT_LANES / 2];
	for (int i = 0; i < 8; i++)
		sum[i] = lanes[i] + lanes[i + 8];
	for (int half = 4; half > 0; half /= 2)
		for (int i = 0; i < half; i++)
			sum[i] += sum[i + half];
	return sum[0];
}

/* The steps to try for a row, from its sums over squares and magnitudes, its largest magnitude and its
 * length. One bit: twice the mean magnitude is the optimum for any row. Otherwise a geometric ladder from the
 * step that is best for a Gaussian of this power (the ladder's foot; J. Max, IRE Trans. IT-6, 1960, for odd
 * numbers of levels) to the step that clips nothing (the top). Rows of up to four bits start at the foot,
 * where their best step mostly is, others at the top, and walk while the error falls: the sum of squared
 * residuals, times the step, times the step. Returns how many; 0: the row is coded as zeros, with step 0 (it
 * is zero, below f16, or not finite). */
KERNELS_FN int quant_candidates(unsigned bits, float sum_square, float sum_magnitude, float largest,
	uint32_t n, uint16_t steps[QUANT_CANDIDATES])
{
	/* In units of the standard deviation, for 3, 7, 15, ... 255 levels. */
	const float gaussian[9] = {0, 0, 1.2240f, 0.6508f, 0.3534f, 0.1933f, 0.1055f, 0.0573f, 0.0309f};
	if (!(sum_square <= 3.0e38f) || !(largest > 0.0f))
		return 0;
	const float foot =
		bits == 1 ? 2.0f * sum_magnitude / (float)n : gaussian[bits] * sqrtf(sum_square / (float)n);
	const float top = 2.0f * largest / (float)((1u << bits) - 1);
	float step = bits < 5 ? foot : top;
	const float ratio = bits == 1 ? 1.0f : sqrtf(sqrtf(bits < 5 ? top / foot : foot / top));
	int count = 0;
	for (int k = 0; k < (bits == 1 ? 1 : QUANT_CANDIDATES); k++) {
		/* Four bits of mantissa are enough for the step of a few levels and leave an entropy coder
		 * little to store of it; the step of many levels must not fall short of the largest value. */
		const uint32_t full = f16_from_f32(step);
		const uint16_t h = (uint16_t)(bits <= 4 ? (full + 32u) & 0xffc0u : full);
		/* Neither a step below f16 nor the NaN of a row whose squares underflow. */
		if (h > 0 && h <= 0x7bffu)
			steps[count++] = h;
		step *= ratio;
	}
	return count;
}

/* ---- Bit packing: code t of a row lies in bits t * bits and up of the row's bytes, least significant first.
 * Eight codes fill `bits` whole bytes, so eight is the unit of work: one code in each byte of a word, byte 0
 * first, against the same codes side by side in its low 8 * bits bits. */

KERNELS_FN uint64_t quant_pack8(uint64_t codes, unsigned bits)
{
	uint64_t w = codes;
	w = (w & 0x00ff00ff00ff00ffu) | ((w >> 8 & 0x00ff00ff00ff00ffu) << bits);
	w = (w & 0x0000ffff0000ffffu) | ((w >> 16 & 0x0000ffff0000ffffu) << 2 * bits);
	return (w & 0x00000000ffffffffu) | (w >> 32) << 4 * bits;
}

KERNELS_FN uint64_t quant_unpack8(uint64_t packed, unsigned bits)
{
	const uint64_t half = (1ull << 4 * bits) - 1u;
	const uint64_t quarter = (1ull << 2 * bits) - 1u;
	const uint64_t quarters = quarter << 32 | quarter;
	const uint64_t ones = ((1ull << bits) - 1u) * 0x0001000100010001u;
	uint64_t w = packed;
	w = (w & half) | (w >> 4 * bits & half) << 32;
	w = (w & quarters) | (w >> 2 * bits & quarters) << 16;
	return (w & ones) | (w >> bits & ones) << 8;
}

#endif
