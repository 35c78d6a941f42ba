/*
 * A range of GPU memory that grows and shrinks while it is in use: addresses are reserved once, for as much
 * as there may ever be, and memory is mapped into them in slabs, from the range's start on, without a gap.
 * Only what is mapped takes GPU memory. What lies in the range, and where, is its user's affair (pool_over,
 * runtime/pool.h).
 *
 * One thread at a time resizes it. Mapping and unmapping take the driver some hundred microseconds a slab,
 * and are not to be done on a thread that others wait for. The calling thread has entered the device.
 */
#ifndef RUNTIME_CUDA_MEMORY_H
#define RUNTIME_CUDA_MEMORY_H

#include <stdint.h>

#include "runtime/cuda/device.h"

struct memory;

struct memory_options {
	uint64_t room_bytes; /* the hard limit; rounded down to whole slabs, but one at least */
	uint64_t slab_bytes; /* 0: 64 MiB. Rounded up to what the device maps */
	/* What has to stay free on the device for others, or nothing more is mapped. */
	uint64_t spare_bytes;
};

struct memory_stats {
	uint64_t room_bytes, mapped_bytes, slab_bytes;
	uint64_t n_mapped, n_unmapped; /* slabs, since memory_new */
	uint64_t n_refused;            /* growths that the device, or spare_bytes, cut short */
};

/* Nothing is mapped yet. -EINVAL: no room; -ENOMEM: no addresses; others of device_status. */
int memory_new(const struct device *d, const struct memory_options *o, struct memory **out);
/* Nothing on the device may use it any more. NULL is fine. */
struct memory *memory_free(struct memory *m);

/* Where the range begins, which never changes. */
CUdeviceptr memory_range(const struct memory *m);

/* Maps, or unmaps from the end, until size_bytes rounded up to whole slabs are mapped. *mapped_bytes: how
 * many are now, also after an error. Nothing on the device may use what is unmapped, now or later. -EINVAL:
 * more than the room; nothing is done. -ENOMEM: the device, or what is to be spared on it, ends before: what
 * could be mapped stays. -EIO and others: the driver refuses. */
int memory_resize(struct memory *m, uint64_t size_bytes, uint64_t *mapped_bytes);

void memory_get_stats(const struct memory *m, struct memory_stats *out);

#endif
