/* The metric against what errors really cost, on made-up queries. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "policy/metric.h"

enum { DIM = 16, HEADS = 2, QUERY_HEADS = 4, LAYERS = 2, WIDTH = HEADS * DIM };

static struct geometry geometry_of(enum rope_kind kind)
{
	struct geometry g = {.name = "small", .n_layers = LAYERS, .n_planes = 2, .tp_size = 1};

	for (int i = 0; i < 2; i++)
		g.planes[i] =
			(struct plane){.n_heads = HEADS, .dim = DIM, .dtype = DTYPE_F16, .rope_scale = 1};
	g.planes[0].rope_kind = kind;
	g.planes[0].rope_dim = kind == ROPE_NONE ? 0 : DIM - 4;
	g.planes[0].rope_offset = 2;
	for (int i = 0; i < (DIM - 4) / 2; i++)
		g.planes[0].inv_freq[i] = powf(100, -(float)i / 6);
	return g;
}

static double random_value(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (double)(*state >> 11) * 0x1p-52 - 1;
}

/* What an error of 1 in one un-rotated feature of a key at position n does to the logit of a rotated query.
 */
static double effect(const struct plane *p, const float *query, uint32_t feature, uint64_t n)
{
	double key[DIM] = {0}, dot = 0;

	key[feature] = 1;
	for (uint32_t i = 0; i < p->rope_dim / 2; i++) {
		const uint32_t a = p->rope_offset + (p->rope_kind == ROPE_HALF ? i : 2 * i);
		const uint32_t b = a + (p->rope_kind == ROPE_HALF ? p->rope_dim / 2 : 1);
		const double angle = (double)n * (double)p->inv_freq[i], x = key[a], y = key[b];

		key[a] = x * cos(angle) - y * sin(angle);
		key[b] = y * cos(angle) + x * sin(angle);
	}
	for (int i = 0; i < DIM; i++)
		dot += key[i] * (double)query[i];
	return dot;
}

static void test_keys(void **state)
{
	(void)state;
	for (int kind = ROPE_NONE; kind <= ROPE_INTERLEAVED; kind++) {
		const struct geometry g = geometry_of(kind);
		double cost[WIDTH] = {0};
		float weight[LAYERS * WIDTH];
		uint64_t random = 7;
		struct metric *m;

		assert_int_equal(metric_new(&g, QUERY_HEADS, &m), 0);
		for (int n = 0; n < 40; n++)
			for (uint32_t h = 0; h < QUERY_HEADS; h++) {
				const uint64_t position = 300 + 17 * (uint64_t)n;
				float query[DIM];

				for (int i = 0; i < DIM; i++)
					query[i] = (float)(random_value(&random) * (1 + i % 5) * (1 + h / 2));
				metric_add_query(m, 1, h, query, position);
				for (uint64_t key = 0; key < position; key += 3)
					for (uint32_t i = 0; i < DIM; i++)
						cost[h / 2 * DIM + i] +=
							pow(effect(&g.planes[0], query, i, key), 2) * 3 /
							(double)position;
			}
		metric_weights(m, 0, 0, LAYERS, weight);
		for (uint32_t i = 0; i < WIDTH; i++) {
			assert_true(weight[i] == 1); /* nothing was seen of layer 0 */
			assert_true(fabs(pow((double)weight[WIDTH + i], 2) / (cost[i] / 160) - 1) < 0.1);
		}
		metric_free(m);
	}
}

/* A head that looks at one value at a time counts more than one that looks at many: by the root of their
 * number. */
static void test_values(void **state)
{
	const struct geometry g = geometry_of(ROPE_NONE);
	const float one[4] = {1}, four[4] = {0.25f, 0.25f, 0.25f, 0.25f};
	float weight[LAYERS * WIDTH];
	struct metric *m;
	(void)state;

	assert_int_equal(metric_new(&g, QUERY_HEADS, &m), 0);
	for (uint32_t h = 0; h < QUERY_HEADS; h++)
		metric_add_attention(m, 0, h, h < 2 ? one : four, 4);
	metric_weights(m, 1, 0, LAYERS, weight);
	for (uint32_t i = 0; i < DIM; i++) {
		assert_true(fabsf(powf(weight[i] / weight[DIM + i], 2) - 2) < 1e-5f);
		assert_true(weight[WIDTH + i] == 1);
	}
	metric_free(m);
}

static void test_heads(void **state)
{
	const struct geometry g = geometry_of(ROPE_HALF);
	struct metric *m;
	(void)state;

	assert_int_equal(metric_new(&g, 0, &m), -EINVAL);
	assert_int_equal(metric_new(&g, 3, &m), -EINVAL);
	assert_null(metric_free(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_keys),
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_heads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
