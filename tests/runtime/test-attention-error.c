/* What restored keys and values do to attention: against the formula written out in double, and in cases
 * whose answer is known. */
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
#include "runtime/attention-error.h"
#include "tests/runtime/made-up-cache.h"

enum { TOKENS = 200, OFFSET = 5, POSITION = 512, QUERIES = 3, QUERY_HEADS = 6, FIRST = 1, ASKED = 2 };

static uint16_t values[ASKED][QUERIES][QUERY_HEADS][DIM];

static const struct attention_queries queries = {.n_queries = QUERIES,
	.n_heads = QUERY_HEADS,
	.first_layer = FIRST,
	.n_layers = ASKED,
	.scale = 0.25f,
	.values = (const uint8_t *)values};

static int set_up(void **state)
{
	uint32_t x = 12345;
	uint16_t *value = &values[0][0][0][0];

	*state = world_new(ROPE_HALF);
	for (size_t i = 0; i < sizeof values / sizeof *value; i++) {
		x = x * 1664525u + 1013904223u;
		value[i] = f16_from_f32((float)(x >> 16) / 16384 - 2);
	}
	return 0;
}

static int tear_down(void **state)
{
	world_free(*state);
	return 0;
}

/* The chunk as the engine has it, and as it comes back from a frame of the coarsest rung. */
static void both(struct world *w, struct chunk_copy **original, struct chunk_copy **restored)
{
	const struct codec_chunk chunk = world_chunk(w, OFFSET, TOKENS, POSITION);
	uint8_t classes[TOKENS] = {TOKEN_SINK}, *frame;
	const struct codec_options options = {.transform = w->t, .rung = RUNGS - 1, .classes = classes};
	struct codec_chunk view;
	size_t len;

	*original = chunk_copy_new(&w->g, TOKENS);
	*restored = chunk_copy_new(&w->g, TOKENS);
	assert_non_null(*original);
	assert_non_null(*restored);
	chunk_copy_take(*original, kernels_cpu(), &chunk);
	chunk_copy_place(*restored, TOKENS, POSITION);
	view = chunk_copy_view(*restored);
	assert_int_equal(codec_encode(w->codec, &chunk, &options, &frame, &len, NULL), 0);
	assert_int_equal(codec_decode(w->codec, frame, len, w->t, &view, 0, LAYERS), 0);
	free(frame);
}

static double at(const struct chunk_copy *c, uint32_t layer, uint32_t plane, uint32_t token, uint32_t feature)
{
	const uint16_t *elements = (const void *)c->pages[layer * 2 + plane].base;

	return (double)f16_to_f32(elements[token * WIDTH + feature]);
}

/* o(q) of one query, from the definition. */
static void output(const struct chunk_copy *c, uint32_t layer, uint32_t query, uint32_t head, double out[DIM])
{
	const uint32_t group = head / (QUERY_HEADS / HEADS) * DIM;
	double weight[TOKENS], sum = 0;

	for (uint32_t t = 0; t < TOKENS; t++) {
		double score = 0;

		for (uint32_t d = 0; d < DIM; d++)
			score += (double)f16_to_f32(values[layer - FIRST][query][head][d]) *
				 at(c, layer, 0, t, group + d);
		weight[t] = exp(score * (double)queries.scale);
		sum += weight[t];
	}
	for (uint32_t d = 0; d < DIM; d++) {
		out[d] = 0;
		for (uint32_t t = 0; t < TOKENS; t++)
			out[d] += weight[t] / sum * at(c, layer, 1, t, group + d);
	}
}

static double expected(
	const struct chunk_copy *original, const struct chunk_copy *restored, uint32_t layer, uint32_t head)
{
	double error = 0, power = 0, o[DIM], changed[DIM];

	for (uint32_t q = 0; q < QUERIES; q++) {
		output(original, layer, q, head, o);
		output(restored, layer, q, head, changed);
		for (uint32_t d = 0; d < DIM; d++) {
			error += (changed[d] - o[d]) * (changed[d] - o[d]);
			power += o[d] * o[d];
		}
	}
	return sqrt(error / power);
}

static void as_the_formula_says(void **state)
{
	struct chunk_copy *original, *restored;
	struct attention_error e;
	double mean = 0, worst = 0;
	uint32_t worst_at = 0;

	both(*state, &original, &restored);
	for (uint32_t i = 0; i < ASKED * QUERY_HEADS; i++) {
		const double x = expected(original, restored, FIRST + i / QUERY_HEADS, i % QUERY_HEADS);

		mean += x / (ASKED * QUERY_HEADS);
		worst_at = x > worst ? i : worst_at;
		worst = fmax(worst, x);
	}
	assert_true(mean > 0.01);
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, restored, &queries, NULL, NULL, &e), 0);
	assert_int_equal(e.n_compared, ASKED * QUERY_HEADS);
	assert_true(fabs(e.mean / mean - 1) < 1e-4);
	assert_true(fabs(e.worst / worst - 1) < 1e-4);
	assert_int_equal(e.worst_layer, FIRST + worst_at / QUERY_HEADS);
	assert_int_equal(e.worst_head, worst_at % QUERY_HEADS);
	chunk_copy_free(original);
	chunk_copy_free(restored);
}

/* Multiplies what lies in one layer of a plane. */
static void scale(struct chunk_copy *c, uint32_t layer, uint32_t plane, float factor)
{
	uint16_t *elements = (void *)c->pages[layer * 2 + plane].base;

	for (uint32_t i = 0; i < TOKENS * WIDTH; i++)
		elements[i] = f16_from_f32(factor * f16_to_f32(elements[i]));
}

static void known_answers(void **state)
{
	struct chunk_copy *original, *restored;
	struct attention_error e;

	both(*state, &original, &restored);
	/* Nothing is lost, nothing is reported. */
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, original, &queries, NULL, NULL, &e), 0);
	assert_true(e.mean == 0 && e.worst == 0);
	/* Values of one of the two layers doubled: its outputs are off by their whole length. */
	memcpy(restored->memory, original->memory, original->len_bytes);
	scale(restored, FIRST, 1, 2);
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, restored, &queries, NULL, NULL, &e), 0);
	assert_true(fabs(e.mean - 0.5) < 1e-6 && fabs(e.worst - 1) < 1e-6);
	assert_int_equal(e.worst_layer, FIRST);
	/* A layer that the queries are not of does not matter. */
	memcpy(restored->memory, original->memory, original->len_bytes);
	scale(restored, FIRST - 1, 1, 2);
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, restored, &queries, NULL, NULL, &e), 0);
	assert_true(e.worst == 0);
	/* Keys alone changed: the outputs move. */
	scale(restored, FIRST, 0, 0.5f);
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, restored, &queries, NULL, NULL, &e), 0);
	assert_true(e.mean > 0);
	chunk_copy_free(original);
	chunk_copy_free(restored);
}

static bool stop(void *arg)
{
	return --*(int *)arg > 0;
}

static void what_cannot_be_compared(void **state)
{
	struct chunk_copy *original, *restored;
	struct attention_queries q = queries;
	struct attention_error e = {.n_compared = 77};
	int calls = 1;

	both(*state, &original, &restored);
	q.n_heads = HEADS + 1;
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, restored, &q, NULL, NULL, &e), -ENOTSUP);
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, restored, &queries, stop, &calls, &e),
		-ECANCELED);
	/* Values that are no numbers in one head: the others are compared, and nothing breaks. */
	((uint16_t *)(void *)original->pages[FIRST * 2 + 1].base)[3] = 0x7e00;
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, restored, &queries, NULL, NULL, &e), 0);
	assert_int_equal(e.n_compared, ASKED * QUERY_HEADS - QUERY_HEADS / HEADS);
	memset(original->memory, 0, original->len_bytes);
	assert_int_equal(attention_error_measure(kernels_cpu(), original, restored, &queries, NULL, NULL, &e),
		-ENODATA);
	chunk_copy_free(original);
	chunk_copy_free(restored);
}

/* One plane, of which the last quarter of a head is rotated: the rest is the value. */
static void latents(void **state)
{
	struct world *w = *state;
	struct geometry g = w->g;
	struct chunk_copy *original, *restored;
	struct attention_error e;
	uint16_t *elements;

	g.n_planes = 1;
	g.planes[0].rope_offset = DIM - 4;
	g.planes[0].rope_dim = 4;
	original = chunk_copy_new(&g, TOKENS);
	restored = chunk_copy_new(&g, TOKENS);
	assert_true(original && restored);
	chunk_copy_place(original, TOKENS, POSITION);
	chunk_copy_place(restored, TOKENS, POSITION);
	memcpy(original->memory, w->memory, original->len_bytes);
	memcpy(restored->memory, w->memory, original->len_bytes);
	/* The rotated part of every token is the same, another in the copy: a shift of all scores by as much,
	 * which changes nothing. Were it a value, it would show. */
	for (uint32_t i = 0; i < LAYERS * TOKENS * HEADS * 4; i++) {
		const uint32_t feature = i / 4 * DIM + DIM - 4 + i % 4;

		elements = (void *)original->memory;
		elements[feature] = f16_from_f32(0.25f);
		elements = (void *)restored->memory;
		elements[feature] = f16_from_f32(0.5f);
	}
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, restored, &queries, NULL, NULL, &e), 0);
	assert_true(e.worst < 1e-5);
	/* And the rest is value as well as key. */
	elements[FIRST * TOKENS * WIDTH] = f16_from_f32(9);
	assert_int_equal(
		attention_error_measure(kernels_cpu(), original, restored, &queries, NULL, NULL, &e), 0);
	assert_true(e.worst > 1e-5);
	chunk_copy_free(original);
	chunk_copy_free(restored);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(as_the_formula_says),
		cmocka_unit_test(known_answers), cmocka_unit_test(what_cannot_be_compared),
		cmocka_unit_test(latents)};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
