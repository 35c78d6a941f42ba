/* The frames of tests/golden decode to what they decoded to when they were made: a format that drifts is seen
 * here. test-golden-frames GOLDEN */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "kernels/formula.h"
#include "policy/policy.h"
#include "tests/format/small-cache.h"

enum { GOLDEN_FRAMES = 10 };

static const char *golden;

static void *read_file(const char *name, int name_len, const char *suffix, size_t *len)
{
	char path[1024];
	void *data;

	snprintf(path, sizeof path, "%s/%.*s%s", golden, name_len, name, suffix);
	if (file_read(path, &data, len))
		fail_msg("%s cannot be read", path);
	return data;
}

static float value(const uint8_t *element, uint32_t dtype)
{
	uint16_t half;
	float whole;

	memcpy(&half, element, sizeof half);
	if (dtype == DTYPE_F16)
		return f16_to_f32(half);
	if (dtype == DTYPE_BF16)
		return bf16_to_f32(half);
	memcpy(&whole, element, sizeof whole);
	return whole;
}

/* What values of a type around x are apart. */
static float last_place(float x, uint32_t dtype)
{
	static const int digits[] = {[DTYPE_F16] = 11, [DTYPE_BF16] = 8, [DTYPE_F32] = 24};
	static const int least[] = {[DTYPE_F16] = -24, [DTYPE_BF16] = -133, [DTYPE_F32] = -149};
	int exponent;

	frexpf(x, &exponent);
	exponent -= digits[dtype];
	return ldexpf(1, x == 0 || exponent < least[dtype] ? least[dtype] : exponent);
}

/* Raw tokens bit for bit; coded ones to one place, plus 1e-6 of the token's largest value: another order of
 * the sums in f32 moves them by so much where terms cancel. In types of two bytes it takes hardly any of them
 * to the next place. */
static void compare(const char *name, const struct small_cache *cache, const uint8_t *classes,
	uint32_t n_tokens, const uint8_t *wanted, const uint8_t *got)
{
	for (uint32_t plane = 0; plane < cache->g.n_planes; plane++) {
		const uint32_t dtype = cache->g.planes[plane].dtype;
		const size_t size = dtype_bytes(dtype),
			     n = plane_width(&cache->g.planes[plane]) * cache->g.n_layers;

		size_t n_differ = 0, n_coded = 0;

		for (uint32_t t = 0; t < n_tokens; t++, wanted += n * size, got += n * size) {
			float largest = 0;

			if (token_class_is_raw(classes[t])) {
				if (memcmp(wanted, got, n * size))
					fail_msg("%s, plane %u: raw token %u differs", name, plane, t);
				continue;
			}
			for (size_t i = 0; i < n; i++)
				largest = fmaxf(largest, fabsf(value(wanted + i * size, dtype)));
			for (size_t i = 0; i < n; i++) {
				const float x = value(wanted + i * size, dtype),
					    y = value(got + i * size, dtype);

				n_differ += x != y;
				n_coded++;
				if (!(fabsf(x - y) <= last_place(x, dtype) + 1e-6f * largest))
					fail_msg("%s, plane %u, token %u, element %zu: %.9g, not %.9g", name,
						plane, t, i, (double)y, (double)x);
			}
		}
		if (size == 2 && n_differ * 50 > n_coded)
			fail_msg("%s, plane %u: %zu of %zu values differ", name, plane, n_differ, n_coded);
	}
}

static struct transform *read_transform(const char *name, const struct frame_info *info)
{
	static const uint8_t none[16];
	struct transform *t;
	char why[200] = "";
	size_t len;
	void *data;

	if (!memcmp(info->transform, none, sizeof none))
		return NULL;
	data = read_file(name, (int)strcspn(name, "-"), ".transform", &len);
	if (transform_parse(data, len, &t, why, sizeof why))
		fail_msg("transform of %s: %s", name, why);
	assert_memory_equal(t->id, info->transform, sizeof t->id);
	free(data);
	return t;
}

/* name: as far as ".frame" */
static void decodes(const char *name)
{
	struct codec *codec = codec_new(kernels_cpu(), 1 << 20);
	uint8_t *frame, *wanted, *got, classes[FRAME_TOKENS_MAX];
	size_t len, wanted_len, got_len;
	struct small_cache cache;
	struct codec_chunk chunk;
	struct frame_info info;
	struct transform *t;

	frame = read_file(name, (int)strlen(name), ".frame", &len);
	wanted = read_file(name, (int)strlen(name), ".decoded", &wanted_len);
	assert_int_equal(frame_parse(frame, len, &info, NULL, 0), 0);
	assert_int_equal(frame_classes(frame, len, classes), 0);
	assert_int_equal(small_cache_init(&cache, name), 0);
	t = read_transform(name, &info);
	chunk = small_cache_chunk(&cache, info.n_tokens, info.position);
	if (codec_decode(codec, frame, len, t, &chunk, 0, SMALL_LAYERS))
		fail_msg("%s does not decode", name);
	got = small_cache_copy(&cache, info.n_tokens, &got_len);
	assert_int_equal(got_len, wanted_len);
	compare(name, &cache, classes, info.n_tokens, wanted, got);
	free(got);
	free(wanted);
	free(frame);
	transform_unref(t);
	small_cache_fini(&cache);
	codec_free(codec);
}

static void golden_frames(void **state)
{
	static const char suffix[] = ".frame";
	const struct dirent *entry;
	int n_frames = 0;
	DIR *folder;

	(void)state;
	folder = opendir(golden);
	assert_non_null(folder);
	while ((entry = readdir(folder))) {
		const size_t len = strlen(entry->d_name), stem = len - (sizeof suffix - 1);
		char name[256];

		if (len < sizeof suffix || strcmp(entry->d_name + stem, suffix) != 0)
			continue;
		snprintf(name, sizeof name, "%.*s", (int)stem, entry->d_name);
		decodes(name);
		n_frames++;
	}
	closedir(folder);
	assert_int_equal(n_frames, GOLDEN_FRAMES);
}

/* A frame as the first version of the format had them: an answer of its own, and nothing is written. */
static void old_version(void **state)
{
	struct codec *codec = codec_new(kernels_cpu(), 1 << 20);
	struct small_cache cache;
	struct codec_chunk chunk;
	struct frame_info info;
	uint8_t classes[FRAME_TOKENS_MAX], *frame, *before, *after;
	size_t len, copy_len;

	(void)state;
	frame = read_file("version-1", 9, ".old", &len);
	assert_int_equal(small_cache_init(&cache, "gqa"), 0);
	chunk = small_cache_chunk(&cache, 20, 256);
	before = small_cache_copy(&cache, 20, &copy_len);
	assert_int_equal(frame_parse(frame, len, &info, NULL, 0), -ENOTSUP);
	assert_int_equal(frame_classes(frame, len, classes), -ENOTSUP);
	assert_int_equal(codec_decode(codec, frame, len, NULL, &chunk, 0, SMALL_LAYERS), -ENOTSUP);
	after = small_cache_copy(&cache, 20, &copy_len);
	assert_memory_equal(before, after, copy_len);
	free(before);
	free(after);
	free(frame);
	small_cache_fini(&cache);
	codec_free(codec);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_frames),
		cmocka_unit_test(old_version),
	};

	if (argc != 2)
		return 2;
	golden = argv[1];
	return cmocka_run_group_tests(tests, NULL, NULL);
}
