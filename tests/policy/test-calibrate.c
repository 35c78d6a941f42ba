/* Calibration recovers a source whose statistics are known, and predicts what coding it costs. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "policy/calibrate.h"

enum { WIDTH = 16, LAYERS = 5, P = LAYERS * WIDTH, CHUNK = 256 };

static struct geometry small_model(void)
{
	struct geometry g = {.name = "small", .n_layers = LAYERS, .n_planes = 2, .tp_size = 1};

	for (int i = 0; i < 2; i++)
		g.planes[i] = (struct plane){.n_heads = 2, .dim = WIDTH / 2, .dtype = DTYPE_F32};
	return g;
}

/* Sum of twelve uniform numbers: close enough to a Gaussian of variance 1. */
static float gaussian(uint64_t *state)
{
	double sum = -6;

	for (int i = 0; i < 12; i++) {
		*state = *state * 6364136223846793005 + 1442695040888963407;
		sum += (double)(*state >> 40) / (1 << 24);
	}
	return (float)sum;
}

/* Variance of component k of a plane's source, whose directions are those of a Hadamard matrix in each group
 * of 16 features, and whose mean is 3 everywhere. */
static double true_variance(size_t k)
{
	return 10 * pow(0.8, (double)k);
}

static void make_tokens(uint64_t *state, float scale, size_t n_tokens, float *x)
{
	for (size_t t = 0; t < n_tokens; t++) {
		for (size_t block = 0; block < P; block += 16) {
			float c[16];

			for (size_t k = 0; k < 16; k++)
				c[k] = gaussian(state) * (float)sqrt(true_variance(block + k));
			for (size_t j = 0; j < 16; j++) {
				float sum = 0;

				for (size_t k = 0; k < 16; k++)
					sum += (__builtin_popcountl(j & k) % 2 ? -c[k] : c[k]) / 4;
				x[t * P + block + j] = scale * (sum + 3);
			}
		}
	}
}

/* Feeds both planes, chunk by chunk, and learns. */
static struct calibrate *learn(const struct calibrate_options *o, size_t n_chunks, float key_scale)
{
	float *x = malloc(CHUNK * P * sizeof *x);
	struct geometry g = small_model();
	struct calibrate *c;
	uint64_t state = 1;

	assert_non_null(x);
	assert_int_equal(calibrate_new(&g, o, &c, NULL, 0), 0);
	for (size_t chunk = 0; chunk < n_chunks; chunk++) {
		for (uint32_t plane = 0; plane < 2; plane++) {
			make_tokens(&state, plane ? 1 : key_scale, CHUNK, x);
			for (uint32_t i = 0; i < calibrate_n_parts(c); i++) {
				struct transform_part part;

				calibrate_part(c, i, &part);
				if (part.plane == plane)
					assert_int_equal(
						calibrate_add(c, i, x + part.first_layer * WIDTH, P, CHUNK),
						0);
			}
		}
	}
	for (uint32_t i = 0; i < calibrate_n_parts(c); i++) {
		assert_int_equal(calibrate_count(c, i), n_chunks * CHUNK);
		assert_int_equal(calibrate_learn(c, i), 0);
		assert_int_equal(calibrate_count(c, i), n_chunks * CHUNK);
	}
	free(x);
	return c;
}

static struct transform *finish(struct calibrate *c, struct calibrate_report *report)
{
	struct transform *t;
	char why[128] = "";
	void *data;
	size_t len;

	assert_int_equal(calibrate_finish(c, "a note", &data, &len, report), 0);
	if (transform_parse(data, len, &t, why, sizeof why) != 0)
		fail_msg("%s", why);
	free(data);
	return t;
}

/* Of a component in the unit of the features, when they were not weighed. */
static double variance_of(const struct transform_part *part, size_t k)
{
	const double ratio = (double)part->deviation[k] / (double)part->weight[0];

	return ratio * ratio;
}

static void options_init(struct calibrate_options *o)
{
	calibrate_options_init(o);
	/* A frame's fixed costs leave a model as small as this nothing to code with at high ratios. */
	o->n_rungs = 3;
	o->rungs[0] = 3;
	o->rungs[1] = 4;
	o->rungs[2] = 8;
}

static void test_known_source(void **state)
{
	struct calibrate_report report;
	struct calibrate_options o;
	struct geometry g = small_model();
	struct calibrate *c;
	struct transform *t;
	double total = 0;

	(void)state;
	options_init(&o);
	c = learn(&o, 32, 1);
	t = finish(c, &report);
	assert_int_equal(transform_fits(t, &g, NULL, 0), 0);
	assert_int_equal(t->n_parts, 2);
	for (size_t k = 0; k < P; k++)
		total += true_variance(k);
	assert_int_equal(report.n_tokens, 32 * CHUNK);
	assert_int_equal(report.held_out, 1);
	for (int plane = 0; plane < 2; plane++) {
		const struct transform_part *part = &t->parts[plane];

		assert_int_equal(part->n_features, P);
		assert_int_equal(report.n_features[plane], P);
		assert_true(fabs(report.variance[plane] / total - 1) < 0.05);
		assert_true(fabs(report.energy[plane] - report.variance[plane] - 9 * P) < 0.05 * 9 * P);
		/* 1 - 0.8^k >= 0.99 from k = 21 on. */
		assert_in_range(report.components_99[plane], 20, 22);
		for (size_t i = 0; i < P; i++)
			assert_true(fabsf(part->mean[i] - 3) < 0.1f);
		for (size_t k = 0; k < 12; k++)
			assert_true(fabs(variance_of(part, k) / true_variance(k) - 1) < 0.2);
	}
	for (uint32_t rung = 0; rung < 3; rung++) {
		assert_true(report.rungs[rung].ratio >= (double)o.rungs[rung]);
		assert_true(report.rungs[rung].ratio < 1.25 * (double)o.rungs[rung]);
		if (rung)
			assert_true(report.rungs[rung].error[0] > report.rungs[rung - 1].error[0]);
	}
	/* The file holds what the finest rung needs and no more. */
	assert_int_equal(t->parts[0].n_components, report.rungs[0].components[0]);
	assert_int_equal(t->parts[0].n_components, transform_active(&t->parts[0], t->step[0]));
	transform_unref(t);
	calibrate_free(c);
}

static void test_scale_of_a_plane_does_not_matter(void **state)
{
	struct calibrate_options o;
	struct transform *t[2];

	(void)state;
	options_init(&o);
	for (int i = 0; i < 2; i++) {
		struct calibrate *c = learn(&o, 8, i ? 64 : 1);

		t[i] = finish(c, NULL);
		calibrate_free(c);
	}
	for (int plane = 0; plane < 2; plane++) {
		const struct transform_part *a = &t[0]->parts[plane], *b = &t[1]->parts[plane];

		assert_int_equal(a->n_components, b->n_components);
		for (int rung = 0; rung < 3; rung++)
			assert_int_equal(
				transform_active(a, t[0]->step[rung]), transform_active(b, t[1]->step[rung]));
	}
	transform_unref(t[0]);
	transform_unref(t[1]);
}

static void test_groups(void **state)
{
	static const struct {
		uint32_t per_group;
		uint32_t n_parts;
		uint32_t layers[5];
	} cases[] = {{0, 1, {5}}, {5, 1, {5}}, {9, 1, {5}}, {2, 3, {2, 2, 1}}, {1, 5, {1, 1, 1, 1, 1}}};
	struct geometry g = small_model();

	(void)state;
	for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
		struct calibrate_options o;
		struct transform *t;
		struct calibrate *c;

		options_init(&o);
		o.layers_per_group = cases[k].per_group;
		c = learn(&o, 4, 1);
		t = finish(c, NULL);
		assert_int_equal(transform_fits(t, &g, NULL, 0), 0);
		assert_int_equal(t->n_parts, 2 * cases[k].n_parts);
		for (uint32_t i = 0; i < t->n_parts; i++)
			assert_int_equal(t->parts[i].n_layers, cases[k].layers[i % cases[k].n_parts]);
		transform_unref(t);
		calibrate_free(c);
	}
	/* Unasked, groups stay under 4096 features. */
	for (uint32_t n_layers = 1; n_layers < 300; n_layers += 37) {
		struct calibrate_options o;
		struct transform_part part;
		struct calibrate *c;

		calibrate_options_init(&o);
		g.n_layers = n_layers;
		g.planes[1].dim = 500;
		assert_int_equal(calibrate_new(&g, &o, &c, NULL, 0), 0);
		for (uint32_t i = 0; i < calibrate_n_parts(c); i++) {
			calibrate_part(c, i, &part);
			assert_in_range(part.n_features, 1, 4096);
		}
		calibrate_free(c);
	}
}

/* Features that count more are coded better, and what the transform says of a plane's variance stays its
 * weight. */
static void test_weights(void **state)
{
	struct calibrate_options o;
	struct transform *t[2];
	float weight[P];

	(void)state;
	options_init(&o);
	for (int i = 0; i < 2; i++) {
		float *x = malloc(8 * CHUNK * P * sizeof *x);
		struct geometry g = small_model();
		struct calibrate *c;
		uint64_t random = 5;

		assert_non_null(x);
		assert_int_equal(calibrate_new(&g, &o, &c, NULL, 0), 0);
		for (uint32_t plane = 0; plane < 2; plane++) {
			make_tokens(&random, 1, 8 * CHUNK, x);
			for (size_t k = 0; k < P; k++)
				weight[k] = i && k < 16 ? 3 : 1;
			assert_int_equal(calibrate_add(c, plane, x, P, 8 * CHUNK), 0);
			assert_int_equal(calibrate_set_weight(c, plane, weight), 0);
			assert_int_equal(calibrate_learn(c, plane), 0);
		}
		t[i] = finish(c, NULL);
		calibrate_free(c);
		free(x);
	}
	for (int plane = 0; plane < 2; plane++) {
		const struct transform_part *a = &t[0]->parts[plane], *b = &t[1]->parts[plane];
		double rows[2] = {0};

		assert_true(fabsf(b->weight[0] / b->weight[16] - 3) < 1e-5f);
		assert_true(fabsf(a->weight[0] / a->weight[16] - 1) < 1e-5f);
		/* The first rows look at the features that count. */
		for (size_t k = 0; k < 8 * P; k++)
			rows[k % P < 16] += (double)b->basis[k] * (double)b->basis[k];
		assert_true(rows[1] > 7.9 * rows[0]);
	}
	transform_unref(t[0]);
	transform_unref(t[1]);
}

/* Counted levels make the file's tables. */
static void test_counts(void **state)
{
	struct levels_counts *counts = calloc(2, sizeof *counts);
	struct calibrate_options o;
	struct transform *t[2];
	struct calibrate *c;

	(void)state;
	assert_non_null(counts);
	options_init(&o);
	c = learn(&o, 8, 1);
	t[0] = finish(c, NULL);
	counts[1].symbols[3][0][LEVELS_VALUE_MAX] = counts[1].n[3] = 1e6;
	calibrate_count_levels(c, counts);
	t[1] = finish(c, NULL);
	assert_memory_equal(&t[0]->tables[0], &t[1]->tables[0], sizeof t[0]->tables[0]);
	assert_memory_not_equal(&t[0]->tables[1], &t[1]->tables[1], sizeof t[0]->tables[1]);
	assert_true(t[1]->tables[1].frequency[3][0][LEVELS_VALUE_MAX] > 4000);
	transform_unref(t[0]);
	transform_unref(t[1]);
	calibrate_free(c);
	free(counts);
}

/* White noise has no quiet components. Measured on the tokens that they were chosen with, the last of 80
 * would seem to have a variance of (1 - sqrt(80 / 1792))^2 = 0.62. */
static void test_held_out_variances_are_honest(void **state)
{
	struct geometry g = small_model();
	struct calibrate_options o;
	struct calibrate *c;
	struct transform *t;
	uint64_t random = 3;
	float *x = malloc(8 * CHUNK * P * sizeof *x);

	(void)state;
	assert_non_null(x);
	options_init(&o);
	o.n_rungs = 1;
	o.rungs[0] = 1.5;
	assert_int_equal(calibrate_new(&g, &o, &c, NULL, 0), 0);
	for (size_t i = 0; i < 8 * CHUNK * P; i++)
		x[i] = gaussian(&random);
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(calibrate_add(c, i, x, P, 8 * CHUNK), 0);
		assert_int_equal(calibrate_learn(c, i), 0);
	}
	t = finish(c, NULL);
	assert_int_equal(t->parts[0].n_components, P);
	assert_true(variance_of(&t->parts[0], P - 1) > 0.7);
	assert_true(variance_of(&t->parts[0], P - 1) < 1);
	transform_unref(t);
	calibrate_free(c);
	free(x);
}

static void test_too_little(void **state)
{
	struct geometry g = small_model();
	float x[3 * P] = {0}, bad[P] = {0};
	struct calibrate_report report;
	struct calibrate_options o;
	struct calibrate *c;
	struct transform *t;
	void *data;
	size_t len;

	(void)state;
	options_init(&o);
	assert_int_equal(calibrate_new(&g, &o, &c, NULL, 0), 0);
	assert_int_equal(calibrate_learn(c, 0), -ENODATA);
	bad[7] = NAN;
	assert_int_equal(calibrate_add(c, 0, bad, P, 1), 0);
	assert_int_equal(calibrate_count(c, 0), 0);
	assert_int_equal(calibrate_learn(c, 0), -ENODATA);
	x[0] = 1;
	assert_int_equal(calibrate_add(c, 0, x, P, 3), 0);
	assert_int_equal(calibrate_learn(c, 0), 0);
	assert_int_equal(calibrate_learn(c, 0), -ENODATA);
	assert_int_equal(calibrate_finish(c, NULL, &data, &len, NULL), -EINVAL);
	/* A plane that never changes is no reason to fail. */
	assert_int_equal(calibrate_add(c, 1, x + P, P, 2), 0);
	assert_int_equal(calibrate_learn(c, 1), 0);
	t = finish(c, &report);
	assert_int_equal(report.held_out, 0);
	assert_int_equal(report.n_tokens, 2);
	assert_true(report.variance[1] == 0 && report.rungs[0].error[1] == 0);
	assert_int_equal(t->parts[1].n_components, 1);
	assert_int_equal(transform_active(&t->parts[1], t->step[0]), 0);
	transform_unref(t);
	calibrate_free(c);
}

/* With keep: learning again after more tokens is as good as learning once from all of them, and what was
 * faded gives way to what is new. Few enough components hold nearly everything to start from them again. */
static void test_keep(void **state)
{
	float *x = malloc(CHUNK * P * sizeof *x);
	struct calibrate *c, *once, *all[2];
	struct geometry g = small_model();
	struct calibrate_options o;
	struct transform *t, *whole;
	uint64_t random = 1;

	(void)state;
	assert_non_null(x);
	options_init(&o);
	assert_int_equal(calibrate_new(&g, &o, &once, NULL, 0), 0);
	o.keep = 1;
	assert_int_equal(calibrate_new(&g, &o, &c, NULL, 0), 0);
	assert_int_equal(calibrate_learn(c, 0), -ENODATA);
	all[0] = once;
	all[1] = c;
	for (uint64_t chunk = 1; chunk <= 32; chunk++) {
		for (uint32_t plane = 0; plane < 2; plane++) {
			make_tokens(&random, 1, CHUNK, x);
			for (size_t i = 0; i < CHUNK * P; i++)
				x[i] *= i % P < 16 ? 1 : 0.03f;
			for (int i = 0; i < 2; i++)
				assert_int_equal(calibrate_add(all[i], plane, x, P, CHUNK), 0);
		}
		/* The first time too few tokens are held out. */
		for (uint32_t plane = 0; plane < 2; plane++)
			if (chunk == 4 || chunk == 16 || chunk == 32)
				assert_int_equal(calibrate_learn(c, plane), 0);
		assert_int_equal(calibrate_count(c, 1), chunk * CHUNK);
	}
	for (uint32_t plane = 0; plane < 2; plane++)
		assert_int_equal(calibrate_learn(once, plane), 0);
	t = finish(c, NULL);
	whole = finish(once, NULL);
	for (int plane = 0; plane < 2; plane++)
		for (size_t k = 0; k < 16; k++)
			assert_true(
				fabs(variance_of(&t->parts[plane], k) / variance_of(&whole->parts[plane], k) -
					1) < 0.01);
	transform_unref(t);
	transform_unref(whole);
	/* Another source, all zero: the mean moves half of the way. */
	calibrate_fade(c, 0, 2 * CHUNK);
	assert_int_equal(calibrate_count(c, 0), 2 * CHUNK);
	memset(x, 0, CHUNK * P * sizeof *x);
	for (int chunk = 0; chunk < 2; chunk++)
		assert_int_equal(calibrate_add(c, 0, x, P, CHUNK), 0);
	assert_int_equal(calibrate_learn(c, 0), 0);
	t = finish(c, NULL);
	for (size_t i = 0; i < 16; i++)
		assert_true(fabsf(t->parts[0].mean[i] - 1.5f) < 0.15f);
	transform_unref(t);
	assert_true(calibrate_bytes(c) > (uint64_t)2 * 2 * 12 * P * P);
	calibrate_free(c);
	calibrate_free(once);
	free(x);
}

#define FAULTS(X)                                                                                            \
	X(g.n_layers = 0, "layers")                                                                          \
	X(o.chunk_tokens = 0, "chunks")                                                                      \
	X(o.chunk_tokens = 4097, "chunks")                                                                   \
	X(o.plane_weight[1] = 0, "plane 1: weight")                                                          \
	X(o.n_rungs = 0, "rungs")                                                                            \
	X(o.n_rungs = 17, "rungs")                                                                           \
	X(o.rungs[0] = 0.5f, "rung 0")                                                                       \
	X(o.rungs[1] = NAN, "rung 1")                                                                        \
	X(o.rungs[1] = 4, "rung 1")                                                                          \
	X(g.planes[1].n_heads = 1024; g.planes[1].dim = 17, "17408 features")

static void test_faults(void **state)
{
	struct calibrate_options o;
	struct calibrate *c;
	struct geometry g;
	char why[128];

	(void)state;
#define FAULT(change, word)                                                                                  \
	g = small_model();                                                                                   \
	calibrate_options_init(&o);                                                                          \
	change;                                                                                              \
	assert_int_equal(calibrate_new(&g, &o, &c, why, sizeof why), -EINVAL);                               \
	if (!strstr(why, word))                                                                              \
		fail_msg("%s: expected '%s' in '%s'", #change, word, why);
	FAULTS(FAULT)
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_source),
		cmocka_unit_test(test_scale_of_a_plane_does_not_matter),
		cmocka_unit_test(test_groups),
		cmocka_unit_test(test_weights),
		cmocka_unit_test(test_counts),
		cmocka_unit_test(test_held_out_variances_are_honest),
		cmocka_unit_test(test_too_little),
		cmocka_unit_test(test_keep),
		cmocka_unit_test(test_faults),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
