/*
 * The rotation's table: cos and sin of position times inverse frequency, [n_tokens, rope_dim / 2] each. 8
 * bytes written an angle; floor: arithmetic, about 45 operations in double. Angles are formed and reduced in
 * double, so that a million tokens on they are still exact to f32; the C library's functions would give the
 * same to a rounding, one angle at a time.
 */
#include <math.h>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/variant.h"

enum { LANES = VF_LANES / 2 };

typedef double vd __attribute__((vector_size(8 * LANES)));
typedef int64_t vq __attribute__((vector_size(8 * LANES)));
typedef float vh __attribute__((vector_size(4 * LANES)));

/* pi / 2 in three parts. The first two have 22 bits: their products with a whole number below 2^31, and the
 * differences that these leave, are exact in double (Cody and Waite). */
#define HALF_PI_1 0x1.921fbp+0
#define HALF_PI_2 0x1.5110bp-22
#define HALF_PI_3 0x1.18469898cc517p-44

/* Angles up to here are reduced by the above. */
#define ANGLE_MAX 0x1p30

SIMD_FN vd vd_select(vq mask, vd a, vd b)
{
	return (vd)((mask & (vq)a) | (~mask & (vq)b));
}

/* Cosine and sine, to about 2^-37, of angles of at most ANGLE_MAX. */
SIMD_FN void angles_turn(vd angle, vd *cos_, vd *sin_)
{
	/* Adding 1.5 * 2^52 rounds to a whole number and leaves it in the low bits. */
	const vd shifted = angle * 0x1.45f306dc9c883p-1 + 0x1.8p52;
	const vd quarters = shifted - 0x1.8p52;
	const vq quadrant = (vq)shifted & 3;
	const vd x = ((angle - quarters * HALF_PI_1) - quarters * HALF_PI_2) - quarters * HALF_PI_3;
	const vd z = x * x;
	/* Taylor: the first terms left out are below 2^-37 for |x| up to pi / 4. */
	const vd s =
		x *
		(1.0 + z * (-1.0 / 6 +
				   z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 +
										   z * (-1.0 / 39916800))))));
	const vd c =
		1.0 +
		z * (-0.5 + z * (1.0 / 24 +
					z * (-1.0 / 720 +
						    z * (1.0 / 40320 + z * (-1.0 / 3628800 +
										   z * (1.0 / 479001600))))));
	const vq odd = (quadrant & 1) != 0;
	const vq cos_sign = ((quadrant + 1) & 2) << 62;
	const vq sin_sign = (quadrant & 2) << 62;
	*cos_ = (vd)((vq)vd_select(odd, s, c) ^ cos_sign);
	*sin_ = (vd)((vq)vd_select(odd, c, s) ^ sin_sign);
}

/* n <= LANES angles of one token. */
SIMD_FN void lanes_fill(
	double position, double scale, const float *inv_freq, size_t n, float *cos_, float *sin_)
{
	vh frequency = {0};
	vd c, s;
	memcpy(&frequency, inv_freq, n * sizeof *inv_freq);
	angles_turn(__builtin_convertvector(frequency, vd) * position, &c, &s);
	const vh c_narrow = __builtin_convertvector(c * scale, vh);
	const vh s_narrow = __builtin_convertvector(s * scale, vh);
	memcpy(cos_, &c_narrow, n * sizeof *cos_);
	memcpy(sin_, &s_narrow, n * sizeof *sin_);
}

void VARIANT(rope_fill)(
	const struct plane *plane, const uint64_t *positions, size_t n_tokens, float *cos_, float *sin_)
{
	const size_t half = plane->rope_dim / 2;
	const double scale = (double)plane->rope_scale;
	double highest = 0;
	for (size_t j = 0; j < half; j++)
		highest = fmax(highest, fabs((double)plane->inv_freq[j]));
	for (size_t i = 0; i < n_tokens; i++, cos_ += half, sin_ += half) {
		const double position = (double)positions[i];
		size_t j = 0;
		if (position * highest > ANGLE_MAX) {
			for (; j < half; j++) {
				const double angle = position * (double)plane->inv_freq[j];
				cos_[j] = (float)(cos(angle) * scale);
				sin_[j] = (float)(sin(angle) * scale);
			}
			continue;
		}
		for (; j + LANES <= half; j += LANES)
			lanes_fill(position, scale, plane->inv_freq + j, LANES, cos_ + j, sin_ + j);
		if (j < half)
			lanes_fill(position, scale, plane->inv_freq + j, half - j, cos_ + j, sin_ + j);
	}
}
