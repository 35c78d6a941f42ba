#include "tests/integration/low-rank.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/formula.h"

enum { RANK = 6, FEATURES = E_LAYERS * E_WIDTH };

static float uniform(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (float)(*state >> 40) / 8388608.0f - 1;
}

/* [RANK][FEATURES], of falling size. */
static void directions(uint32_t kind, uint32_t plane, float u[RANK][FEATURES])
{
	uint64_t state = 1000 * kind + plane + 1;

	for (int i = 0; i < 8; i++)
		uniform(&state);
	for (int k = 0; k < RANK; k++)
		for (int i = 0; i < FEATURES; i++)
			u[k][i] = uniform(&state) * powf(0.7f, (float)k);
}

/* A token's features in all layers, keys rotated. */
static void token_values(
	uint32_t sequence, uint32_t plane, uint32_t token, float (*u)[FEATURES], uint16_t values[FEATURES])
{
	uint64_t state = ((uint64_t)sequence << 32 | token) * 2654435761u + plane;
	float x[FEATURES] = {0};

	for (int i = 0; i < 4; i++)
		uniform(&state);
	for (int k = 0; k < RANK; k++) {
		const float c = uniform(&state) + uniform(&state);

		for (int i = 0; i < FEATURES; i++)
			x[i] += c * u[k][i];
	}
	for (int i = 0; i < FEATURES; i++)
		x[i] += 0.02f * uniform(&state);
	for (int head = 0; head < E_LAYERS * E_HEADS && !plane; head++)
		for (int i = 0; i < E_DIM / 2; i++) {
			float *a = x + head * E_DIM + i, *b = a + E_DIM / 2;
			const double angle = token * (double)powf(10000, -2.0f * (float)i / E_DIM);
			const float c = (float)cos(angle), s = (float)sin(angle), a0 = *a;

			*a = a0 * c - *b * s;
			*b = *b * c + a0 * s;
		}
	for (int i = 0; i < FEATURES; i++)
		values[i] = f16_from_f32(x[i]);
}

static uint32_t number_of(uint32_t kind, uint32_t sequence)
{
	return 100000 * kind + sequence;
}

void low_rank_keys(struct engine *e, uint32_t kind, uint32_t sequence, uint32_t n_tokens)
{
	engine_keys(e, number_of(kind, sequence), n_tokens);
}

void low_rank_prefill(struct engine *e, uint32_t kind, uint32_t sequence, uint32_t n_tokens)
{
	static float u[RANK][FEATURES];
	uint16_t values[FEATURES];

	low_rank_keys(e, kind, sequence, n_tokens);
	for (uint32_t p = 0; p < 2; p++) {
		directions(kind, p, u);
		for (uint32_t t = 0; t < n_tokens; t++) {
			token_values(number_of(kind, sequence), p, t, u, values);
			for (uint32_t l = 0; l < E_LAYERS; l++)
				for (uint32_t f = 0; f < E_WIDTH; f++)
					engine_token(e, l, p, t)[f] = values[l * E_WIDTH + f];
		}
	}
}

double low_rank_error(const struct engine *e, uint32_t kind, uint32_t sequence, uint32_t first, uint32_t end)
{
	static float u[RANK][FEATURES];
	uint16_t values[FEATURES];
	double worst = 0;

	for (uint32_t p = 0; p < 2; p++) {
		directions(kind, p, u);
		for (uint32_t t = first; t < end; t++) {
			double error = 0, norm = 0;

			token_values(number_of(kind, sequence), p, t, u, values);
			for (uint32_t i = 0; i < FEATURES; i++) {
				const double x = (double)f16_to_f32(values[i]);
				const double d =
					(double)f16_to_f32(engine_token(e, i / E_WIDTH, p, t)[i % E_WIDTH]) -
					x;

				error += d * d;
				norm += x * x;
			}
			worst = fmax(worst, sqrt(error / norm));
		}
	}
	return worst;
}
