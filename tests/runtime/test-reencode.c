/* Frames made anew: protected tokens bit for bit, the others within the error that the new frame states. */
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
#include "runtime/chunk-copy.h"
#include "runtime/reencode.h"
#include "tests/runtime/made-up-cache.h"

enum { TOKENS = 200, SINKS = 4, WINDOW = 60, OFFSET = 5, POSITION = 512 };

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

static void classify(uint8_t classes[TOKENS])
{
	for (uint32_t t = 0; t < TOKENS; t++)
		classes[t] = t < SINKS ? TOKEN_SINK : t >= TOKENS - WINDOW ? TOKEN_WINDOW : TOKEN_PLAIN;
}

static void plain_frame(struct world *w, uint8_t **frame, size_t *len)
{
	const struct codec_chunk chunk = world_chunk(w, OFFSET, TOKENS, POSITION);
	uint8_t classes[TOKENS];
	struct codec_options options = {.classes = classes, .policy_version = 3};

	classify(classes);
	memset(options.key, 7, 32);
	memset(options.name_space, 9, 16);
	memset(options.parent, 11, 32);
	world_fill(w);
	assert_int_equal(codec_encode(w->codec, &chunk, &options, frame, len, NULL), 0);
}

/* Worst relative error over tokens of a plane, of those that are coded or not. */
static double worst(
	struct world *w, const struct chunk_copy *got, uint32_t plane, uint32_t first, uint32_t end)
{
	double worst_error = 0;

	for (uint32_t t = first; t < end; t++) {
		double error = 0, norm = 0;

		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t i = 0; i < WIDTH; i++) {
				const uint16_t *mine = (const void *)got->pages[l * 2 + plane].base;
				const double weight = world_weight(l, i);
				const double x =
					weight * (double)f16_to_f32(world_element(w, l, plane, OFFSET, t)[i]);
				const double d = weight * (double)f16_to_f32(mine[t * WIDTH + i]) - x;

				error += d * d;
				norm += x * x;
			}
		worst_error = fmax(worst_error, sqrt(error / norm));
	}
	return worst_error;
}

static void made_anew(void **state)
{
	static const double bounds[] = {0, 0.6};
	struct world *w = *state;

	for (size_t k = 0; k < 2; k++) {
		const struct reencode_options options = {
			.to = w->t, .rung = 1, .max_error = bounds[k], .policy_version = 4};
		struct chunk_copy *copy = chunk_copy_new(&w->g, TOKENS);
		uint8_t *frame, *anew, classes[TOKENS], wanted[TOKENS];
		struct frame_info info, old;
		struct codec_chunk chunk;
		size_t len, anew_len;

		assert_non_null(copy);
		plain_frame(w, &frame, &len);
		assert_int_equal(frame_parse(frame, len, &old, NULL, 0), 0);
		assert_int_equal(reencode(w->codec, &w->g, frame, len, &options, &anew, &anew_len, &info), 0);
		assert_true(anew_len < len);
		assert_int_equal(frame_parse(anew, anew_len, &info, NULL, 0), 0);
		assert_memory_equal(info.transform, w->t->id, 16);
		assert_memory_equal(info.key, old.key, 32);
		assert_memory_equal(info.parent, old.parent, 32);
		assert_memory_equal(info.name_space, old.name_space, 16);
		assert_int_equal(info.position, POSITION);
		assert_int_equal(info.policy_version, 4);
		classify(wanted);
		assert_int_equal(frame_classes(anew, anew_len, classes), 0);
		for (uint32_t t = 0; t < TOKENS; t++)
			if (token_class_is_raw(wanted[t]) || !bounds[k])
				assert_int_equal(classes[t], wanted[t]);
		if (bounds[k])
			assert_true(info.n_raw > old.n_raw && info.n_raw < TOKENS);

		chunk_copy_place(copy, TOKENS, POSITION);
		chunk = chunk_copy_view(copy);
		assert_int_equal(codec_decode(w->codec, anew, anew_len, w->t, &chunk, 0, LAYERS), 0);
		for (uint32_t plane = 0; plane < 2; plane++) {
			const double error = worst(w, copy, plane, SINKS, TOKENS - WINDOW);

			assert_true(worst(w, copy, plane, 0, SINKS) == 0);
			assert_true(worst(w, copy, plane, TOKENS - WINDOW, TOKENS) == 0);
			assert_true(error > 0.2);
			assert_true(error <= (double)info.error[plane].max + 1e-3);
			assert_true(info.error[plane].mean <= info.error[plane].max);
			assert_true(info.error[plane].max > old.error[plane].max);
			if (bounds[k] > 0)
				assert_true((double)info.error[plane].max <= bounds[k] + 1e-6);
		}
		free(frame);
		free(anew);
		chunk_copy_free(copy);
	}
}

static void refused(void **state)
{
	struct world *w = *state;
	struct reencode_options options = {.to = w->t, .rung = 1, .max_error = 1e-4};
	uint8_t *frame, *anew;
	size_t len, anew_len;

	plain_frame(w, &frame, &len);
	/* The plain codec's own error is over the bound already. */
	assert_int_equal(reencode(w->codec, &w->g, frame, len, &options, &anew, &anew_len, NULL), -ERANGE);
	/* A bound that nearly everything passes: raw takes more than 8 bits did. */
	options.max_error = 0.1;
	assert_int_equal(reencode(w->codec, &w->g, frame, len, &options, &anew, &anew_len, NULL), -ERANGE);
	options.max_error = 0;
	options.rung = RUNGS;
	assert_int_equal(reencode(w->codec, &w->g, frame, len, &options, &anew, &anew_len, NULL), -EINVAL);
	options.rung = 1;
	frame[len - 1] ^= 1;
	assert_int_equal(reencode(w->codec, &w->g, frame, len, &options, &anew, &anew_len, NULL), -EBADMSG);
	frame[len - 1] ^= 1;
	assert_int_equal(
		reencode(w->codec, &w->g, frame, len - 1, &options, &anew, &anew_len, NULL), -EBADMSG);
	options.from = w->t;
	assert_int_equal(reencode(w->codec, &w->g, frame, len, &options, &anew, &anew_len, NULL), -ESTALE);
	free(frame);
}

/* A copy is the same to the codec as what it is a copy of. */
static void a_copy_is_as_good(void **state)
{
	struct world *w = *state;
	const struct codec_chunk chunk = world_chunk(w, OFFSET, TOKENS, POSITION);
	struct chunk_copy *copy = chunk_copy_new(&w->g, TOKENS + 50);
	uint8_t classes[TOKENS], *frames[2];
	const struct codec_options options = {.transform = w->t, .classes = classes};
	struct codec_chunk view;
	size_t lens[2];

	assert_non_null(copy);
	classify(classes);
	chunk_copy_take(copy, kernels_cpu(), &chunk);
	view = chunk_copy_view(copy);
	assert_int_equal(codec_encode(w->codec, &chunk, &options, &frames[0], &lens[0], NULL), 0);
	assert_int_equal(codec_encode(w->codec, &view, &options, &frames[1], &lens[1], NULL), 0);
	assert_int_equal(lens[0], lens[1]);
	assert_memory_equal(frames[0], frames[1], lens[0]);
	free(frames[0]);
	free(frames[1]);
	chunk_copy_free(copy);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(made_anew, set_up, tear_down),
		cmocka_unit_test_setup_teardown(refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_copy_is_as_good, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
