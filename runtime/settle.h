/*
 * A frame whose window has moved on. Its window tokens are judged once more, with all that is known by now,
 * for what was looked at last while it was the end of its sequence had no attention behind it: those that are
 * sinks stay bit for bit, the others are coded as they would have been had they never been in the window,
 * from their own bits. What was coded before keeps its levels, what was found to be a sink stays one. Holds
 * no state; the frame is only read.
 */
#ifndef RUNTIME_SETTLE_H
#define RUNTIME_SETTLE_H

#include "policy/policy.h"
#include "runtime/codec.h"
#include "runtime/detection.h"

struct settle_options {
	const struct transform *transform; /* that the frame names */
	const struct policy *policy;
	const struct sinks_detector *detector; /* of the frame's geometry; NULL: none is known */
	const float
		*seen; /* [2, n_tokens]: drawing and asked (policy/sinks/observe.h); NULL: none was seen */
};

struct settled {
	uint8_t *frame; /* malloc'd, the caller's */
	size_t frame_bytes;
	struct frame_info info;
	uint8_t classes[FRAME_TOKENS_MAX]; /* before promotions */
	uint32_t n_left;                   /* tokens that left the window */
	struct sinks_finding *findings;    /* of these, the sinks; malloc'd, the caller's */
	uint32_t n_findings;
};

/* Of a sequence of which `end` tokens are known by now: whether the window has left all of a chunk behind, so
 * that it is settled once and for all. */
static inline bool settle_is_due(uint64_t position, uint32_t n_tokens, uint32_t window_tokens, uint64_t end)
{
	return end >= position + n_tokens && end - position - n_tokens >= window_tokens;
}

/* -ERANGE: nothing to settle, or the result would be no smaller; -ENOTSUP: the plain codec, or another
 * version of the format; -EBADMSG, -ESTALE: see codec_decode; -ENOMEM. out is written only on success. */
int settle(struct codec *codec, struct detection *detection, const struct geometry *g, const void *frame,
	size_t len, const struct settle_options *options, struct settled *out);

#endif
