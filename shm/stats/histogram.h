/*
 * A histogram of durations on a logarithmic scale: four buckets to the doubling, from 250 ns to 33 s, so that
 * a quantile read from it is at most 19% (the bucket's width) above the true one. Fixed size, no allocation;
 * one writer. Bucket 0 is everything below 250 ns, the last everything above.
 */
#ifndef SHM_STATS_HISTOGRAM_H
#define SHM_STATS_HISTOGRAM_H

#include <stdint.h>

enum {
	HISTOGRAM_FIRST_NS = 250,
	HISTOGRAM_STEPS = 4, /* buckets to a doubling */
	HISTOGRAM_DOUBLINGS = 27,
	HISTOGRAM_BUCKETS = 1 + HISTOGRAM_STEPS * HISTOGRAM_DOUBLINGS + 1,
};

struct histogram {
	uint64_t sum_ns;
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

/* The bucket that a duration falls into. */
static inline uint32_t histogram_bucket(uint64_t ns)
{
	const uint64_t n = ns / HISTOGRAM_FIRST_NS;
	uint32_t doubling;

	if (!n)
		return 0;
	doubling = 63 - (uint32_t)__builtin_clzll(n);
	if (doubling >= HISTOGRAM_DOUBLINGS)
		return HISTOGRAM_BUCKETS - 1;
	/* How far between 2^doubling and twice that, in quarters, from ns itself: n has lost what is under
	 * 250. */
	return 1 + HISTOGRAM_STEPS * doubling +
	       (uint32_t)((ns - ((uint64_t)HISTOGRAM_FIRST_NS << doubling)) * HISTOGRAM_STEPS /
			  ((uint64_t)HISTOGRAM_FIRST_NS << doubling));
}

static inline void histogram_add(struct histogram *h, uint64_t ns)
{
	h->sum_ns += ns;
	h->buckets[histogram_bucket(ns)]++;
}

/* Where bucket i ends, exclusive. UINT64_MAX: the last. */
uint64_t histogram_end_ns(uint32_t bucket);
uint64_t histogram_count(const struct histogram *h);
/* The end of the bucket in which the q-th part (0 to 1) of all durations is reached, or, in the last bucket,
 * its start; 0 when there are none. */
uint64_t histogram_quantile_ns(const struct histogram *h, double q);
/* out = after - before: what came in between. Buckets that shrank (another daemon's) make it all of after. */
void histogram_between(const struct histogram *before, const struct histogram *after, struct histogram *out);

#endif
