/*
 * Statistics of a chunk's tokens, computed on the device where the chunk lies, for the search for sinks
 * (detection_score_given): they cross the bus, not the keys and values that they are of. They are the host's,
 * bit for bit: the rotation's table is the host's too, and goes up with what tokens are measured against.
 *
 * Works in two pieces of memory of the caller's, pinned on the host and the device's own, laid out alike:
 * items, tables and bases, which go up, and behind them the statistics, which come down. Plain data.
 *
 *     device_statistics_init; _fill, on any thread; _launch; when the stream has come past it, _given
 */
#ifndef RUNTIME_CUDA_STATISTICS_H
#define RUNTIME_CUDA_STATISTICS_H

#include <stdbool.h>

#include "runtime/cuda/device.h"
#include "runtime/detection.h"

struct device_statistics {
	const struct geometry *geometry;
	const struct sinks_detector *detector;
	uint32_t n_tokens;
	size_t up_bytes, down_bytes;
	size_t table[GEOMETRY_PLANES_MAX]; /* where things are: cos, and sin behind it */
	size_t basis[GEOMETRY_PLANES_MAX]; /* [n_layers][centre, weight, direction][width] f32 */
	size_t out[GEOMETRY_PLANES_MAX];   /* [n_layers][n_tokens, n_heads] */
	size_t layer_bytes;                /* of all layers of the view: what need not come down */
};

/* Of a chunk of n_tokens; geometry and detector, which is of that geometry, are borrowed. */
void device_statistics_init(struct device_statistics *s, const struct geometry *g,
	const struct sinks_detector *detector, uint32_t n_tokens);
/* Whether less crosses the bus so than with the layers themselves: not with few tokens, or heads of a few
 * features. */
bool device_statistics_save(const struct device_statistics *s);
/* Of either piece of memory, which is aligned to 256 bytes. */
size_t device_statistics_bytes(const struct device_statistics *s);

/* What goes up. The chunk's pages are device addresses, its tokens lie in block 0, in order, its elements
 * aligned to their size. */
void device_statistics_fill(const struct device_statistics *s, const struct kernels *kernels,
	const struct codec_chunk *chunk, void *host, CUdeviceptr device);
/* Hands the stream copies and the launch. -EIO, -EINVAL and others of device_status: something may be under
 * way all the same. */
int device_statistics_launch(const struct device_statistics *s, const struct device *d, void *host,
	CUdeviceptr device, CUstream stream);
/* Where the statistics are, in host memory. */
struct detection_statistics device_statistics_given(const struct device_statistics *s, const void *host);

#endif
