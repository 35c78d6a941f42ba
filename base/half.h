/* IEEE 754 binary16 against float, for files: one value at a time. Kernels have their own, vectorised. Pure.
 */
#ifndef BASE_HALF_H
#define BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float half_to_float(uint16_t half)
{
	uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff, bits;
	float value;

	if (rest < 0x0400) {
		/* Zero and subnormals: a multiple of 2^-24, exact in f32. */
		value = (float)rest * 0x1p-24f;
		return sign ? -value : value;
	}
	bits = sign | (rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13 : (rest << 13) + 0x38000000);
	memcpy(&value, &bits, sizeof value);
	return value;
}

/* Round to nearest even; what is too large becomes an infinity. */
static inline uint16_t half_from_float(float value)
{
	uint32_t bits, sign, rest;
	float magnitude;

	memcpy(&bits, &value, sizeof bits);
	sign = bits >> 16 & 0x8000;
	rest = bits & 0x7fffffff;
	if (rest > 0x7f800000)
		return (uint16_t)(sign | 0x7e00);
	if (rest >= 0x477ff000) /* 65520, half way to the first value that does not exist */
		return (uint16_t)(sign | 0x7c00);
	if (rest < 0x38800000) { /* below the least normal: the addition rounds to multiples of 2^-24 */
		memcpy(&magnitude, &rest, sizeof magnitude);
		magnitude += 0.5f;
		memcpy(&bits, &magnitude, sizeof bits);
		return (uint16_t)(sign | (bits - 0x3f000000));
	}
	return (uint16_t)(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
}

#endif
