/* Frames as bytes: what was laid down is read back, and no damaged frame passes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/frame.h"

static struct frame_info example_info(void)
{
	struct frame_info info = {.position = 512,
		.n_tokens = 256,
		.n_raw = 4,
		.rung = 3,
		.policy_version = 7,
		.error = {{0.25f, 0.125f}, {0.5f, 0.0625f}},
		.raw_bytes = 12345};

	memset(info.name_space, 1, 16);
	memset(info.fingerprint, 2, 16);
	memset(info.transform, 3, 16);
	memset(info.key, 4, 32);
	memset(info.parent, 5, 32);
	return info;
}

/* A frame of three sections, with room asked for five. */
static void make(uint8_t **data, size_t *len)
{
	const struct frame_info info = example_info();
	const struct frame_section sections[] = {
		{.kind = FRAME_CLASSES, .len_bytes = 6, .full_bytes = 6},
		{.kind = FRAME_RAW, .plane = 1, .len_bytes = 100, .full_bytes = 100},
		{.kind = FRAME_CODES,
			.part = 9,
			.encoding = FRAME_DEFLATE,
			.token_class = 4,
			.len_bytes = 50,
			.full_bytes = 80},
	};
	struct frame_writer w;

	assert_int_equal(frame_writer_init(&w, 5, 10), 0);
	for (size_t i = 0; i < 3; i++) {
		uint8_t *body = frame_writer_reserve(&w, 1000);

		assert_non_null(body);
		memset(body, (int)('a' + i), sections[i].len_bytes);
		assert_int_equal(frame_writer_commit(&w, &sections[i]), 0);
	}
	assert_int_equal(frame_writer_finish(&w, &info, data, len), 0);
	frame_writer_fini(&w);
}

static void reads_back(void **state)
{
	const struct frame_info wanted = example_info();
	struct frame_section sections[3];
	struct frame_info info;
	uint8_t *data;
	size_t len;

	(void)state;
	make(&data, &len);
	assert_int_equal(len, FRAME_HEADER_BYTES + 3 * FRAME_SECTION_BYTES + 6 + 100 + 50);
	assert_int_equal(frame_parse(data, len, &info, sections, 2), -ENOBUFS);
	assert_int_equal(frame_parse(data, len, &info, sections, 3), 0);
	assert_memory_equal(info.name_space, wanted.name_space, 16);
	assert_memory_equal(info.fingerprint, wanted.fingerprint, 16);
	assert_memory_equal(info.transform, wanted.transform, 16);
	assert_memory_equal(info.key, wanted.key, 32);
	assert_memory_equal(info.parent, wanted.parent, 32);
	assert_memory_equal(info.error, wanted.error, sizeof info.error);
	assert_int_equal(info.position, 512);
	assert_int_equal(info.n_tokens, 256);
	assert_int_equal(info.n_raw, 4);
	assert_int_equal(info.rung, 3);
	assert_int_equal(info.policy_version, 7);
	assert_int_equal(info.raw_bytes, 12345);
	assert_int_equal(info.len_bytes, len);
	assert_int_equal(info.n_sections, 3);
	assert_int_equal(sections[1].plane, 1);
	assert_int_equal(sections[2].part, 9);
	assert_int_equal(sections[2].full_bytes, 80);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(frame_section_check(data, &sections[i]), 0);
		assert_int_equal(data[sections[i].offset], 'a' + i);
	}
	free(data);
}

/* Every cut and every flipped bit is noticed: in header and table by the parse, in a body by its check. */
static void damage_is_noticed(void **state)
{
	struct frame_section sections[3];
	struct frame_info info;
	uint8_t *data;
	size_t len, bodies;

	(void)state;
	make(&data, &len);
	bodies = FRAME_HEADER_BYTES + 3 * FRAME_SECTION_BYTES;
	for (size_t cut = 0; cut < len; cut++)
		assert_int_equal(frame_parse(data, cut, &info, NULL, 0), -EBADMSG);
	for (size_t bit = 0; bit < 8 * len; bit++) {
		int bad = 0;

		data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		if (bit / 8 < bodies) {
			/* The version's own bits say "another version", which is an answer of its own. */
			const int r = frame_parse(data, len, &info, sections, 3);

			assert_int_equal(r, bit / 8 == 4 || bit / 8 == 5 ? -ENOTSUP : -EBADMSG);
		} else {
			assert_int_equal(frame_parse(data, len, &info, sections, 3), 0);
			for (size_t i = 0; i < 3; i++)
				bad += frame_section_check(data, &sections[i]) != 0;
			assert_int_equal(bad, 1);
		}
		data[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	free(data);
}

static void longer_than_it_says(void **state)
{
	struct frame_info info;
	uint8_t *data;
	size_t len;

	(void)state;
	make(&data, &len);
	data = realloc(data, len + 1);
	assert_non_null(data);
	data[len] = 0;
	assert_int_equal(frame_parse(data, len + 1, &info, NULL, 0), -EBADMSG);
	free(data);
}

/* The class map, and a head that is changed and still sound. */
static void classes_and_errors(void **state)
{
	const struct frame_error other[2] = {{0.5f, 0.25f}, {0.75f, 0.125f}};
	/* 4 of class 1, 250 of class 0, 2 of class 2. */
	static const uint8_t runs[] = {1 | 3 << 3, 0 | 31 << 3, 250 - 32, 0, 2 | 1 << 3};
	const struct frame_section section = {
		.kind = FRAME_CLASSES, .len_bytes = sizeof runs, .full_bytes = sizeof runs};
	const struct frame_info wanted = example_info();
	uint8_t *data, classes[FRAME_TOKENS_MAX];
	struct frame_writer w;
	struct frame_info info;
	size_t len;

	(void)state;
	assert_int_equal(frame_writer_init(&w, 1, 0), 0);
	memcpy(frame_writer_reserve(&w, sizeof runs), runs, sizeof runs);
	assert_int_equal(frame_writer_commit(&w, &section), 0);
	assert_int_equal(frame_writer_finish(&w, &wanted, &data, &len), 0);
	assert_int_equal(frame_classes(data, len, classes), 0);
	for (int t = 0; t < 256; t++)
		assert_int_equal(classes[t], t < 4 ? 1 : t < 254 ? 0 : 2);
	assert_int_equal(frame_restate_error(data, len, other), 0);
	assert_int_equal(frame_parse(data, len, &info, NULL, 0), 0);
	assert_memory_equal(info.error, other, sizeof other);
	data[len - 1] ^= 1;
	assert_int_equal(frame_classes(data, len, classes), -EBADMSG);
	assert_int_equal(frame_restate_error(data, len - 1, other), -EBADMSG);
	free(data);
	/* Whose first section is no class map of all tokens. */
	make(&data, &len);
	assert_int_equal(frame_classes(data, len, classes), -EBADMSG);
	free(data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_back),
		cmocka_unit_test(damage_is_noticed),
		cmocka_unit_test(longer_than_it_says),
		cmocka_unit_test(classes_and_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
