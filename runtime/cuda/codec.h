/*
 * The codec on the device: chunks in an engine's device memory to frames and back, batches at a time, with
 * the kernels of kernels/cuda/codec/codec.h. What it gives is what runtime/codec.h gives: frames of the same
 * format, raw tokens bit for bit, the same promises about errors. Its sums are in another order and its
 * products in f16, so a level may be another one by a step; codes made from the same coefficients are the
 * same.
 *
 * It serves chunks of a model with a transform whose heads are whole octets at 16-byte addresses
 * (device_codec_serves); all else goes by way of the host's codec.
 *
 * One thread at a time, with the device's context made its own; a call returns when the work is done, and
 * that thread is the only one that waits: engines wait on events. Device memory: scratch_max_bytes and the
 * transforms in use.
 */
#ifndef RUNTIME_CUDA_CODEC_H
#define RUNTIME_CUDA_CODEC_H

#include <stdbool.h>

#include "kernels/cuda/api.h"
#include "runtime/codec.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/image.h"

struct device_codec;

enum {
	DEVICE_BATCH_MAX = 64,
};

/* The stream's work is of that priority (cuCtxGetStreamPriorityRange). -ENOMEM, or what the driver said. */
int device_codec_new(
	const struct device *d, uint64_t scratch_max_bytes, int priority, struct device_codec **out);
struct device_codec *device_codec_free(struct device_codec *c);
/* What a codec of the daemon's takes for scratch memory: a 64th of the device's, 2 GiB at most. The more, the
 * larger are the batches, and their launches. */
uint64_t device_codec_scratch(const struct device *d);
/* Device memory held now; and giving it back. */
uint64_t device_codec_bytes(const struct device_codec *c);
void device_codec_trim(struct device_codec *c);
/* How long the codec has had work on the device, by the host's clock: from a launch until it is waited for.
 * What other processes did on the GPU meanwhile is in it. */
uint64_t device_codec_busy_ns(const struct device_codec *c);
/* Recorded when images of an encoding are where they stay, their checksums made: the last of a call's. Copies
 * to the host may still be under way. With a time. */
CUevent device_codec_placed(const struct device_codec *c);
/* In the order of which the calls below work: for waiting on an engine's event before, or recording one. */
CUstream device_codec_stream(const struct device_codec *c);

/* pages: of device addresses, [n_layers][n_planes]; NULL: packed as rows of heads, at addresses that will do.
 */
bool device_codec_serves(
	const struct geometry *g, const struct transform *t, const struct kv_pages *pages, uint32_t n_tokens);

/* One chunk to be encoded. The chunk's pages are device addresses; the array of them, the blocks' numbers and
 * classes are in host memory. room_at: device memory of the caller's, where the image is to stay,
 * [room_bytes], aligned to 256 bytes; room_bytes 0: none. Out: status, and with 0 a malloc'd frame and its
 * image, both the caller's. image_at: room_at, when the image's bytes and one more fit there; else 0, and of
 * the image there is the frame alone. Whatever comes of it, nothing is under way in the room when the call
 * returns. */
struct device_encode {
	const struct codec_chunk *chunk;
	const struct codec_options *options;
	CUdeviceptr room_at;
	uint64_t room_bytes;
	int status;
	uint8_t *frame;
	size_t len;
	struct frame_info info;
	struct image *image;
	CUdeviceptr image_at;
	CUdeviceptr bytes_at; /* the codec's own */
};

/* Encodes n <= DEVICE_BATCH_MAX chunks of one geometry, transform, rungs and rank, which is not
 * CODEC_BY_NEIGHBOURS; fewer at a time, if they do not fit the scratch memory together.
 * Errors of a chunk are its status: as codec_encode, and -ENOSPC when it does not fit the scratch memory or
 * its levels do not fit what they usually do: the host's codec takes such ones. -EIO: the device failed. */
int device_codec_encode(struct device_codec *c, struct device_encode *batch, size_t n);

/* One to be decoded into the chunk's pages. image's bytes are at image_at, or, when that is 0, to be had from
 * the frame that it was read from, in host memory. */
struct device_decode {
	const struct codec_chunk *chunk;
	const struct image *image;
	CUdeviceptr image_at;
	const void *frame;
	size_t len;
	int status;
};

/* Layers from the end of the phase before up to end_layer are done when event (0: none) is recorded; recorded
 * is called at once then, while the device is still at work: an engine may wait for the event from there on.
 */
struct device_phase {
	uint32_t end_layer;
	CUevent event;
};

/* Decodes n <= DEVICE_BATCH_MAX images of one geometry and transform. phases: rising, the last ends with the
 * model's last layer, none cuts a part in two. Of a call that fails nothing was written, unless it is -EIO:
 * -ENOSPC: more than the scratch memory holds; -EBADMSG, -ESTALE: one chunk's frame is damaged, or is not of
 * that chunk, and its status says so; -EINVAL. With 0 a status may be -EBADMSG: a stream was not sound after
 * all. */
int device_codec_decode(struct device_codec *c, const struct geometry *g, const struct transform *t,
	struct device_decode *batch, size_t n, const struct device_phase *phases, size_t n_phases,
	void (*recorded)(void *arg, size_t phase), void *arg);

/* The same in two: what start handed to the stream is done when an event that is recorded behind it has
 * fired, and the batch, and all it points to, must stay until then. Finish makes the statuses out; nothing
 * else may be asked of the codec in between. */
int device_codec_decode_start(struct device_codec *c, const struct geometry *g, const struct transform *t,
	struct device_decode *batch, size_t n, const struct device_phase *phases, size_t n_phases,
	void (*recorded)(void *arg, size_t phase), void *arg);
void device_codec_decode_finish(struct device_codec *c, struct device_decode *batch, size_t n);

/* Records the codec's own event behind all that its stream was handed. */
int device_codec_landed(struct device_codec *c, CUevent *out);

/* Brings an image's bytes, from the frame that it was read from, into device memory. -EBADMSG, -ENOSPC, -EIO.
 */
int device_codec_upload(
	struct device_codec *c, const struct image *image, const void *frame, size_t len, CUdeviceptr to);

#endif
