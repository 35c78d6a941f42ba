/*
 * Chunks whose images are in the GPU's memory, in the daemon's pool there: what restores them need not cross
 * the bus. An image comes there in the background, after its chunk was put or restored, when the codecs have
 * nothing else to do, and goes when the pool wants the room, or its chunk's frame is another. Front thread.
 */
#ifndef RUNTIME_DAEMON_DEVICE_RESIDENT_H
#define RUNTIME_DAEMON_DEVICE_RESIDENT_H

#include "runtime/cuda/image.h"
#include "runtime/cuda/tier.h"
#include "runtime/daemon/cache.h"
#include "runtime/daemon/device/gpu.h"

/* Finds a chunk's image and holds it: frame.note is its struct image, frame.at where its bytes are. */
bool resident_find(
	struct gpu *g, const struct cache *c, const struct index_entry *e, struct tier_frame *frame);
void resident_release(struct gpu *g, const struct tier_frame *frame);

/* image: read from the frame that the entry has in the pool, malloc'd, taken over. Holds the entry until it
 * is done; does nothing when there is no room, or too much is under way. */
void resident_fill(struct gpu *g, struct cache *c, struct index_entry *e, struct image *image);

#endif
