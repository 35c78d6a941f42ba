#include "tools/engine/vector.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/half.h"

/*
 * The bodies are written once, over vectors of 16 floats that the compiler splits to whatever the target has,
 * and inlined into one wrapper per instruction set. Sums run in 16 lanes that are folded in one fixed order.
 */
typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t lanes_int __attribute__((vector_size(64)));

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };

static const lanes zero = {0};

/* a where the mask is set, b elsewhere; the operator ?: knows no vectors in C. */
#define SELECT(mask, a, b) ((lanes)(((lanes_int)(a) & (mask)) | ((lanes_int)(b) & ~(mask))))

/* Cephes' expf: split off the power of two, a polynomial for what is left, within 2 ulp for x in [-87, 88].
 * Below that the result is 0 (a masked score), above it is the value at 88. */
INLINE void exp_lanes(lanes *x)
{
	const lanes low = zero - 87.0f;
	const lanes high = zero + 88.0f;
	lanes_int tiny = *x < low;
	lanes_int huge = *x > high;
	lanes v = SELECT(huge, high, SELECT(tiny, low, *x));
	lanes n = v * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
	lanes_int power = ((lanes_int)n - 0x4b400000 + 127) << 23;
	lanes r, p;

	n -= 12582912.0f;
	r = v - n * 0.693359375f + n * 2.12194440e-4f;
	p = r * 1.9875691500e-4f + 1.3981999507e-3f;
	p = p * r + 8.3334519073e-3f;
	p = p * r + 4.1665795894e-2f;
	p = p * r + 1.6666665459e-1f;
	p = p * r + 5.0000001201e-1f;
	p = p * r * r + r + 1.0f;
	*x = (lanes)((lanes_int)(p * (lanes)power) & ~tiny);
}

INLINE float lanes_sum(const lanes *x)
{
	float sum = 0;

	for (int i = 0; i < LANES; i++)
		sum += (*x)[i];
	return sum;
}

INLINE void rms_norm_body(const float *x, const float *weight, size_t n, float eps, float *y)
{
	lanes square = zero;
	float scale;

	for (size_t i = 0; i < n; i += LANES) {
		lanes v = *(const lanes *)(x + i);

		square += v * v;
	}
	scale = 1.0f / sqrtf(lanes_sum(&square) / (float)n + eps);
	for (size_t i = 0; i < n; i += LANES)
		*(lanes *)(y + i) = *(const lanes *)(x + i) * scale * *(const lanes *)(weight + i);
}

INLINE void swiglu_body(const float *gate, const float *up, size_t n, float *y)
{
	for (size_t i = 0; i < n; i += LANES) {
		lanes g = *(const lanes *)(gate + i);
		lanes e = -g;

		exp_lanes(&e);
		*(lanes *)(y + i) = g / (e + 1.0f) * *(const lanes *)(up + i);
	}
}

INLINE void rotate_body(float *x, const float *cosine, const float *sine, size_t n)
{
	for (size_t i = 0, half = n / 2; i < half; i++) {
		float a = x[i], b = x[i + half];

		x[i] = a * cosine[i] - b * sine[i];
		x[i + half] = b * cosine[i] + a * sine[i];
	}
}

INLINE void softmax_body(float *x, size_t n, float scale)
{
	size_t whole = n - n % LANES;
	lanes best = zero - FLT_MAX, sum = zero, tail = best;
	float max = -FLT_MAX;

	for (size_t i = 0; i < whole; i += LANES) {
		lanes v = *(lanes *)(x + i);

		best = SELECT(v > best, v, best);
	}
	memcpy(&tail, x + whole, (n - whole) * sizeof *x);
	best = SELECT(tail > best, tail, best);
	for (int i = 0; i < LANES; i++)
		max = best[i] > max ? best[i] : max;
	for (size_t i = 0; i < whole; i += LANES) {
		lanes v = (*(lanes *)(x + i) - max) * scale;

		exp_lanes(&v);
		*(lanes *)(x + i) = v;
		sum += v;
	}
	tail = (tail - max) * scale;
	exp_lanes(&tail);
	sum += tail;
	scale = 1.0f / lanes_sum(&sum);
	for (size_t i = 0; i < whole; i += LANES)
		*(lanes *)(x + i) *= scale;
	tail *= scale;
	memcpy(x + whole, &tail, (n - whole) * sizeof *x);
}

static void from_half_generic(const void *half, size_t n, float *x)
{
	for (size_t i = 0; i < n; i++) {
		uint16_t h;

		memcpy(&h, (const char *)half + 2 * i, sizeof h);
		x[i] = half_to_float(h);
	}
}

static void to_half_generic(const float *x, size_t n, uint16_t *half)
{
	for (size_t i = 0; i < n; i++)
		half[i] = half_from_float(x[i]);
}

#define WRAPPERS(suffix, attribute)                                                                          \
	attribute static void rms_norm_##suffix(                                                             \
		const float *x, const float *weight, size_t n, float eps, float *y)                          \
	{                                                                                                    \
		rms_norm_body(x, weight, n, eps, y);                                                         \
	}                                                                                                    \
	attribute static void swiglu_##suffix(const float *gate, const float *up, size_t n, float *y)        \
	{                                                                                                    \
		swiglu_body(gate, up, n, y);                                                                 \
	}                                                                                                    \
	attribute static void rotate_##suffix(float *x, const float *cosine, const float *sine, size_t n)    \
	{                                                                                                    \
		rotate_body(x, cosine, sine, n);                                                             \
	}                                                                                                    \
	attribute static void softmax_##suffix(float *x, size_t n, float scale)                              \
	{                                                                                                    \
		softmax_body(x, n, scale);                                                                   \
	}                                                                                                    \
	static const struct vector_ops ops_##suffix = {#suffix, from_half_##suffix, to_half_##suffix,        \
		rms_norm_##suffix, swiglu_##suffix, rotate_##suffix, softmax_##suffix};

WRAPPERS(generic, )

#if defined(__x86_64__)

__attribute__((target("avx2,fma,f16c"))) static void from_half_avx2(const void *half, size_t n, float *x)
{
	const char *at = half;
	size_t whole = n - n % 8;

	for (size_t i = 0; i < whole; i += 8)
		_mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(at + 2 * i))));
	from_half_generic(at + 2 * whole, n - whole, x + whole);
}

__attribute__((target("avx2,fma,f16c"))) static void to_half_avx2(const float *x, size_t n, uint16_t *half)
{
	size_t whole = n - n % 8;

	for (size_t i = 0; i < whole; i += 8) {
		__m128i h = _mm256_cvtps_ph(
			_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);

		_mm_storeu_si128((__m128i *)(half + i), h);
	}
	to_half_generic(x + whole, n - whole, half + whole);
}

/* AVX2's conversions already run at the speed of memory. */
#define from_half_avx512 from_half_avx2
#define to_half_avx512 to_half_avx2

WRAPPERS(avx2, __attribute__((target("avx2,fma,f16c"))))
WRAPPERS(avx512, __attribute__((target("avx512f,avx512dq,avx512vl,fma,f16c,prefer-vector-width=512"))))

const struct vector_ops *vector_ops(void)
{
	__builtin_cpu_init();
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
		!__builtin_cpu_supports("f16c"))
		return &ops_generic;
	if (!__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
		return &ops_avx2;
	return &ops_avx512;
}

#else

const struct vector_ops *vector_ops(void)
{
	return &ops_generic;
}

#endif
