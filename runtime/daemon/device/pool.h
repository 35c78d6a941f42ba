/*
 * The daemon's frames in the GPU's memory: the tier (runtime/cuda/tier.h) over a range that is mapped slab by
 * slab, on a lane of its own. Its size is changed while it is in use: more is mapped first and used then,
 * less is given up first and unmapped then, so that what is mapped never passes what was asked for. Front
 * thread.
 */
#ifndef RUNTIME_DAEMON_DEVICE_POOL_H
#define RUNTIME_DAEMON_DEVICE_POOL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct device;
struct lanes;
struct tier;
struct device_pool;

/* Called when a change of size has ended. status: 0; -ENOMEM: the GPU has less to give, size_bytes is what
 * there is now; -EIO and others of the driver's. */
typedef void device_pool_fn(void *arg, int status, uint64_t size_bytes);

/* Empty, with nothing mapped; -ENOMEM, -errno. */
int device_pool_new(const struct device *d, struct lanes *lanes, struct device_pool **out);
/* Nothing is under way, and nobody holds a frame. Gives all back; its lane ends some time later. */
struct device_pool *device_pool_free(struct device_pool *p);

/* Rounded down to whole slabs, so that it is a hard limit. fn (may be NULL) is called when it is done, not
 * before this has returned. -EBUSY: another change is under way; -EINVAL: over the GPU's memory, or under one
 * slab and not 0: fn is not called then. */
int device_pool_resize(struct device_pool *p, uint64_t size_bytes, device_pool_fn *fn, void *arg);
/* A change that waits for frames in use goes on. Returns when to come again, in ms; -1: not on its account.
 */
int device_pool_tick(struct device_pool *p);

bool device_pool_is_changing(const struct device_pool *p);
struct tier *device_pool_tier(const struct device_pool *p);
uint64_t device_pool_slab_bytes(const struct device_pool *p);
/* {size_bytes, mapped_bytes, slab_bytes, used_bytes, frames, hits, misses, filled, evicted} */
json_t *device_pool_status(const struct device_pool *p);

#endif
