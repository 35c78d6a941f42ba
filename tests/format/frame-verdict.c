/*
 * What cistern's decoder says of frames:
 *
 *     frame-verdict GOLDEN FRAME...
 *
 * FRAME's file name begins with its model's, whose transform is in the folder GOLDEN. A line for each:
 * "refused CODE", or "decoded HASH", XXH3-64 of the values ([planes][n_tokens][layers][heads][dim]). For
 * tests/reference/spoilt_frames.py.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/file.h"
#include "tests/format/small-cache.h"

static void must(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "frame-verdict: %s\n", what);
	exit(EXIT_FAILURE);
}

static struct transform *read_transform(const char *golden, const char *name)
{
	struct transform *t;
	char path[1024], why[200] = "";
	void *data;
	size_t len;

	snprintf(path, sizeof path, "%s/%.*s.transform", golden, (int)strcspn(name, "-"), name);
	must(!file_read(path, &data, &len), path);
	must(!transform_parse(data, len, &t, why, sizeof why), why);
	free(data);
	return t;
}

static int decode(const char *golden, const char *name, const void *data, size_t len, uint64_t *hash)
{
	static const uint8_t none[16];
	struct small_cache cache;
	struct transform *t = NULL;
	struct codec_chunk chunk;
	struct frame_info info;
	struct codec *codec;
	int r = frame_parse(data, len, &info, NULL, 0);

	if (r < 0)
		return r;
	codec = codec_new(kernels_cpu(), 1 << 20);
	must(codec && !small_cache_init(&cache, name), name);
	if (memcmp(info.transform, none, sizeof none) != 0)
		t = read_transform(golden, name);
	chunk = small_cache_chunk(&cache, info.n_tokens, info.position);
	r = codec_decode(codec, data, len, t, &chunk, 0, SMALL_LAYERS);
	if (!r) {
		size_t copy_len;
		uint8_t *copy = small_cache_copy(&cache, info.n_tokens, &copy_len);

		*hash = XXH3_64bits(copy, copy_len);
		free(copy);
	}
	transform_unref(t);
	small_cache_fini(&cache);
	codec_free(codec);
	return r;
}

int main(int argc, char **argv)
{
	for (int i = 2; i < argc; i++) {
		const char *slash = strrchr(argv[i], '/');
		uint64_t hash;
		void *data;
		size_t len;
		int r;

		must(!file_read(argv[i], &data, &len), argv[i]);
		r = decode(argv[1], slash ? slash + 1 : argv[i], data, len, &hash);
		if (r)
			printf("refused %d\n", -r);
		else
			printf("decoded %016" PRIx64 "\n", hash);
		free(data);
	}
	return 0;
}
