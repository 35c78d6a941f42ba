/* What is left of the machine's memory, as the kernel writes it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/memory.h"

static void files(void **state)
{
	static const struct {
		const char *text;
		double share;
	} cases[] = {
		{"MemTotal:       16384000 kB\nMemFree:          100000 kB\nMemAvailable:    4096000 kB\n",
			0.25},
		{"MemTotal: 100 kB\nMemAvailable: 0 kB\n", 0},
		/* What does not say is no reason to give anything up. */
		{"MemTotal: 100 kB\nMemFree: 1 kB\n", 1},
		{"MemTotal: 0 kB\nMemAvailable: 0 kB\n", 1},
		{"MemTotal: many kB\nMemAvailable: 5 kB\n", 1},
		{"", 1},
	};
	char path[] = "/tmp/test-memory-XXXXXX";
	const int fd = mkstemp(path);

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		FILE *f = fopen(path, "w");

		assert_non_null(f);
		fputs(cases[i].text, f);
		fclose(f);
		if (memory_available(path) != cases[i].share)
			fail_msg("case %zu: %g", i, memory_available(path));
	}
	unlink(path);
	assert_true(memory_available(path) == 1);
	assert_true(memory_available("/proc/meminfo") > 0 && memory_available("/proc/meminfo") <= 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(files)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
