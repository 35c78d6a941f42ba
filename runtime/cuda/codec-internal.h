/*
 * What encoding and decoding on the device share: one thread's scratch memory, arrays on their way to the
 * device, and transforms as the device has them.
 */
#ifndef RUNTIME_CUDA_CODEC_INTERNAL_H
#define RUNTIME_CUDA_CODEC_INTERNAL_H

#include "kernels/cuda/driver.h"
#include "runtime/cuda/codec.h"

enum { DEVICE_TRANSFORMS_MAX = 4, DEVICE_ALIGN = 256 };

/* Memory taken from its start on, and given back by setting used back. */
struct arena {
	CUdeviceptr base;
	uint64_t size, used;
};

/* Small arrays for the device: written in pinned host memory, sent together to the same places on the device.
 * Reset at the start of a call, which ends only when the device has done with them. */
struct post {
	uint8_t *host;
	CUdeviceptr device;
	size_t size, used, sent;
};

/* A transform on the device; parts are in host memory, with device addresses in them. */
struct device_transform {
	uint8_t id[16];
	CUdeviceptr memory; /* 0: none */
	uint64_t bytes, last_use;
	uint32_t n_parts;
	CUdeviceptr parts_at;
	struct codec_device_part *parts;
	const float *frequency[CODEC_PLANES_MAX]; /* device */
	uint32_t half[CODEC_PLANES_MAX];
	double scale[CODEC_PLANES_MAX];
};

/* A decoding under way: where its streams' statuses come, and whose they are. In pinned memory and the post.
 */
struct decoding {
	const int32_t *status;
	const struct codec_device_stream *streams;
	const struct codec_device_block *blocks;
	uint32_t n_streams;
};

struct device_codec {
	const struct device *device;
	const struct cuda_driver *driver;
	CUstream stream;
	CUstream copies; /* to the host, beside what is still at work */
	CUevent landed, reached, placed;
	uint64_t scratch_max;
	struct arena arena;
	struct post post;
	uint8_t *pinned; /* images and results on their way to the host, or from it */
	size_t pinned_size, pinned_used;
	size_t pinned_kept; /* decoding: what is in use until the call ends */
	struct device_transform transforms[DEVICE_TRANSFORMS_MAX];
	uint64_t n_calls;
	bool promoted;              /* the last batch had tokens beyond their bound */
	uint64_t busy_ns, since_ns; /* see device_codec_busy_ns; 0: the stream has nothing to do */
	struct decoding decoding;
};

/* Makes scratch memory ready and empty. -ENOMEM. */
int device_codec_begin(struct device_codec *c);
/* 0: no room. */
CUdeviceptr arena_take(struct arena *a, uint64_t len);
/* Room in pinned memory until the call ends. NULL: none. */
void *pinned_take(struct device_codec *c, size_t len);

/* len bytes that will be at *device once post_send was called, in the stream's order. NULL: no room. */
void *post_take(struct post *p, size_t len, CUdeviceptr *device);
int post_send(struct device_codec *c);

/* The device's form of a transform, sent if it is not there. Valid until the next call for another one.
 * -ENOMEM. */
int device_codec_transform(struct device_codec *c, const struct geometry *g, const struct transform *t,
	const struct device_transform **out);

/* A chunk's description: pages, blocks and the rotation's tables, which are filled by device_codec_rope.
 * -ENOSPC. */
int device_codec_chunk(struct device_codec *c, const struct device_transform *t,
	const struct codec_chunk *from, struct codec_device_chunk *to);
/* The chunk's tokens, coded ones by class, raw ones last, and how many of each. classes: [n_tokens] enum
 * token_class. -ENOSPC. */
int device_codec_list(struct device_codec *c, const uint8_t *classes, struct codec_device_chunk *chunk);
/* Between pages and an image's raw bytes, the image being at `at`: a job for each plane. Returns how many. */
uint32_t device_codec_raw_jobs(const struct geometry *g, const struct image *image, CUdeviceptr at,
	uint32_t chunk, struct codec_raw_job jobs[CODEC_PLANES_MAX]);
/* Of n chunks that were sent. */
int device_codec_rope(struct device_codec *c, const struct device_transform *t, const struct geometry *g,
	CUdeviceptr chunks, size_t n, uint32_t tokens_max);

int device_codec_launch(struct device_codec *c, enum device_kernel k, uint32_t x, uint32_t y, uint32_t z,
	uint32_t threads, uint32_t shared_bytes, const void *args);
/* Waits until the stream is done. */
int device_codec_wait(struct device_codec *c);

static inline uint32_t round_up(uint32_t n, uint32_t to)
{
	return (n + to - 1) / to * to;
}

#endif
