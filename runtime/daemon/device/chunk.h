/*
 * Tokens of an engine's memory on the GPU, staged: gathered from its pages into a slot of staging memory, or
 * scattered from there, with the codec working on the slot in between. One for each chunk under way. Front
 * thread; the view is for workers, between callbacks.
 *
 *     device_chunk_new; device_chunk_gather, or device_chunk_lend and device_chunk_scatter; device_chunk_free
 *
 * What was gathered can be measured where it lies, for the search for sinks: device_chunk_want_statistics
 * before, device_chunk_measure behind it.
 */
#ifndef RUNTIME_DAEMON_DEVICE_CHUNK_H
#define RUNTIME_DAEMON_DEVICE_CHUNK_H

#include "runtime/codec.h"
#include "runtime/cuda/statistics.h"
#include "runtime/daemon/device/lane.h"
#include "runtime/daemon/device/memory.h"
#include "runtime/daemon/device/staging.h"

struct device_chunk {
	struct lane_task task; /* first */
	struct staging_wait wait;
	struct gpu *gpu;
	struct device_memory *memory; /* the caller's mapping keeps it */
	struct lane **lane;           /* the session's; *lane NULL: it has gone */
	const struct geometry *geometry;
	uint32_t first_plane, n_planes; /* what the slot has of the memory's planes: layers x planes */
	uint32_t n_tokens;
	uint64_t position;
	const uint32_t *blocks; /* those of the tokens; the caller's */
	uint32_t n_blocks, block_tokens, offset;
	size_t blocks_bytes, data_bytes; /* in the slot: the block table, and the packed tokens behind it */
	struct staging_slot *slot;
	struct kv_pages *pages;        /* [n_planes], into the slot: the host's copy */
	struct kv_pages *device_pages; /* [n_planes], the GPU's */
	uint32_t from_plane, to_plane; /* of the slot's planes: those that a scatter moves */
	/* Gather: layers that the host's copy is to have; the rest of it is undefined. NULL: all. The
	 * caller's. */
	const uint32_t *layers;
	uint32_t n_layers;                          /* 0 with layers: none */
	const struct device_statistics *statistics; /* the caller's; in the slot behind the tokens */
	const struct kernels *kernels;              /* the host's, for what measuring needs */
	bool is_gather;
	/* The next call's. handed: the lane has it, what is submitted to the lane now comes behind it; NULL:
	 * the caller does not care. fn: it has ended. Either may free the chunk in fn alone. */
	void (*handed)(struct device_chunk *c);
	void (*fn)(struct device_chunk *c, int status);
	void *owner; /* the caller's */
};

/* Where tokens are: as in struct codec_chunk, but for pages. */
struct device_tokens {
	const struct geometry *geometry;
	struct kv_run run;
	uint32_t n_tokens;
	uint64_t position;
	/* The whole token, or of one layer one plane: the layer's first plane, plus the plane; n_planes 1. */
	uint32_t first_plane, n_planes;
};

/* lane: where the session keeps its own. NULL: out of memory. */
struct device_chunk *device_chunk_new(
	struct gpu *g, struct device_memory *memory, struct lane **lane, const struct device_tokens *tokens);
/* Gives its slot back. Nothing may be under way. NULL is fine. Returns NULL. */
struct device_chunk *device_chunk_free(struct device_chunk *c);

/* From the pages to the slot, which is had first. fn's status: -ENOSPC: no staging memory now; -ESTALE: the
 * memory has been freed; -ECANCELED: the engine has gone; -EIO. fn may be called at once. */
void device_chunk_gather(struct device_chunk *c, void (*fn)(struct device_chunk *c, int status));
/* After a gather of some layers: all of them. */
void device_chunk_fetch(struct device_chunk *c, void (*fn)(struct device_chunk *c, int status));
/* Before a gather: the slot is to have room for these. false: no slot can have it. */
bool device_chunk_want_statistics(struct device_chunk *c, const struct device_statistics *s);
/* After the gather: computes them, also when the engine has gone meanwhile. fn's status: -EIO. */
void device_chunk_measure(struct device_chunk *c, const struct kernels *kernels,
	void (*fn)(struct device_chunk *c, int status));
/* Once they are computed, as long as the slot is held. */
struct detection_statistics device_chunk_statistics(const struct device_chunk *c);
/* The slot alone, to be filled. Status as above. */
void device_chunk_lend(struct device_chunk *c, void (*fn)(struct device_chunk *c, int status));
/* Layers [first, first + n) from the slot to the pages. */
void device_chunk_scatter(
	struct device_chunk *c, uint32_t first, uint32_t n, void (*fn)(struct device_chunk *c, int status));

/* Bytes of the host's copy: of `layers`, or all. */
uint64_t device_chunk_host_bytes(const struct device_chunk *c);

/* The tokens in the slot. */
struct codec_chunk device_chunk_view(const struct device_chunk *c);

#endif
