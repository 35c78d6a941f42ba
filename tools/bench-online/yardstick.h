/*
 * What a transform is worth on held-out captures: their chunks are coded at every rung and compared with what
 * was decoded. Ratio and errors are those of coded tokens (bench-rate/codecs/under-test.h counts the bytes).
 * Single-threaded.
 */
#ifndef BENCH_ONLINE_YARDSTICK_H
#define BENCH_ONLINE_YARDSTICK_H

#include "policy/policy.h"
#include "tools/bench-rate/codecs/under-test.h"
#include "tools/capture.h"

struct yardstick {
	const struct kernels *kernels;
	struct policy policy;
	uint32_t chunk_tokens;
	struct capture **captures;
	size_t n_captures;
};

struct worth {
	size_t n_rungs;
	double rungs[UNDER_TEST_RUNGS_MAX];                      /* as they are called */
	double ratio[UNDER_TEST_RUNGS_MAX];                      /* as measured */
	double error[GEOMETRY_PLANES_MAX][UNDER_TEST_RUNGS_MAX]; /* relative L2 */
	size_t at; /* the rung that the policy's ratio asks for */
};

/* t: NULL for the plain codec. -errno. */
int yardstick_measure(const struct yardstick *y, struct transform *t, struct worth *out);

/* The ratio at which no plane's error is over that of `other` at its rung, read off w's rungs; NAN: they do
 * not reach there. */
double worth_ratio_at(const struct worth *w, const struct worth *other, uint32_t n_planes);

/* What a PUT pays for being sampled: medians, over the captures' chunks, of encoding one and of copying it
 * right after, as the daemon does. Nanoseconds. -errno. */
int yardstick_cost(const struct yardstick *y, struct transform *t, double *encode_ns, double *copy_ns);

#endif
