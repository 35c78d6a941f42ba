#include "policy/allocate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { N_WIDTHS = ALLOCATE_BITS_MAX + 1 };

/* The lower convex hull of (rate, distortion): step k leads from width[k] to width[k + 1]. */
struct hull {
	unsigned n;
	uint8_t width[N_WIDTHS];
	double rate[N_WIDTHS];
	double saved_per_bit[N_WIDTHS]; /* of step k, falling */
};

/* One step of one run. */
struct step {
	double saved_per_bit;
	double bits;
	uint32_t part, run;
	uint8_t k;
};

void allocate_default_tables(struct allocate_tables *tables)
{
	static const struct allocate_tables measured = {
		.distortion = {1, 0.3633, 0.1873, 0.04607, 0.01222, 0.003173, 0.000783, 0.000194, 0.000048},
		.rate = {0, 1.001, 1.550, 2.875, 3.523, 4.954, 5.844, 6.993, 7.493},
	};

	*tables = measured;
}

static void make_hull(const struct allocate_tables *tables, double side_bits, struct hull *h)
{
	double distortion[N_WIDTHS];

	*h = (struct hull){.n = 1};
	distortion[0] = tables->distortion[0];
	for (unsigned b = 1; b < N_WIDTHS; b++) {
		double rate = tables->rate[b] + side_bits, d = tables->distortion[b], slope;

		/* A width that costs as much as one before and is no worse replaces it; one that saves
		 * nothing is left out. */
		while (h->n > 1 && rate <= h->rate[h->n - 1] && d <= distortion[h->n - 1])
			h->n--;
		if (d >= distortion[h->n - 1] || rate <= h->rate[h->n - 1])
			continue;
		for (;;) {
			slope = (distortion[h->n - 1] - d) / (rate - h->rate[h->n - 1]);
			if (h->n == 1 || slope < h->saved_per_bit[h->n - 2])
				break;
			h->n--;
		}
		h->saved_per_bit[h->n - 1] = slope;
		h->width[h->n] = (uint8_t)b;
		h->rate[h->n] = rate;
		distortion[h->n] = d;
		h->n++;
	}
}

static int by_saving(const void *a, const void *b)
{
	const struct step *x = a, *y = b;

	if (x->saved_per_bit != y->saved_per_bit)
		return x->saved_per_bit > y->saved_per_bit ? -1 : 1;
	/* Equal ones in a fixed order, so that the result does not depend on the sort. */
	if (x->k != y->k)
		return x->k < y->k ? -1 : 1;
	if (x->part != y->part)
		return x->part < y->part ? -1 : 1;
	return (x->run > y->run) - (x->run < y->run);
}

static uint32_t n_runs(const struct allocate_part *part, uint32_t run)
{
	return (part->n_components + run - 1) / run;
}

static uint32_t run_length(const struct allocate_part *part, uint32_t run, uint32_t i)
{
	uint32_t rest = part->n_components - i * run;

	return rest < run ? rest : run;
}

static double run_variance(const struct allocate_part *part, uint32_t run, uint32_t i)
{
	double sum = 0;

	for (uint32_t k = 0; k < run_length(part, run, i); k++)
		sum += (double)part->variance[i * run + k];
	return sum;
}

static size_t make_steps(const struct allocate_part *parts, size_t n_parts, uint32_t run,
	const struct hull *h, struct step *steps)
{
	size_t n = 0;

	for (uint32_t p = 0; p < n_parts; p++) {
		for (uint32_t i = 0; i < n_runs(&parts[p], run); i++) {
			uint32_t length = run_length(&parts[p], run, i);
			double variance = parts[p].weight * run_variance(&parts[p], run, i) / length;

			for (uint8_t k = 0; k + 1u < h->n && variance > 0; k++)
				steps[n++] = (struct step){.saved_per_bit = variance * h->saved_per_bit[k],
					.bits = length * (h->rate[k + 1] - h->rate[k]),
					.part = p,
					.run = i,
					.k = k};
		}
	}
	qsort(steps, n, sizeof *steps, by_saving);
	return n;
}

/* Takes steps in order until one does not fit. Going on to smaller ones that do would use the rest, but then
 * a larger budget could take bits away somewhere. */
static void take_steps(const struct allocate_part *parts, const struct allocate_options *o,
	const struct hull *h, const struct step *steps, size_t n_steps)
{
	double used = 0;

	for (size_t s = 0; s < n_steps; s++) {
		const struct allocate_part *part = &parts[steps[s].part];

		used += steps[s].bits;
		if (used > o->budget)
			break;
		memset(part->bits + steps[s].run * o->run, h->width[steps[s].k + 1],
			run_length(part, o->run, steps[s].run));
	}
}

/* Runs of equal variance may be told apart by rounding; nothing else could make bits rise. */
static void settle(const struct allocate_part *part)
{
	for (uint32_t i = 1; i < part->n_components; i++)
		if (part->bits[i] > part->bits[i - 1])
			part->bits[i] = part->bits[i - 1];
}

static void measure(
	const struct allocate_part *part, const struct allocate_options *o, struct allocate_result *result)
{
	for (uint32_t i = 0; i < part->n_components; i++) {
		uint8_t b = part->bits[i];

		result->bits_per_token += b ? o->tables->rate[b] + o->side_bits_per_token : 0;
		result->distortion += part->weight * (double)part->variance[i] * o->tables->distortion[b];
	}
}

int allocate(const struct allocate_part *parts, size_t n_parts, const struct allocate_options *options,
	struct allocate_result *result)
{
	struct step *steps;
	struct hull h;
	size_t n = 0;

	make_hull(options->tables, options->side_bits_per_token, &h);
	for (size_t p = 0; p < n_parts; p++)
		n += n_runs(&parts[p], options->run);
	steps = calloc(n * N_WIDTHS + 1, sizeof *steps);
	if (!steps)
		return -ENOMEM;
	for (size_t p = 0; p < n_parts; p++)
		memset(parts[p].bits, 0, parts[p].n_components);
	n = make_steps(parts, n_parts, options->run, &h, steps);
	take_steps(parts, options, &h, steps, n);
	*result = (struct allocate_result){0};
	for (size_t p = 0; p < n_parts; p++) {
		settle(&parts[p]);
		measure(&parts[p], options, result);
	}
	free(steps);
	return 0;
}
