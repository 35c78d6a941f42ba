/* The shared formulae against naive ones, over every input where there are few. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "kernels/formula.h"

/* A finite narrow value by the book: (-1)^s * 2^(e - bias) * 1.m, or 0.m at the lowest exponent. */
static double narrow_value(uint16_t h, int mantissa_bits, int bias)
{
	const int exponent = (h & 0x7fff) >> mantissa_bits;
	const double fraction = (double)(h & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits);
	const double magnitude =
		exponent == 0 ? ldexp(fraction, 1 - bias) : ldexp(1.0 + fraction, exponent - bias);
	return h & 0x8000 ? -magnitude : magnitude;
}

struct narrow {
	const char *name;
	float (*widen)(uint16_t);
	uint16_t (*round)(float);
	int mantissa_bits;
	int bias;
	uint16_t infinity;
};

static const struct narrow narrows[] = {
	{"f16", f16_to_f32, f16_from_f32, 10, 15, 0x7c00},
	{"bf16", bf16_to_f32, bf16_from_f32, 7, 127, 0x7f80},
};

static void every_value_widens_and_returns(void **state)
{
	(void)state;
	for (size_t k = 0; k < 2; k++) {
		const struct narrow *n = &narrows[k];
		for (uint32_t h = 0; h < 65536; h++) {
			const float x = n->widen((uint16_t)h);
			const uint16_t magnitude = h & 0x7fff;
			const uint16_t back = n->round(x);
			if (magnitude > n->infinity) {
				assert_true(isnan(x));
				assert_true((back & 0x7fff) > n->infinity);
				assert_int_equal(back & 0x8000, h & 0x8000);
			} else if (magnitude == n->infinity) {
				assert_true(isinf(x) && !signbit(x) == !(h & 0x8000));
				assert_int_equal(back, h - 1); /* the largest finite */
			} else {
				assert_true(
					(double)x == narrow_value((uint16_t)h, n->mantissa_bits, n->bias));
				assert_int_equal(back, h);
			}
		}
	}
}

/* Around every pair of neighbours: a quarter, half and three quarters of the way, and one f32 step off half.
 */
static void rounding_is_to_nearest_even(void **state)
{
	(void)state;
	for (size_t k = 0; k < 2; k++) {
		const struct narrow *n = &narrows[k];
		for (uint32_t h = 0; h + 1 < n->infinity; h++) {
			const float low = n->widen((uint16_t)h);
			const float high = n->widen((uint16_t)(h + 1));
			const float middle = (float)(((double)low + (double)high) / 2);
			const uint16_t even = (uint16_t)(h + (h & 1));
			for (uint16_t sign = 0;; sign = 0x8000) {
				const float s = sign ? -1.0f : 1.0f;
				assert_int_equal(n->round(s * middle), sign | even);
				assert_int_equal(n->round(s * nextafterf(middle, low)), sign | h);
				assert_int_equal(n->round(s * nextafterf(middle, high)), sign | (h + 1));
				if (sign)
					break;
			}
		}
		assert_int_equal(n->round(3.4e38f), n->infinity - 1);
		assert_int_equal(n->round(-INFINITY), 0x8000 | (n->infinity - 1));
	}
	assert_int_equal(f16_from_f32(65520.0f), 0x7bff);
}

static void rotation_is_undone(void **state)
{
	(void)state;
	for (int i = 0; i < 1000; i++) {
		const double angle = i * 0.7;
		const double scale = 1.0 + 0.001 * (i % 400);
		const float cos_ = (float)(cos(angle) * scale);
		const float sin_ = (float)(sin(angle) * scale);
		const float x = (float)i - 500.0f;
		const float y = 3.0f;
		float a = x;
		float b = y;
		rope_rotate(&a, &b, cos_, sin_);
		assert_true(fabs((double)a - (cos(angle) * x - sin(angle) * y) * scale) <
			    1e-6 * scale * (fabs((double)x) + 3));
		assert_true(fabs((double)b - (cos(angle) * y + sin(angle) * x) * scale) <
			    1e-6 * scale * (fabs((double)x) + 3));
		rope_undo(&a, &b, cos_, sin_, (float)(1.0 / (scale * scale)));
		assert_true(fabs((double)(a - x)) < 1e-6 * (fabs((double)x) + 3));
		assert_true(fabs((double)(b - y)) < 1e-6 * (fabs((double)x) + 3));
	}
}

/* Every code's own value comes back as that code; what lies outside is clipped; NaN is a code like another.
 */
static void codes_are_levels(void **state)
{
	(void)state;
	const float step = 0.375f;
	for (uint32_t code = 0; code <= QUANT_TOP; code++) {
		const float value = quant_value(code, step);
		assert_int_equal(quant_code(value, 1.0f / step), code);
		assert_int_equal(quant_code(value + 0.4f * step, 1.0f / step), code);
		assert_true(fabsf(quant_residual(value, 1.0f / step)) < 1e-5f);
		/* Symmetric: the mirrored code has the negated value. */
		assert_true(quant_value(QUANT_TOP - code, step) == -value);
	}
	assert_int_equal(quant_code(1e30f, 1.0f / step), QUANT_TOP);
	assert_int_equal(quant_code(-INFINITY, 1.0f / step), 0);
	assert_int_equal(quant_code(NAN, 1.0f / step), 0);
	assert_true(quant_value(quant_code(0.0f, 1.0f / step), step) == 0.0f);
}

static void rows_that_cannot_be_scaled_have_no_step(void **state)
{
	(void)state;
	uint16_t steps[QUANT_CANDIDATES];
	assert_int_equal(quant_candidates(0, 0, 256, steps), 0);
	assert_int_equal(quant_candidates(NAN, 1, 256, steps), 0);
	assert_int_equal(quant_candidates(INFINITY, INFINITY, 256, steps), 0);
	assert_int_equal(quant_candidates(0, 1e-38f, 256, steps), 0);
	assert_int_equal(quant_candidates(256, 4, 256, steps), QUANT_CANDIDATES);
	for (int i = 0; i < QUANT_CANDIDATES; i++)
		assert_true(steps[i] > 0 && steps[i] < 0x7c00);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_value_widens_and_returns),
		cmocka_unit_test(rounding_is_to_nearest_even),
		cmocka_unit_test(rotation_is_undone),
		cmocka_unit_test(codes_are_levels),
		cmocka_unit_test(rows_that_cannot_be_scaled_have_no_step),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
