#include "policy/sinks/rank.h"

#include <math.h>
#include <stdlib.h>

#include "policy/policy.h"

struct ranked {
	float attention;
	uint32_t token;
};

static int most_first(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	if (x->attention > y->attention || x->attention < y->attention)
		return x->attention < y->attention ? 1 : -1;
	return (x->token > y->token) - (x->token < y->token);
}

void sinks_rank(const float *attention, size_t n_tokens, double salient_share, double redundant_share,
	uint8_t *classes)
{
	struct ranked *order = malloc((n_tokens + 1) * sizeof *order);
	size_t n = 0, n_plain = 0, n_salient, n_redundant;

	/* Without memory all stay plain, which is never wrong. */
	for (size_t t = 0; t < n_tokens && order; t++) {
		n_plain += classes[t] == TOKEN_PLAIN;
		if (classes[t] == TOKEN_PLAIN && !isnan(attention[t]))
			order[n++] = (struct ranked){attention[t], (uint32_t)t};
	}
	n_salient = (size_t)(salient_share * (double)n_plain);
	n_redundant = (size_t)(redundant_share * (double)n_plain);
	n_salient = n_salient < n ? n_salient : n;
	n_redundant = n_redundant < n - n_salient ? n_redundant : n - n_salient;
	if (n)
		qsort(order, n, sizeof *order, most_first);
	for (size_t i = 0; i < n_salient; i++)
		classes[order[i].token] = TOKEN_SALIENT;
	for (size_t i = n - n_redundant; i < n; i++)
		classes[order[i].token] = TOKEN_REDUNDANT;
	free(order);
}
