/*
 * A vector of floats as wide as the variant's instruction set has them, and the few operations that C's
 * operators on vectors do not give. Where an instruction exists it is named; elsewhere the same bits come
 * from masks, so that the generic variant is plain C for any machine. Conversions agree with formula.h.
 */
#ifndef KERNELS_CPU_SIMD_H
#define KERNELS_CPU_SIMD_H

#include <string.h>

#include "kernels/formula.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VF_LANES 16
#elif defined(__AVX2__)
#define VF_LANES 8
#else
#define VF_LANES 4
#endif

typedef float vf __attribute__((vector_size(4 * VF_LANES), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * VF_LANES), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * VF_LANES), may_alias));

#define SIMD_FN static inline __attribute__((always_inline))

SIMD_FN vf vf_load(const float *p)
{
	vf v;
	memcpy(&v, p, sizeof v);
	return v;
}

SIMD_FN void vf_store(float *p, vf v)
{
	memcpy(p, &v, sizeof v);
}

SIMD_FN vf vf_all(float x)
{
	return x - (vf){0};
}

/* a where the mask is set, else b. */
SIMD_FN vi vi_select(vi mask, vi a, vi b)
{
	return (mask & a) | (~mask & b);
}

#if defined(__AVX512F__)

/* As x86 has them: b where either is a NaN. */
SIMD_FN vf vf_max(vf a, vf b)
{
	return (vf)_mm512_max_ps((__m512)a, (__m512)b);
}

SIMD_FN vf vf_min(vf a, vf b)
{
	return (vf)_mm512_min_ps((__m512)a, (__m512)b);
}

SIMD_FN vf vf_from_f16(const uint8_t *p)
{
	return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

SIMD_FN void vf_to_f16(uint8_t *p, vf v)
{
	v = vf_max(vf_all(-F16_MAX), vf_min(vf_all(F16_MAX), v));
	_mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}

SIMD_FN vf vf_from_bf16(const uint8_t *p)
{
	return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}

/* The upper half of every lane. */
SIMD_FN void vi_store_high(uint8_t *p, vi v)
{
	_mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)v, 16)));
}

/* Lanes as bytes, the lowest of each. */
SIMD_FN void vi_store_low8(uint8_t *p, vi v)
{
	_mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)v));
}

SIMD_FN vf vf_from_u8(const uint8_t *p)
{
	return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

#elif defined(__AVX2__)

SIMD_FN vf vf_max(vf a, vf b)
{
	return (vf)_mm256_max_ps((__m256)a, (__m256)b);
}

SIMD_FN vf vf_min(vf a, vf b)
{
	return (vf)_mm256_min_ps((__m256)a, (__m256)b);
}

SIMD_FN vf vf_from_f16(const uint8_t *p)
{
	return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

SIMD_FN void vf_to_f16(uint8_t *p, vf v)
{
	v = vf_max(vf_all(-F16_MAX), vf_min(vf_all(F16_MAX), v));
	_mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}

SIMD_FN vf vf_from_bf16(const uint8_t *p)
{
	return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}

SIMD_FN void vi_store_high(uint8_t *p, vi v)
{
	const __m256i high = _mm256_srli_epi32((__m256i)v, 16);
	const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
	_mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
}

SIMD_FN void vi_store_low8(uint8_t *p, vi v)
{
	const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
		-1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
	const __m256i bytes = _mm256_shuffle_epi8((__m256i)v, first);
	_mm_storel_epi64((__m128i *)p,
		_mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

SIMD_FN vf vf_from_u8(const uint8_t *p)
{
	return (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

#else

SIMD_FN vf vf_max(vf a, vf b)
{
	return (vf)vi_select(a > b, (vi)a, (vi)b);
}

SIMD_FN vf vf_min(vf a, vf b)
{
	return (vf)vi_select(a < b, (vi)a, (vi)b);
}

SIMD_FN vi vi_from_u16(const uint8_t *p)
{
	uint16_t h[VF_LANES];
	memcpy(h, p, sizeof h);
	return (vi){h[0], h[1], h[2], h[3]};
}

SIMD_FN vf vf_from_f16(const uint8_t *p)
{
	const vi h = vi_from_u16(p);
	const vi magnitude = (h & 0x7fff) << 13;
	/* A power of two moves the exponent to its place, and a subnormal's bits with it, exactly. */
	const vi finite = (vi)((vf)magnitude * vf_all(0x1p112f));
	const vi quiet = ((h & 0x3ff) != 0) & 0x00400000;
	const vi special = magnitude | 0x7f800000 | quiet;
	return (vf)(vi_select((h & 0x7c00) == 0x7c00, special, finite) | (h & 0x8000) << 16);
}

SIMD_FN void vf_to_f16(uint8_t *p, vf v)
{
	float x[VF_LANES];
	uint16_t h[VF_LANES];
	vf_store(x, v);
	for (int i = 0; i < VF_LANES; i++)
		h[i] = f16_from_f32(x[i]);
	memcpy(p, h, sizeof h);
}

SIMD_FN vf vf_from_bf16(const uint8_t *p)
{
	return (vf)(vi_from_u16(p) << 16);
}

SIMD_FN void vi_store_high(uint8_t *p, vi v)
{
	const uint16_t h[VF_LANES] = {(uint16_t)((uint32_t)v[0] >> 16), (uint16_t)((uint32_t)v[1] >> 16),
		(uint16_t)((uint32_t)v[2] >> 16), (uint16_t)((uint32_t)v[3] >> 16)};
	memcpy(p, h, sizeof h);
}

SIMD_FN void vi_store_low8(uint8_t *p, vi v)
{
	const uint8_t b[VF_LANES] = {(uint8_t)v[0], (uint8_t)v[1], (uint8_t)v[2], (uint8_t)v[3]};
	memcpy(p, b, sizeof b);
}

SIMD_FN vf vf_from_u8(const uint8_t *p)
{
	return (vf){p[0], p[1], p[2], p[3]};
}

#endif

/* A block of QUANT_LANES partial sums, over one vector or several. */
enum { BLOCK_VECTORS = QUANT_LANES / VF_LANES };

#if defined(__AVX2__)

SIMD_FN __m256 block_half(const vf block[BLOCK_VECTORS], int upper)
{
#if VF_LANES == 16
	return upper ? _mm512_extractf32x8_ps((__m512)block[0], 1) : _mm512_castps512_ps256((__m512)block[0]);
#else
	return (__m256)block[upper];
#endif
}

/* quant_fold. */
SIMD_FN float block_sum(const vf block[BLOCK_VECTORS])
{
	const __m256 eight = _mm256_add_ps(block_half(block, 0), block_half(block, 1));
	const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
	const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
	return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Of a block without NaNs. */
SIMD_FN float block_largest(const vf block[BLOCK_VECTORS])
{
	const __m256 eight = _mm256_max_ps(block_half(block, 0), block_half(block, 1));
	const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
	const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
	return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#else

SIMD_FN float block_sum(const vf block[BLOCK_VECTORS])
{
	const vf four = (block[0] + block[2]) + (block[1] + block[3]);
	return (four[0] + four[2]) + (four[1] + four[3]);
}

SIMD_FN float block_largest(const vf block[BLOCK_VECTORS])
{
	const vf four = vf_max(vf_max(block[0], block[2]), vf_max(block[1], block[3]));
	float largest = four[0];
	for (int l = 1; l < VF_LANES; l++)
		largest = four[l] > largest ? four[l] : largest;
	return largest;
}

#endif

SIMD_FN vf vf_abs(vf v)
{
	return (vf)((vi)v & 0x7fffffff);
}

SIMD_FN void vf_to_bf16(uint8_t *p, vf v)
{
	/* Unsigned: the lanes of NaNs, which are not used, may wrap. */
	const vu bits = (vu)vf_max(vf_all(-BF16_MAX), vf_min(vf_all(BF16_MAX), v));
	const vi rounded = (vi)(bits + 0x7fff + (bits >> 16 & 1));
	vi_store_high(p, vi_select(v != v, (vi)v | 0x00400000, rounded));
}

#if VF_LANES == 16
#define VF_EVEN ((vi){0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30})
#define VF_LOW ((vi){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23})
#elif VF_LANES == 8
#define VF_EVEN ((vi){0, 2, 4, 6, 8, 10, 12, 14})
#define VF_LOW ((vi){0, 8, 1, 9, 2, 10, 3, 11})
#else
#define VF_EVEN ((vi){0, 2, 4, 6})
#define VF_LOW ((vi){0, 4, 1, 5})
#endif

#ifdef __clang__
/* For the fuzzers, which clang builds. */
SIMD_FN vf vf_pick(vf a, vf b, vi from)
{
	vf out = a;

	for (int i = 0; i < VF_LANES; i++)
		out[i] = from[i] < VF_LANES ? a[from[i]] : b[from[i] - VF_LANES];
	return out;
}
#else
#define vf_pick __builtin_shuffle
#endif

/* x0 y0 x1 y1 ... in a, b, to all x in a, all y in b. */
SIMD_FN void vf_split(vf *a, vf *b)
{
	const vf x = vf_pick(*a, *b, VF_EVEN);
	const vf y = vf_pick(*a, *b, VF_EVEN + 1);
	*a = x;
	*b = y;
}

/* The inverse. */
SIMD_FN void vf_interleave(vf *a, vf *b)
{
	const vf low = vf_pick(*a, *b, VF_LOW);
	const vf high = vf_pick(*a, *b, VF_LOW + VF_LANES / 2);
	*a = low;
	*b = high;
}

/* Transposes a square of VF_LANES rows. Interleaving row i with row i + VF_LANES / 2 moves the row number's
 * highest bit below the column's bits, and the column's highest below the row's; doing so once for each bit
 * exchanges the two. */
SIMD_FN void vf_turn(vf rows[VF_LANES])
{
#pragma GCC unroll 4
	for (int bit = 1; bit < VF_LANES; bit *= 2) {
		vf next[VF_LANES];
#pragma GCC unroll 8
		for (int i = 0; i < VF_LANES / 2; i++) {
			next[2 * i] = rows[i];
			next[2 * i + 1] = rows[i + VF_LANES / 2];
			vf_interleave(&next[2 * i], &next[2 * i + 1]);
		}
#pragma GCC unroll 16
		for (int i = 0; i < VF_LANES; i++)
			rows[i] = next[i];
	}
}

#endif
