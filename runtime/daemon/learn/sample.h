/*
 * A copy of a chunk on its way from the worker that encodes it to the background thread that learns from it.
 * The front thread hands it out and takes it back; whoever has it has it alone.
 */
#ifndef RUNTIME_DAEMON_LEARN_SAMPLE_H
#define RUNTIME_DAEMON_LEARN_SAMPLE_H

#include "runtime/chunk-copy.h"
#include "runtime/daemon/learn/background.h"

struct pupil;

struct sample {
	struct task task;
	struct pupil *pupil;
	struct sample *next; /* of those that are free */
	struct chunk_copy *copy;
	bool filled;
	uint8_t classes[FRAME_TOKENS_MAX];
	uint32_t n_coded; /* tokens to learn from */
	uint64_t copy_ns; /* what the copying took of the worker's time */
	/* For and from the background thread: */
	const struct transform *transform; /* in use when it was handed over, held; NULL: none */
	uint32_t rung;
	double inside, total; /* energy, student.h */
	int status;
};

/* On the worker: takes the chunk, which it has just read and so finds in its cache. */
void sample_fill(struct sample *s, const struct kernels *kernels, const struct codec_chunk *chunk,
	const uint8_t *classes);

#endif
