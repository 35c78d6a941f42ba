/*
 * One call of device_codec_encode: encode.c quantises, assemble.c makes streams, images and frames of what is
 * quantised. Lies on the caller's stack; all it points to is the codec's, but for classes.
 */
#ifndef RUNTIME_CUDA_ENCODER_H
#define RUNTIME_CUDA_ENCODER_H

#include "runtime/cuda/codec-internal.h"

struct device_encoder {
	struct device_codec *codec;
	const struct geometry *geometry;
	const struct transform *transform;
	const struct device_transform *t;
	struct device_encode *batch;
	size_t n, n_done;
	struct codec_device_chunk *chunks; /* in the post: sent once lists are known, and anew then */
	CUdeviceptr chunks_at;
	struct codec_device_block *blocks; /* [n, n_parts], in the post */
	CUdeviceptr blocks_at;
	uint32_t *first_block;
	CUdeviceptr first_block_at, errors_at;
	float *errors;    /* pinned [n, CODEC_PLANES_MAX, CODEC_TOKENS_MAX] */
	uint8_t *classes; /* [n, CODEC_TOKENS_MAX] enum token_class */
	uint8_t *todo;    /* the same shape */
	uint32_t tokens_max;
	bool settled;  /* classes are final: errors have been looked at */
	uint64_t kept; /* of the arena: from here on it is used again and again */
};

/* Relative errors of a chunk's tokens in one plane, [CODEC_TOKENS_MAX]. */
static inline float *device_encoder_errors(const struct device_encoder *e, uint32_t number, uint32_t plane)
{
	return e->errors + (number * CODEC_PLANES_MAX + plane) * CODEC_TOKENS_MAX;
}

/* Looks at the errors, which are there. 0: classes are settled. -EAGAIN: some tokens got another class, and
 * those of them that are coded are to be quantised again. */
int device_encoder_settle(struct device_encoder *e);

/* Frames and images of all chunks, whose codes are on the device: each one's status, frame, image. Where
 * classes are not settled, errors are looked at when the first streams have been waited for: -EAGAIN, with
 * nothing done, when that changed some. Other errors are of the device, or of all chunks. */
int device_encoder_write(struct device_encoder *e);

#endif
