/* Token statistics of every variant: the same bits, and those of the definition summed in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/cpu/variant.h"
#include "kernels/formula.h"

enum { TOKENS = 37, BLOCK = 16, BLOCKS = 4 };

static const struct plane planes[] = {
	{.n_heads = 2,
		.dim = 64,
		.dtype = DTYPE_F16,
		.rope_kind = ROPE_HALF,
		.rope_dim = 64,
		.rope_scale = 1},
	{.n_heads = 8,
		.dim = 128,
		.dtype = DTYPE_BF16,
		.rope_kind = ROPE_HALF,
		.rope_dim = 128,
		.rope_scale = 1},
	{.n_heads = 2, .dim = 64, .dtype = DTYPE_F16, .rope_scale = 1},
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
	{.n_heads = 5, .dim = 33, .dtype = DTYPE_F32, .rope_scale = 1},
	{.n_heads = 1, .dim = 1, .dtype = DTYPE_F16, .rope_scale = 1},
};

static uint64_t random_state = 7;

static float random_value(void)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (float)(int32_t)(random_state >> 32) * 0x1p-29f;
}

static void fill(const struct plane *plane, uint8_t *memory, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const float x = random_value();
		const uint16_t half = plane->dtype == DTYPE_F16 ? f16_from_f32(x) : bf16_from_f32(x);

		memcpy(memory + i * dtype_bytes(plane->dtype),
			plane->dtype == DTYPE_F32 ? (const void *)&x : &half, dtype_bytes(plane->dtype));
	}
}

/* Each sum against the same terms in double; f32 with sixteen partial sums errs by less than 2^-18 of the
 * terms' magnitudes for up to 576 features. */
static void compare(const struct plane *plane, const float *x, const struct statistics_basis *basis,
	const struct token_statistic *got)
{
	for (size_t i = 0; i < (size_t)TOKENS * plane->n_heads; i++) {
		const size_t head = i % plane->n_heads * plane->dim;
		double sum[3] = {0}, size[3] = {0};
		const double values[3] = {(double)got[i].norm, (double)got[i].distance, (double)got[i].dot};

		for (size_t d = 0; d < plane->dim; d++) {
			const double v = (double)x[i * plane->dim + d],
				     c = v - (double)basis->centre[head + d];
			const double terms[3] = {v * v, (double)basis->weight[head + d] * c * c,
				(double)basis->direction[head + d] * c};

			for (int k = 0; k < 3; k++) {
				sum[k] += terms[k];
				size[k] += fabs(terms[k]);
			}
		}
		for (int k = 0; k < 3; k++)
			if (!(fabs(values[k] - sum[k]) <= 0x1p-18 * size[k] + 1e-30))
				fail_msg("token and head %zu, sum %d: %g, not %g", i, k, values[k], sum[k]);
	}
}

static void check_plane(const struct plane *described)
{
	static float table[2][TOKENS * GEOMETRY_ROPE_MAX / 2];
	const uint32_t blocks[BLOCKS] = {2, 0, 3, 1};
	const struct kv_run run = {.blocks = blocks, .block_tokens = BLOCK, .offset = 5};
	const struct rope_table rope = {table[0], table[1]};
	struct plane plane = *described;
	const struct rope_table *rotation = plane.rope_kind == ROPE_NONE ? NULL : &rope;
	const size_t w = plane_width(&plane), n = TOKENS * plane.n_heads, es = dtype_bytes(plane.dtype);
	uint8_t *memory = malloc(BLOCKS * BLOCK * w * es);
	const struct kv_pages pages = {memory, BLOCK * w * es, w * es, plane.dim * es};
	float *basis_values = malloc(3 * w * sizeof(float)), *x = malloc(TOKENS * w * sizeof *x);
	struct token_statistic *first = calloc(n, sizeof *first), *out = calloc(n, sizeof *out);
	const struct statistics_basis basis = {basis_values, basis_values + w, basis_values + 2 * w};
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	uint64_t positions[TOKENS];
	uint16_t tokens[TOKENS];

	assert_true(memory && basis_values && x && first && out);
	for (uint32_t j = 0; j < plane.rope_dim / 2; j++)
		plane.inv_freq[j] = powf(10000, -2 * (float)j / (float)plane.rope_dim);
	for (uint16_t i = 0; i < TOKENS; i++) {
		tokens[i] = i;
		positions[i] = 1000u + i;
	}
	if (rotation)
		kernels_generic.rope_fill(&plane, positions, TOKENS, table[0], table[1]);
	fill(&plane, memory, BLOCKS * BLOCK * w);
	for (size_t i = 0; i < 3 * w; i++)
		basis_values[i] = random_value();
	kernels_generic.gather(&plane, &pages, &run, tokens, TOKENS, rotation, NULL, NULL, x, w);
	kernels_generic.statistics(&plane, &pages, &run, TOKENS, rotation, &basis, first);
	compare(&plane, x, &basis, first);
	for (size_t v = 1; v < n_variants; v++) {
		variants[v]->statistics(&plane, &pages, &run, TOKENS, rotation, &basis, out);
		if (memcmp(out, first, n * sizeof *out))
			fail_msg("%s gives other bits than generic", variants[v]->name);
	}
	free(memory);
	free(basis_values);
	free(x);
	free(first);
	free(out);
}

static void every_variant_gives_the_same_sums(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof planes / sizeof *planes; i++)
		check_plane(&planes[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(every_variant_gives_the_same_sums)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
