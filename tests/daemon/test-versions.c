/* The directory of learned transforms: order, leftovers of interrupted writes, names that are not ours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "runtime/daemon/learn/versions.h"

enum { FOUND_MAX = 16 };

struct seen {
	struct version list[FOUND_MAX];
	char contents[FOUND_MAX][16];
	int n;
};

static void see(void *arg, const char *path, const struct version *v)
{
	struct seen *s = arg;
	void *data;
	size_t len;

	assert_true(s->n < FOUND_MAX);
	assert_int_equal(file_read(path, &data, &len), 0);
	assert_true(len < 16);
	memcpy(s->contents[s->n], data, len + 1);
	free(data);
	s->list[s->n++] = *v;
}

static void touch(const char *folder, const char *name)
{
	char path[300];

	snprintf(path, sizeof path, "%s/%s", folder, name);
	assert_int_equal(file_write(path, "x", 1), 0);
}

static int is_there(const char *folder, const char *name)
{
	char path[300];

	snprintf(path, sizeof path, "%s/%s", folder, name);
	return !access(path, F_OK);
}

static void kept_in_order(void **state)
{
	static const char *const strangers[] = {"notes.txt", "00000001-5-zz.safetensors",
		"1-5-0f000000000000000000000000000000.safetensors",
		"00000001-5-0F000000000000000000000000000000.safetensors",
		"00000001-5-0f000000000000000000000000000000.safetensors.bak"};
	static const char leftover[] = "00000007-9-0f000000000000000000000000000000.safetensors.a1B2c3";
	char folder[] = "/tmp/test-versions-XXXXXX", directory[64], command[128];
	struct version v = {.n_tokens = 4096};
	struct seen s = {0};

	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(directory, sizeof directory, "%s/transforms", folder);
	/* Made when it is missing; empty. */
	assert_int_equal(versions_scan(directory, see, &s), 0);
	assert_int_equal(s.n, 0);
	for (uint32_t i = 12; i > 8; i--) {
		char text[16];

		v.number = i;
		v.n_tokens = 1ull << (3 * i);
		memset(v.id, (int)(0xa0 + i), sizeof v.id);
		snprintf(text, sizeof text, "%u", i);
		assert_int_equal(versions_write(directory, &v, text, strlen(text)), 0);
	}
	for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++)
		touch(directory, strangers[i]);
	touch(directory, leftover);
	v.number = 10;
	v.n_tokens = 1ull << 30;
	memset(v.id, 0xaa, sizeof v.id);
	assert_int_equal(versions_remove(directory, &v), 0);
	assert_int_equal(versions_remove(directory, &v), 0);
	assert_int_equal(versions_scan(directory, see, &s), 0);
	assert_int_equal(s.n, 3);
	for (int i = 0; i < 3; i++) {
		static const uint32_t numbers[] = {9, 11, 12};

		assert_int_equal(s.list[i].number, numbers[i]);
		assert_int_equal(s.list[i].n_tokens, 1ull << (3 * numbers[i]));
		assert_int_equal(s.list[i].id[15], 0xa0 + numbers[i]);
		assert_int_equal(atoi(s.contents[i]), numbers[i]);
	}
	for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++)
		assert_true(is_there(directory, strangers[i]));
	assert_false(is_there(directory, leftover));
	snprintf(command, sizeof command, "rm -r %s", folder);
	assert_int_equal(system(command), 0);
}

static void no_such_place(void **state)
{
	const struct version v = {.number = 1};
	struct seen s = {0};

	(void)state;
	assert_int_equal(versions_scan("/nowhere/at/all", see, &s), -ENOENT);
	assert_int_equal(versions_write("/nowhere/at/all", &v, "x", 1), -ENOENT);
	assert_int_equal(versions_scan("/etc/passwd", see, &s), -ENOTDIR);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kept_in_order),
		cmocka_unit_test(no_such_place),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
