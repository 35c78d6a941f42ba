/* Attention mass on the device: what the host makes of the same queries and keys, within what the order of
 * summation allows; tokens that no query judges stay NaN. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "kernels/cuda/measure/attention.h"
#include "kernels/formula.h"
#include "policy/sinks/observe.h"
#include "runtime/detection.h"
#include "tests/cuda/trial.h"

enum { BLOCK_TOKENS = 16 };

static uint64_t seed;

struct shape {
	const char *name;
	uint32_t n_layers, n_heads, n_kv_heads, dim, dtype;
	uint32_t n_tokens, chunk_tokens, n_queries;
	bool spread; /* queries all over the sequence, not at its end only */
};

static const struct shape shapes[] = {
	{"grouped heads, bf16", 2, 8, 2, 128, DTYPE_BF16, 700, 256, 16, false},
	{"queries in several chunks", 2, 4, 4, 64, DTYPE_F16, 600, 128, 23, true},
	{"chunks that no tile fits", 1, 6, 3, 80, DTYPE_F32, 431, 37, 9, true},
	{"one head, a wide one", 1, 16, 1, 576, DTYPE_BF16, 300, 64, 5, false},
	{"odd features", 3, 2, 1, 33, DTYPE_F16, 150, 50, 7, true},
	{"one query", 1, 1, 1, 16, DTYPE_F32, 40, 8, 1, false},
	{"one chunk: nothing to judge", 1, 2, 2, 64, DTYPE_BF16, 100, 256, 4, false},
};

static void *grab(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	assert_non_null(p);
	return p;
}

static float put(uint32_t dtype, uint8_t *at, float x)
{
	const uint16_t half = dtype == DTYPE_F16 ? f16_from_f32(x) : bf16_from_f32(x);

	memcpy(at, dtype == DTYPE_F32 ? (const void *)&x : &half, dtype_bytes(dtype));
	return dtype == DTYPE_F32 ? x : dtype == DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

struct sequence {
	const struct shape *shape;
	struct plane plane;
	uint32_t n_blocks, offset;
	uint32_t *blocks, *positions;
	size_t layer_bytes;
	uint8_t *keys;    /* layer by layer */
	uint8_t *queries; /* as observed */
	float *values;    /* the same, as floats */
};

/* Keys of which a few attract every query, as sinks do, and a few some of them. */
static void fill_keys(struct sequence *s, uint64_t *random)
{
	const struct shape *h = s->shape;
	const size_t es = dtype_bytes(h->dtype);

	for (size_t i = 0; i < s->layer_bytes * h->n_layers; i += es)
		put(h->dtype, s->keys + i, trial_normal(random));
	for (size_t row = trial_below(random, 40); (row + 1) * h->dim * es <= s->layer_bytes * h->n_layers;
		row += 1 + trial_below(random, 60))
		for (uint32_t d = 0; d < h->dim; d++)
			put(h->dtype, s->keys + (row * h->dim + d) * es, 0.5f + trial_normal(random));
}

static void fill_queries(struct sequence *s, uint64_t *random)
{
	const struct shape *h = s->shape;
	const size_t n = (size_t)h->n_layers * h->n_queries * h->n_heads * h->dim;

	for (size_t i = 0; i < n; i++)
		s->values[i] =
			put(h->dtype, s->queries + i * dtype_bytes(h->dtype), 0.5f + trial_normal(random));
	/* Rising, each below n_tokens. */
	for (uint32_t i = 0; i < h->n_queries; i++)
		s->positions[i] =
			h->spread ? (h->n_tokens * i + trial_below(random, h->n_tokens)) / h->n_queries
				  : h->n_tokens - h->n_queries + i;
}

static void make_sequence(struct sequence *s, const struct shape *h, uint64_t *random)
{
	const size_t es = dtype_bytes(h->dtype), n = (size_t)h->n_layers * h->n_queries * h->n_heads * h->dim;

	*s = (struct sequence){.shape = h,
		.plane = {.n_heads = h->n_kv_heads, .dim = h->dim, .dtype = h->dtype, .rope_scale = 1},
		.offset = trial_below(random, BLOCK_TOKENS)};
	s->n_blocks = (s->offset + h->n_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
	s->layer_bytes = (size_t)s->n_blocks * BLOCK_TOKENS * h->n_kv_heads * h->dim * es;
	s->blocks = grab(s->n_blocks, sizeof *s->blocks);
	for (uint32_t i = 0; i < s->n_blocks; i++)
		s->blocks[i] = s->n_blocks - 1 - i;
	s->positions = grab(h->n_queries, sizeof *s->positions);
	s->keys = grab(h->n_layers, s->layer_bytes);
	s->queries = grab(n, es);
	s->values = grab(n, sizeof *s->values);
	fill_keys(s, random);
	fill_queries(s, random);
}

static void free_sequence(struct sequence *s)
{
	free(s->blocks);
	free(s->positions);
	free(s->keys);
	free(s->queries);
	free(s->values);
}

static struct kv_pages layer_pages(const struct sequence *s, uint32_t layer)
{
	const size_t row = s->shape->dim * dtype_bytes(s->shape->dtype), token = row * s->shape->n_kv_heads;

	return (struct kv_pages){s->keys + layer * s->layer_bytes, BLOCK_TOKENS * token, token, row};
}

static void on_host(const struct sequence *s, float *resting, float *asked)
{
	const struct shape *h = s->shape;
	struct detection *d = detection_new(kernels_cpu());
	uint64_t *positions = grab(h->n_queries, sizeof *positions);
	float *drawing = grab(h->n_tokens, sizeof *drawing); /* of the host alone, made of the other two */
	const struct kv_run run = {s->blocks, BLOCK_TOKENS, s->offset};

	assert_non_null(d);
	for (uint32_t i = 0; i < h->n_queries; i++)
		positions[i] = s->positions[i];
	for (uint32_t t = 0; t < h->n_tokens; t++)
		drawing[t] = resting[t] = asked[t] = NAN;
	for (uint32_t l = 0; l < h->n_layers; l++) {
		const struct kv_pages pages = layer_pages(s, l);
		const struct detection_queries q = {h->n_queries, h->n_heads, positions,
			1 / sqrtf((float)h->dim), s->values + (size_t)l * h->n_queries * h->n_heads * h->dim};

		assert_int_equal(detection_observe(d, &s->plane, &pages, &run, h->n_tokens, h->chunk_tokens,
					 &q, &(struct observed){drawing, resting, asked}),
			0);
	}
	free(positions);
	free(drawing);
	detection_free(d);
}

static void on_device(const struct sequence *s, float *resting, float *asked)
{
	const struct shape *h = s->shape;
	const size_t es = dtype_bytes(h->dtype), rows = (size_t)h->n_layers * h->n_heads * h->n_queries;
	struct attention_tile *tiles =
		grab(h->n_tokens / ATTENTION_TOKENS + h->n_tokens / h->chunk_tokens + 1, sizeof *tiles);
	struct attention_layer *layers = grab(h->n_layers, sizeof *layers);
	struct attention_sums_args args = {{.n_layers = h->n_layers,
		.n_queries = h->n_queries,
		.n_tokens = h->n_tokens,
		.n_heads = h->n_heads,
		.n_kv_heads = h->n_kv_heads,
		.dim = h->dim,
		.dtype = h->dtype,
		.block_tokens = BLOCK_TOKENS,
		.offset = s->offset,
		.scale = 1 / sqrtf((float)h->dim),
		.floor_log = logf(OBSERVE_FLOOR)}};
	struct attention_job *j = &args.job;
	uint32_t grid[3];

	for (uint32_t l = 0; l < h->n_layers; l++) {
		const struct kv_pages pages = layer_pages(s, l);
		const size_t bytes = (size_t)h->n_queries * h->n_heads * h->dim * es;

		layers[l] = (struct attention_layer){trial_put(pages.base, s->layer_bytes, 0),
			pages.block_stride, pages.token_stride, pages.head_stride,
			trial_put(s->queries + l * bytes, bytes, 0)};
	}
	j->n_tiles = attention_plan(s->positions, h->n_queries, h->n_tokens, h->chunk_tokens, tiles);
	j->layers = trial_put(layers, h->n_layers * sizeof *layers, 0);
	j->blocks = trial_put(s->blocks, s->n_blocks * sizeof *s->blocks, 0);
	j->positions = trial_put(s->positions, h->n_queries * sizeof *s->positions, 0);
	j->tiles = trial_put(tiles, j->n_tiles * sizeof *tiles, 0);
	j->partial = trial_room(rows * attention_n_tiles(h->n_tokens) * 2 * sizeof(float));
	j->less = trial_room(rows * sizeof(float));
	j->raised = trial_room(2 * (size_t)h->n_tokens * sizeof(uint32_t));
	j->resting = trial_room(h->n_tokens * sizeof(float));
	j->asked = trial_room(h->n_tokens * sizeof(float));
	attention_sums_grid(j, grid);
	trial_run(DEVICE_KERNEL_attention_sums, grid, ATTENTION_THREADS, 0, &args);
	attention_less_grid(j, grid);
	trial_run(DEVICE_KERNEL_attention_less, grid, ATTENTION_THREADS, 0, &args);
	attention_raise_grid(j, grid);
	if (j->n_tiles)
		trial_run(DEVICE_KERNEL_attention_raise, grid, ATTENTION_THREADS, 0, &args);
	attention_finish_grid(j, grid);
	trial_run(DEVICE_KERNEL_attention_finish, grid, ATTENTION_THREADS, 0, &args);
	trial_get(resting, j->resting, h->n_tokens * sizeof *resting);
	trial_get(asked, j->asked, h->n_tokens * sizeof *asked);
	free(layers);
	free(tiles);
}

/* No score has products of more than this in sum of magnitudes: by Cauchy and Schwarz, of the longest key and
 * the longest query. */
static double largest_magnitude(const struct sequence *s)
{
	const struct shape *h = s->shape;
	const size_t es = dtype_bytes(h->dtype);
	double longest[2] = {0, 0};

	for (size_t row = 0; row < s->layer_bytes * h->n_layers / es / h->dim; row++) {
		double square = 0;

		for (uint32_t d = 0; d < h->dim; d++) {
			const uint8_t *at = s->keys + (row * h->dim + d) * es;
			uint16_t half;
			float x;

			memcpy(&half, at, 2);
			memcpy(&x, at, es);
			x = h->dtype == DTYPE_F32   ? x
			    : h->dtype == DTYPE_F16 ? f16_to_f32(half)
						    : bf16_to_f32(half);
			square += (double)x * (double)x;
		}
		longest[0] = fmax(longest[0], square);
	}
	for (size_t row = 0; row < (size_t)h->n_layers * h->n_queries * h->n_heads; row++) {
		double square = 0;

		for (uint32_t d = 0; d < h->dim; d++)
			square += pow((double)s->values[row * h->dim + d], 2);
		longest[1] = fmax(longest[1], square);
	}
	return sqrt(longest[0] * longest[1] / h->dim);
}

static double compare(
	const struct shape *h, const char *what, const float *got, const float *wanted, double bound)
{
	double worst = 0;

	for (uint32_t t = 0; t < h->n_tokens; t++) {
		const double off = fabs((double)got[t] - (double)wanted[t]);

		if (isnan(got[t]) != isnan(wanted[t]) || off > bound)
			fail_msg("%s, %s of token %u: %g, not %g", h->name, what, t, (double)got[t],
				(double)wanted[t]);
		worst = off > worst ? off : worst;
	}
	return worst;
}

static void check_shape(const struct shape *h, uint64_t *random)
{
	float *both = grab(4 * (size_t)h->n_tokens, sizeof *both);
	float *got[2] = {both, both + h->n_tokens};
	float *wanted[2] = {both + 2 * h->n_tokens, both + 3 * h->n_tokens};
	struct sequence s;
	uint32_t judged = 0;
	double bound, worst;

	make_sequence(&s, h, random);
	on_host(&s, wanted[0], wanted[1]);
	on_device(&s, got[0], got[1]);
	bound = 2 * (h->dim + 16) * 0x1p-24 * largest_magnitude(&s) + 1e-5;
	worst = fmax(compare(h, "resting", got[0], wanted[0], bound),
		compare(h, "asked", got[1], wanted[1], bound));
	for (uint32_t t = 0; t < h->n_tokens; t++)
		judged += !isnan(wanted[0][t]);
	printf("%s: %u of %u tokens judged, off by %.1e, bound %.1e\n", h->name, judged, h->n_tokens, worst,
		bound);
	free_sequence(&s);
	free(both);
}

static void mass_is_as_the_host_has_it(void **state)
{
	uint64_t random = seed;

	for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
		check_shape(&shapes[i], &random);
		trial_release(state);
	}
}

static void so_it_is_for_any_shape(void **state)
{
	uint64_t random = seed + 1;

	for (int i = 0; i < 8; i++) {
		struct shape h = {.name = "any",
			.n_layers = 1 + trial_below(&random, 3),
			.n_kv_heads = 1 + trial_below(&random, 3),
			.dim = 1 + trial_below(&random, 160),
			.dtype = DTYPE_F16 + trial_below(&random, 3),
			.n_tokens = 1 + trial_below(&random, 400),
			.chunk_tokens = 1 + trial_below(&random, 150),
			.spread = trial_below(&random, 2)};

		h.n_heads = h.n_kv_heads * (1 + trial_below(&random, 4));
		h.n_queries = 1 + trial_below(&random, h.n_tokens < 40 ? h.n_tokens : 40);
		check_shape(&h, &random);
		trial_release(state);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(mass_is_as_the_host_has_it, trial_release),
		cmocka_unit_test_teardown(so_it_is_for_any_shape, trial_release),
	};

	int r = trial_begin(&seed);

	if (r)
		return r;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	trial_end();
	return r;
}
