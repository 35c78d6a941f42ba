#include "runtime/cuda/codec-internal.h"

#include <errno.h>
#include <stdlib.h>

#include "runtime/stats/board.h"

enum {
	POST_BYTES = 8 << 20,    /* descriptions of DEVICE_BATCH_MAX chunks */
	PINNED_BYTES = 72 << 20, /* images on their way */
};

int device_codec_new(
	const struct device *d, uint64_t scratch_max_bytes, int priority, struct device_codec **out)
{
	struct device_codec *c = calloc(1, sizeof *c);
	int r;

	if (!c)
		return -ENOMEM;
	c->device = d;
	c->driver = device_driver(d);
	c->scratch_max = scratch_max_bytes;
	r = device_enter(d);
	if (!r)
		r = device_status(
			c->driver->cuStreamCreateWithPriority(&c->stream, CU_STREAM_NON_BLOCKING, priority));
	if (!r)
		r = device_status(
			c->driver->cuStreamCreateWithPriority(&c->copies, CU_STREAM_NON_BLOCKING, priority));
	if (!r)
		r = device_status(c->driver->cuEventCreate(&c->landed, CU_EVENT_DISABLE_TIMING));
	if (!r)
		r = device_status(c->driver->cuEventCreate(&c->reached, CU_EVENT_DISABLE_TIMING));
	if (!r)
		r = device_status(c->driver->cuEventCreate(&c->placed, CU_EVENT_DEFAULT));
	if (r)
		device_codec_free(c);
	else
		*out = c;
	return r;
}

struct device_codec *device_codec_free(struct device_codec *c)
{
	if (!c)
		return NULL;
	device_codec_trim(c);
	if (c->landed)
		device_status(c->driver->cuEventDestroy(c->landed));
	if (c->reached)
		device_status(c->driver->cuEventDestroy(c->reached));
	if (c->placed)
		device_status(c->driver->cuEventDestroy(c->placed));
	if (c->copies)
		device_status(c->driver->cuStreamDestroy(c->copies));
	if (c->stream)
		device_status(c->driver->cuStreamDestroy(c->stream));
	free(c);
	return NULL;
}

uint64_t device_codec_bytes(const struct device_codec *c)
{
	uint64_t sum = c->arena.size + c->post.size;

	for (int i = 0; i < DEVICE_TRANSFORMS_MAX; i++)
		sum += c->transforms[i].bytes;
	return sum;
}

void device_codec_trim(struct device_codec *c)
{
	const struct cuda_driver *d = c->driver;

	for (int i = 0; i < DEVICE_TRANSFORMS_MAX; i++) {
		if (c->transforms[i].memory)
			device_status(d->cuMemFree(c->transforms[i].memory));
		free(c->transforms[i].parts);
		c->transforms[i] = (struct device_transform){0};
	}
	if (c->arena.size)
		device_status(d->cuMemFree(c->arena.base));
	if (c->post.device)
		device_status(d->cuMemFree(c->post.device));
	if (c->post.host)
		device_status(d->cuMemFreeHost(c->post.host));
	if (c->pinned)
		device_status(d->cuMemFreeHost(c->pinned));
	c->arena = (struct arena){0};
	c->post = (struct post){0};
	c->pinned = NULL;
	c->pinned_size = 0;
}

uint64_t device_codec_busy_ns(const struct device_codec *c)
{
	return c->busy_ns;
}

CUevent device_codec_placed(const struct device_codec *c)
{
	return c->placed;
}

uint64_t device_codec_scratch(const struct device *d)
{
	const uint64_t most = (uint64_t)2 << 30;
	size_t bytes = 0;

	if (device_status(device_driver(d)->cuDeviceTotalMem(&bytes, device_ordinal(d))))
		bytes = 0;
	return bytes / 64 < most ? bytes / 64 : most;
}

CUstream device_codec_stream(const struct device_codec *c)
{
	return c->stream;
}

static int pinned_new(struct device_codec *c, size_t len, uint8_t **out)
{
	void *addr;
	const int r = device_status(c->driver->cuMemHostAlloc(&addr, len, 0));

	if (!r)
		*out = addr;
	return r;
}

int device_codec_begin(struct device_codec *c)
{
	int r = 0;

	if (!c->post.host) {
		r = pinned_new(c, POST_BYTES, &c->post.host);
		if (!r)
			r = device_status(c->driver->cuMemAlloc(&c->post.device, POST_BYTES));
		c->post.size = r ? 0 : POST_BYTES;
	}
	if (!r && !c->pinned) {
		r = pinned_new(c, PINNED_BYTES, &c->pinned);
		c->pinned_size = r ? 0 : PINNED_BYTES;
	}
	if (!r && !c->arena.size) {
		r = device_status(c->driver->cuMemAlloc(&c->arena.base, c->scratch_max));
		c->arena.size = r ? 0 : c->scratch_max;
	}
	if (r)
		device_codec_trim(c);
	c->post.used = c->post.sent = 0;
	c->pinned_used = 0;
	c->arena.used = 0;
	return r;
}

int device_codec_launch(struct device_codec *c, enum device_kernel k, uint32_t x, uint32_t y, uint32_t z,
	uint32_t threads, uint32_t shared_bytes, const void *args)
{
	const uint32_t grid[3] = {x, y, z};

	if (!c->since_ns)
		c->since_ns = board_now_ns();
	return device_launch(c->device, k, grid, threads, shared_bytes, c->stream, args);
}

int device_codec_wait(struct device_codec *c)
{
	const int r = device_status(c->driver->cuStreamSynchronize(c->stream));

	if (c->since_ns)
		c->busy_ns += board_now_ns() - c->since_ns;
	c->since_ns = 0;
	return r;
}

int device_codec_landed(struct device_codec *c, CUevent *out)
{
	const int r = device_status(c->driver->cuEventRecord(c->landed, c->stream));

	if (!r)
		*out = c->landed;
	return r;
}
