/*
 * How large the image of a chunk will be, before it is encoded: its raw tokens at what they take, and the
 * coded ones at what the largest of the last chunks with the same transform and rung took for each of theirs,
 * with a little added. Before there are any, the rung's nominal ratio is believed by half. One that turns out
 * larger has no place and goes another way, so what counts is that few do, and that little room is kept that
 * nobody needs.
 *
 * Plain data, all zero at first. One thread at a time.
 */
#ifndef RUNTIME_CUDA_FORECAST_H
#define RUNTIME_CUDA_FORECAST_H

#include "runtime/codec.h"

enum { FORECAST_KINDS = 16, FORECAST_CHUNKS = 32 };

struct forecast {
	struct forecast_kind {
		uint8_t transform[16];
		uint32_t rung;
		uint64_t last_use;                  /* 0: of nothing yet */
		uint64_t n;                         /* chunks seen */
		float token_bytes[FORECAST_CHUNKS]; /* of their coded tokens; the last ones', n modulo this */
	} kinds[FORECAST_KINDS];
	uint64_t clock;
};

/* Bytes; options' transform is not NULL. */
uint64_t forecast_image(
	struct forecast *f, const struct codec_chunk *chunk, const struct codec_options *options);
/* What it took. */
void forecast_learn(struct forecast *f, const struct codec_chunk *chunk, const struct codec_options *options,
	uint64_t image_bytes);

#endif
