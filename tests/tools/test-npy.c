/* .npy headers as numpy writes them, and others. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tools/npy.h"

/* Headers before 24 bytes of data. */
static const struct {
	const char *header;
	const char *why; /* NULL: sound */
	uint32_t n_dims;
	uint64_t first;
} cases[] = {
	{"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      \n", NULL, 2, 2},
	{"{'descr': '<f2', 'fortran_order': False, 'shape': (12,), }\n", NULL, 1, 12},
	{"{'descr': '|V2', 'fortran_order': False, 'shape': (1, 2, 1, 3, 2), }\n", NULL, 5, 1},
	{"{'descr': '<f8', 'fortran_order': False, 'shape': (), }\n", NULL, 0, 0},
	{"{'descr': '<i8', 'fortran_order': False, 'shape': (0, 7), }\n", NULL, 2, 0},
	{"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", "row-major", 0, 0},
	{"{'descr': '<f4', 'shape': (2, 3), }\n", "row-major", 0, 0},
	{"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }\n", "little-endian", 0, 0},
	{"{'descr': '<f3', 'fortran_order': False, 'shape': (2, 3), }\n", "little-endian", 0, 0},
	{"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }\n", "little-endian", 0, 0},
	{"{'descr': '", "row-major", 0, 0},
	{"{'descr': '<f4', 'fortran_order': False, }\n", "shape", 0, 0},
	{"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3), }\n", "shape", 0, 0},
	{"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3", "shape", 0, 0},
	{"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1), }\n", "shape", 0, 0},
	{"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }\n", "shape", 0, 0},
	{"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }\n", "memory", 0, 0},
	{"{'descr': '<f4', 'fortran_order': False, 'shape': (7,), }\n", "cut short", 0, 0},
};

/* Version 1 has two bytes of length, version 2 four. */
static uint8_t *make_file(const char *header, int version, size_t *len)
{
	size_t n = strlen(header), prefix = version == 1 ? 10 : 12;
	uint8_t *file = calloc(1, prefix + n + 24);

	assert_non_null(file);
	memcpy(file, "\x93NUMPY", 6);
	file[6] = (uint8_t)version;
	file[8] = (uint8_t)n;
	memcpy(file + prefix, header, n);
	memset(file + prefix + n, 0x55, 24);
	*len = prefix + n + 24;
	return file;
}

static void test_headers(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		for (int version = 1; version <= 2; version++) {
			char why[128] = "";
			struct npy npy;
			size_t len;
			uint8_t *file = make_file(cases[i].header, version, &len);
			int r = npy_parse(file, len, &npy, why, sizeof why);

			if (r != (cases[i].why ? -EBADMSG : 0) ||
				(cases[i].why && !strstr(why, cases[i].why)))
				fail_msg("%s: %d, '%s'", cases[i].header, r, why);
			if (r == 0) {
				assert_int_equal(npy.n_dims, cases[i].n_dims);
				assert_int_equal(npy.n_dims ? npy.dims[0] : 0, cases[i].first);
				assert_ptr_equal(npy.data, file + len - 24);
				assert_true(npy.len_bytes <= 24);
			}
			free(file);
		}
	}
}

static void test_every_cut_is_refused(void **state)
{
	(void)state;
	for (size_t n = 0, len = 1; n < len; n++) {
		struct npy npy;
		uint8_t *file = make_file(cases[0].header, 1, &len), *cut = malloc(n + !n);

		assert_non_null(cut);
		memcpy(cut, file, n);
		assert_int_equal(npy_parse(cut, n, &npy, NULL, 0), -EBADMSG);
		free(cut);
		free(file);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_headers),
		cmocka_unit_test(test_every_cut_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
