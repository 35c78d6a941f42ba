/* The container comes back as it was written; what is cut short or damaged is refused with a reason. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/safetensors.h"

static const float floats[6] = {1, 2, 3, 4, 5, 6};
static const uint8_t bytes[3] = {7, 8, 9};

static const struct safetensor example[] = {
	{.name = "a.weight",
		.type = SAFETENSORS_F32,
		.n_dims = 2,
		.dims = {2, 3},
		.data = floats,
		.len_bytes = 24},
	{.name = "empty", .type = SAFETENSORS_I64, .n_dims = 2, .dims = {4, 0}},
	{.name = "scalar", .type = SAFETENSORS_F16, .data = bytes, .len_bytes = 2},
	{.name = "b", .type = SAFETENSORS_U8, .n_dims = 1, .dims = {3}, .data = bytes, .len_bytes = 3},
};

static const char *const metadata[] = {"format", "example", "note", "größer \"x\"", NULL};

static void write_example(void **data, size_t *len)
{
	assert_int_equal(safetensors_write(example, 4, metadata, data, len), 0);
}

static void test_round_trip(void **state)
{
	struct safetensors *s;
	void *data;
	size_t len;

	(void)state;
	write_example(&data, &len);
	assert_int_equal(safetensors_parse(data, len, &s, NULL, 0), 0);
	assert_int_equal(safetensors_count(s), 4);
	for (size_t i = 0; i < 4; i++) {
		const struct safetensor *t = safetensors_at(s, i);

		assert_string_equal(t->name, example[i].name);
		assert_ptr_equal(t, safetensors_find(s, example[i].name));
		assert_int_equal(t->type, example[i].type);
		assert_int_equal(t->n_dims, example[i].n_dims);
		assert_memory_equal(t->dims, example[i].dims, sizeof t->dims);
		assert_int_equal(t->len_bytes, example[i].len_bytes);
		if (t->len_bytes)
			assert_memory_equal(t->data, example[i].data, t->len_bytes);
	}
	assert_int_equal(((const uint8_t *)safetensors_at(s, 0)->data - (uint8_t *)data) % 64, 0);
	assert_string_equal(safetensors_metadata(s, "note"), "größer \"x\"");
	assert_null(safetensors_metadata(s, "nothing"));
	assert_null(safetensors_find(s, "c"));
	safetensors_free(s);
	free(data);
}

static void test_every_cut_is_refused(void **state)
{
	struct safetensors *s;
	void *data, *cut;
	size_t len;
	char why[128];

	(void)state;
	write_example(&data, &len);
	for (size_t n = 0; n < len; n++) {
		/* A copy of just that size, so that a read past the end is seen by the sanitisers. */
		cut = malloc(n + !n);
		assert_non_null(cut);
		memcpy(cut, data, n);
		why[0] = 0;
		assert_int_equal(safetensors_parse(cut, n, &s, why, sizeof why), -EBADMSG);
		assert_int_not_equal(why[0], 0);
		free(cut);
	}
	free(data);
}

/* Headers before 8 bytes of data. */
static const struct {
	const char *header;
	const char *why; /* NULL: sound */
} headers[] = {
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", NULL},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},\"__metadata__\":{}}   ", NULL},
	{"{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]},"
	 "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
		NULL},
	{"", "not a JSON object"},
	{"[]", "not a JSON object"},
	{"{\"a\":", "not a JSON object"},
	{"{} x", "not a JSON object"},
	{"{}", "belong to no tensor"},
	{"{\"a\":7}", "not an object"},
	{"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", "dtype"},
	{"{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", "dtype"},
	{"{\"a\":{\"dtype\":\"F8\",\"shape\":[8],\"data_offsets\":[0,8]}}", "dtype"},
	{"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", "shape"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}", "shape"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", "dimension 0"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", "dimension 0"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", "data_offsets"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", "data_offsets"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", "data_offsets"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", "outside"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}", "outside"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,9223372036854775807]}}", "outside"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", "disagree"},
	/* 2^62 * 4 wraps to 0, and (2^62 + 2) * 4 to 8. */
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387906],\"data_offsets\":[0,8]}}", "disagree"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]},"
	 "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
		"overlap"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
	 "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
		"gap"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[7],\"data_offsets\":[0,7]}}", "belong to no tensor"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
	 "\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}",
		"duplicate"},
	{"{\"__metadata__\":7}", "__metadata__"},
	{"{\"__metadata__\":{\"a\":7}}", "metadata a"},
};

static void test_headers(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
		size_t n = strlen(headers[i].header);
		uint8_t *file = calloc(1, 8 + n + 8);
		struct safetensors *s = NULL;
		char why[200] = "";
		int r;

		assert_non_null(file);
		file[0] = (uint8_t)n;
		memcpy(file + 8, headers[i].header, n);
		r = safetensors_parse(file, 8 + n + 8, &s, why, sizeof why);
		if (r != (headers[i].why ? -EBADMSG : 0) || (headers[i].why && !strstr(why, headers[i].why)))
			fail_msg("%s: %d, '%s'", headers[i].header, r, why);
		safetensors_free(s);
		free(file);
	}
}

/* Whatever the damage, the result is a refusal or tensors that lie inside the file. */
static void test_flipped_bytes(void **state)
{
	unsigned seed = (unsigned)time(NULL);
	void *data;
	size_t len;

	(void)state;
	print_message("seed %u\n", seed);
	srand(seed);
	write_example(&data, &len);
	for (int round = 0; round < 2000; round++) {
		uint8_t *copy = malloc(len);
		struct safetensors *s = NULL;
		unsigned sum = 0;

		assert_non_null(copy);
		memcpy(copy, data, len);
		for (int k = rand() % 3; k >= 0; k--)
			copy[(size_t)rand() % len] = (uint8_t)rand();
		if (safetensors_parse(copy, len, &s, NULL, 0) == 0) {
			for (size_t i = 0; i < safetensors_count(s); i++)
				for (uint64_t k = 0; k < safetensors_at(s, i)->len_bytes; k++)
					sum += ((const uint8_t *)safetensors_at(s, i)->data)[k];
			assert_true(sum <= 255 * 29);
		}
		safetensors_free(s);
		free(copy);
	}
	free(data);
}

static void test_writer_refuses(void **state)
{
	static const char *const not_utf8[] = {"note", "\xff", NULL};
	static const char *const odd[] = {"note", NULL};
	struct safetensor t[2] = {example[0], example[0]};
	void *data;
	size_t len;

	(void)state;
	assert_int_equal(safetensors_write(t, 2, NULL, &data, &len), -EINVAL);
	assert_int_equal(safetensors_write(t, 1, not_utf8, &data, &len), -EINVAL);
	assert_int_equal(safetensors_write(t, 1, odd, &data, &len), -EINVAL);
	t[0].len_bytes = 20;
	assert_int_equal(safetensors_write(t, 1, NULL, &data, &len), -EINVAL);
	t[0] = example[0];
	t[0].name = "__metadata__";
	assert_int_equal(safetensors_write(t, 1, NULL, &data, &len), -EINVAL);
	t[0] = example[0];
	t[0].name = "\xff";
	assert_int_equal(safetensors_write(t, 1, NULL, &data, &len), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_every_cut_is_refused),
		cmocka_unit_test(test_headers),
		cmocka_unit_test(test_flipped_bytes),
		cmocka_unit_test(test_writer_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
