/*
 * An engine's traffic out of captures: a private cache in shared memory that sequence after sequence is
 * copied into and put from, at the pace of an engine that computes so many tokens a second. One connection,
 * one thread, blocking.
 */
#ifndef BENCH_ONLINE_STREAM_H
#define BENCH_ONLINE_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "tools/capture.h"

struct stream;

/* For captures of this model, of up to room_tokens. -errno, with a sentence on stderr. */
int stream_open(const char *socket, const struct geometry *g, uint32_t room_tokens, struct stream **out);
struct stream *stream_close(struct stream *s);

/* Puts a capture as a sequence of its own. *frame_bytes: what the daemon made of it. -errno, with a sentence
 * on stderr. */
int stream_put(struct stream *s, const struct capture *c, uint64_t *frame_bytes);

#endif
