/*
 * What encoder and decoder share: the scratch of one thread, and a view of "the parts of a chunk" that is the
 * same with a transform (a part is a layer group) and without (the plain codec: a part is a layer).
 */
#ifndef RUNTIME_CODEC_INTERNAL_H
#define RUNTIME_CODEC_INTERNAL_H

#include <zlib.h>

#include "runtime/codec.h"

/* Memory that grows and is kept between calls, aligned to a cache line. Contents do not survive growth. */
struct scratch {
	void *data;
	size_t len_bytes;
};

struct codec {
	const struct kernels *kernels;
	size_t scratch_max_bytes;
	struct scratch x;      /* [n_coded, p] f32 */
	struct scratch c;      /* [r, n_coded] f32 */
	struct scratch rope;   /* cos, then sin: [n_coded, rope_dim / 2] f32 each */
	struct scratch tokens; /* coded token indices, then raw ones: uint16_t */
	struct scratch sums;   /* f32 arrays over tokens, see encoder */
	struct scratch packed; /* codes of one stream */
	struct scratch steps;  /* uint16_t [r] */
	struct scratch sections;
	struct scratch classes;
	z_stream deflater, inflater;
	int deflater_ready, inflater_ready;
	struct codec_times times;
	uint64_t stamp_ns;
};

/* One part: features p = n_layers * width of its plane, r components. basis NULL: the identity (r = p). bits
 * NULL: 8 for every component. */
struct codec_part {
	uint32_t plane;
	uint32_t index; /* within the plane */
	uint32_t first_layer;
	uint32_t n_layers;
	size_t p, r;
	const float *mean; /* NULL: zero */
	const float *basis;
	const uint8_t *bits;
};

void *scratch_get(struct scratch *s, size_t len_bytes);

uint32_t codec_n_parts(const struct geometry *g, const struct transform *t);
void codec_part(const struct geometry *g, const struct transform *t, uint32_t rung, uint32_t i,
	struct codec_part *out);
unsigned codec_part_bits(const struct codec_part *part, size_t component);
/* Components from first on that have the same number of bits as it. */
size_t codec_run_of_bits(const struct codec_part *part, size_t first);
/* Components with bits at all: they come first. */
size_t codec_n_active(const struct codec_part *part);

/* Bytes of the packed codes of components [first, end), n_tokens each. */
size_t codec_codes_bytes(const struct codec_part *part, size_t first, size_t end, size_t n_tokens);
/* One layer of one plane of the chunk. */
const struct kv_pages *codec_pages(const struct codec_chunk *chunk, uint32_t layer, uint32_t plane);

/* Fills cos and sin for the given tokens of the chunk, or returns a table with NULLs for a plane without
 * RoPE.
 */
int codec_rope(struct codec *c, const struct plane *plane, uint64_t position, const uint16_t *tokens,
	size_t n_tokens, struct rope_table *out);

/* Adds the time since the last stamp to one of the codec's times. */
void codec_stamp(struct codec *c, uint64_t *sum);
void codec_settle(struct codec *c);

#endif
