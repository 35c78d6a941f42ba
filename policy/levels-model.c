#include "policy/levels-model.h"

#include <string.h>

enum {
	SLOTS = 1 << LEVELS_FREQUENCY_BITS,
	MIXTURE = 7,
	/* Levels that the default model counts for, when others have been counted. */
	PRIOR = 512,
};

/* P(|x| < edge) for a Gaussian of this deviation times 2^(0.3 z), z normal: the mixture's weights are those
 * of z = -3/2, -1, ... 3/2. */
static double within(double edge, double deviation)
{
	static const double weight[MIXTURE] = {0.0656, 0.1224, 0.1778, 0.2684, 0.1778, 0.1224, 0.0656};
	double p = 0;

	for (int i = 0; i < MIXTURE; i++)
		p += weight[i] * erf(edge / (deviation * exp2(0.3 * (0.5 * i - 1.5)) * M_SQRT2));
	return p;
}

/* From here on the magnitude of a coefficient, in steps, is coded as this |k| or a larger one. Levels lie at
 * 2 |k| - set; that smaller ones are cheaper moves the edges up, most of all the one between zero and the
 * rest, and that the path may choose its sets moves it down again where levels are large. Read off
 * simulations. */
static double edge_of(int magnitude, unsigned set, double deviation)
{
	if (magnitude > 1)
		return 2 * magnitude - 1 - (int)set + 0.1;
	return set ? fmin(0.2 + 0.6 / deviation, 1.4) : 1 + fmin(0.3 + 0.5 * pow(deviation, -1.5), 0.8);
}

/* What levels took and lost, by table, when a Gaussian mixture as above was quantised with tables fitted to
 * it. Counting replaces them class by class. */
static const double simulated_bits[LEVELS_TABLES] = {0.011, 0.011, 0.013, 0.025, 0.147, 0.495, 0.878, 1.204,
	1.457, 1.702, 1.951, 2.198, 2.454, 2.720, 2.985, 3.248, 3.504, 3.763, 4.029, 3.340, 3.577, 3.826,
	4.078};
static const double simulated_distortion[LEVELS_TABLES] = {0.125, 0.177, 0.249, 0.349, 0.428, 0.419, 0.376,
	0.346, 0.335, 0.332, 0.330, 0.324, 0.317, 0.310, 0.302, 0.293, 0.289, 0.286, 0.284, 0.267, 0.265,
	0.266, 0.267};

/* The most frequent symbol pays for what rounding leaves over. */
static void frequencies(const double share[LEVELS_SYMBOLS], uint16_t out[LEVELS_SYMBOLS])
{
	double sum = 0;
	int most = 0, left = SLOTS;

	for (int k = 0; k < LEVELS_SYMBOLS; k++) {
		sum += share[k];
		if (share[k] > share[most])
			most = k;
	}
	for (int k = 0; k < LEVELS_SYMBOLS; k++) {
		const double f = share[k] / sum * (SLOTS - LEVELS_SYMBOLS);

		out[k] = (uint16_t)(1 + (int)f);
		left -= out[k];
	}
	out[most] = (uint16_t)(out[most] + left);
}

static double table_bits(const uint16_t frequency[LEVELS_SYMBOLS], const double share[LEVELS_SYMBOLS])
{
	double sum = 0, bits = 0;

	for (int k = 0; k < LEVELS_SYMBOLS; k++) {
		sum += share[k];
		bits += share[k] * (LEVELS_FREQUENCY_BITS - log2(frequency[k]));
	}
	bits += share[LEVELS_ESCAPE] * LEVELS_ESCAPE_BITS;
	return bits / sum;
}

void levels_model_default(struct levels_model *model)
{
	memset(model, 0, sizeof *model);
	for (int table = 0; table < LEVELS_TABLES; table++) {
		const int wide = table > LEVELS_WIDE_CLASS - LEVELS_TABLE_CLASS_MIN;
		const int class = table + LEVELS_TABLE_CLASS_MIN - 4 * wide;
		/* Wide tables are of v = k / 2, rounded down, of a class an octave above. */
		const double deviation = exp2(0.25 * class) * (wide ? 2 : 1);

		for (unsigned set = 0; set < LEVELS_SETS; set++) {
			double share[LEVELS_SYMBOLS] = {0};

			for (int v = -LEVELS_VALUE_MAX; v <= LEVELS_VALUE_MAX; v++)
				for (int k = wide ? 2 * v : v; k <= (wide ? 2 * v + 1 : v); k++) {
					const int m = k < 0 ? -k : k;
					const double p =
						within(edge_of(m + 1, set, deviation), deviation) -
						(m ? within(edge_of(m, set, deviation), deviation) : 0);

					share[v + LEVELS_VALUE_MAX] += m ? p / 2 : p;
				}
			share[LEVELS_ESCAPE] = 1e-5;
			frequencies(share, model->tables.frequency[table][set]);
			model->tables.bias[table][set][0] =
				set ? (float)fmin(0.25 + 0.25 / deviation, 0.6) : 0.2f;
			model->tables.bias[table][set][1] = 0.2f;
		}
		model->bits[table] = simulated_bits[table];
		model->distortion[table] = simulated_distortion[table];
	}
}

void levels_model_update(struct levels_model *model, const struct levels_counts *counts)
{
	for (int table = 0; table < LEVELS_TABLES; table++) {
		const double n = counts->n[table];
		double bits = 0;

		if (n <= 0)
			continue;
		for (unsigned set = 0; set < LEVELS_SETS; set++) {
			uint16_t *frequency = model->tables.frequency[table][set];
			const double *symbols = counts->symbols[table][set];
			double share[LEVELS_SYMBOLS], seen = 0, of_set = 0;

			/* Coefficients have no preferred sign, but for values that were rounded down. */
			for (int k = 0; k < LEVELS_SYMBOLS; k++) {
				const int wide = table > LEVELS_WIDE_CLASS - LEVELS_TABLE_CLASS_MIN;
				const int mirror =
					wide ? 2 * LEVELS_VALUE_MAX - 1 - k : 2 * LEVELS_VALUE_MAX - k;
				const int other = k == LEVELS_ESCAPE || mirror < 0 ? k : mirror;

				seen = (symbols[k] + symbols[other]) / 2;
				of_set += symbols[k];
				share[k] = seen + (double)frequency[k] / SLOTS * PRIOR;
			}
			frequencies(share, frequency);
			bits += table_bits(frequency, share) * of_set / n;
			for (int i = 0; i < 2; i++) {
				float *bias = &model->tables.bias[table][set][i];
				const double m = counts->n_biased[table][set][i];
				const double mean =
					(counts->excess[table][set][i] + PRIOR / 4 * (double)*bias) /
					(m + PRIOR / 4);

				*bias = (float)(mean < -0.9 ? -0.9 : mean > 0.9 ? 0.9 : mean);
			}
		}
		model->bits[table] = (bits * n + model->bits[table] * PRIOR) / (n + PRIOR);
		model->distortion[table] =
			(counts->lost[table] + model->distortion[table] * PRIOR) / (n + PRIOR);
	}
}

/* Where a component lies between two classes: the lower one, and its distance from it. */
static int between(double deviation, double step, double *above)
{
	const double at = 4 * log2(deviation / step);
	const double lower = floor(at);

	*above = at - lower;
	return (int)lower;
}

double levels_model_bits(const struct levels_model *model, double deviation, double step)
{
	double above, bits[2];
	int class;

	if (levels_class((float)deviation, (float)step) < LEVELS_CLASS_MIN)
		return 0;
	class = between(deviation, step, &above);
	for (int i = 0; i < 2; i++) {
		const struct levels_row row = levels_row(class + i);

		bits[i] = model->bits[row.table] + row.shift;
	}
	return bits[0] + above * (bits[1] - bits[0]);
}

double levels_model_distortion(const struct levels_model *model, double deviation, double step)
{
	double above, distortion[2];
	int class;

	if (levels_class((float)deviation, (float)step) < LEVELS_CLASS_MIN)
		return deviation * deviation;
	class = between(deviation, step, &above);
	for (int i = 0; i < 2; i++)
		distortion[i] = model->distortion[levels_row(class + i).table];
	return (distortion[0] + above * (distortion[1] - distortion[0])) * step * step;
}
