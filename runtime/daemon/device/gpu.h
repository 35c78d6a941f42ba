/*
 * The daemon's GPU: the device and all that hangs on it. Made at the start if there is one to be used;
 * without, there is no struct gpu, and memory on a GPU is refused. Front thread, which makes no driver call
 * after the start: those are made on lanes.
 */
#ifndef RUNTIME_DAEMON_DEVICE_GPU_H
#define RUNTIME_DAEMON_DEVICE_GPU_H

#include <jansson.h>

#include "kernels/cuda/api.h"
#include "runtime/config.h"
#include "runtime/cuda/forecast.h"
#include "runtime/cuda/import.h"
#include "runtime/daemon/device/lane.h"
#include "runtime/daemon/device/staging.h"

struct coders;
struct device;
struct device_pool;

struct gpu {
	struct device *device;
	struct imports *imports;
	struct lanes *lanes;
	struct lane *own; /* for work on what is ours by now, whether its engine is still there or not */
	struct staging *staging;
	struct coders *coders;
	struct device_pool *pool; /* frames in the GPU's memory */
	/* How they come there (resident.h). */
	struct forecast forecast;
	size_t n_fills; /* over the bus, under way */
	uint64_t n_placed, n_uploaded, n_outgrown;
	CUuuid uuid;
	struct {
		uint64_t n_measured, n_copied; /* chunks: statistics computed here; by the host, of a copy */
		uint64_t to_host_bytes, to_device_bytes;
	} search; /* for sinks, in chunks that are encoded here: what it has cross the bus */
};

/* 0 with *out NULL: none is wanted, or (device=auto) there is none; a log line says which GPU is used or why
 * none. -ENODEV: the one that was asked for cannot be had; -ENOMEM, -errno. */
int gpu_new(const struct config *c, struct gpu **out);
/* Lanes of sessions have been closed. */
struct gpu *gpu_free(struct gpu *g);

/* What is known of an entry of the index by its number holds no more: it has died, or its frame was made
 * anew. */
void gpu_forget(struct gpu *g, uint32_t number);
/* Takes back what lanes have finished. */
void gpu_reap(struct gpu *g);
/* Looks after stuck calls and idle memory. Returns after how many ms to come again, at most timeout_ms (-1:
 * never). */
int gpu_tick(struct gpu *g, int timeout_ms);
/* Nothing is under way. */
bool gpu_is_idle(const struct gpu *g);
/* g NULL: null. */
json_t *gpu_status(const struct gpu *g);

#endif
