/*
 * An engine's memory on the GPU: its parts, opened on the engine's lane, and its layers and planes as the
 * pages kernels want them. Described by the front thread, which frees it; open from device_memory_open until
 * the lane lets go of it: when it is unregistered, when the engine turns out to have freed it (it is stale
 * then, and what is asked of it fails with -ESTALE), or when the engine has gone.
 *
 * Two hold it, the front thread's mapping and the lane while it is open; the last one frees it.
 */
#ifndef RUNTIME_DAEMON_DEVICE_MEMORY_H
#define RUNTIME_DAEMON_DEVICE_MEMORY_H

#include <stdatomic.h>

#include "base/geometry.h"
#include "kernels/cuda/pages.h"
#include "runtime/cuda/import.h"
#include "runtime/daemon/device/lane.h"
#include "shm/protocol.h"

struct gpu;

struct device_part {
	struct import_source source; /* its handle is the one here below */
	uint8_t handle[WIRE_HANDLE_BYTES];
	int fd; /* of our own until it is open; -1: none */
	uint64_t offset_bytes, size_bytes;
	struct import *import;
};

struct device_memory {
	struct lane_keep keep; /* first */
	_Atomic uint32_t n_refs;
	struct gpu *gpu;
	uint32_t n_parts, n_planes; /* planes: layers x planes of the model */
	struct device_part *parts;
	struct pages_plane *planes; /* [n_planes]; bases as in the description until it is open */
	CUdeviceptr table;          /* the same on the GPU */
};

/* From the message behind its head: struct wire_device_memory, parts, layouts ([n_planes], checked). at, len:
 * what there is of it; *used: how much of it is not layouts. fds: taken over as far as they are used (set to
 * -1). -EINVAL, -ENODEV, -ENOMEM with a sentence in why. */
int device_memory_new(struct gpu *g, struct import_owner owner, const struct wire_register_memory *head,
	const uint8_t *at, size_t len, int *fds, uint32_t n_fds, struct device_memory **out, size_t *used,
	char *why, size_t why_len);
/* Lays layouts over the parts; a layout is checked against the one that it begins in. -EINVAL, -ENOMEM. */
int device_memory_lay_out(struct device_memory *m, const struct geometry *g,
	const struct wire_register_memory *head, const struct wire_layout *layouts, char *why,
	size_t why_len);
/* Lets go for the front thread. NULL is fine. */
void device_memory_unref(struct device_memory *m);

/* On the lane: opens all parts. -EAGAIN: an older allocation there is being closed; errors of import_open;
 * -EINVAL: a part reaches outside its allocation. */
int device_memory_open(struct device_memory *m, struct lane *lane, char *why, size_t why_len);

#endif
