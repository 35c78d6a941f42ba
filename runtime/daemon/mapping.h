/*
 * A client's paged KV memory, mapped into the daemon. The layout is checked here, once, against the size of
 * the memfd as it is (not as the client says), so that no access by block number and token can leave the
 * mapping; and only a memfd that cannot shrink any more is taken, for a client that truncates its memory
 * would else kill the daemon. Counted references, front thread only: a request holds one until its last job
 * is done.
 */
#ifndef RUNTIME_DAEMON_MAPPING_H
#define RUNTIME_DAEMON_MAPPING_H

#include "kernels/kernels.h"
#include "runtime/daemon/registry.h"
#include "shm/protocol.h"

struct device_memory;

struct mapping {
	const struct model *model;
	uint32_t block_tokens;
	uint32_t n_blocks;
	struct kv_pages *pages; /* [n_layers][n_planes]; NULL: on the GPU */
	void *addr;
	struct device_memory *device; /* a reference; NULL: in shared memory */
	size_t size_bytes;
	uint32_t n_refs;
};

/* Maps fd (the caller keeps it). layouts: [n_layers][n_planes]. -EINVAL, -EPERM with a sentence in why;
 * -errno. */
int mapping_new(const struct model *model, const struct wire_register_memory *message,
	const struct wire_layout *layouts, int fd, struct mapping **out, char *why, size_t why_len);
/* Of memory on the GPU that is open; the reference is taken over with 0. -ENOMEM. */
int mapping_new_device(const struct model *model, const struct wire_register_memory *message,
	struct device_memory *device, struct mapping **out);
/* Whether a layout lies inside the first size bytes, does not overlap itself and is aligned to its elements;
 * and whether blocks are in range. -EINVAL with a sentence in why. */
int mapping_check_layout(const struct plane *p, const struct wire_register_memory *m,
	const struct wire_layout *l, uint64_t size, uint32_t layer, uint32_t plane, char *why,
	size_t why_len);
int mapping_check_blocks(const struct wire_register_memory *m, char *why, size_t why_len);
struct mapping *mapping_ref(struct mapping *m);
/* The last reference unmaps. NULL is fine. Returns NULL. */
struct mapping *mapping_unref(struct mapping *m);

#endif
