/*
 * A frame made anew with another transform, without the engine: decoded into memory of our own and encoded
 * from there. For chunks that were kept with the plain 8-bit codec until there was a transform.
 *
 * Tokens that the frame keeps raw stay raw, bit for bit, in the classes they have. What the old frame had
 * lost is added to what the new one says it loses: with errors e1 and then e2 of what was left, a token's
 * relative error is at most e1 + e2 (1 + e1). max_error bounds that sum. A token that would pass it is kept
 * raw (TOKEN_EXACT), as the old frame had it: its error is e1.
 */
#ifndef RUNTIME_REENCODE_H
#define RUNTIME_REENCODE_H

#include "runtime/codec.h"

struct reencode_options {
	const struct transform *from; /* that the frame names; NULL: plain */
	const struct transform *to;
	uint32_t rung;
	double max_error; /* 0: no bound */
	uint32_t policy_version;
};

/* *out is malloc'd and the caller's. info (may be NULL) gets the new header. -ERANGE: would be no smaller, or
 * the old frame alone passes max_error; -EBADMSG, -ENOTSUP, -ESTALE: the frame, see codec_decode; -EINVAL:
 * transform does not fit; -ENOMEM. */
int reencode(struct codec *codec, const struct geometry *g, const void *frame, size_t len,
	const struct reencode_options *options, uint8_t **out, size_t *out_len, struct frame_info *info);

#endif
