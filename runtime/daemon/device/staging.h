/*
 * Staging memory: where a chunk lies between an engine's pages on the GPU and the codec on the host. A slot
 * is a piece of GPU memory and one of pinned host memory of the same size. Both kinds together are bounded,
 * counted in the status, shared among engines (one may have half of them), and given back when nothing has
 * needed them for a while.
 *
 * Slots are made and freed on a lane of staging's own, for the driver takes its time over either. When it has
 * no memory to give, those who wait are refused, and it is asked again only after a pause that grows: engines
 * on the same GPU may need what is left more than we do. Front thread.
 */
#ifndef RUNTIME_DAEMON_DEVICE_STAGING_H
#define RUNTIME_DAEMON_DEVICE_STAGING_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/api.h"

struct lanes;
struct staging;

struct staging_slot {
	CUdeviceptr device;
	uint8_t *host;
	size_t bytes;
	CUevent reached; /* behind the first of two streams' work; for the second to wait for */
	CUevent landed;  /* behind all of it */
	const void *owner;
	struct staging_slot *next; /* staging's own */
};

/* Somebody who wants a slot. Owned by the caller, untouched by it until fn is called, once, with a slot or
 * with NULL and a status: -ENOSPC: there is none to be had now; -ECANCELED. */
struct staging_wait {
	void (*fn)(struct staging_wait *w, struct staging_slot *slot, int status);
	const void *owner; /* whose share it counts towards */
	size_t bytes;
	struct staging_wait *next;
};

/* limit_bytes: of GPU memory, and as much of host memory. -ENOMEM, -EAGAIN. */
int staging_new(struct lanes *lanes, uint64_t limit_bytes, struct staging **out);
/* Gives all memory back; nothing may be lent or wanted. Its lane ends some time later. */
struct staging *staging_free(struct staging *s);

/* Slots being made or freed. */
size_t staging_n_busy(const struct staging *s);
/* The largest slot that one owner may have. */
uint64_t staging_largest(const struct staging *s);
/* Whether one owner may have a slot of so many bytes. */
bool staging_fits(const struct staging *s, size_t bytes);
/* fn may be called at once. */
void staging_want(struct staging *s, struct staging_wait *w);
/* Takes back what an owner that has gone is waiting for: fn with -ECANCELED. */
void staging_cancel(struct staging *s, const void *owner);
void staging_give(struct staging *s, struct staging_slot *slot);

/* Frees what was idle for long. Returns when to come again, in ms; -1: not on its account. */
int staging_tick(struct staging *s);
/* {limit_bytes, bytes, lent_bytes, slots, waiting, refused} */
json_t *staging_status(const struct staging *s);
uint64_t staging_bytes(const struct staging *s);

#endif
