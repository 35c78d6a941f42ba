/*
 * How much of a GPU's time work in the background may take. GPUs take turns between processes, and what one
 * of them does at a low priority costs the others its turns all the same: so encoding keeps to a share of the
 * time by itself. Time that was not used is saved up, SHARE_SAVED_NS of it at most: what comes now and then
 * does not wait.
 *
 * Book-keeping alone; one thread.
 */
#ifndef RUNTIME_CUDA_SHARE_H
#define RUNTIME_CUDA_SHARE_H

#include <stdint.h>

#define SHARE_SAVED_NS 100000000

struct share {
	uint32_t percent; /* 1 to 100; 100: no limit */
	int64_t credit_ns;
	uint64_t at_ns; /* as of when */
};

static inline void share_init(struct share *s, uint32_t percent, uint64_t now_ns)
{
	*s = (struct share){percent, SHARE_SAVED_NS, now_ns};
}

static inline void share_pass(struct share *s, uint64_t now_ns)
{
	const uint64_t passed = now_ns > s->at_ns ? now_ns - s->at_ns : 0;
	/* Of more than this nothing is saved up. */
	const uint64_t counted =
		passed < (uint64_t)1000 * SHARE_SAVED_NS ? passed : (uint64_t)1000 * SHARE_SAVED_NS;

	s->at_ns += passed;
	s->credit_ns += (int64_t)(counted * s->percent / 100);
	if (s->credit_ns > SHARE_SAVED_NS)
		s->credit_ns = SHARE_SAVED_NS;
}

/* After how many ns the next piece of work may begin; 0: now. */
static inline uint64_t share_wait(struct share *s, uint64_t now_ns)
{
	share_pass(s, now_ns);
	if (s->percent >= 100 || s->credit_ns > 0)
		return 0;
	return ((uint64_t)-s->credit_ns + 1) * 100 / s->percent + 1;
}

/* Work took so much of the GPU's time. */
static inline void share_take(struct share *s, uint64_t busy_ns)
{
	s->credit_ns -= (int64_t)busy_ns;
}

#endif
