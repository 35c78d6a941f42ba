/* Which tokens a policy keeps as they are, and which policies are accepted. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "policy/policy.h"

/* Eight tokens: s sink, w window, . plain. */
static const struct {
	uint32_t sinks, window;
	uint64_t position, seq_end;
	const char *classes;
} cases[] = {
	{4, 2, 0, 8, "ssss..ww"},
	{4, 2, 0, 9, "ssss...w"},
	{4, 2, 0, 10, "ssss...."},
	{4, 2, 2, 100, "ss......"},
	{4, 2, 4, 100, "........"},
	{4, 6, 0, 8, "sssswwww"},
	{0, 0, 0, 8, "........"},
	{0, 8, 0, 8, "wwwwwwww"},
	{0, 9, 0, 8, "wwwwwwww"},
	{9, 0, 0, 8, "ssssssss"},
	{4, 3, 1000000, 1000009, "......ww"},
	/* Positions near the end of the range: nothing may wrap. */
	{4, 2, UINT64_MAX - 8, UINT64_MAX, "......ww"},
};

static void test_classify(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct policy p;
		uint8_t classes[9];
		char text[9] = "";

		policy_init(&p);
		p.sink_tokens = cases[i].sinks;
		p.window_tokens = cases[i].window;
		classes[8] = 0xaa;
		policy_classify(&p, cases[i].position, 8, cases[i].seq_end, classes);
		for (int t = 0; t < 8; t++) {
			text[t] = ".sw"[classes[t]];
			assert_int_equal(token_class_is_raw(classes[t]), cases[i].classes[t] != '.');
		}
		assert_string_equal(text, cases[i].classes);
		assert_int_equal(classes[8], 0xaa);
	}
}

#define FAULTS(X)                                                                                            \
	X(p.sink_tokens = UINT32_MAX, "sink_tokens")                                                         \
	X(p.window_tokens = UINT32_MAX, "window_tokens")                                                     \
	X(p.ratio = 0.5, "ratio")                                                                            \
	X(p.ratio = 1001, "ratio")                                                                           \
	X(p.ratio = NAN, "ratio")                                                                            \
	X(p.max_error = -0.1, "max_error")                                                                   \
	X(p.max_error = 1.1, "max_error")                                                                    \
	X(p.max_error = NAN, "max_error")

static void test_check(void **state)
{
	struct policy p;
	char why[128];

	(void)state;
	policy_init(&p);
	assert_int_equal(policy_check(&p, why, sizeof why), 0);
	assert_int_equal(p.sink_tokens, 4);
	assert_int_equal(p.window_tokens, 128);
#define FAULT(change, word)                                                                                  \
	policy_init(&p);                                                                                     \
	change;                                                                                              \
	assert_int_equal(policy_check(&p, why, sizeof why), -EINVAL);                                        \
	if (!strstr(why, word))                                                                              \
		fail_msg("%s: expected '%s' in '%s'", #change, word, why);                                   \
	assert_int_equal(policy_check(&p, NULL, 0), -EINVAL);
	FAULTS(FAULT)
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_classify),
		cmocka_unit_test(test_check),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
