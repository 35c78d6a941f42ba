#include "tests/integration/low-rank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

#include "kernels/formula.h"
#include "policy/calibrate.h"

enum { RANK = 6, FEATURES = LOW_RANK_FEATURES };

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

/* A token's features in all layers, before keys are rotated. */
static void token_features(
	uint32_t sequence, uint32_t plane, uint32_t token, float (*u)[FEATURES], float x[FEATURES])
{
	uint64_t state = ((uint64_t)sequence << 32 | token) * 2654435761u + plane;

	for (int i = 0; i < FEATURES; i++)
		x[i] = 0;
	for (int i = 0; i < 4; i++)
		uniform(&state);
	for (int k = 0; k < RANK; k++) {
		const float c = uniform(&state) + uniform(&state);

		for (int i = 0; i < FEATURES; i++)
			x[i] += c * u[k][i];
	}
	for (int i = 0; i < FEATURES; i++)
		x[i] += 0.02f * uniform(&state);
}

/* As they lie in the cache. */
static void token_values(
	uint32_t sequence, uint32_t plane, uint32_t token, float (*u)[FEATURES], uint16_t values[FEATURES])
{
	float x[FEATURES];

	token_features(sequence, plane, token, u, x);
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

static struct geometry geometry_of_engine(void)
{
	struct geometry g = {.name = "test-engine", .n_layers = E_LAYERS, .n_planes = 2, .tp_size = 1};

	for (int p = 0; p < 2; p++)
		g.planes[p] =
			(struct plane){.n_heads = E_HEADS, .dim = E_DIM, .dtype = DTYPE_F16, .rope_scale = 1};
	g.planes[0].rope_kind = ROPE_HALF;
	g.planes[0].rope_dim = E_DIM;
	for (int i = 0; i < E_DIM / 2; i++)
		g.planes[0].inv_freq[i] = powf(10000, -2.0f * (float)i / E_DIM);
	return g;
}

void low_rank_transform(uint32_t kind, const char *path)
{
	static float u[RANK][FEATURES], x[E_CHUNK * FEATURES];
	const struct geometry g = geometry_of_engine();
	struct calibrate_options options;
	struct calibrate *c;
	char why[200] = "";
	void *data;
	size_t len;

	calibrate_options_init(&options);
	MUST_EQUAL(calibrate_new(&g, &options, &c, why, sizeof why), 0);
	MUST_EQUAL(calibrate_n_parts(c), 2);
	for (uint32_t plane = 0; plane < 2; plane++) {
		directions(kind, plane, u);
		for (uint32_t chunk = 0; chunk < 16; chunk++) {
			for (uint32_t t = 0; t < E_CHUNK; t++)
				token_features(number_of(kind, 99999), plane, chunk * E_CHUNK + t, u,
					x + (size_t)t * FEATURES);
			MUST_EQUAL(calibrate_add(c, plane, x, FEATURES, E_CHUNK), 0);
		}
		MUST_EQUAL(calibrate_learn(c, plane), 0);
	}
	MUST_EQUAL(calibrate_finish(c, "low rank", &data, &len, NULL), 0);
	MUST_EQUAL(file_write(path, data, len), 0);
	free(data);
	calibrate_free(c);
}
