/*
 * Chunks whose images are in the GPU's memory, in the daemon's pool there: what restores them need not cross
 * the bus. One that is encoded on the GPU is made there, in room that was reserved for it (resident_reserve,
 * resident_encoded, resident_keep). Others come over the bus in the background, after their chunk was put or
 * restored, when the codecs have nothing else to do (resident_fill). An image goes when the pool wants the
 * room, or its chunk's frame is another. Front thread.
 */
#ifndef RUNTIME_DAEMON_DEVICE_RESIDENT_H
#define RUNTIME_DAEMON_DEVICE_RESIDENT_H

#include "runtime/cuda/codec.h"
#include "runtime/cuda/tier.h"
#include "runtime/daemon/cache.h"
#include "runtime/daemon/device/gpu.h"

/* Finds a chunk's image and holds it: frame.note is its struct image, frame.at where its bytes are. */
bool resident_find(
	struct gpu *g, const struct cache *c, const struct index_entry *e, struct tier_frame *frame);
void resident_release(struct gpu *g, const struct tier_frame *frame);

/* Room for the image of a chunk that is about to be encoded; what is needed is foretold. Sets encode's room,
 * and holds *frame until resident_release, whatever becomes of the entry. frame->bytes stays 0: there is
 * none, and the image has to come over the bus. */
void resident_reserve(struct gpu *g, const struct cache *c, const struct index_entry *e,
	struct device_encode *encode, struct tier_frame *frame);
/* It has been encoded, or could not be. Of the room, what the image does not take goes back; all of it, with
 * frame->bytes 0, when the image is not there. */
void resident_encoded(struct gpu *g, const struct device_encode *encode, struct tier_frame *frame);
/* Its entry has been filled: the image is found there from now on. The codec's thread has waited for the
 * stream that wrote it, so whoever finds it may read it on any stream at once. image: the codec's, taken
 * over. The hold stays. */
void resident_keep(struct gpu *g, const struct tier_frame *frame, struct image *image);

/* image: read from the frame that the entry has in the pool, malloc'd, taken over. Holds the entry until it
 * is done; does nothing when there is no room, or too much is under way. */
void resident_fill(struct gpu *g, struct cache *c, struct index_entry *e, struct image *image);

#endif
