#include "policy/sinks/observe.h"

#include <math.h>

/* Turns a row of scores into logs of multiples of the uniform share. */
static void to_multiples(float *row, uint64_t position)
{
	const size_t n = (size_t)position + 1;
	float largest = -INFINITY;
	double sum = 0;
	float less;

	for (size_t t = 0; t < n; t++)
		largest = row[t] > largest ? row[t] : largest;
	for (size_t t = 0; t < n; t++)
		sum += (double)expf(row[t] - largest);
	less = largest + (float)log(sum) - logf((float)n);
	for (size_t t = 0; t < n; t++)
		row[t] -= less;
}

static void raise_to(float *x, float other)
{
	if (!(*x >= other)) /* a NAN too */
		*x = other;
}

void observe_head(float *scores, size_t stride, const uint64_t *positions, size_t n_queries, size_t first,
	size_t end, const struct observed *out)
{
	const float floor_log = logf(OBSERVE_FLOOR);

	for (size_t i = 0; i < n_queries; i++)
		to_multiples(scores + i * stride, positions[i]);
	for (size_t t = first; t < end; t++) {
		float logs = 0, sum = 0;

		for (size_t i = 0; i < n_queries; i++) {
			const float m = fmaxf(scores[i * stride + t], floor_log);

			logs += m;
			sum += expf(m);
		}
		logs /= (float)n_queries;
		sum = logf(sum / (float)n_queries);
		raise_to(&out->resting[t], logs);
		raise_to(&out->asked[t], sum);
		raise_to(&out->drawing[t], 0.5f * (logs + sum));
	}
}

float observe_sum(float sum, uint32_t n_queries, uint64_t n_seen)
{
	return logf(fmaxf(sum / (float)n_queries * (float)n_seen, OBSERVE_FLOOR));
}
