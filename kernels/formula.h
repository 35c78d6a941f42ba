/*
 * The formulae that every backend shares, each standing once: element conversion, rotation, the plain codec's
 * quantiser. Compiles as C17 and as CUDA C++. A backend may compute them in another way, for instance a
 * vector at a time, but must give the same bits: no term is ever fused into a multiply-add, sums have a
 * stated order. Pure functions, any thread.
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

/* ---- The plain codec's uniform quantiser: 255 levels at multiples of a row's step, an f16; zero is one of
 * them: value = (code - 127) * step. */

enum {
	QUANT_CANDIDATES = 5,
	QUANT_CENTRE = 127,
	QUANT_TOP = 254,  /* the largest code */
	QUANT_LANES = 16, /* sums over a row: 16 partial sums, element t in sum t % 16, see quant_fold */
};

/* inverse is 1.0f / step, or 0 for step 0. A NaN gets code 0. */
KERNELS_FN uint32_t quant_code(float x, float inverse)
{
	float v = x * inverse + (float)QUANT_CENTRE;
	v = v > 0.0f ? v : 0.0f;
	v = v < (float)QUANT_TOP ? v : (float)QUANT_TOP;
	/* At 1.5 * 2^23 the last place is one: the addition rounds to nearest even, the low bits are the
	 * code. */
	return f32_bits(v + 12582912.0f) & 0xffu;
}

KERNELS_FN float quant_value(uint32_t code, float step)
{
	return ((float)code - (float)QUANT_CENTRE) * step;
}

/* How far x lies from its level, in steps. */
KERNELS_FN float quant_residual(float x, float inverse)
{
	const float centre = (float)QUANT_CENTRE;
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

/* The steps to try for a row, from its sum of squares, its largest magnitude and its length: a geometric
 * ladder from the step that clips nothing down to the one that is best for a Gaussian of this power (J. Max,
 * IRE Trans. IT-6, 1960), walked while the error falls: the sum of squared residuals, times the step, times
 * the step. Returns how many; 0: the row is coded as zeros, with step 0 (it is zero, below f16, or not
 * finite). */
KERNELS_FN int quant_candidates(float sum_square, float largest, uint32_t n, uint16_t steps[QUANT_CANDIDATES])
{
	if (!(sum_square <= 3.0e38f) || !(largest > 0.0f))
		return 0;
	float step = 2.0f * largest / 255.0f;
	const float ratio = sqrtf(sqrtf(0.0309f * sqrtf(sum_square / (float)n) / step));
	int count = 0;
	for (int k = 0; k < QUANT_CANDIDATES; k++) {
		const uint16_t h = f16_from_f32(step);
		/* Neither a step below f16 nor the NaN of a row whose squares underflow. */
		if (h > 0 && h <= 0x7bffu)
			steps[count++] = h;
		step *= ratio;
	}
	return count;
}

#endif
