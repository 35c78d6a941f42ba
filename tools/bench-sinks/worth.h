/*
 * What protection is worth: a sequence's prompt coded under each way to protect tokens, by each codec at each
 * rung, and what follows compared over the original and over the restored cache. One thread, one owner.
 */
#ifndef BENCH_SINKS_WORTH_H
#define BENCH_SINKS_WORTH_H

#include "tools/bench-rate/codecs/under-test.h"
#include "tools/bench-sinks/search.h"
#include "tools/engine/evaluate.h"

enum { WORTH_RUNGS = 4, WORTH_CODECS_MAX = 2 };
extern const double worth_rungs[WORTH_RUNGS];

/* Sums over sequences. */
struct worth {
	struct evaluation evaluation[WORTH_CODECS_MAX][WORTH_RUNGS][WAYS];
	double coded_bytes[WORTH_CODECS_MAX][WORTH_RUNGS][WAYS]; /* protected tokens in it */
	double source_bytes;
};

/* Whether this way is weighed. */
static inline bool worth_has(enum way way)
{
	return way != WAY_OBSERVED_LAST;
}

/* Adds the sequence. rungs: of worth_rungs, how many are wanted, from the second on when it is one. */
int worth_add(struct worth *w, struct sequence *s, const struct search_decisions *d,
	struct under_test *const *codecs, size_t n_codecs, bool one_rung);

#endif
