/* What is learned from copies of chunks: the components of a made-up source, told by how much of its energy
 * they capture; groups of layers as the memory allows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formula.h"
#include "policy/policy.h"
#include "runtime/daemon/learn/student.h"

enum { LAYERS = 4, WIDTH = 32, P = LAYERS * WIDTH, CHUNK = 256, SINKS = 4 };

static struct geometry model(void)
{
	struct geometry g = {.name = "pupil", .n_layers = LAYERS, .n_planes = 2, .tp_size = 1};

	for (int i = 0; i < 2; i++)
		g.planes[i] =
			(struct plane){.n_heads = 2, .dim = WIDTH / 2, .dtype = DTYPE_F16, .rope_scale = 1};
	return g;
}

static float uniform(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (float)(*state >> 40) / 8388608.0f - 1;
}

/* Tokens in `rank` directions that the kind names, with a little noise; the first ones are far off, as sinks
 * are. */
static void make_chunk(struct chunk_copy *copy, uint32_t kind, uint64_t *state, uint64_t position)
{
	enum { RANK = 5 };
	static float u[2][RANK][P];
	uint64_t of_kind = kind;

	for (int p = 0; p < 2; p++)
		for (int k = 0; k < RANK; k++)
			for (int i = 0; i < P; i++)
				u[p][k][i] = uniform(&of_kind);
	chunk_copy_place(copy, CHUNK, position);
	for (int t = 0; t < CHUNK; t++)
		for (int p = 0; p < 2; p++) {
			float x[P] = {0};

			for (int k = 0; k < RANK; k++) {
				const float c = uniform(state);

				for (int i = 0; i < P; i++)
					x[i] += c * u[p][k][i];
			}
			for (int i = 0; i < P; i++) {
				const float value = t < SINKS ? 1000 : x[i] + 0.01f * uniform(state);
				uint16_t *layer = (uint16_t *)(void *)copy->pages[i / WIDTH * 2 + p].base;

				layer[t * WIDTH + i % WIDTH] = f16_from_f32(value);
			}
		}
}

static bool go_on(void *arg)
{
	(*(int *)arg)++;
	return true;
}

static bool no_more(void *arg)
{
	(void)arg;
	return false;
}

static struct student *new_student(const struct geometry *g, uint64_t memory_bytes)
{
	const struct student_options options = {.chunk_tokens = CHUNK, .memory_bytes = memory_bytes};
	struct student *s = NULL;
	char why[200];

	assert_int_equal(student_new(g, kernels_cpu(), &options, &s, NULL, why, sizeof why), 0);
	assert_true(student_bytes(s) <= memory_bytes);
	return s;
}

static void learns_and_notices(void **state)
{
	const struct geometry g = model();
	struct chunk_copy *copy = chunk_copy_new(&g, CHUNK);
	struct student *s = new_student(&g, 64 << 20);
	uint8_t classes[CHUNK] = {0};
	double inside, total;
	struct transform *t;
	uint64_t random = 5;
	void *data;
	size_t len;
	int n_rests = 0;

	(void)state;
	assert_non_null(copy);
	memset(classes, TOKEN_SINK, SINKS);
	assert_int_equal(student_learn(s, go_on, &n_rests, &data, &len, &t), -ENODATA);
	for (int i = 0; i < 16; i++) {
		make_chunk(copy, 1, &random, (uint64_t)i * CHUNK);
		assert_int_equal(student_take(s, copy, classes, NULL, 0, &inside, &total), 0);
		assert_true(total == 0);
	}
	assert_int_equal(student_learn(s, no_more, NULL, &data, &len, &t), -ECANCELED);
	assert_int_equal(student_learn(s, go_on, &n_rests, &data, &len, &t), 0);
	assert_int_equal(n_rests, 2);
	assert_int_equal(transform_fits(t, &g, NULL, 0), 0);
	/* Fresh tokens of the kind are captured, those of another are not, and protected ones do not count.
	 */
	make_chunk(copy, 1, &random, 0);
	assert_int_equal(student_take(s, copy, classes, t, transform_rung(t, 16), &inside, &total), 0);
	assert_true(total == 2 * (CHUNK - SINKS));
	assert_true(inside > 0.98 * total && inside < 1.001 * total);
	make_chunk(copy, 2, &random, 0);
	assert_int_equal(student_take(s, copy, classes, t, transform_rung(t, 16), &inside, &total), 0);
	assert_true(inside < 0.5 * total);
	memset(classes, TOKEN_WINDOW, CHUNK);
	assert_int_equal(student_take(s, copy, classes, t, 0, &inside, &total), 0);
	assert_true(total == 0);
	transform_unref(t);
	free(data);
	student_free(s);
	chunk_copy_free(copy);
}

static void groups_as_memory_allows(void **state)
{
	static const struct {
		uint64_t memory_bytes;
		uint32_t n_parts; /* 0: declined */
	} cases[] = {{64 << 20, 2}, {1500 << 10, 4}, {1000 << 10, 8}, {64 << 10, 0}};
	const struct geometry g = model();
	struct chunk_copy *copy = chunk_copy_new(&g, CHUNK);
	uint8_t classes[CHUNK] = {0};

	(void)state;
	assert_non_null(copy);
	for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
		const struct student_options options = {
			.chunk_tokens = CHUNK, .memory_bytes = cases[k].memory_bytes};
		double inside, total;
		uint64_t random = 1, needed = 0;
		struct transform *t;
		struct student *s;
		int n_rests = 0;
		char why[200];
		void *data;
		size_t len;

		if (!cases[k].n_parts) {
			assert_int_equal(
				student_new(&g, kernels_cpu(), &options, &s, &needed, why, sizeof why),
				-ENOSPC);
			assert_true(needed > cases[k].memory_bytes);
			continue;
		}
		s = new_student(&g, cases[k].memory_bytes);
		make_chunk(copy, 1, &random, 0);
		assert_int_equal(student_take(s, copy, classes, NULL, 0, &inside, &total), 0);
		assert_int_equal(student_learn(s, go_on, &n_rests, &data, &len, &t), 0);
		assert_int_equal(t->n_parts, cases[k].n_parts);
		transform_unref(t);
		free(data);
		student_free(s);
	}
	chunk_copy_free(copy);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(learns_and_notices),
		cmocka_unit_test(groups_as_memory_allows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
