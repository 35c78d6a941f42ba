/* A transform comes back from its file as it was; a file with any impossible field is refused. */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/safetensors.h"
#include "policy/levels-model.h"
#include "policy/transform.h"

enum { WIDTH = 8, COMPONENTS = 6, N_PARTS = 4, N_RUNGS = 3 };

/* Two planes of three layers; each plane has a part of two layers and a part of one. */
struct example {
	struct geometry geometry;
	struct transform transform;
	struct transform_part parts[N_PARTS];
	float mean[N_PARTS][2 * WIDTH];
	float basis[N_PARTS][COMPONENTS * 2 * WIDTH];
	float weight[N_PARTS][2 * WIDTH];
	float deviation[N_PARTS][COMPONENTS];
	struct levels_tables tables[2];
};

/* Rows of a Hadamard matrix: orthonormal and exact in f16 but for the scale. */
static float hadamard(unsigned i, unsigned j, unsigned p)
{
	return (__builtin_popcount(i & j) % 2 ? -1.0f : 1.0f) / sqrtf((float)p);
}

static void example_init(struct example *e)
{
	struct geometry *g = &e->geometry;

	memset(e, 0, sizeof *e);
	*g = (struct geometry){.name = "example", .n_layers = 3, .n_planes = 2, .tp_size = 1};
	for (int i = 0; i < 2; i++)
		g->planes[i] = (struct plane){.n_heads = 2, .dim = WIDTH / 2, .dtype = DTYPE_BF16};
	e->transform = (struct transform){.n_rungs = N_RUNGS,
		.rung_ratio = {4, 8, 16},
		.step = {1, 3, 6},
		.n_planes = 2,
		.tables = e->tables,
		.n_parts = N_PARTS};
	for (int i = 0; i < 2; i++) {
		struct levels_model model;

		levels_model_default(&model);
		e->tables[i] = model.tables;
		e->tables[i].bias[0][0][0] += 0.01f * (float)i;
	}
	e->transform.parts = e->parts;
	geometry_fingerprint(g, e->transform.fingerprint);
	for (unsigned i = 0; i < N_PARTS; i++) {
		struct transform_part *part = &e->parts[i];
		unsigned n_layers = i % 2 ? 1 : 2, p = n_layers * WIDTH;

		*part = (struct transform_part){.plane = i / 2,
			.first_layer = i % 2 * 2,
			.n_layers = n_layers,
			.n_features = p,
			.n_components = COMPONENTS,
			.mean = e->mean[i],
			.basis = e->basis[i],
			.weight = e->weight[i],
			.deviation = e->deviation[i]};
		for (unsigned k = 0; k < p; k++) {
			e->mean[i][k] = (float)k + 0.1f * (float)i;
			e->weight[i][k] = 1 + 0.25f * (float)(k % 3);
		}
		for (unsigned k = 0; k < COMPONENTS * p; k++)
			e->basis[i][k] = hadamard(k / p, k % p, p);
		for (unsigned k = 0; k < COMPONENTS; k++)
			e->deviation[i][k] = 10.0f / (float)(k + 1);
	}
}

static void serialise(const struct example *e, void **data, size_t *len)
{
	assert_int_equal(transform_serialise(&e->transform, 1234, "a note", data, len), 0);
}

/* Far better than f16 could hold. */
static void assert_orthonormal(const struct transform_part *part)
{
	for (unsigned i = 0; i < part->n_components; i++)
		for (unsigned j = 0; j <= i; j++) {
			double dot = 0;

			for (unsigned k = 0; k < part->n_features; k++)
				dot += (double)part->basis[i * part->n_features + k] *
				       (double)part->basis[j * part->n_features + k];
			assert_true(fabs(dot - (i == j)) < 1e-6);
		}
}

/* One over the weights; weight * mean, its components and its squared norm. */
static void assert_derived(const struct transform_part *part)
{
	double energy = 0;

	for (unsigned k = 0; k < part->n_features; k++) {
		const double centre = (double)part->mean[k] * (double)part->weight[k];

		assert_true(fabsf(part->inverse[k] * part->weight[k] - 1) < 1e-6f);
		assert_true(fabs((double)part->centre[k] - centre) < 1e-5);
		energy += centre * centre;
	}
	assert_true(fabs((double)part->centre_energy - energy) < 1e-4 * energy);
	for (unsigned i = 0; i < part->n_components; i++) {
		double sum = 0;

		for (unsigned k = 0; k < part->n_features; k++)
			sum += (double)part->basis[i * part->n_features + k] * (double)part->centre[k];
		assert_true(fabs((double)part->centre_part[i] - sum) < 1e-3);
	}
}

static void test_round_trip(void **state)
{
	struct example e;
	struct transform *t;
	char why[128];
	void *data;
	size_t len;

	(void)state;
	example_init(&e);
	serialise(&e, &data, &len);
	assert_int_equal(transform_parse(data, len, &t, NULL, 0), 0);
	memset(data, 0xff, len);
	free(data);
	assert_int_equal(t->n_rungs, N_RUNGS);
	assert_memory_equal(t->rung_ratio, e.transform.rung_ratio, N_RUNGS * sizeof(float));
	assert_memory_equal(t->step, e.transform.step, N_RUNGS * sizeof(float));
	assert_int_equal(t->n_planes, 2);
	assert_memory_equal(t->tables, e.tables, sizeof e.tables);
	assert_memory_equal(t->fingerprint, e.transform.fingerprint, 16);
	assert_int_equal(t->n_parts, N_PARTS);
	for (unsigned i = 0; i < N_PARTS; i++) {
		const struct transform_part *a = &e.parts[i], *b = &t->parts[i];

		assert_int_equal(b->plane, a->plane);
		assert_int_equal(b->first_layer, a->first_layer);
		assert_int_equal(b->n_layers, a->n_layers);
		assert_int_equal(b->n_features, a->n_features);
		assert_int_equal(b->n_components, a->n_components);
		assert_memory_equal(b->mean, a->mean, a->n_features * sizeof(float));
		assert_memory_equal(b->weight, a->weight, a->n_features * sizeof(float));
		assert_memory_equal(b->deviation, a->deviation, COMPONENTS * sizeof(float));
		assert_derived(b);
		for (unsigned k = 0; k < COMPONENTS * a->n_features; k++)
			assert_true(fabsf(b->basis[k] - half_to_float(half_from_float(a->basis[k]))) < 1e-3f);
		assert_orthonormal(b);
		assert_int_equal((uintptr_t)b->basis % 64, 0);
	}
	assert_int_equal(transform_fits(t, &e.geometry, why, sizeof why), 0);
	e.geometry.n_layers = 2;
	assert_int_equal(transform_fits(t, &e.geometry, why, sizeof why), -EINVAL);
	transform_unref(t);
}

/* The right fingerprint does not excuse the wrong shape. */
static void test_fits_counts(void **state)
{
	struct example e;
	struct transform *t;
	char why[128];
	void *data;
	size_t len;

	(void)state;
	for (int change = 0; change < 3; change++) {
		example_init(&e);
		e.geometry.n_layers += change == 0;
		e.geometry.planes[1].dim += change == 1;
		e.geometry.n_planes -= change == 2;
		geometry_fingerprint(&e.geometry, e.transform.fingerprint);
		serialise(&e, &data, &len);
		assert_int_equal(transform_parse(data, len, &t, NULL, 0), 0);
		free(data);
		assert_int_equal(transform_fits(t, &e.geometry, why, sizeof why), -EINVAL);
		assert_true(strstr(why, change == 0 ? "lacks" : change == 1 ? "features" : "range") != NULL);
		transform_unref(t);
	}
}

#define FAULTS(X)                                                                                            \
	X(e.transform.n_rungs = 0, "rungs")                                                                  \
	X(e.transform.rung_ratio[0] = 0, "rung 0")                                                           \
	X(e.transform.rung_ratio[2] = 8, "rung 2")                                                           \
	X(e.transform.rung_ratio[1] = NAN, "rung 1")                                                         \
	X(e.transform.n_parts = 0, "n_parts")                                                                \
	X(e.transform.n_parts = 3, "different numbers of layers")                                            \
	X(e.parts[0].plane = 1, "part 0: not the next")                                                      \
	X(e.parts[2].plane = 2, "part 2: plane or layers")                                                   \
	X(e.parts[0].first_layer = 1, "part 0: not the next")                                                \
	X(e.parts[1].first_layer = 1, "part 1: not the next")                                                \
	X(e.parts[1].first_layer = 512, "part 1: plane or layers")                                           \
	X(e.parts[1].n_layers = 0, "part 1: 8 features")                                                     \
	X(e.parts[1].n_layers = 3, "part 1: 8 features")                                                     \
	X(e.parts[1].n_layers = 2, "different numbers of layers")                                            \
	X(e.mean[1][3] = INFINITY, "part 1: a value is not finite")                                          \
	X(e.basis[2][3] = NAN, "part 2: a value is not finite")                                              \
	X(e.basis[2][3] = 1e9f, "part 2: a value is not finite")                                             \
	X(e.basis[2][3] *= 1.5f, "part 2: basis")                                                            \
	X(memset(e.basis[2], 0, 64), "part 2: basis")                                                        \
	X(memcpy(e.basis[2], e.basis[2] + 16, 64), "part 2: basis")                                          \
	X(e.deviation[3][0] = NAN, "part 3: a value is not finite")                                          \
	X(e.deviation[3][5] = -1, "part 3: deviation")                                                       \
	X(e.deviation[3][5] = 9, "part 3: deviation")                                                        \
	X(e.weight[1][2] = 0, "part 1: a value is not finite")                                               \
	X(e.weight[1][2] = -1, "part 1: a weight")                                                           \
	X(e.weight[1][2] = 1e-40f, "part 1: a value is not finite")                                          \
	X(e.transform.step[0] = 0, "rung 0: step")                                                           \
	X(e.transform.step[1] = INFINITY, "rung 1: step")                                                    \
	X(e.transform.step[2] = 2, "rung 2: step")                                                           \
	X(e.tables[1].frequency[4][1][7] = 0, "plane 1, table 4, set 1: freq")                               \
	X(e.tables[0].frequency[4][1][7]++, "plane 0, table 4, set 1: freq")                                 \
	X(e.tables[0].bias[2][1][1] = 1, "plane 0, table 2, set 1: a bias")                                  \
	X(e.tables[0].bias[2][1][1] = NAN, "plane 0, table 2, set 1: a bias")                                \
	X(e.transform.n_planes = 1, "parts of 2 planes, not of 1")

static void test_faults(void **state)
{
	struct example e;
	struct transform *t;
	char why[128];
	void *data;
	size_t len;

	(void)state;
#define FAULT(change, words)                                                                                 \
	example_init(&e);                                                                                    \
	change;                                                                                              \
	serialise(&e, &data, &len);                                                                          \
	assert_int_equal(transform_parse(data, len, &t, why, sizeof why), -EBADMSG);                         \
	if (!strstr(why, words))                                                                             \
		fail_msg("%s: expected '%s' in '%s'", #change, words, why);                                  \
	free(data);
	FAULTS(FAULT)
}

/* Texts in the header, each replaced by one of the same length. */
static const struct {
	const char *from, *to, *why;
} texts[] = {
	{"cistern-transform-2", "cistern-transform-3", "format"},
	{"\"format\"", "\"fromat\"", "format"},
	{"\"fingerprint\":\"", "\"fingerprint\":\"G", "fingerprint"},
	{"\"fingerprint\"", "\"fingerprimt\"", "fingerprint"},
	{"\"n_parts\":\"4\"", "\"n_parts\":\"5\"", "tensors"},
	{"\"n_parts\":\"4\"", "\"n_parts\":\"x\"", "n_parts"},
	{"\"part.0.plane\":\"0\"", "\"part.0.plane\":\"-\"", "part 0: plane"},
	{"\"part.0.n_layers\":\"2\"", "\"part.0.m_layers\":\"2\"", "part 0: plane"},
	{"\"part.0.mean\"", "\"part.0.main\"", "part 0: tensors"},
	{"\"part.0.basis\"", "\"part.0.bases\"", "part 0: basis"},
	{"\"part.3.weight\"", "\"part.4.weight\"", "part 3: tensors"},
	{"\"plane.1.biases\"", "\"plane.2.biases\"", "plane 1: tables"},
	{"\"steps\"", "\"stops\"", "not one step"},
	{"\"n_planes\":\"2\"", "\"n_planes\":\"0\"", "n_planes"},
	{"\"rungs\":{\"dtype\":\"F32\"", "\"rungs\":{\"dtype\":\"I32\"", "rungs"},
	{"\"part.0.mean\":{\"dtype\":\"F32\"", "\"part.0.mean\":{\"dtype\":\"I32\"", "part 0: tensors"},
	{"\"shape\":[6,16]", "\"shape\":[16,6]", "part 0: basis"},
	{"\"shape\":[6,16]", "\"shape\":[0006]", ""},
	{"\"shape\":[46,2]", "\"shape\":[2,46]", "plane 0: tables"},
};

static void test_texts(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		struct example e;
		struct transform *t;
		char why[200] = "", *at;
		void *data;
		size_t len;

		example_init(&e);
		serialise(&e, &data, &len);
		at = memmem(data, len, texts[i].from, strlen(texts[i].from));
		assert_non_null(at);
		memcpy(at, texts[i].to, strlen(texts[i].to));
		assert_int_equal(transform_parse(data, len, &t, why, sizeof why), -EBADMSG);
		if (!strstr(why, texts[i].why))
			fail_msg("%s: expected '%s' in '%s'", texts[i].to, texts[i].why, why);
		free(data);
	}
}

static void test_damage(void **state)
{
	unsigned seed = (unsigned)time(NULL);
	struct example e;
	struct transform *t;
	uint8_t *copy;
	void *data;
	size_t len;

	(void)state;
	print_message("seed %u\n", seed);
	srand(seed);
	example_init(&e);
	serialise(&e, &data, &len);
	copy = malloc(len);
	assert_non_null(copy);
	for (size_t n = 0; n < len; n += 1 + n / 50) {
		memcpy(copy, data, n);
		assert_int_equal(transform_parse(copy, n, &t, NULL, 0), -EBADMSG);
	}
	/* A flip may leave a sound file (a value of the mean); then it has another name. */
	for (int round = 0; round < 1000; round++) {
		struct transform *whole;

		memcpy(copy, data, len);
		copy[(size_t)rand() % len] ^= (uint8_t)(1 << rand() % 8);
		if (transform_parse(copy, len, &t, NULL, 0) == 0) {
			assert_int_equal(transform_parse(data, len, &whole, NULL, 0), 0);
			assert_memory_not_equal(t->id, whole->id, 16);
			transform_unref(whole);
			transform_unref(t);
		}
	}
	free(copy);
	free(data);
}

static void test_rung(void **state)
{
	static const struct {
		double ratio;
		uint32_t rung;
	} cases[] = {{1, 0}, {4, 0}, {5.6, 0}, {5.7, 1}, {8, 1}, {11.3, 1}, {11.4, 2}, {16, 2}, {1000, 2}};
	struct example e;

	(void)state;
	example_init(&e);
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
		assert_int_equal(transform_rung(&e.transform, cases[i].ratio), cases[i].rung);
}

static void *use(void *argument)
{
	struct transform *t = argument;
	float sum = 0;

	for (int i = 0; i < 1000; i++) {
		struct transform *mine = transform_ref(t);

		sum += mine->parts[0].mean[1];
		transform_unref(mine);
	}
	transform_unref(t);
	return sum > 0 ? argument : NULL;
}

/* The last of several threads frees; sanitisers and valgrind would see an early or a missing free. */
static void test_references(void **state)
{
	pthread_t threads[4];
	struct example e;
	struct transform *t;
	void *data, *result;
	size_t len;

	(void)state;
	example_init(&e);
	serialise(&e, &data, &len);
	assert_int_equal(transform_parse(data, len, &t, NULL, 0), 0);
	free(data);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, use, transform_ref(t)), 0);
	assert_null(transform_unref(t));
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], &result);
		assert_non_null(result);
	}
	assert_null(transform_unref(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_fits_counts),
		cmocka_unit_test(test_faults),
		cmocka_unit_test(test_texts),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_rung),
		cmocka_unit_test(test_references),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
