/*
 * The raw tokens of a frame as they lay in the engine's memory, bit for bit, in one block of our own that the
 * kernels read as they read an engine's pages: token i of the block is the frame's i-th raw one. For what is
 * still to be found out about tokens after the engine has its memory back: whether one that leaves the window
 * is a sink, and what it is coded to. One owner, one thread at a time.
 */
#ifndef RUNTIME_CODEC_RAW_TOKENS_H
#define RUNTIME_CODEC_RAW_TOKENS_H

#include "runtime/codec.h"

struct raw_tokens {
	struct frame_info info;            /* of the frame */
	uint8_t classes[FRAME_TOKENS_MAX]; /* of all its tokens */
	uint16_t slot[FRAME_TOKENS_MAX];   /* where a raw one stands in the block */
	struct kv_pages *pages;            /* [n_layers][n_planes] */
	uint8_t *memory;
	uint32_t block; /* 0, the number of the only one */
};

/* transform: the one the frame names; NULL: plain. The frame may be freed after. -ENODATA: it has none;
 * -EBADMSG, -ENOTSUP, -ESTALE: see codec_decode; -ENOMEM. */
int raw_tokens_init(struct raw_tokens *r, struct codec *c, const struct geometry *g,
	const struct transform *transform, const void *data, size_t len);
void raw_tokens_fini(struct raw_tokens *r);

/* For chunks' run: where the block is. */
static inline struct kv_run raw_tokens_run(const struct raw_tokens *r)
{
	return (struct kv_run){.blocks = &r->block, .block_tokens = r->info.n_raw};
}

#endif
