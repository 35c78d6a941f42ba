#include "tools/bench-rate/results/bound.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench-rate/codecs/under-test.h"

int bound_init(struct bound *b, const struct learning *l)
{
	*b = (struct bound){.l = l, .energy = calloc(l->n_groups, sizeof *b->energy)};
	for (size_t i = 0; b->energy && i < l->n_groups; i++) {
		b->energy[i] = calloc(l->groups[i].group.p, sizeof **b->energy);
		if (!b->energy[i]) {
			bound_fini(b);
			return -ENOMEM;
		}
	}
	return b->energy ? 0 : -ENOMEM;
}

void bound_fini(struct bound *b)
{
	for (size_t i = 0; b->energy && i < b->l->n_groups; i++)
		free(b->energy[i]);
	free(b->energy);
	*b = (struct bound){0};
}

int bound_add(struct bound *b, const struct codec_chunk *chunk, const uint8_t *classes)
{
	const struct kernels *k = b->l->kernels;
	uint16_t tokens[FRAME_TOKENS_MAX];
	const size_t n = coded_tokens(chunk, classes, tokens);
	int r = 0;

	for (size_t i = 0; i < b->l->n_groups && n && r == 0; i++) {
		const struct learned_group *g = &b->l->groups[i];
		const size_t p = g->group.p;
		float *x = malloc(n * p * sizeof *x), *c = malloc(n * p * sizeof *c);

		r = x && c ? layer_group_read(k, chunk, &g->group, tokens, n, g->mean, x) : -ENOMEM;
		if (r == 0) {
			k->project(g->basis, p, p, x, p, n, c, n);
			for (size_t f = 0; f < p; f++)
				for (size_t t = 0; t < n; t++)
					b->energy[i][f] += (double)c[f * n + t] * (double)c[f * n + t];
		}
		free(x);
		free(c);
	}
	b->n_tokens += r == 0 ? n : 0;
	return r;
}

static double filled(const double *variance, size_t n, double level)
{
	double sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += fmin(variance[i], level);
	return sum;
}

double gaussian_bits(const double *variance, size_t n, double squared_error)
{
	double low = 0, high = 0, bits = 0;

	for (size_t i = 0; i < n; i++)
		high = fmax(high, variance[i]);
	if (filled(variance, n, high) <= squared_error)
		return 0;
	/* The water level whose error is the given one; the error grows with it. */
	for (int i = 0; i < 200; i++) {
		const double level = (low + high) / 2;

		if (filled(variance, n, level) < squared_error)
			low = level;
		else
			high = level;
	}
	for (size_t i = 0; i < n; i++)
		bits += variance[i] > high ? 0.5 * log2(variance[i] / high) : 0;
	return bits;
}

double bound_bits(const struct bound *b, uint32_t plane, double squared_error)
{
	double *variance, bits = NAN;
	size_t n = 0;

	for (size_t i = 0; i < b->l->n_groups; i++)
		n += b->l->groups[i].group.plane == plane ? b->l->groups[i].group.p : 0;
	variance = malloc(n * sizeof *variance);
	n = 0;
	for (size_t i = 0; variance && i < b->l->n_groups; i++)
		for (size_t f = 0; b->l->groups[i].group.plane == plane && f < b->l->groups[i].group.p; f++)
			variance[n++] = b->energy[i][f] / (double)b->n_tokens;
	if (variance)
		bits = gaussian_bits(variance, n, squared_error);
	free(variance);
	return bits;
}
