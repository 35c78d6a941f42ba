/* The order of a chunk's plain tokens, by what encoding them has shown, and the classes that follow from it.
 */
#include <math.h>

#include "policy/sinks/rank.h"
#include "runtime/codec/encoder.h"

/* c_t from c_(t-1) + c_(t+1), one factor for the part, the one that leaves least. Tokens at the ends have one
 * neighbour, which counts twice. */
void encoder_foretell(
	struct encoder *e, const uint16_t *tokens, size_t n, const float *c, size_t c_stride, size_t r)
{
	double with = 0, of = 0;
	float factor;

	if (n < 2)
		return;
	for (size_t i = 0; i < r; i++)
		for (size_t t = 1; t + 1 < n; t++) {
			const float *x = c + i * c_stride + t;
			const float beside = x[-1] + x[1];

			with += (double)(x[0] * beside);
			of += (double)(beside * beside);
		}
	factor = of > 0 ? (float)(with / of) : 0;
	for (size_t i = 0; i < r; i++)
		for (size_t t = 0; t < n; t++) {
			const float *x = c + i * c_stride + t;
			const float beside = (t ? x[-1] : x[1]) + (t + 1 < n ? x[1] : x[-1]);
			const float left = x[0] - factor * beside;

			e->unforetold[tokens[t]] += left * left;
			e->all[tokens[t]] += x[0] * x[0];
		}
}

/* NAN: none of them, or a token that is not to be coded at all. */
static float place_of(const struct encoder *e, uint32_t t)
{
	double worst = 0;

	if (!e->todo[t] || e->classes[t] != TOKEN_PLAIN)
		return NAN;
	for (uint32_t plane = 0; plane < e->chunk->geometry->n_planes; plane++) {
		const double error = encoder_relative_error(e, plane, t);

		if (!isfinite(error))
			return NAN;
		worst = error > worst ? error : worst;
	}
	if (e->options->rank == CODEC_BY_NEIGHBOURS)
		return e->all[t] > 0 ? e->unforetold[t] / e->all[t] : 0;
	return (float)worst;
}

size_t encoder_rank(struct encoder *e, uint8_t *out)
{
	const uint32_t n = e->chunk->n_tokens;
	uint8_t ranked[FRAME_TOKENS_MAX];
	float places[FRAME_TOKENS_MAX] = {0};
	size_t n_changed = 0;

	for (uint32_t t = 0; t < n; t++) {
		places[t] = place_of(e, t);
		ranked[t] = isnan(places[t]) ? TOKEN_EXACT : TOKEN_PLAIN;
	}
	sinks_rank(places, n, e->options->salient_share, e->options->redundant_share, ranked);
	for (uint32_t t = 0; t < n; t++) {
		out[t] = ranked[t] == TOKEN_SALIENT || ranked[t] == TOKEN_REDUNDANT;
		if (!out[t])
			continue;
		e->classes[t] = ranked[t];
		encoder_forget(e, t);
		n_changed++;
	}
	return n_changed;
}
