/* Half precision agrees with the format's definition: all 65536 values, and rounding between each two. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/half.h"

/* Sign, 5 bits of exponent with bias 15, 10 bits of fraction. */
static double by_definition(unsigned half)
{
	int exponent = half >> 10 & 31;
	double fraction = half & 0x3ff, sign = half & 0x8000 ? -1 : 1;

	if (exponent == 31)
		return fraction > 0 ? NAN : sign * INFINITY;
	return sign * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
}

static void test_every_value(void **state)
{
	(void)state;
	for (unsigned h = 0; h < 65536; h++) {
		double want = by_definition(h), got = (double)half_to_float((uint16_t)h);

		if (isnan(want) ? !isnan(got) : want != got || signbit(want) != signbit(got))
			fail_msg("half %04x: %g, not %g", h, got, want);
		if (!isnan(want))
			assert_int_equal(half_from_float((float)want), h);
	}
	assert_true(isnan(half_to_float(half_from_float(NAN))));
}

static void test_rounding(void **state)
{
	(void)state;
	for (unsigned h = 0; h < 0x7c00; h++) {
		/* The value after the largest is where infinity begins: 65536. */
		double low = by_definition(h), high = h == 0x7bff ? 65536 : by_definition(h + 1);
		float middle = (float)((low + high) / 2);

		assert_int_equal(half_from_float(nextafterf(middle, 0)), h);
		assert_int_equal(half_from_float(middle), h + (h & 1));
		assert_int_equal(half_from_float(nextafterf(middle, INFINITY)), h + 1);
		assert_int_equal(half_from_float(-middle), 0x8000 | (h + (h & 1)));
	}
	assert_int_equal(half_from_float(1e30f), 0x7c00);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_value),
		cmocka_unit_test(test_rounding),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
