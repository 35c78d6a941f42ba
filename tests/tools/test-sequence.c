/*
 * The sequences of bench sinks: what is said of a construction is what is found in the cache, and the truth
 * is what the attention of the model adds up to.
 *
 *     test-sequence MODEL
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/half.h"
#include "tools/bench-sinks/sequence.h"

static const char *model_folder;
static struct sequence *s;
static struct tokens text;

static int open_all(void **state)
{
	char path[600];

	(void)state;
	snprintf(path, sizeof path, "%s/heldout/calib.txt", model_folder);
	return text_read(path, &text) || sequence_new(model_folder, &s);
}

static int close_all(void **state)
{
	(void)state;
	tokens_fini(&text);
	s = sequence_free(s);
	return 0;
}

/* Of one head: rotated back by hand. */
static void read_key(uint32_t layer, uint32_t head, uint32_t position, float *out)
{
	const uint32_t dim = s->model->head_dim, half = dim / 2;
	const uint16_t *key = kv_at(s->cache, &s->table, layer, 0, position, head);

	for (uint32_t d = 0; d < half; d++) {
		const double angle = (double)position * (double)s->model->inv_freq[d];
		const float a = half_to_float(key[d]), b = half_to_float(key[d + half]);

		out[d] = a * (float)cos(angle) + b * (float)sin(angle);
		out[d + half] = b * (float)cos(angle) - a * (float)sin(angle);
	}
}

static float norm_of(const float *x, uint32_t n)
{
	float sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += x[i] * x[i];
	return sqrtf(sum);
}

static float distance_of(const float *x, const float *y, uint32_t n)
{
	float sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += (x[i] - y[i]) * (x[i] - y[i]);
	return sqrtf(sum);
}

static void copies_have_the_first_ones_key_and_value(void **state)
{
	static const struct construction copied = {.name = "copied", .n_copies = 3};
	const uint32_t dim = s->model->head_dim;
	double attention[SEQUENCE_PLANTED_MAX];

	(void)state;
	assert_int_equal(sequence_make(s, &text, 1, 4, &copied), 0);
	assert_int_equal(s->n_planted, 3);
	for (uint32_t layer = 0; layer < s->model->n_layers; layer++)
		for (uint32_t head = 0; head < s->model->n_kv_heads; head++)
			for (uint32_t k = 0; k < s->n_planted; k++) {
				float first[256], copy[256];

				read_key(layer, head, 0, first);
				read_key(layer, head, s->planted[k], copy);
				assert_true(distance_of(first, copy, dim) < 2e-3f * norm_of(first, dim));
				assert_memory_equal(kv_at(s->cache, &s->table, layer, 1, 0, head),
					kv_at(s->cache, &s->table, layer, 1, s->planted[k], head),
					dim * sizeof(uint16_t));
			}
	/* The model rests on them. */
	assert_int_equal(sequence_planted_attention(s, attention), 0);
	for (uint32_t k = 0; k < s->n_planted; k++)
		assert_true(attention[k] > FORWARD_RESTING);
}

static void outliers_are_of_the_size_that_is_said(void **state)
{
	static const struct construction plain = {.n_copies = 1, .first_is_plain = true},
					 aside = {.n_copies = 1, .first_is_plain = true, .aside = 16},
					 louder = {.n_copies = 1, .first_is_plain = true, .louder = 2};
	const uint32_t dim = s->model->head_dim, layer = 2, head = 0;
	float first[256], key[256], other[256];
	double attention[3];

	(void)state;
	assert_int_equal(sequence_make(s, &text, 2, 4, &plain), 0);
	read_key(layer, head, s->planted[0], key);
	read_key(layer, head, 0, first);
	/* The first token is like no sink any more. */
	assert_true(distance_of(first, key, dim) > 0.5f * norm_of(key, dim));
	assert_int_equal(sequence_planted_attention(s, &attention[0]), 0);

	assert_int_equal(sequence_make(s, &text, 2, 4, &aside), 0);
	read_key(layer, head, s->planted[0], other);
	assert_true(fabsf(distance_of(key, other, dim) - 16 * norm_of(key, dim)) < 0.2f * norm_of(key, dim));
	assert_int_equal(sequence_planted_attention(s, &attention[1]), 0);
	/* Queries hardly read the component. */
	assert_true(fabs(attention[1] - attention[0]) < 0.25 * attention[0]);

	assert_int_equal(sequence_make(s, &text, 2, 4, &louder), 0);
	assert_int_equal(sequence_planted_attention(s, &attention[2]), 0);
	assert_true(attention[2] > 1.5 * attention[0]);
}

static void separators_stand_in_the_text(void **state)
{
	static const struct construction separators = {.n_separators_max = 2};
	uint32_t n = 0, lasting = 0, by_head = 0, mean = 0;

	(void)state;
	assert_int_equal(sequence_make(s, &text, 1, 4, &separators), 0);
	assert_int_equal(s->n_planted, 2);
	assert_int_equal(s->tokens[0], TEXT_BOS);
	for (uint32_t t = 1; t < SEQUENCE_TOKENS; t++)
		n += s->tokens[t] == TEXT_BOS || s->tokens[t] == TEXT_SEP;
	assert_int_equal(n, s->n_planted);
	for (uint32_t k = 0; k < s->n_planted; k++)
		lasting += s->truth.marks[TRUTH_LASTING][s->planted[k]] == TRUTH_YES;
	assert_true(lasting > 0);
	/* What lasts or is given by half of the queries is among what gets as much on average. */
	for (uint32_t t = 0; t < SEQUENCE_JUDGED; t++) {
		mean += s->truth.marks[TRUTH_MEAN][t] == TRUTH_YES;
		if (s->truth.marks[TRUTH_LASTING][t] == TRUTH_YES)
			assert_int_equal(s->truth.marks[TRUTH_MEAN][t], TRUTH_YES);
	}
	for (uint32_t t = SEQUENCE_JUDGED; t < SEQUENCE_PROMPT; t++) {
		mean += s->truth.marks[TRUTH_MEAN][t] == TRUTH_YES;
		assert_int_equal(s->truth.marks[TRUTH_LASTING][t], TRUTH_UNKNOWN);
	}
	for (uint32_t row = 0; row < s->model->n_layers * s->model->n_heads; row++)
		by_head += s->truth.by_head[row];
	assert_int_equal(by_head, mean);
	assert_int_equal(s->truth.marks[TRUTH_MEAN][SEQUENCE_PROMPT], TRUTH_UNKNOWN);
}

static void a_short_text_is_refused(void **state)
{
	static const struct construction ordinary = {0};
	const struct tokens few = {SEQUENCE_TOKENS, text.list};

	(void)state;
	assert_int_equal(sequence_make(s, &few, 0, 1, &ordinary), -ENODATA);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(copies_have_the_first_ones_key_and_value),
		cmocka_unit_test(outliers_are_of_the_size_that_is_said),
		cmocka_unit_test(separators_stand_in_the_text), cmocka_unit_test(a_short_text_is_refused)};

	if (argc != 2) {
		fprintf(stderr, "usage: %s MODEL\n", argv[0]);
		return 2;
	}
	model_folder = argv[1];
	return cmocka_run_group_tests(tests, open_all, close_all);
}
