/*
 * An engine's traffic out of captures: a private cache in shared memory that sequence after sequence is
 * copied into and put from. One connection, one thread at a time.
 */
#ifndef BENCH_ONLINE_STREAM_H
#define BENCH_ONLINE_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "shm/cistern.h"
#include "tools/capture.h"

struct stream;

/* For captures of this model, of up to room_tokens; bench: in whose name messages are, borrowed. -errno, with
 * a sentence on stderr. */
int stream_open(const char *socket, const char *bench, const struct geometry *g, uint32_t room_tokens,
	struct stream **out);
struct stream *stream_close(struct stream *s);

/* Copies a capture in, from place on: tokens, a multiple of 16. */
void stream_copy(struct stream *s, const struct capture *c, uint32_t place);
/* Puts or gets the n_tokens that lie at place, which stand at position in their
 * sequence and have these keys. Queues and submits: completions are taken from stream_connection. As
 * cistern_put and cistern_get. */
int stream_begin_put(struct stream *s, uint32_t place, uint32_t n_tokens, uint64_t position,
	const struct cistern_key *keys, uint64_t user_data);
int stream_begin_get(struct stream *s, uint32_t place, uint32_t n_tokens, uint64_t position,
	const struct cistern_key *keys, uint64_t user_data);
struct cistern *stream_connection(struct stream *s, uint32_t *model_id);

/* Puts a capture as a sequence of its own. *frame_bytes: what the daemon made of it. -errno, with a sentence
 * on stderr. */
int stream_put(struct stream *s, const struct capture *c, uint64_t *frame_bytes);

#endif
