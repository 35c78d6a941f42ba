/* The search for sinks from statistics that the device has computed: what the host makes of the same chunk,
 * to the bit: scores, how unusual tokens are, what is found and why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "kernels/formula.h"
#include "policy/policy.h"
#include "runtime/cuda/statistics.h"
#include "tests/cuda/trial.h"

enum { TOKENS_MAX = 300, LESSON_TOKENS = 200, LESSONS = 8, OUTLIERS = 3, ODD_TOKENS = 64 };

static uint64_t seed;

struct shape {
	const char *name;
	uint32_t n_layers, n_planes;
	struct plane planes[2];
};

#define KEYS(heads, width, type, kind, first, rotated, scale)                                                \
	{                                                                                                    \
		.n_heads = (heads), .dim = (width), .dtype = (type), .rope_kind = (kind),                    \
		.rope_offset = (first), .rope_dim = (rotated), .rope_scale = (scale)                         \
	}
#define VALUES(heads, width, type) KEYS(heads, width, type, ROPE_NONE, 0, 0, 1)

static const struct shape shapes[] = {
	{"bf16, halves", 6, 2, {KEYS(4, 64, DTYPE_BF16, ROPE_HALF, 0, 64, 1), VALUES(4, 64, DTYPE_BF16)}},
	{"f16, interleaved, scaled", 12, 2,
		{KEYS(2, 40, DTYPE_F16, ROPE_INTERLEAVED, 0, 40, 1.3466f), VALUES(2, 40, DTYPE_F16)}},
	{"more heads than groups", 3, 2,
		{KEYS(10, 16, DTYPE_BF16, ROPE_HALF, 4, 8, 1), VALUES(10, 16, DTYPE_BF16)}},
	{"one latent plane", 4, 1, {KEYS(1, 576, DTYPE_BF16, ROPE_INTERLEAVED, 512, 64, 1)}},
	{"latents and a rotated key", 9, 2,
		{VALUES(1, 128, DTYPE_F16), KEYS(1, 64, DTYPE_F32, ROPE_HALF, 0, 64, 1)}},
	{"odd features, f32", 2, 2, {VALUES(3, 33, DTYPE_F32), VALUES(5, 7, DTYPE_F32)}},
};

/* A chunk as it lies in staging memory: planes one behind the other, tokens packed. */
struct chunk {
	struct geometry g;
	uint64_t position;
	uint32_t n_tokens;
	uint8_t *memory;
	struct kv_pages *pages, *device_pages;
};

static void *grab(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	assert_non_null(p);
	return p;
}

static void geometry_of(const struct shape *s, struct geometry *g)
{
	*g = (struct geometry){.n_layers = s->n_layers, .n_planes = s->n_planes, .tp_size = 1};
	for (uint32_t p = 0; p < s->n_planes; p++) {
		g->planes[p] = s->planes[p];
		for (uint32_t j = 0; j < g->planes[p].rope_dim / 2; j++)
			g->planes[p].inv_freq[j] = powf(10000, -2 * (float)j / (float)g->planes[p].rope_dim);
	}
}

static void write(uint8_t *at, uint32_t dtype, float x)
{
	const uint16_t half = dtype == DTYPE_F16 ? f16_from_f32(x) : bf16_from_f32(x);

	memcpy(at, dtype == DTYPE_F32 ? (const void *)&x : &half, dtype_bytes(dtype));
}

/* Tokens that are alike but for a few. */
static void chunk_init(
	struct chunk *c, const struct shape *s, uint32_t n_tokens, bool is_odd, uint64_t *random)
{
	const size_t n_planes = (size_t)s->n_layers * s->n_planes;
	uint32_t outliers[OUTLIERS];
	size_t used = 0;

	*c = (struct chunk){.n_tokens = n_tokens, .position = trial_below(random, 1000000)};
	geometry_of(s, &c->g);
	c->memory = grab(geometry_token_bytes(&c->g), n_tokens);
	c->pages = grab(n_planes, sizeof *c->pages);
	c->device_pages = grab(n_planes, sizeof *c->pages);
	for (int i = 0; i < OUTLIERS; i++)
		outliers[i] = trial_below(random, n_tokens);
	for (size_t i = 0; i < n_planes; i++) {
		const struct plane *p = &c->g.planes[i % s->n_planes];
		const size_t w = plane_width(p), es = dtype_bytes(p->dtype);

		c->pages[i] = (struct kv_pages){c->memory + used, w * es * n_tokens, w * es, p->dim * es};
		for (uint32_t t = 0; t < n_tokens; t++)
			for (size_t f = 0; f < w; f++) {
				const bool is_far = t == outliers[0] || t == outliers[1] || t == outliers[2];

				write(c->memory + used + (t * w + f) * es, p->dtype,
					(is_far ? 9.0f : 1.0f) * ((float)(f % 3) + trial_normal(random)));
			}
		/* Values that are no numbers are far out on either side. */
		if (is_odd)
			write(c->memory + used + outliers[0] * w * es, p->dtype, i % 2 ? INFINITY : NAN);
		used += w * es * n_tokens;
	}
	{
		const uint8_t *device = trial_put(c->memory, used, 0);

		for (size_t i = 0; i < n_planes; i++) {
			c->device_pages[i] = c->pages[i];
			c->device_pages[i].base =
				(uint8_t *)(uintptr_t)device + (c->pages[i].base - c->memory);
		}
	}
}

static void chunk_fini(struct chunk *c)
{
	free(c->memory);
	free(c->pages);
	free(c->device_pages);
}

static struct codec_chunk view(const struct chunk *c, bool on_device)
{
	static const uint32_t block;

	return (struct codec_chunk){.geometry = &c->g,
		.pages = on_device ? c->device_pages : c->pages,
		.run = {.blocks = &block, .block_tokens = c->n_tokens},
		.n_tokens = c->n_tokens,
		.position = c->position};
}

/* One that has seen tokens of this shape; attention too, which it is trained by then. */
static struct sinks_detector *detector_of(
	const struct shape *s, struct detection *d, bool trained, uint64_t *random)
{
	float attention[LESSON_TOKENS];
	struct sinks_detector *detector;
	struct sinks_learner *learner;
	struct sinks_view v;
	struct geometry g;

	geometry_of(s, &g);
	sinks_view_init(&v, &g);
	learner = sinks_learner_new(&v);
	assert_non_null(learner);
	for (int i = 0; i < LESSONS; i++) {
		struct codec_chunk chunk;
		struct chunk c;

		chunk_init(&c, s, LESSON_TOKENS, false, random);
		chunk = view(&c, false);
		for (int t = 0; t < LESSON_TOKENS; t++)
			attention[t] = trial_normal(random) + (t % 40 ? 0 : 4);
		assert_int_equal(detection_learn(d, &chunk, learner, trained ? attention : NULL), 0);
		chunk_fini(&c);
	}
	assert_int_equal(sinks_learner_detector(learner, 0.02, log(5), &detector), 0);
	assert_true(detector->trained == trained);
	sinks_learner_free(learner);
	return detector;
}

/* What a put makes of a chunk. */
struct outcome {
	struct sinks_evidence evidence;
	uint8_t classes[TOKENS_MAX];
	struct sinks_finding findings[TOKENS_MAX];
	size_t n;
	float by_layer[SINKS_LAYERS_MAX * TOKENS_MAX];
};

static void decide(
	const struct chunk *c, struct detection *d, const struct sinks_detector *detector, struct outcome *o)
{
	const struct sinks_rules rules = {.budget = 0.05, .multiple = 5, .unusual = 3, .keep = 0.5};

	memset(o->classes, TOKEN_PLAIN, c->n_tokens);
	o->evidence.n_tokens = c->n_tokens;
	memset(o->findings, 0, sizeof o->findings);
	o->n = sinks_decide(&rules, &o->evidence, o->classes, o->findings);
	for (size_t i = 0; i < o->n; i++)
		o->findings[i].feature = detection_top(d, detector, &o->findings[i]);
	detection_by_layer(d, detector, c->n_tokens, o->by_layer);
}

static size_t check(const struct shape *s, const struct sinks_detector *detector, uint32_t n_tokens,
	struct detection *host, struct detection *given, uint64_t *random)
{
	struct outcome *wanted = grab(1, sizeof *wanted), *got = grab(1, sizeof *got);
	struct codec_chunk there, here;
	struct detection_statistics found;
	struct device_statistics plan;
	struct chunk c;
	size_t bytes, n;
	uint8_t *piece;
	void *room;

	chunk_init(&c, s, n_tokens, n_tokens == ODD_TOKENS, random);
	there = view(&c, true);
	here = view(&c, false);
	assert_int_equal(detection_score(host, &here, detector, &wanted->evidence), 0);
	decide(&c, host, detector, wanted);

	device_statistics_init(&plan, &c.g, detector, n_tokens);
	bytes = device_statistics_bytes(&plan);
	piece = aligned_alloc(256, bytes);
	assert_non_null(piece);
	memset(piece, TRIAL_POISON, bytes);
	room = trial_room(bytes);
	device_statistics_fill(&plan, kernels_cpu(), &there, piece, (CUdeviceptr)(uintptr_t)room);
	assert_int_equal(
		device_statistics_launch(&plan, trial_device(), piece, (CUdeviceptr)(uintptr_t)room, NULL),
		0);
	assert_int_equal(device_status(device_driver(trial_device())->cuStreamSynchronize(NULL)), 0);
	found = device_statistics_given(&plan, piece);
	assert_int_equal(detection_score_given(given, &found, n_tokens, detector, &got->evidence), 0);
	decide(&c, given, detector, got);

	if (memcmp(got->evidence.scores, wanted->evidence.scores, n_tokens * sizeof(float)) != 0)
		fail_msg("%s, %u tokens: other scores", s->name, n_tokens);
	assert_true(!got->evidence.unusual == !wanted->evidence.unusual);
	if (got->evidence.unusual)
		assert_memory_equal(
			got->evidence.unusual, wanted->evidence.unusual, n_tokens * sizeof(float));
	assert_memory_equal(got->classes, wanted->classes, sizeof got->classes);
	assert_memory_equal(got->findings, wanted->findings, sizeof got->findings);
	assert_memory_equal(got->by_layer, wanted->by_layer, sizeof got->by_layer);
	n = got->n;
	chunk_fini(&c);
	free(piece);
	free(wanted);
	free(got);
	return n;
}

static void the_host_decides_the_same(void **state)
{
	struct detection *host = detection_new(kernels_cpu()), *given = detection_new(kernels_cpu());
	uint64_t random = seed;

	assert_non_null(host);
	assert_non_null(given);
	for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
		const uint32_t lengths[] = {1, ODD_TOKENS, 201, 1 + trial_below(&random, TOKENS_MAX)};

		for (int trained = 0; trained < 2; trained++) {
			struct sinks_detector *detector = detector_of(&shapes[i], host, trained, &random);
			size_t n_found = 0;

			for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
				n_found += check(&shapes[i], detector, lengths[k], host, given, &random);
				trial_release(state);
			}
			assert_true(n_found > 0); /* or nothing was compared */
			sinks_detector_unref(detector);
		}
	}
	detection_free(host);
	detection_free(given);
}

/* What crosses the bus: figures that the documentation has. */
static void less_crosses_the_bus(void **state)
{
	static const struct shape llama = {
		"llama", 32, 2, {KEYS(8, 128, DTYPE_BF16, ROPE_HALF, 0, 128, 1), VALUES(8, 128, DTYPE_BF16)}};
	static const struct shape narrow = {
		"narrow", 32, 2, {VALUES(8, 4, DTYPE_BF16), VALUES(8, 4, DTYPE_BF16)}};
	struct device_statistics s;
	struct sinks_detector *detector;
	struct sinks_view v;
	struct geometry g;

	(void)state;
	geometry_of(&llama, &g);
	sinks_view_init(&v, &g);
	detector = sinks_detector_new(&v);
	device_statistics_init(&s, &g, detector, 256);
	assert_int_equal(s.layer_bytes, 4 << 20);
	assert_int_equal(s.down_bytes, 192 << 10);
	assert_int_equal(s.up_bytes, (224 << 10) + 1024);
	assert_true(device_statistics_save(&s));
	/* A few tokens are fewer bytes than what they are measured against. */
	device_statistics_init(&s, &g, detector, 4);
	assert_false(device_statistics_save(&s));
	sinks_detector_unref(detector);

	geometry_of(&narrow, &g);
	sinks_view_init(&v, &g);
	detector = sinks_detector_new(&v);
	device_statistics_init(&s, &g, detector, 256);
	assert_false(device_statistics_save(&s));
	sinks_detector_unref(detector);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(the_host_decides_the_same, trial_release),
		cmocka_unit_test(less_crosses_the_bus),
	};

	int r = trial_begin(&seed);

	if (r)
		return r;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	trial_end();
	return r;
}
