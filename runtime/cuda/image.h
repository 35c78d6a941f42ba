/*
 * An image: a frame's bodies as the device decodes them, one range of bytes (raw tokens' byte planes, then
 * the levels' rANS streams, in the frame's order), and beside it, in host memory, the map that says what lies
 * where. The bytes may lie anywhere; the map is plain data, made once and then only read, by any thread; its
 * owner frees it with free(). What a frame holds in another form, DEFLATE, is brought into this one on the
 * way in. Checksums are checked then and not again: device memory that is ours has no other way to go bad
 * than any memory.
 */
#ifndef RUNTIME_CUDA_IMAGE_H
#define RUNTIME_CUDA_IMAGE_H

#include "kernels/cuda/codec/codec.h"
#include "policy/policy.h"
#include "policy/transform.h"
#include "runtime/frame.h"

enum { IMAGE_ELEMENT_BYTES = 4 };

struct image_stream {
	uint64_t offset; /* of the image's bytes */
	uint32_t len;
	uint64_t checksum; /* XXH3-64 of these bytes; of images that an encoder made */
};

struct image {
	struct frame_info info;
	uint32_t n_parts;
	uint64_t len_bytes;
	struct image_stream raw[CODEC_PLANES_MAX][IMAGE_ELEMENT_BYTES]; /* when there are raw tokens */
	uint8_t *classes;                                               /* [n_tokens], behind the streams */
	struct image_stream streams[][CODEC_CLASSES];                   /* [n_parts] */
};

/* Of what a class's tokens stand at: 0 .. CODEC_CLASSES, or CODEC_CLASSES for raw ones. */
static inline uint32_t image_coded_class(uint8_t token_class)
{
	return token_class == TOKEN_PLAIN       ? 0
	       : token_class == TOKEN_SALIENT   ? 1
	       : token_class == TOKEN_REDUNDANT ? 2
						: CODEC_CLASSES;
}

/* An empty one: streams and offsets are the caller's to fill in. NULL: no memory. */
struct image *image_new(const struct frame_info *info, uint32_t n_parts, const uint8_t *classes);

/* Reads a frame: header, table, class map and the places of its bodies. transform: the frame's. *bytes is how
 * many image_fill writes. -EBADMSG, -ENOTSUP, -ESTALE as codec_decode; -ENOTSUP also where levels are DEFLATE
 * streams, or there is no transform: such frames are the host's; -ENOMEM. */
int image_read(const void *frame, size_t len, const struct geometry *g, const struct transform *transform,
	struct image **out);

/* Writes the image's bytes, [len_bytes], from the frame that it was read from. -EBADMSG: a checksum is wrong,
 * or what was deflated does not inflate; -ENOMEM. */
int image_fill(const struct image *image, const void *frame, size_t len, uint8_t *to);

/* The frame of an image: the way back. Raw tokens are stored as they are; checksums are the image's, and not
 * computed here. *data is malloc'd, the caller's. info gets n_sections and the like. -ENOMEM. */
int image_frame(const struct image *image, const uint8_t *bytes, const struct geometry *g,
	const struct transform *transform, struct frame_info *info, uint8_t **data, size_t *len);

#endif
