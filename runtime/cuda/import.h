/*
 * What other processes have on the GPU, opened here: allocations by CUDA IPC handle or by descriptor, and
 * interprocess events.
 *
 * An allocation is mapped once for all that a process registers of it, and closed with the last of these:
 * references are counted, and so is how many bytes there are of both, against a limit. An owner is a process,
 * by number and start time, since numbers come back. When an owner brings another handle for an address range
 * that it had shown before, that range was freed and handed out anew: the older mapping is stale from then
 * on, is given to nobody any more, and goes before the new one is opened, unless it is in use still (-EBUSY).
 * Descriptors tell nothing of what they name, so each is mapped anew, and not compared with others.
 *
 * Calls block in the driver: none may be made on a thread that serves others. Any other thread may; the lock
 * inside is never held across a driver call. Each thread has entered the device before.
 */
#ifndef RUNTIME_CUDA_IMPORT_H
#define RUNTIME_CUDA_IMPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "kernels/cuda/api.h"

struct device;
struct imports;
struct import;

struct import_owner {
	pid_t pid;
	uint64_t start; /* of the process, in ticks since boot; 0: not to be had */
};

struct import_limits {
	uint32_t n_allocations;
	uint64_t bytes;
};

struct import_stats {
	uint32_t n_allocations, n_events;
	uint64_t bytes;
	uint64_t n_opened, n_stale; /* ever */
};

/* An allocation as its owner describes it. */
struct import_source {
	struct import_owner owner;
	const uint8_t *handle; /* CU_IPC_HANDLE_SIZE bytes; NULL: fd is it */
	int fd;                /* stays the caller's */
	uint64_t address;      /* in the owner; 0: not said */
	uint64_t bytes;        /* of the allocation behind fd */
};

/* Who a process is now; pid 0 or one that is gone: an owner that nobody else is. */
struct import_owner import_owner_of(pid_t pid);

/* d is borrowed. NULL: out of memory. */
struct imports *imports_new(const struct device *d, const struct import_limits *limits);
/* Nothing may be open. */
struct imports *imports_free(struct imports *x);
void imports_get_stats(struct imports *x, struct import_stats *out);

/* Opens, or finds open. -EINVAL: it names no allocation; -ENOSPC: a limit; -EBUSY: the same range is in use
 * under an older handle; -ENOMEM; -EIO: the driver. A sentence in why. */
int import_open(struct imports *x, const struct import_source *source, struct import **out, char *why,
	size_t why_len);
/* Lets go; the last one closes. NULL is fine. Returns NULL. */
struct import *import_close(struct imports *x, struct import *i);

CUdeviceptr import_address(const struct import *i);
uint64_t import_bytes(const struct import *i);
/* The owner has freed it: not to be touched any more. */
bool import_is_stale(const struct import *i);

/* -EINVAL: the handle names no event. */
int import_open_event(struct imports *x, const uint8_t handle[CU_IPC_HANDLE_SIZE], CUevent *out);
void import_close_event(struct imports *x, CUevent event);

#endif
