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
	for (unsigned bits = 1; bits <= 8; bits++) {
		const float step = 0.375f;
		const float centre = quant_centre(bits);
		const float top = quant_top(bits);
		assert_true(top <= (float)((1 << bits) - 1));
		for (uint32_t code = 0; code <= (uint32_t)top; code++) {
			const float value = quant_value(code, step, centre);
			assert_int_equal(quant_code(value, 1.0f / step, centre, top), code);
			assert_int_equal(quant_code(value + 0.4f * step, 1.0f / step, centre, top), code);
			/* Symmetric: the mirrored code has the negated value. */
			assert_true(quant_value((uint32_t)top - code, step, centre) == -value);
		}
		assert_int_equal(quant_code(1e30f, 1.0f / step, centre, top), (uint32_t)top);
		assert_int_equal(quant_code(-INFINITY, 1.0f / step, centre, top), 0);
		assert_int_equal(quant_code(NAN, 1.0f / step, centre, top), 0);
		if (bits > 1)
			assert_true(quant_value(quant_code(0.0f, 1.0f / step, centre, top), step, centre) ==
				    0.0f);
	}
}

static void rows_that_cannot_be_scaled_have_no_step(void **state)
{
	(void)state;
	uint16_t steps[QUANT_CANDIDATES];
	for (unsigned bits = 1; bits <= 8; bits++) {
		assert_int_equal(quant_candidates(bits, 0, 0, 0, 256, steps), 0);
		assert_int_equal(quant_candidates(bits, NAN, NAN, 1, 256, steps), 0);
		assert_int_equal(quant_candidates(bits, INFINITY, INFINITY, INFINITY, 256, steps), 0);
		assert_int_equal(quant_candidates(bits, 0, 1e-38f, 1e-38f, 256, steps), 0);
		const int n = quant_candidates(bits, 256, 200, 4, 256, steps);
		assert_int_equal(n, bits == 1 ? 1 : QUANT_CANDIDATES);
		for (int i = 0; i < n; i++)
			assert_true(steps[i] > 0 && steps[i] < 0x7c00);
	}
}

static void eights_pack_to_bits(void **state)
{
	(void)state;
	uint64_t random = 42;
	for (unsigned bits = 1; bits <= 8; bits++) {
		for (int round = 0; round < 200; round++) {
			uint64_t codes = 0;
			uint64_t expected = 0;
			for (unsigned i = 0; i < 8; i++) {
				random = random * 6364136223846793005u + 1442695040888963407u;
				const uint64_t code = random >> 40 & ((1u << bits) - 1);
				codes |= code << 8 * i;
				expected |= code << bits * i;
			}
			assert_true(quant_pack8(codes, bits) == expected);
			/* Bits above the eight codes belong to the next eight. */
			const uint64_t beyond = bits < 8 ? random << 8 * bits : 0;
			assert_true(quant_unpack8(expected | beyond, bits) == codes);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_value_widens_and_returns),
		cmocka_unit_test(rounding_is_to_nearest_even),
		cmocka_unit_test(rotation_is_undone),
		cmocka_unit_test(codes_are_levels),
		cmocka_unit_test(rows_that_cannot_be_scaled_have_no_step),
		cmocka_unit_test(eights_pack_to_bits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
