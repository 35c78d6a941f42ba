#include "tools/bench-rate/codecs/under-test.h"

#include <errno.h>
#include <stdlib.h>

#include <zlib.h>

#include "policy/policy.h"

const float under_test_ratios[8] = {4, 6, 8, 12, 16, 20, 32, 40};

enum { LENGTH_BYTES = 4 };

size_t coded_tokens(const struct codec_chunk *chunk, const uint8_t *classes, uint16_t *tokens)
{
	size_t n = 0;

	for (uint32_t t = 0; t < chunk->n_tokens; t++)
		if (!token_class_is_raw(classes[t]))
			tokens[n++] = (uint16_t)t;
	return n;
}

int64_t deflated_bytes(const uint8_t *data, size_t len)
{
	static const struct {
		int level, strategy;
	} ways[] = {{Z_BEST_COMPRESSION, Z_DEFAULT_STRATEGY}, {Z_BEST_SPEED, Z_HUFFMAN_ONLY}};
	int64_t best = (int64_t)len;

	for (size_t i = 0; i < sizeof ways / sizeof *ways && len; i++) {
		z_stream z = {.next_in = (Bytef *)data, .avail_in = (uInt)len};
		uint8_t *out;
		uLong bound;

		if (deflateInit2(&z, ways[i].level, Z_DEFLATED, -15, 9, ways[i].strategy) != Z_OK)
			return -ENOMEM;
		bound = deflateBound(&z, (uLong)len);
		out = malloc(bound);
		if (!out) {
			deflateEnd(&z);
			return -ENOMEM;
		}
		z.next_out = out;
		z.avail_out = (uInt)bound;
		if (deflate(&z, Z_FINISH) == Z_STREAM_END && (int64_t)z.total_out < best)
			best = (int64_t)z.total_out;
		deflateEnd(&z);
		free(out);
	}
	return best + LENGTH_BYTES;
}
