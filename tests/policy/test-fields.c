/* The table of a policy's fields: every value that is shown is taken back, and every refusal says why. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "policy/fields.h"

static void what_is_shown_is_taken_back(void **state)
{
	struct policy p, q;
	size_t n;
	const struct policy_field *f = policy_fields(&n);

	(void)state;
	policy_init(&p);
	memset(&q, 0x55, sizeof q);
	for (size_t i = 0; i < n; i++) {
		char text[POLICY_VALUE_MAX], again[POLICY_VALUE_MAX];

		policy_format(&p, &f[i], text);
		assert_int_equal(policy_set(&q, f[i].name, text, NULL, 0), 0);
		policy_format(&q, &f[i], again);
		assert_string_equal(text, again);
		assert_ptr_equal(policy_field(f[i].name), &f[i]);
		assert_true(strlen(f[i].help) > 10);
		assert_true(f[i].min < f[i].max);
		for (size_t k = 0; k < i; k++) {
			assert_string_not_equal(f[i].name, f[k].name);
			assert_int_not_equal(f[i].offset, f[k].offset);
		}
	}
	assert_int_equal(policy_check(&q, NULL, 0), 0);
}

static void values(void **state)
{
	static const struct {
		const char *name, *text, *why; /* NULL: taken */
	} cases[] = {
		{"target_ratio", "20", NULL},
		{"target_ratio", "1e3", NULL},
		{"target_ratio", "0.5", "target_ratio: 0.5 is not 1 to 1000 x"},
		{"target_ratio", "nan", "target_ratio: \"nan\" is not a number"},
		{"target_ratio", "inf", "target_ratio: \"inf\" is not a number"},
		{"target_ratio", "20%", "target_ratio: \"20%\" is not a number"},
		{"target_ratio", "", "target_ratio: \"\" is not a number"},
		{"alarm_error", "1%", NULL},
		{"alarm_error", "101%", "alarm_error: 101% is not 0 to 1 share"},
		{"alarm_error", "1%%", "alarm_error: \"1%%\" is not a number"},
		{"mode", "fidelity", NULL},
		{"mode", "fast", "mode: \"fast\" is none of ratio, fidelity, pressure"},
		{"sink_search", "off", NULL},
		{"sink_search", "0", "sink_search: \"0\" is none of off, on"},
		{"sink_tokens", "0", NULL},
		{"sink_tokens", "-1", "sink_tokens: \"-1\" is not a whole number"},
		{"sink_tokens", "1.5", "sink_tokens: \"1.5\" is not a whole number"},
		{"sink_tokens", "99999999999999999999",
			"sink_tokens: 99999999999999999999 is not 0 to 1.04858e+06 tokens"},
		{"target_ration", "16", "target_ration: unknown field; did you mean target_ratio?"},
		{"", "16", ": unknown field; did you mean mode?"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct policy p, before;
		char why[POLICY_WHY_MAX] = "";
		int r;

		policy_init(&p);
		before = p;
		r = policy_set(&p, cases[i].name, cases[i].text, why, sizeof why);
		assert_int_equal(r, cases[i].why ? -EINVAL : 0);
		if (cases[i].why) {
			assert_string_equal(why, cases[i].why);
			assert_memory_equal(&p, &before, sizeof p);
		}
	}
}

static void presets(void **state)
{
	struct policy p;

	(void)state;
	for (int i = POLICY_NO_PRESET + 1; i < POLICY_PRESETS; i++) {
		policy_init(&p);
		assert_true(policy_apply_preset(&p, (enum policy_preset)i) != 0);
		assert_int_equal(policy_check(&p, NULL, 0), 0);
		assert_int_equal(policy_preset_of(policy_preset_name((enum policy_preset)i)), i);
	}
	policy_init(&p);
	p.alarm_error = 0.5;
	policy_apply_preset(&p, POLICY_COMPACT);
	assert_true(p.ratio == 32 && p.alarm_error == 0.5);
	assert_int_equal(policy_preset_of("tight"), -1);
	assert_null(policy_preset_name(POLICY_NO_PRESET));
}

static void fields_that_contradict(void **state)
{
	struct policy p;
	char why[POLICY_WHY_MAX];

	(void)state;
	policy_init(&p);
	p.mode = POLICY_PRESSURE;
	p.ratio = 50;
	assert_int_equal(policy_check(&p, why, sizeof why), -EINVAL);
	assert_non_null(strstr(why, "pressure_ratio: 40 is below target_ratio, 50"));
	p.mode = POLICY_RATIO;
	assert_int_equal(policy_check(&p, why, sizeof why), 0);
	p.mode = 3;
	assert_int_equal(policy_check(&p, why, sizeof why), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_shown_is_taken_back),
		cmocka_unit_test(values), cmocka_unit_test(presets),
		cmocka_unit_test(fields_that_contradict)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
