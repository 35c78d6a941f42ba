/*
 * What is learned of one model: the streaming covariances of its layer groups, fed with copies of chunks, and
 * from them a transform whenever one is asked for. The decisions are policy/learner.h's. Belongs to one
 * thread at a time (the background thread, or a bench); blocking.
 */
#ifndef RUNTIME_DAEMON_LEARN_STUDENT_H
#define RUNTIME_DAEMON_LEARN_STUDENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "policy/transform.h"
#include "runtime/chunk-copy.h"

struct student;

struct student_options {
	uint32_t chunk_tokens;
	uint64_t memory_bytes; /* that covariances, and learning from them, may take */
};

/* Groups have as many layers as memory_bytes allows, and no more than calibrate.h chooses unasked. geometry
 * is borrowed. -ENOSPC: not even single layers fit; needed (may be NULL) gets what those would take. -EINVAL
 * with a sentence in why; -ENOMEM. Takes the memory only as it is fed. */
int student_new(const struct geometry *geometry, const struct kernels *kernels,
	const struct student_options *options, struct student **out, uint64_t *needed, char *why,
	size_t why_len);
struct student *student_free(struct student *s);
/* What it comes to hold. */
uint64_t student_bytes(const struct student *s);

/* Adds the coded tokens of a chunk (classes: [n_tokens]). With a transform: how much centred energy they
 * have, what of it lies in the components that the rung codes, and what their levels are. -ENOMEM. */
int student_take(struct student *s, const struct chunk_copy *chunk, const uint8_t *classes,
	const struct transform *t, uint32_t rung, double *inside, double *total);
/* What was taken counts as no more than n_tokens from here on. */
void student_fade(struct student *s, uint64_t n_tokens);

/* Learns a transform: *data (malloc'd, the caller's) and *out, the same parsed, with one reference. rest is
 * called between layer groups, and ends it with -ECANCELED when it returns false. -ENODATA, -EDOM, -ENOMEM:
 * no transform. */
int student_learn(struct student *s, bool (*rest)(void *arg), void *arg, void **data, size_t *len,
	struct transform **out);

#endif
