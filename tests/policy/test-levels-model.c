/* The default model, and one that has counted. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "policy/levels-model.h"

static void assert_sound(const struct levels_model *m)
{
	for (int table = 0; table < LEVELS_TABLES; table++) {
		for (int set = 0; set < LEVELS_SETS; set++) {
			uint32_t sum = 0;

			for (int k = 0; k < LEVELS_SYMBOLS; k++) {
				assert_true(m->tables.frequency[table][set][k] > 0);
				sum += m->tables.frequency[table][set][k];
			}
			assert_int_equal(sum, 1 << LEVELS_FREQUENCY_BITS);
			for (int k = 0; k < 2; k++)
				assert_true(fabsf(m->tables.bias[table][set][k]) < 1);
		}
		assert_true(m->bits[table] > 0 && m->distortion[table] > 0);
	}
}

static void test_default(void **state)
{
	struct levels_model m;
	(void)state;

	levels_model_default(&m);
	assert_sound(&m);
	/* Wider components cost more. */
	for (int table = 1; table <= LEVELS_WIDE_CLASS - LEVELS_TABLE_CLASS_MIN; table++) {
		assert_true(m.bits[table] >= m.bits[table - 1]);
	}
	/* An octave is a bit, up where the quantiser is fine: across the tables that lose low bits, too. */
	for (double ratio = 4; ratio < 2000; ratio *= 1.3)
		assert_true(fabs(levels_model_bits(&m, 2 * ratio, 1) - levels_model_bits(&m, ratio, 1) - 1) <
			    0.1);
	assert_true(levels_model_bits(&m, 0.5, 1) == 0);
	assert_true(levels_model_distortion(&m, 0.5, 1) == 0.25);
}

static void test_counts_win(void **state)
{
	static struct levels_counts counts;
	struct levels_model m;
	const int table = 8;
	(void)state;

	levels_model_default(&m);
	for (int set = 0; set < LEVELS_SETS; set++) {
		counts.symbols[table][set][LEVELS_VALUE_MAX] = 500000;
		counts.symbols[table][set][LEVELS_VALUE_MAX + 1] = 500000;
		counts.n_biased[table][set][0] = 500000;
		counts.excess[table][set][0] = 0.4 * 500000;
	}
	counts.n[table] = 2e6;
	counts.lost[table] = 0.2 * 2e6;
	levels_model_update(&m, &counts);
	assert_sound(&m);
	/* Zero, and one of either sign: counted on one side, they are expected on both. */
	assert_true(fabs(m.tables.frequency[table][0][LEVELS_VALUE_MAX] / 4096.0 - 0.5) < 0.01);
	assert_true(fabs(m.tables.frequency[table][0][LEVELS_VALUE_MAX + 1] / 4096.0 - 0.25) < 0.01);
	assert_true(fabs(m.tables.frequency[table][0][LEVELS_VALUE_MAX - 1] / 4096.0 - 0.25) < 0.01);
	assert_true(fabs(m.bits[table] - 1.5) < 0.02);
	assert_true(fabs(m.distortion[table] - 0.2) < 0.001);
	assert_true(fabsf(m.tables.bias[table][1][0] - 0.4f) < 0.01f);
}

static void test_nothing_counted(void **state)
{
	static const struct levels_counts none;
	struct levels_model m, before;
	(void)state;

	levels_model_default(&before);
	m = before;
	levels_model_update(&m, &none);
	assert_memory_equal(&m, &before, sizeof m);
}

/* Classes: the one nearest in quarters of an octave; the same class a step later, an octave on. */
static void test_classes(void **state)
{
	(void)state;
	assert_int_equal(levels_class(1, 1), 0);
	assert_int_equal(levels_class(2, 1), 4);
	assert_int_equal(levels_class(1.19f, 1), 1);
	assert_int_equal(levels_class(1.08f, 1), 0);
	assert_int_equal(levels_class(1.10f, 1), 1);
	assert_int_equal(levels_class(0.64f, 1), LEVELS_CLASS_MIN - 1);
	assert_int_equal(levels_class(0.66f, 1), LEVELS_CLASS_MIN);
	assert_int_equal(levels_class(0, 1), LEVELS_CLASS_MIN - 1);
	assert_int_equal(levels_class(1e30f, 1e-30f), LEVELS_CLASS_MAX);
	assert_int_equal(levels_class(NAN, 1), LEVELS_CLASS_MIN - 1);
	for (int class = LEVELS_TABLE_CLASS_MIN - 9; class <= LEVELS_CLASS_MAX + 9; class ++) {
		const struct levels_row row = levels_row(class);

		assert_true(row.table < LEVELS_TABLES && row.shift <= 10);
		if (class > LEVELS_WIDE_CLASS && class <= LEVELS_CLASS_MAX - 4) {
			assert_int_equal(levels_row(class + 4).table, row.table);
			assert_int_equal(levels_row(class + 4).shift, row.shift + 1);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_default),
		cmocka_unit_test(test_counts_win),
		cmocka_unit_test(test_nothing_counted),
		cmocka_unit_test(test_classes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
