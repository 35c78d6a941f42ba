#include "shm/stats/histogram.h"

uint64_t histogram_end_ns(uint32_t bucket)
{
	uint32_t doubling, step;

	if (!bucket)
		return HISTOGRAM_FIRST_NS;
	if (bucket >= HISTOGRAM_BUCKETS - 1)
		return UINT64_MAX;
	doubling = (bucket - 1) / HISTOGRAM_STEPS;
	step = (bucket - 1) % HISTOGRAM_STEPS + 1;
	/* Rounded up: the quarters of 250 are not whole. */
	return ((uint64_t)HISTOGRAM_FIRST_NS << doubling) +
	       (((uint64_t)HISTOGRAM_FIRST_NS << doubling) * step + HISTOGRAM_STEPS - 1) / HISTOGRAM_STEPS;
}

uint64_t histogram_count(const struct histogram *h)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++)
		n += h->buckets[i];
	return n;
}

uint64_t histogram_quantile_ns(const struct histogram *h, double q)
{
	const double wanted = q * (double)histogram_count(h);
	uint64_t n = 0;

	for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
		n += h->buckets[i];
		if (n && (double)n >= wanted)
			return histogram_end_ns(i < HISTOGRAM_BUCKETS - 1 ? i : i - 1);
	}
	return 0;
}

void histogram_between(const struct histogram *before, const struct histogram *after, struct histogram *out)
{
	out->sum_ns = after->sum_ns - before->sum_ns;
	for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
		if (after->buckets[i] < before->buckets[i]) {
			*out = *after;
			return;
		}
		out->buckets[i] = after->buckets[i] - before->buckets[i];
	}
}
