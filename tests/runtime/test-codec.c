/* The codec on made-up caches: raw tokens come back bit for bit, coded ones within the error that the encoder
 * announced, and damaged frames write nothing that is not sound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formula.h"
#include "policy/policy.h"
#include "tests/runtime/made-up-cache.h"

static int set_up(void **state)
{
	*state = world_new(ROPE_HALF);
	return 0;
}

static int tear_down(void **state)
{
	world_free(*state);
	return 0;
}

struct copy {
	uint16_t values[LAYERS][2][TOKENS_MAX][WIDTH];
};

static void copy_out(const struct world *w, uint32_t offset, uint32_t n, struct copy *out)
{
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++)
			for (uint32_t t = 0; t < n; t++)
				memcpy(out->values[l][p][t], world_element(w, l, p, offset, t), WIDTH * 2);
}

/* Relative error of a token of one plane, in the transform's metric or in L2. */
static double relative_error(
	const struct copy *a, const struct copy *b, uint32_t plane, uint32_t t, int weighted)
{
	double error = 0, norm = 0;

	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t i = 0; i < WIDTH; i++) {
			const double w = weighted ? world_weight(l, i) : 1;
			const double x = w * (double)f16_to_f32(a->values[l][plane][t][i]);
			const double d = w * (double)f16_to_f32(b->values[l][plane][t][i]) - x;

			error += d * d;
			norm += x * x;
		}
	return sqrt(error / norm);
}

static const struct round_trip {
	const char *what;
	int with_transform;
	uint32_t rung, n_tokens, offset, sinks, window;
	double max_error;
} round_trips[] = {
	{"plain, all coded", 0, 0, 256, 0, 0, 0, 0},
	{"plain, an odd number of tokens at an odd offset", 0, 0, 37, 5, 4, 3, 0},
	{"fine rung", 1, 0, 256, 0, 0, 0, 0},
	{"coarse rung, sinks and window", 1, 2, 256, 8, 4, 128, 0},
	{"all raw", 1, 2, 100, 3, 4, 100, 0},
	{"one token, coded", 1, 0, 1, 17, 0, 0, 0},
	{"an error bound that promotes some", 1, 0, 256, 0, 0, 0, 0.4},
	{"a bound that nothing meets", 1, 2, 64, 0, 0, 0, 1e-9},
};

static void round_trip(void **state)
{
	struct world *w = *state;
	static struct copy before, after;

	for (size_t k = 0; k < sizeof round_trips / sizeof *round_trips; k++) {
		const struct round_trip *c = &round_trips[k];
		const struct codec_chunk chunk = world_chunk(w, c->offset, c->n_tokens, 1024);
		uint8_t classes[TOKENS_MAX] = {0};
		const struct codec_options options = {.transform = c->with_transform ? w->t : NULL,
			.rung = c->rung,
			.classes = classes,
			.max_error = c->max_error};
		struct frame_info info;
		uint32_t n_exact = 0;
		uint8_t *frame;
		size_t len;

		for (uint32_t t = 0; t < c->n_tokens; t++)
			classes[t] = t < c->sinks                   ? TOKEN_SINK
				     : t >= c->n_tokens - c->window ? TOKEN_WINDOW
								    : TOKEN_PLAIN;
		world_fill(w);
		copy_out(w, c->offset, c->n_tokens, &before);
		assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, &info), 0);
		assert_int_equal(info.raw_bytes, c->n_tokens * P * 2 * 2);
		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t p = 0; p < 2; p++)
				for (uint32_t t = 0; t < c->n_tokens; t++)
					memset(world_element(w, l, p, c->offset, t), 0xAA, WIDTH * 2);
		assert_int_equal(codec_decode(w->codec, frame, len, options.transform, &chunk, 0, LAYERS), 0);
		copy_out(w, c->offset, c->n_tokens, &after);

		for (uint32_t t = 0; t < c->n_tokens; t++)
			for (uint32_t p = 0; p < 2; p++) {
				const double error = relative_error(&before, &after, p, t, c->with_transform);
				/* What the frame promises holds before the result is rounded to f16: half an
				 * ulp is at most 2^-11 of an element, and a basis in f16 is orthonormal to
				 * about as much. */
				const double bound = (double)info.error[p].max * (1 + 2e-3) + 1e-3;

				n_exact += error == 0;
				if (token_class_is_raw(classes[t]))
					assert_true(error == 0);
				if (error > bound || (c->max_error > 0 && error > c->max_error + 1e-3))
					fail_msg("%s: token %u plane %u: error %g over %g", c->what, t, p,
						error, bound);
			}
		assert_true(info.n_raw * 2 <= n_exact);
		assert_true(c->max_error == 0 || info.error[0].max <= (float)c->max_error);
		if (c->max_error == 0.4)
			assert_true(info.n_raw > 0 && info.n_raw < c->n_tokens);
		if (c->max_error == 1e-9)
			assert_int_equal(info.n_raw, c->n_tokens);
		free(frame);
	}
}

/* Values that are not finite are kept bit for bit and spoil nobody else. */
static void not_finite(void **state)
{
	struct world *w = *state;
	const struct codec_chunk chunk = world_chunk(w, 0, 64, 0);
	const uint8_t classes[64] = {0};
	const struct codec_options options = {.transform = w->t, .classes = classes};
	static struct copy before, after;
	struct frame_info info;
	uint8_t *frame;
	size_t len;

	world_fill(w);
	world_element(w, 1, 0, 0, 7)[3] = 0x7E01;  /* a NaN with a payload */
	world_element(w, 2, 1, 0, 20)[9] = 0xFC00; /* minus infinity */
	copy_out(w, 0, 64, &before);
	assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, &info), 0);
	assert_int_equal(info.n_raw, 2);
	assert_true(isfinite(info.error[0].max) && isfinite(info.error[1].max));
	world_fill(w);
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), 0);
	copy_out(w, 0, 64, &after);
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t p = 0; p < 2; p++) {
			assert_memory_equal(after.values[l][p][7], before.values[l][p][7], WIDTH * 2);
			assert_memory_equal(after.values[l][p][20], before.values[l][p][20], WIDTH * 2);
		}
	assert_true(relative_error(&before, &after, 0, 8, 1) < 0.7);
	free(frame);
}

/* A layer at a time gives what all at once gives, and touches no other layer. */
static void layer_by_layer(void **state)
{
	struct world *w = *state;
	const struct codec_chunk chunk = world_chunk(w, 0, 100, 0);
	uint8_t classes[100] = {TOKEN_SINK, TOKEN_SINK};
	static struct copy whole, parts, start;

	for (int with = 0; with < 2; with++) {
		const struct codec_options options = {.transform = with ? w->t : NULL, .classes = classes};
		uint8_t *frame;
		size_t len;

		world_fill(w);
		assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, NULL), 0);
		assert_int_equal(codec_decode(w->codec, frame, len, options.transform, &chunk, 0, LAYERS), 0);
		copy_out(w, 0, 100, &whole);
		world_fill(w);
		copy_out(w, 0, 100, &start);
		for (uint32_t l = 0; l < LAYERS; l++) {
			assert_int_equal(
				codec_decode(w->codec, frame, len, options.transform, &chunk, l, 1), 0);
			copy_out(w, 0, 100, &parts);
			assert_memory_equal(parts.values, whole.values, (l + 1) * sizeof whole.values[0]);
			for (uint32_t later = l + 1; later < LAYERS; later++)
				assert_memory_equal(
					parts.values[later], start.values[later], sizeof start.values[0]);
		}
		free(frame);
	}
}

/* A frame for something else, cut short, or with a flipped bit. */
static void bad_frames(void **state)
{
	struct world *w = *state;
	struct codec_chunk chunk = world_chunk(w, 0, 32, 0);
	uint8_t classes[32] = {TOKEN_SINK};
	const struct codec_options options = {.transform = w->t, .classes = classes};
	struct geometry other = w->g;
	uint8_t *frame, *copy;
	size_t len;

	world_fill(w);
	assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, NULL), 0);
	assert_int_equal(codec_decode(w->codec, frame, len, NULL, &chunk, 0, LAYERS), -ESTALE);
	chunk.position = 32;
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), -ESTALE);
	chunk.position = 0;
	chunk.n_tokens = 31;
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), -ESTALE);
	chunk.n_tokens = 32;
	strcpy(other.name, "other");
	chunk.geometry = &other;
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), -ESTALE);
	chunk.geometry = &w->g;

	for (size_t cut = 0; cut < len; cut += 1 + cut / 16) {
		copy = malloc(cut + 1); /* exactly as long as it is: the sanitizer sees a read past it */
		memcpy(copy, frame, cut);
		assert_int_equal(codec_decode(w->codec, copy, cut, w->t, &chunk, 0, LAYERS), -EBADMSG);
		free(copy);
	}
	for (size_t bit = 0; bit < 8 * len; bit += 13) {
		const size_t byte = bit / 8;

		frame[byte] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS),
			byte == 4 || byte == 5 ? -ENOTSUP : -EBADMSG);
		frame[byte] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &chunk, 0, LAYERS), 0);
	free(frame);
}

static void scratch_is_bounded(void **state)
{
	struct world *w = *state;
	struct codec *small = codec_new(kernels_cpu(), 4096);
	const struct codec_chunk chunk = world_chunk(w, 0, 256, 0);
	uint8_t classes[256] = {0};
	const struct codec_options options = {.transform = w->t, .classes = classes};
	uint8_t *frame;
	size_t len;

	assert_int_equal(codec_encode(small, &chunk, &options, &frame, &len, NULL), 0);
	assert_true(codec_scratch_bytes(small) <= 4096);
	free(frame);
	codec_free(small);
	assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, NULL), 0);
	assert_true(codec_scratch_bytes(w->codec) > 0);
	codec_trim(w->codec);
	assert_int_equal(codec_scratch_bytes(w->codec), 0);
	free(frame);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(not_finite),
		cmocka_unit_test(layer_by_layer),
		cmocka_unit_test(bad_frames),
		cmocka_unit_test(scratch_is_bounded),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
