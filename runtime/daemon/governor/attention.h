/*
 * Attention that engines have shown (OBSERVE), by chunk, until the chunk is put: a bounded table, the oldest
 * go first. Owned by the front thread.
 */
#ifndef RUNTIME_DAEMON_GOVERNOR_ATTENTION_H
#define RUNTIME_DAEMON_GOVERNOR_ATTENTION_H

#include "runtime/index.h"

enum { ATTENTION_KEPT = 1024 }; /* chunks */

struct attention;

struct attention *attention_new(void);
struct attention *attention_free(struct attention *a);

/* drawing, asked: [n_tokens], logs of multiples of the uniform share (policy/sinks/observe.h). Replaces what
 * was there. -ENOMEM. */
int attention_set(struct attention *a, const struct index_key *id, const float *drawing, const float *asked,
	uint32_t n_tokens);
/* drawing, and behind it asked: [2, n_tokens]; NULL: nothing is known of that chunk, or it had another
 * length. Valid until the next attention_set. */
const float *attention_seen(const struct attention *a, const struct index_key *id, uint32_t n_tokens);

#endif
