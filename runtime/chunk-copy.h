/*
 * Keys and values of one chunk in memory of our own, in one block and otherwise laid out as an engine's pages
 * are, so that codec and kernels work on it as they do on an engine's. For what goes on when the engine has
 * its memory back: samples to learn from, frames that are made anew. One owner, one thread at a time.
 */
#ifndef RUNTIME_CHUNK_COPY_H
#define RUNTIME_CHUNK_COPY_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/codec.h"

struct chunk_copy {
	const struct geometry *geometry; /* borrowed */
	uint32_t room_tokens;
	uint32_t n_tokens; /* filled */
	uint64_t position;
	size_t len_bytes;
	uint8_t *memory;        /* [n_layers][n_planes][room_tokens][heads][dim] */
	struct kv_pages *pages; /* [n_layers][n_planes] */
};

/* NULL: out of memory. */
struct chunk_copy *chunk_copy_new(const struct geometry *g, uint32_t room_tokens);
struct chunk_copy *chunk_copy_free(struct chunk_copy *c);

/* Empties it and makes it the place of a chunk of n_tokens (at most room_tokens) at position. */
void chunk_copy_place(struct chunk_copy *c, uint32_t n_tokens, uint64_t position);
/* Copies a chunk of the same geometry, bit for bit. */
void chunk_copy_take(struct chunk_copy *c, const struct kernels *kernels, const struct codec_chunk *from);
/* As the codec wants it; points into c. */
struct codec_chunk chunk_copy_view(const struct chunk_copy *c);

#endif
