/* Log lines: one a message whatever is in it, in both forms. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/log.h"

static void forms(void **state)
{
	static const struct {
		enum log_level level;
		unsigned long long time_ns;
		const char *message, *line;
	} cases[] = {
		{LOG_LEVEL_INFO, 1000000000123456789ull, "serving",
			"time=2001-09-09T01:46:40.123Z level=info msg=\"serving\"\n"},
		{LOG_LEVEL_ERROR, 0, "no", "<3>msg=\"no\"\n"},
		{LOG_LEVEL_WARNING, 0, "", "<4>msg=\"\"\n"},
		{LOG_LEVEL_INFO, 0, "say \"a\\b\"", "<6>msg=\"say \\\"a\\\\b\\\"\"\n"},
		{LOG_LEVEL_DEBUG, 0, "two\nlines\x1b[2J\x7f", "<7>msg=\"two\\x0alines\\x1b[2J\\x7f\"\n"},
		{LOG_LEVEL_INFO, 0, "caf\xc3\xa9", "<6>msg=\"caf\xc3\xa9\"\n"},
	};
	char line[256];

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		const size_t len =
			log_compose(line, sizeof line, cases[i].level, cases[i].time_ns, cases[i].message);

		assert_string_equal(line, cases[i].line);
		assert_int_equal(len, strlen(line));
	}
}

/* However long the message and however much of it is escaped, the line is whole. */
static void cut(void **state)
{
	char message[300], line[100];

	(void)state;
	for (int c = 1; c < 256; c++) {
		memset(message, c, sizeof message - 1);
		message[sizeof message - 1] = 0;
		for (size_t size = 64; size <= sizeof line; size++) {
			const size_t len = log_compose(line, size, LOG_LEVEL_INFO, 1, message);

			assert_true(len < size);
			assert_int_equal(strlen(line), len);
			assert_memory_equal(line + len - 2, "\"\n", 2);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forms),
		cmocka_unit_test(cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
