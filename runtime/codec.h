/*
 * Chunk to frame and back. Encoding reads a chunk straight from an engine's pages through the kernels,
 * decoding writes straight into them. Holds no state but a scratch that belongs to the calling thread;
 * everything else is passed in and only read.
 *
 * Encode, per plane and part (layer group): raw tokens (sinks, window) are taken out, as they lie in memory;
 * of the rest: gather, undo RoPE, subtract the mean, project, quantise with the rung's bits, pack
 * component-major, DEFLATE (Huffman only), one stream per bit width. Every coded token's squared error is
 * known then without decoding: the quantiser's plus the energy of the components that were dropped (the basis
 * is orthonormal). A token over policy max_error, or with a value that is not finite, becomes TOKEN_EXACT and
 * is stored raw; the others are encoded again without it. Source: KVTC, arXiv 2511.01815, section 3;
 * differences in docs/decisions.md.
 */
#ifndef RUNTIME_CODEC_H
#define RUNTIME_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "policy/transform.h"
#include "runtime/frame.h"

/* A chunk in an engine's memory. */
struct codec_chunk {
	const struct geometry *geometry;
	const struct kv_pages *pages; /* [n_layers][n_planes] */
	struct kv_run run;            /* token 0 of the run is the chunk's first token */
	uint32_t n_tokens;            /* at most FRAME_TOKENS_MAX */
	uint64_t position;
};

struct codec_options {
	const struct transform *transform; /* NULL: plain 8-bit codec */
	uint32_t rung;
	const uint8_t *classes; /* [n_tokens] enum token_class */
	double max_error;       /* 0: no bound */
	uint8_t name_space[16];
	uint8_t key[32];
	uint8_t parent[32];
	uint32_t policy_version;
};

struct codec; /* scratch memory of one thread */

/* scratch_max_bytes bounds what the codec keeps between calls. NULL when out of memory. */
struct codec *codec_new(const struct kernels *kernels, size_t scratch_max_bytes);
struct codec *codec_free(struct codec *c);
/* Bytes of scratch held now; and giving them back. */
size_t codec_scratch_bytes(const struct codec *c);
void codec_trim(struct codec *c);

/* Makes a frame; *data is malloc'd and the caller's. info (may be NULL) gets the header as written. Does not
 * check addresses: the session did. -ENOMEM; -EINVAL: transform does not fit the geometry. */
int codec_encode(struct codec *c, const struct codec_chunk *chunk, const struct codec_options *options,
	uint8_t **data, size_t *len, struct frame_info *info);

/* Writes layers [first_layer, first_layer + n_layers) of the frame into the chunk's pages; a part is decoded
 * when it overlaps the range, and only layers in the range are written. transform must be the one the frame
 * names (NULL for plain). Every section is checked before it is used, so a damaged frame writes at most whole
 * sections that were sound. -EBADMSG: damaged; -ESTALE: made for another geometry, position, token count or
 * transform; -ENOMEM. */
int codec_decode(struct codec *c, const void *data, size_t len, const struct transform *transform,
	const struct codec_chunk *chunk, uint32_t first_layer, uint32_t n_layers);

/* Where the encode or decode time went, in nanoseconds, since the last call; for the bench. */
struct codec_times {
	uint64_t gather, gemm, quantise, deflate, other;
};
void codec_take_times(struct codec *c, struct codec_times *out);

#endif
