/*
 * Restoring chunks into an engine's memory on the GPU: frames decoded there, straight into the pages, with a
 * codec borrowed from the coders and on the engine's lane, so that the memory is not closed under it. Group
 * by group of layers, an event of the engine's recorded behind each. Front thread.
 *
 *     restore_new; restore_add for each chunk; restore_start; recorded; done; restore_free
 */
#ifndef RUNTIME_DAEMON_DEVICE_RESTORE_H
#define RUNTIME_DAEMON_DEVICE_RESTORE_H

#include "runtime/daemon/device/coders.h"
#include "runtime/daemon/device/events.h"
#include "runtime/daemon/device/lane.h"
#include "runtime/daemon/device/memory.h"

struct restore {
	struct lane_task task;  /* first: the work */
	struct lane_task after; /* behind it: tells that events are recorded */
	struct coder_wait wait;
	struct coders *coders;
	struct device_codec *codec;
	struct device_memory *memory; /* the caller's mapping keeps it */
	struct lane **lane;           /* the session's; *lane NULL: it has gone */
	const struct geometry *geometry;
	const struct transform *transform;
	struct kv_pages *pages; /* [n_layers, n_planes], of device addresses */
	uint32_t n;
	struct codec_chunk chunks[DEVICE_BATCH_MAX];
	struct device_decode decode[DEVICE_BATCH_MAX];
	struct image *own[DEVICE_BATCH_MAX]; /* read from frames; NULL: another's */
	uint32_t n_phases;
	struct device_phase *phases; /* [n_phases] */
	/* Events [first_event, + n_events) of the group, one for each phase, the last for all that are left;
	 * n_events 0: none. */
	struct event_group *group;
	uint32_t first_event, n_events;
	uint32_t n_under_way; /* of the two tasks */
	bool is_launched;
	uint64_t started_ns;
	/* recorded: all events are recorded, though they have not fired; not called when that failed. */
	void (*recorded)(struct restore *r);
	/* status -ECANCELED: the engine has gone; -ESTALE: its memory has; -ENOSPC, -EIO. A chunk's own
	 * status is in decode: -EBADMSG or -ESTALE: its frame is bad, and with a status of this kind nothing
	 * was written. */
	void (*done)(struct restore *r, int status);
	void *owner;
};

/* phase_end: [n_phases] layers after which an event is to be recorded. NULL: out of memory. */
struct restore *restore_new(struct coders *c, struct device_memory *memory, struct lane **lane,
	const struct geometry *g, const struct transform *t, const uint32_t *phase_end, uint32_t n_phases);
/* Nothing is under way. Frees the images too. NULL is fine. Returns NULL. */
struct restore *restore_free(struct restore *r);

/* Whether it can be done this way at all: else by way of a copy. */
bool restore_serves(const struct device_memory *m, const struct geometry *g, const struct transform *t,
	uint32_t chunk_tokens);

/* A chunk, and its frame in host memory, which must stay. run, n_tokens, position as in codec_chunk. Errors
 * of image_read. -ENOSPC: DEVICE_BATCH_MAX are in. */
int restore_add(struct restore *r, const struct codec_chunk *where, const void *frame, size_t len);
/* One whose image is in device memory; both must stay. -ESTALE: it is of another transform. */
int restore_add_image(
	struct restore *r, const struct codec_chunk *where, const struct image *image, CUdeviceptr at);
/* After done: takes over the image that was read from chunk i's frame. NULL: it was another's. */
struct image *restore_take_image(struct restore *r, uint32_t i);
void restore_start(struct restore *r);

#endif
