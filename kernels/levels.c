#include "kernels/levels.h"

#include <string.h>

/* Least squares over the magnitudes, weighted by how often they occur: what is rare may be priced badly. */
static void fit_cost(const uint16_t frequency[LEVELS_SYMBOLS], struct levels_cost *cost)
{
	double s[5] = {0}, y[3] = {0}, a[3][4], x[3];

	for (int v = 1; v <= LEVELS_VALUE_MAX; v++) {
		/* Both signs are priced alike. */
		const double f = 0.5 * (frequency[LEVELS_VALUE_MAX + v] + frequency[LEVELS_VALUE_MAX - v]);
		double power = f;
		const double bits = LEVELS_FREQUENCY_BITS - log2(f);

		for (int k = 0; k < 5; k++, power *= v) {
			s[k] += power;
			if (k < 3)
				y[k] += power * bits;
		}
	}
	for (int i = 0; i < 3; i++) {
		for (int j = 0; j < 3; j++)
			a[i][j] = s[i + j] + (i == j ? 1e-9 : 0);
		a[i][3] = y[i];
	}
	for (int i = 0; i < 3; i++) /* the matrix is positive definite: no pivoting */
		for (int j = i + 1; j < 3; j++) {
			const double q = a[j][i] / a[i][i];

			for (int k = i; k < 4; k++)
				a[j][k] -= q * a[i][k];
		}
	for (int i = 2; i >= 0; i--) {
		x[i] = a[i][3];
		for (int j = i + 1; j < 3; j++)
			x[i] -= a[i][j] * x[j];
		x[i] /= a[i][i];
	}
	cost->zero = LEVELS_LAMBDA * (float)(LEVELS_FREQUENCY_BITS - log2(frequency[LEVELS_VALUE_MAX]));
	cost->base = LEVELS_LAMBDA * (float)x[0];
	cost->slope = LEVELS_LAMBDA * (float)x[1];
	/* Far out a falling parabola would make large levels cheap. */
	cost->bend = LEVELS_LAMBDA * (float)(x[2] > 0 ? x[2] : 0);
}

void levels_coder_init(struct levels_coder *coder, const struct levels_tables *tables)
{
	memcpy(coder->bias, tables->bias, sizeof coder->bias);
	for (int table = 0; table < LEVELS_TABLES; table++)
		for (int set = 0; set < LEVELS_SETS; set++) {
			const uint16_t *frequency = tables->frequency[table][set];
			uint32_t sum = 0;

			for (uint32_t k = 0; k < LEVELS_SYMBOLS; k++) {
				coder->symbol[table][set][k] = frequency[k] | sum << 16;
				coder->bits[table][set][k] =
					(float)LEVELS_FREQUENCY_BITS - log2f((float)frequency[k]);
				memset(coder->slot[table][set] + sum, (int)k, frequency[k]);
				sum += frequency[k];
			}
			fit_cost(frequency, &coder->cost[table][set]);
		}
}

void levels_count(const float *c, size_t c_stride, const int16_t *codes, size_t codes_stride, size_t r,
	size_t n_tokens, const struct levels_coder *coder, const struct levels_row *rows, float step,
	struct levels_counts *counts)
{
	for (size_t i = 0; i < r; i++) {
		const unsigned table = rows[i].table;

		for (size_t t = 0; t < n_tokens; t++) {
			const int16_t code = codes[i * codes_stride + t];
			const int level = levels_level(code), magnitude = level < 0 ? -level : level;
			const unsigned set = levels_set(code);
			const float a = fabsf(c[i * c_stride + t]) / step;
			const float e = a - levels_magnitude(level, set, coder->bias[table][set]);

			counts->symbols[table][set][levels_symbol(level, rows[i].shift)]++;
			counts->n[table]++;
			counts->lost[table] += (double)(e * e);
			if (!magnitude)
				continue;
			counts->n_biased[table][set][magnitude > 1]++;
			counts->excess[table][set][magnitude > 1] += (double)a - (2 * magnitude - (int)set);
		}
	}
}
