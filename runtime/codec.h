/*
 * Chunk to frame and back. Encoding reads a chunk straight from an engine's pages through the kernels,
 * decoding writes straight into them. Holds no state but a scratch that belongs to the calling thread;
 * everything else is passed in and only read.
 *
 * Encode: raw tokens (sinks, window) are taken out, as they lie in memory. Of the others, per plane and part
 * (layer group): gather, undo RoPE, subtract the mean, weigh, project, quantise along a trellis with the step
 * of the token's class (plain, salient and redundant tokens have a rung each), and code the levels with rANS
 * or DEFLATE. A token's levels depend on nothing but the token, its class and the transform. Every coded
 * token's squared error is known then without decoding: the quantiser's plus the energy of the components
 * that were left out (the basis is orthonormal), in the transform's metric (transform.h). A token over
 * max_error moves to a finer class, redundant to plain to salient to raw (TOKEN_EXACT), until it fits; one
 * with a value that is not finite is kept raw. Source: KVTC, arXiv 2511.01815, section 3; what differs and
 * what each difference brought is in docs/codec-notes.md.
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

enum codec_entropy {
	CODEC_RANS,    /* the default: smaller */
	CODEC_DEFLATE, /* levels as standard DEFLATE streams, for interchange */
};

/* By what a chunk's plain tokens are put in order, once they have been quantised. */
enum codec_rank {
	CODEC_UNRANKED,
	CODEC_BY_FIT,        /* their errors: what the basis fits badly is salient */
	CODEC_BY_NEIGHBOURS, /* what is left when they are foretold from the tokens on either side, of their
				energy: what can be foretold is redundant */
};

struct codec_options {
	const struct transform *transform; /* NULL: plain 8-bit codec */
	uint32_t rung;                     /* of plain tokens */
	uint32_t rung_salient;             /* of TOKEN_SALIENT; 0 is the finest */
	uint32_t rung_redundant;           /* of TOKEN_REDUNDANT */
	enum codec_entropy entropy;
	const uint8_t *classes; /* [n_tokens] enum token_class */
	double max_error;       /* bound on a coded token's relative error, for every plane; 0: no bound */
	enum codec_rank rank;   /* not of codec_transcode */
	double salient_share, redundant_share; /* of plain tokens that are quantised: what the ends of that
						  order become */
	uint8_t name_space[16];
	uint8_t key[32];
	uint8_t parent[32];
	uint32_t policy_version;
	struct levels_counts *counts; /* [n_planes], what levels there are is added; NULL: not wanted */
};

struct policy;
/* Sets what a policy says of a chunk whose plain tokens get this rung: rungs, rank and shares, bound,
 * version. The transform is set. */
void codec_follow(struct codec_options *o, const struct policy *p, uint32_t rung);

struct codec; /* scratch memory of one thread */

/* scratch_max_bytes bounds what the codec keeps between calls. NULL when out of memory. */
struct codec *codec_new(const struct kernels *kernels, size_t scratch_max_bytes);
struct codec *codec_free(struct codec *c);
/* Bytes of scratch held now; and giving them back. */
size_t codec_scratch_bytes(const struct codec *c);
void codec_trim(struct codec *c);

/* Makes a frame; *data is malloc'd and the caller's. info (may be NULL) gets the header as written. Does not
 * check addresses: the session did. -ENOMEM; -EINVAL: transform does not fit the geometry,
 * or a rung is not on its ladder. */
int codec_encode(struct codec *c, const struct codec_chunk *chunk, const struct codec_options *options,
	uint8_t **data, size_t *len, struct frame_info *info);

/* Writes layers [first_layer, first_layer + n_layers) of the frame into the chunk's pages; a part is decoded
 * when it overlaps the range, and only layers in the range are written. transform must be the one the frame
 * names (NULL for plain). Every section is checked before it is used, so a damaged frame writes at most whole
 * sections that were sound. -EBADMSG: damaged; -ENOTSUP: of another version of the format; -ESTALE: made for
 * another geometry, position, token count or transform; -ENOMEM. */
int codec_decode(struct codec *c, const void *data, size_t len, const struct transform *transform,
	const struct codec_chunk *chunk, uint32_t first_layer, uint32_t n_layers);

/* Makes a frame anew on coarser rungs, from its levels, without the product and without the engine. Raw
 * tokens stay as they are, and every token keeps its class. What the frame says of its errors afterwards
 * bounds what was lost in both steps: e1 + e2 (1 + e1), e2 being what the second lost relative to what the
 * first had left. It is what encoding the same coefficients would give. -ERANGE: a token would pass
 * max_error, the result is no smaller, or the frame is plain; -ESTALE: of another geometry or transform;
 * -EBADMSG: damaged; -EINVAL: rungs that are not on the ladder, or finer than the frame's; -ENOMEM. Of
 * options only transform, rungs, entropy, max_error and policy_version are read. */
int codec_transcode(struct codec *c, const struct geometry *g, const void *data, size_t len,
	const struct codec_options *options, uint8_t **out, size_t *out_len, struct frame_info *info);

/* Makes a frame anew in which some of its raw tokens are coded: those that the window has left behind.
 * classes as codec_options; tokens that were coded before keep their levels and classes whatever classes says
 * of them, and coded tokens do not become raw again. The result is what encoding the original with the new
 * classes would have given. Options' transform and rungs must be the frame's, which codec_transcode does not
 * promise: -ESTALE where they are not; -ERANGE: nothing to do; -EBADMSG; -ENOMEM. */
int codec_resettle(struct codec *c, const struct geometry *g, const void *data, size_t len,
	const struct codec_options *options, uint8_t **out, size_t *out_len, struct frame_info *info);

/* Where the encode or decode time went, in nanoseconds, since the last call; for the bench. */
struct codec_times {
	uint64_t gather, gemm, quantise, entropy, other;
};
void codec_take_times(struct codec *c, struct codec_times *out);

#endif
