/*
 * Memory of the emulated device in this process: one big range of addresses that nothing else uses, in which
 * memory objects (memfds) are mapped, so that emulated kernels and copies reach them as they are. Everything
 * not mapped is PROT_NONE: what uses freed memory, or memory before or past an allocation, faults. Any
 * thread.
 *
 * An allocation ends where its last page ends, but for its alignment to 256 bytes; the bytes left over are
 * checked when it is freed. New memory is filled with a pattern (up to 16 MiB: more takes time).
 */
#ifndef TESTS_CUDA_DOUBLE_MEMORY_H
#define TESTS_CUDA_DOUBLE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/api.h"

/* Once, before all others. */
void memory_open();

struct object {
	int fd;
	uint64_t id; /* the memfd's inode */
	size_t len;  /* whole pages */
	unsigned n_refs;
};

/* A new object, with one reference. NULL: the device is full. */
struct object *object_new(size_t len);
/* That of a descriptor from another process, which becomes the object's. NULL: none of ours, or out of
 * memory. */
struct object *object_adopt(int fd);
void object_ref(struct object *o);
void object_unref(struct object *o);

enum region_kind { REGION_ALLOCATION, REGION_IMPORT, REGION_RESERVED };

/* Maps an object whole at a new address, its content beginning `offset` bytes in. 0: no address space. */
CUdeviceptr region_map(struct object *o, enum region_kind kind, size_t offset, size_t len);
CUdeviceptr region_reserve(size_t len, size_t alignment);
struct region_info {
	CUdeviceptr base; /* of what the caller knows: after the offset */
	size_t len;
	struct object *object; /* NULL: reserved */
	enum region_kind kind;
};
/* The region that an address lies in. */
bool region_find(CUdeviceptr addr, struct region_info *out);
/* Unmaps, and lets go of the object. false: there is none of this kind with this base. */
bool region_free(CUdeviceptr base, enum region_kind kind);
/* From now on every access to it faults. */
void region_revoke(CUdeviceptr base);
/* Maps a piece of an object in a reserved region, without access at first. */
CUresult region_map_piece(CUdeviceptr addr, size_t len, struct object *o, size_t offset);
CUresult region_unmap_pieces(CUdeviceptr addr, size_t len);
CUresult region_set_access(CUdeviceptr addr, size_t len, CUmemAccess_flags flags);

/* Whether device memory may be read, or written, from addr to its end. */
bool memory_valid(CUdeviceptr addr, size_t len, bool written);
/* Whether an address is of the device, or was. */
bool memory_is_device(const void *addr);

struct memory_counts {
	uint64_t n_allocations, n_mappings, imported_bytes;
};
struct memory_counts memory_get_counts();

enum { MEMORY_GRANULARITY = 2 << 20, MEMORY_PATTERN = 0xa5 };

#endif
