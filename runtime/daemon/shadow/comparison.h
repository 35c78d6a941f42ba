/*
 * One chunk's original and what its frame gives back, under queries that an engine showed: decoded and
 * compared on the background thread (runtime/attention-error.h has the formula). It has copies of all that it
 * reads but the original, which its shadow keeps for it, and the transform, which its maker holds. Its memory
 * counts in the budget.
 */
#ifndef RUNTIME_DAEMON_SHADOW_COMPARISON_H
#define RUNTIME_DAEMON_SHADOW_COMPARISON_H

#include "runtime/daemon/learn/background.h"
#include "runtime/daemon/shadow/queries.h"
#include "runtime/daemon/shadow/shadows.h"

struct comparison {
	struct task task; /* first */
	void *owner;      /* the caller's own */
	struct budget *budget;
	size_t bytes; /* taken of it */
	const struct kernels *kernels;
	struct shadow *shadow;
	struct query_sample *queries;
	const struct transform *transform; /* NULL: plain */
	uint8_t *frame;
	size_t frame_bytes;
	struct chunk_copy *restored;
	struct attention_error error;
	int status;
};

/* Of a shadow that is ready; takes the queries over, with success or without. Copies the frame. done: as
 * of struct task. NULL: no room. */
struct comparison *comparison_new(struct budget *b, const struct kernels *kernels, struct shadow *shadow,
	struct query_sample *queries, const void *frame, size_t frame_bytes,
	const struct transform *transform, void (*done)(struct task *task, bool ran));
/* Says that the shadow was compared, too. */
struct comparison *comparison_free(struct comparison *c, struct shadows *shadows);

#endif
