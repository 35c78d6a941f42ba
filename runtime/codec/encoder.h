/*
 * One call of codec_encode, in the steps that transcoding shares. With a transform: the coded tokens are
 * quantised part by part, those over the bound move to a finer class and are quantised again, alone, for a
 * token's levels depend on no other token; only then is anything written. Lies on the caller's stack; all it
 * points to is the codec's scratch.
 */
#ifndef RUNTIME_CODEC_ENCODER_H
#define RUNTIME_CODEC_ENCODER_H

#include "runtime/codec/internal.h"

struct encoder {
	struct codec *codec;
	const struct codec_chunk
		*chunk; /* pages may be NULL when nothing is to be gathered and none are raw */
	const struct codec_options *options;
	const uint16_t *slot; /* [n_tokens] where a token stands in the pages' run; NULL: where it stands in
				 the chunk */
	struct frame_writer writer;
	uint32_t n_parts;
	uint8_t *classes;       /* [n_tokens], a copy that promotions change */
	uint8_t *todo;          /* [n_tokens]: to be quantised */
	uint16_t *tokens;       /* three lists of [n_tokens] */
	int16_t *levels;        /* of all parts, [n_components, n_tokens] each */
	size_t n_raw;           /* once the head is written */
	struct codec_rope rope; /* of the tokens in work; to be zeroed when they change */
	/* [n_planes][n_tokens]: squared error, and squared norm, of every coded token. */
	float *error, *norm;
	/* [n_tokens], of one part and the tokens in work: energy of their features, quantiser error, energy
	 * of the components coded, z . w m. */
	float *energy, *lost, *kept, *dots;
	/* [n_tokens], of plain tokens, over all parts: what neighbours do not foretell, and all of it. Summed
	 * up while `foretells`. */
	float *unforetold, *all;
	int foretells;
};

/* Takes scratch; classes are options'; every token that is not raw is to do. */
int encoder_init(struct encoder *e);
/* The tokens of a class in order, of the wanted ones (NULL: all). Returns how many. */
size_t encoder_list(struct encoder *e, uint16_t *list, const uint8_t *wanted, uint8_t token_class);
/* Where a part's levels are. */
int16_t *encoder_levels(struct encoder *e, uint32_t part);
/* Features of tokens, x [n, p], and their energy in e->energy. */
int encoder_gather(
	struct encoder *e, const struct codec_part *part, const uint16_t *tokens, size_t n, float **x);
/* Quantises tokens, n_of of each class, the columns of c, into a part's levels and adds to their errors.
 * energy: squared norms of what c came from. */
int encoder_quantise(struct encoder *e, uint32_t part, const uint16_t *tokens,
	const size_t n_of[CODED_CLASSES], const float *c, size_t c_stride, const float *energy);
/* rank.c: what there is to be known of n plain tokens that follow each other, from a part's coefficients c
 * [r, n]. */
void encoder_foretell(
	struct encoder *e, const uint16_t *tokens, size_t n, const float *c, size_t c_stride, size_t r);
/* Gives plain tokens that are to do, and were quantised, the classes that their order asks for; those that
 * got another are to do in out [n_tokens]. Returns how many. */
size_t encoder_rank(struct encoder *e, uint8_t *out);
/* Of a token that was quantised, in one plane. */
double encoder_relative_error(const struct encoder *e, uint32_t plane, uint32_t token);
/* Forgets what a token has lost: it is quantised again. */
void encoder_forget(struct encoder *e, uint32_t token);
/* Quantises all tokens that are to do, until the bound holds. */
int encoder_quantise_todo(struct encoder *e);
/* Moves tokens that are to do and pass the bound to a finer class. True: some are to be quantised again. */
int encoder_promote(struct encoder *e);
/* The class map and the raw tokens; then the levels. */
int encoder_write_head(struct encoder *e);
int encoder_write_levels(struct encoder *e);
void encoder_state_error(const struct encoder *e, struct frame_info *info);
int encoder_finish(struct encoder *e, struct frame_info *info, uint8_t **data, size_t *len);

#endif
