/* Token statistics on the device: the host backend's bits, for every kind of plane, pages and copies alike.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "kernels/cuda/measure/statistics.h"
#include "kernels/formula.h"
#include "kernels/kernels.h"
#include "tests/cuda/trial.h"

enum { LAYERS = 3, CHUNKS = 2, ITEMS = LAYERS * CHUNKS, TOKENS_MAX = 50, BLOCK_TOKENS = 16, BLOCKS = 5 };

static uint64_t seed;

static const struct plane planes[] = {
	{.n_heads = 8,
		.dim = 128,
		.dtype = DTYPE_BF16,
		.rope_kind = ROPE_HALF,
		.rope_dim = 128,
		.rope_scale = 1},
	{.n_heads = 8, .dim = 128, .dtype = DTYPE_BF16, .rope_scale = 1},
	{.n_heads = 2,
		.dim = 64,
		.dtype = DTYPE_F16,
		.rope_kind = ROPE_HALF,
		.rope_dim = 64,
		.rope_scale = 1},
	{.n_heads = 3,
		.dim = 80,
		.dtype = DTYPE_BF16,
		.rope_kind = ROPE_INTERLEAVED,
		.rope_dim = 80,
		.rope_scale = 1},
	{.n_heads = 1,
		.dim = 576,
		.dtype = DTYPE_F32,
		.rope_kind = ROPE_INTERLEAVED,
		.rope_offset = 512,
		.rope_dim = 64,
		.rope_scale = 1},
	{.n_heads = 3,
		.dim = 70,
		.dtype = DTYPE_F16,
		.rope_kind = ROPE_HALF,
		.rope_offset = 7,
		.rope_dim = 22,
		.rope_scale = 1.3466f},
	{.n_heads = 5,
		.dim = 75,
		.dtype = DTYPE_F32,
		.rope_kind = ROPE_INTERLEAVED,
		.rope_offset = 18,
		.rope_dim = 38,
		.rope_scale = 1.3466f},
	{.n_heads = 5, .dim = 33, .dtype = DTYPE_F32, .rope_scale = 1},
	{.n_heads = 1, .dim = 1, .dtype = DTYPE_F16, .rope_scale = 1},
};

/* One layer of a chunk, on both sides. */
struct layer {
	struct kv_pages pages;
	struct kv_run run;
	uint32_t blocks[BLOCKS];
	uint8_t *memory;
	float *basis; /* centre, weight, direction */
	struct token_statistic *wanted;
};

struct chunk {
	uint32_t n_tokens;
	float *cos, *sin;
	const float *device_cos, *device_sin;
};

static void *grab(size_t n, size_t size)
{
	void *p = calloc(n, size);

	assert_non_null(p);
	return p;
}

static void fill(const struct plane *plane, uint64_t *random, uint8_t *memory, size_t bytes)
{
	const size_t es = dtype_bytes(plane->dtype);

	for (size_t i = 0; i + es <= bytes; i += es) {
		const float x = 3 * trial_normal(random);
		const uint16_t half = plane->dtype == DTYPE_F16 ? f16_from_f32(x) : bf16_from_f32(x);

		memcpy(memory + i, plane->dtype == DTYPE_F32 ? (const void *)&x : &half, es);
	}
}

static void make_chunk(struct chunk *c, const struct plane *plane, uint64_t *random)
{
	const size_t entries = TOKENS_MAX * plane->rope_dim / 2;
	uint64_t positions[TOKENS_MAX];

	*c = (struct chunk){.n_tokens = 1 + trial_below(random, TOKENS_MAX)};
	if (plane->rope_kind == ROPE_NONE)
		return;
	c->cos = grab(entries, sizeof *c->cos);
	c->sin = grab(entries, sizeof *c->sin);
	for (uint32_t i = 0; i < TOKENS_MAX; i++)
		positions[i] = trial_below(random, 100000) + i;
	kernels_cpu()->rope_fill(plane, positions, c->n_tokens, c->cos, c->sin);
	c->device_cos = trial_put(c->cos, entries * sizeof *c->cos, 0);
	c->device_sin = trial_put(c->sin, entries * sizeof *c->sin, 0);
}

/* Pages of blocks in any order, or [token][head][dim] as one run, or [head][token][dim] in blocks. */
static void make_layer(struct layer *l, const struct plane *plane, const struct chunk *c, uint64_t *random,
	struct statistics_item *item)
{
	const uint32_t layout = trial_below(random, 3), order = trial_below(random, BLOCKS);
	const size_t es = dtype_bytes(plane->dtype), w = plane_width(plane), row = plane->dim * es;
	const size_t n = c->n_tokens * (size_t)plane->n_heads, bytes = BLOCKS * BLOCK_TOKENS * w * es;
	const struct rope_table rope = {c->cos, c->sin};

	l->memory = grab(bytes, 1);
	fill(plane, random, l->memory, bytes);
	for (uint32_t i = 0; i < BLOCKS; i++)
		l->blocks[i] = layout == 1 ? i : (i * 2 + order) % BLOCKS;
	l->pages = (struct kv_pages){l->memory, BLOCK_TOKENS * w * es, w * es, row};
	if (layout == 2)
		l->pages = (struct kv_pages){l->memory, BLOCK_TOKENS * w * es, row, BLOCK_TOKENS * row};
	l->run =
		(struct kv_run){l->blocks, BLOCK_TOKENS, layout == 1 ? 0 : trial_below(random, BLOCK_TOKENS)};
	l->basis = grab(3 * w, sizeof *l->basis);
	for (size_t i = 0; i < 3 * w; i++)
		l->basis[i] = trial_normal(random);
	l->wanted = grab(n, sizeof *l->wanted);
	kernels_cpu()->statistics(plane, &l->pages, &l->run, c->n_tokens, c->cos ? &rope : NULL,
		&(struct statistics_basis){l->basis, l->basis + w, l->basis + 2 * w}, l->wanted);
	{
		const float *const basis = trial_put(l->basis, 3 * w * sizeof *l->basis, 0);

		*item = (struct statistics_item){.base = trial_put(l->memory, bytes, 0),
			.blocks = layout == 1 ? NULL : trial_put(l->blocks, sizeof l->blocks, 0),
			.block_stride = l->pages.block_stride,
			.token_stride = l->pages.token_stride,
			.head_stride = l->pages.head_stride,
			.block_tokens = BLOCK_TOKENS,
			.offset = l->run.offset,
			.n_tokens = c->n_tokens,
			.cos = c->device_cos,
			.sin = c->device_sin,
			.centre = basis,
			.weight = basis + w,
			.direction = basis + 2 * w,
			.out = trial_room(n * sizeof *l->wanted)};
	}
}

static void check_planes(const struct plane *const described[2], uint64_t *random)
{
	static struct plane both[2];
	struct layer layers[2 * ITEMS];
	struct statistics_item items[2 * ITEMS];
	struct chunk chunks[2 * CHUNKS];
	struct statistics_tokens_args args = {0};
	uint32_t grid[3];

	for (uint32_t p = 0; p < 2; p++) {
		const struct plane *d = described[p];

		both[p] = *d;
		for (uint32_t j = 0; j < d->rope_dim / 2; j++)
			both[p].inv_freq[j] = powf(10000, -2 * (float)j / (float)d->rope_dim);
		args.planes[p] = (struct statistics_plane){d->n_heads, d->dim, d->dtype, d->rope_kind,
			d->rope_offset, d->rope_dim, d->rope_scale};
		for (uint32_t c = 0; c < CHUNKS; c++)
			make_chunk(&chunks[p * CHUNKS + c], &both[p], random);
		for (uint32_t i = 0; i < ITEMS; i++) {
			const uint32_t at = p * ITEMS + i;

			make_layer(
				&layers[at], &both[p], &chunks[p * CHUNKS + i % CHUNKS], random, &items[at]);
			items[at].plane = p;
		}
	}
	args.items = trial_put(items, sizeof items, 0);
	statistics_grid(2 * ITEMS, TOKENS_MAX,
		both[0].n_heads > both[1].n_heads ? both[0].n_heads : both[1].n_heads, grid);
	trial_run(DEVICE_KERNEL_statistics_tokens, grid, STATISTICS_THREADS, 0, &args);
	for (uint32_t i = 0; i < 2 * ITEMS; i++) {
		const size_t n = items[i].n_tokens * both[items[i].plane].n_heads;
		struct token_statistic *got = grab(n, sizeof *got);

		trial_get(got, items[i].out, n * sizeof *got);
		for (size_t k = 0; k < n; k++)
			if (memcmp(&got[k], &layers[i].wanted[k], sizeof *got))
				fail_msg("plane of %u heads, item %u, %zu of %zu: %a %a %a, not %a %a %a",
					both[items[i].plane].n_heads, i, k, n, (double)got[k].norm,
					(double)got[k].distance, (double)got[k].dot,
					(double)layers[i].wanted[k].norm,
					(double)layers[i].wanted[k].distance,
					(double)layers[i].wanted[k].dot);
		free(got);
		free(layers[i].memory);
		free(layers[i].basis);
		free(layers[i].wanted);
	}
	for (uint32_t i = 0; i < 2 * CHUNKS; i++) {
		free(chunks[i].cos);
		free(chunks[i].sin);
	}
}

static void sums_are_the_hosts_bit_for_bit(void **state)
{
	const size_t n = sizeof planes / sizeof *planes;
	uint64_t random = seed;

	for (size_t i = 0; i < n; i++) {
		const struct plane *const both[2] = {&planes[i], &planes[(i + 1) % n]};

		check_planes(both, &random);
		trial_release(state);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(sums_are_the_hosts_bit_for_bit, trial_release),
	};

	int r = trial_begin(&seed);

	if (r)
		return r;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	trial_end();
	return r;
}
