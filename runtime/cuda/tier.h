/*
 * Frames in the GPU's memory: a cache in front of the pool in RAM, which has them too, so that anything here
 * may go at any moment. A frame is named by its entry's number in the index; who owns the index says when
 * that number means something else (tier_forget). What goes is chosen as in the pool (policy/evict.h), but
 * for chains: a parent that is missing here is only slower.
 *
 * Book-keeping alone: the range is handed in and never touched here, and no driver call is made; who fills a
 * frame, reads one, or maps and unmaps the range around tier_set_limit, does so elsewhere. Front thread.
 */
#ifndef RUNTIME_CUDA_TIER_H
#define RUNTIME_CUDA_TIER_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/api.h"

struct tier;

/* A frame that somebody holds: it stays where it is until tier_release. */
struct tier_frame {
	CUdeviceptr at; /* aligned to 4 KiB */
	uint32_t bytes;
	uint32_t id;      /* the tier's own */
	const void *note; /* as given to tier_filled; there as long as the frame is held */
};

struct tier_stats {
	uint64_t limit_bytes, used_bytes; /* whole pages */
	uint64_t n_frames;
	uint64_t n_hits, n_misses, n_filled, n_evicted, n_forgotten;
};

/* range: an address range of room_bytes, of which nothing is used before tier_set_limit. -EINVAL, -ENOMEM. */
int tier_new(CUdeviceptr range, uint64_t room_bytes, struct tier **out);
/* Nobody holds a frame. NULL is fine. */
struct tier *tier_free(struct tier *t);

/* How much of the range's beginning may be used, a hard limit. Less: what lies behind it goes. -EBUSY: some
 * of that is held; nothing new comes in until the call has been made again with success, or with a larger
 * limit. The memory behind the limit may be given back after 0 alone. -EINVAL: over the range. */
int tier_set_limit(struct tier *t, uint64_t limit_bytes);
uint64_t tier_limit(const struct tier *t);

/* Finds a frame that is filled, and holds it. Counts as a use. */
bool tier_find(struct tier *t, uint32_t number, struct tier_frame *out);
/* Room for a frame, held, found by nobody before tier_filled; others go for it. -EEXIST: it is there, or
 * being filled; -ENOSPC: it does not fit, or what is there is held; -EBUSY: see tier_set_limit; -ENOMEM. */
int tier_reserve(struct tier *t, uint32_t number, uint32_t bytes, struct tier_frame *out);
/* Ends a room that was reserved larger than needed: it has bytes from now on, over 0 and no more than it had;
 * what lies behind goes back. Not after tier_filled. f is changed. */
void tier_trim(struct tier *t, struct tier_frame *f, uint32_t bytes);
/* It can be found from now on, unless it has been forgotten meanwhile: false. It stays held. note: what there
 * is to know of it, NULL or malloc'd, the tier's from now on. */
bool tier_filled(struct tier *t, const struct tier_frame *f, void *note);
/* Ends a hold; of one that was not filled, the frame too. */
void tier_release(struct tier *t, const struct tier_frame *f);
/* The entry has died, or its frame was made anew: it is found by nobody any more. Of a number that is not
 * here: nothing happens. */
void tier_forget(struct tier *t, uint32_t number);

void tier_get_stats(const struct tier *t, struct tier_stats *out);

#endif
