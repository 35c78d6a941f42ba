/* Paged memory of every layout, gathered and scattered by every variant, against sums in double. */
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

enum order { NHD, HND, FUSED, PADDED };
enum { N_BLOCKS = 40, SPARE = 0xa5 };

struct layout {
	const char *name;
	enum order order;
	uint32_t block_tokens, offset, n_tokens;
	uint32_t heads, dim, dtype;
	uint32_t rope_kind, rope_offset, rope_dim;
	float rope_scale;
	int with_mean;
};

static const struct layout layouts[] = {
	{"llama, NHD", NHD, 16, 0, 256, 8, 128, DTYPE_BF16, ROPE_HALF, 0, 128, 1, 1},
	{"llama, HND", HND, 16, 5, 200, 4, 64, DTYPE_F16, ROPE_HALF, 0, 64, 1, 1},
	{"values, NHD", NHD, 32, 31, 256, 2, 64, DTYPE_F16, ROPE_NONE, 0, 0, 1, 1},
	{"values, HND", HND, 256, 100, 180, 3, 80, DTYPE_BF16, ROPE_NONE, 0, 0, 1, 0},
	{"fused k and v", FUSED, 16, 3, 100, 2, 64, DTYPE_F16, ROPE_HALF, 0, 64, 1, 0},
	{"interleaved", NHD, 16, 1, 100, 2, 64, DTYPE_F16, ROPE_INTERLEAVED, 0, 64, 1, 1},
	{"interleaved f32", HND, 32, 7, 60, 2, 64, DTYPE_F32, ROPE_INTERLEAVED, 0, 64, 1, 1},
	{"latent, rotated end", NHD, 64, 9, 90, 1, 576, DTYPE_BF16, ROPE_INTERLEAVED, 512, 64, 1, 1},
	{"partial half", NHD, 16, 15, 64, 3, 80, DTYPE_F16, ROPE_HALF, 0, 20, 1, 1},
	{"partial in the middle", PADDED, 16, 2, 64, 3, 70, DTYPE_BF16, ROPE_INTERLEAVED, 7, 22, 1, 1},
	{"scaled", NHD, 16, 0, 64, 2, 128, DTYPE_F16, ROPE_HALF, 0, 128, 1.3466f, 1},
	{"odd width", PADDED, 1, 0, 40, 1, 1, DTYPE_F16, ROPE_NONE, 0, 0, 1, 1},
	{"plain f32", PADDED, 16, 13, 50, 5, 33, DTYPE_F32, ROPE_NONE, 0, 0, 1, 0},
	{"scaled f32", NHD, 16, 13, 50, 2, 32, DTYPE_F32, ROPE_HALF, 8, 16, 0.7f, 0},
};

/* One plane of one layer in memory, and everything a call needs. */
struct bench {
	const struct layout *layout;
	struct plane plane;
	struct kv_pages pages;
	struct kv_run run;
	uint32_t blocks[N_BLOCKS * 16];
	size_t es, width, bytes;
	uint8_t *memory;
	uint16_t tokens[256];
	size_t n;
	float *cos_, *sin_, *mean, *scale,
		*inverse; /* the last two, like the mean, for layouts that have one */
	struct rope_table rope;
};

static uint64_t random_state;

static uint32_t random_u32(void)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(random_state >> 32);
}

/* From -4 to 4. */
static float random_value(void)
{
	const float u = (float)(random_u32() >> 8) * 0x1p-24f - 0.5f;
	return 12.0f * u * u * u + 5.0f * u;
}

static float narrow_load(uint32_t dtype, const uint8_t *p)
{
	uint16_t h;
	float x;
	memcpy(&h, p, 2);
	if (dtype == DTYPE_F32)
		memcpy(&x, p, 4);
	else
		x = dtype == DTYPE_F16 ? f16_to_f32(h) : bf16_to_f32(h);
	return x;
}

static uint8_t *element_at(const struct bench *b, uint8_t *memory, size_t token, size_t h, size_t d)
{
	const size_t i = b->run.offset + token;
	return memory + (b->pages.base - b->memory) +
	       b->run.blocks[i / b->run.block_tokens] * b->pages.block_stride +
	       i % b->run.block_tokens * b->pages.token_stride + h * b->pages.head_stride + d * b->es;
}

static void bench_fill(struct bench *b)
{
	for (size_t i = 0; i < b->layout->n_tokens; i++)
		for (size_t h = 0; h < b->plane.n_heads; h++)
			for (size_t d = 0; d < b->plane.dim; d++) {
				const float x = random_value();
				uint8_t *p = element_at(b, b->memory, i, h, d);
				uint16_t half =
					b->plane.dtype == DTYPE_F16 ? f16_from_f32(x) : bf16_from_f32(x);
				memcpy(p, b->plane.dtype == DTYPE_F32 ? (void *)&x : (void *)&half, b->es);
			}
}

static void bench_init(struct bench *b, const struct layout *l)
{
	memset(b, 0, sizeof *b);
	b->layout = l;
	b->plane = (struct plane){.n_heads = l->heads,
		.dim = l->dim,
		.dtype = l->dtype,
		.rope_kind = l->rope_kind,
		.rope_offset = l->rope_offset,
		.rope_dim = l->rope_dim,
		.rope_scale = l->rope_scale};
	for (uint32_t j = 0; j < l->rope_dim / 2; j++)
		b->plane.inv_freq[j] = (float)pow(10000.0, -2.0 * j / l->rope_dim);
	b->es = dtype_bytes(l->dtype);
	b->width = plane_width(&b->plane);
	const size_t head = l->dim * b->es + (l->order == PADDED ? b->es : 0);
	const size_t token = head * (l->order == HND ? 1 : l->heads) + (l->order == PADDED ? 6 : 0);
	const size_t block = l->order == HND ? token * l->block_tokens * l->heads : token * l->block_tokens;
	b->pages.head_stride = l->order == HND ? token * l->block_tokens : head;
	b->pages.token_stride = token;
	b->pages.block_stride = l->order == FUSED ? 2 * block : block;
	b->bytes = N_BLOCKS * b->pages.block_stride;
	b->memory = malloc(b->bytes);
	assert_non_null(b->memory);
	memset(b->memory, SPARE, b->bytes);
	b->pages.base = b->memory + (l->order == FUSED ? block : 0);
	/* Blocks in no order; 7 is prime to their number. */
	for (uint32_t i = 0; i < N_BLOCKS; i++)
		b->blocks[i] = (i * 7 + 3) % N_BLOCKS;
	b->run = (struct kv_run){b->blocks, l->block_tokens, l->offset};
	assert_true((l->offset + l->n_tokens - 1) / l->block_tokens < N_BLOCKS);
	/* Every fifth token is left out, as a sink would be. */
	for (uint32_t i = 0; i < l->n_tokens; i++)
		if (i % 5 != 3)
			b->tokens[b->n++] = (uint16_t)i;
	const size_t half = l->rope_dim / 2;
	uint64_t positions[256];
	for (size_t i = 0; i < b->n; i++)
		positions[i] = 100000 + b->tokens[i];
	b->cos_ = malloc(b->n * half * 4 + 4);
	b->sin_ = malloc(b->n * half * 4 + 4);
	b->mean = malloc(b->width * 4);
	b->scale = malloc(b->width * 4);
	b->inverse = malloc(b->width * 4);
	assert_true(b->cos_ && b->sin_ && b->mean && b->scale && b->inverse);
	kernels_generic.rope_fill(&b->plane, positions, b->n, b->cos_, b->sin_);
	b->rope = (struct rope_table){b->cos_, b->sin_};
	for (size_t d = 0; d < b->width; d++) {
		b->mean[d] = random_value();
		b->scale[d] = 0.7f + 0.3f * (float)(d % 5);
		b->inverse[d] = 1.0f / b->scale[d];
	}
	bench_fill(b);
}

static void bench_fini(struct bench *b)
{
	free(b->memory);
	free(b->cos_);
	free(b->sin_);
	free(b->mean);
	free(b->scale);
	free(b->inverse);
}

/* The features of d's pair and its number, or 0 where d is not rotated. */
static int pair_of(const struct plane *plane, size_t d, size_t *a, size_t *b, size_t *j)
{
	const size_t half = plane->rope_dim / 2;
	if (plane->rope_kind == ROPE_NONE || d < plane->rope_offset || d >= plane->rope_offset + 2 * half)
		return 0;
	const size_t at = d - plane->rope_offset;
	*j = plane->rope_kind == ROPE_HALF ? at % half : at / 2;
	*a = plane->rope_offset + (plane->rope_kind == ROPE_HALF ? *j : 2 * *j);
	*b = plane->rope_kind == ROPE_HALF ? *a + half : *a + 1;
	return 1;
}

/* What gather should give, and how far f32 may be from it: each of at most seven roundings errs by 2^-24 of
 * the terms' magnitudes. */
static double gather_expected(const struct bench *b, size_t i, size_t h, size_t d, double *bound)
{
	const size_t half = b->plane.rope_dim / 2;
	const double mean = b->layout->with_mean ? (double)b->mean[h * b->plane.dim + d] : 0.0;
	size_t first, second, j;
	double x, size;
	if (pair_of(&b->plane, d, &first, &second, &j)) {
		const double u =
			(double)narrow_load(b->plane.dtype, element_at(b, b->memory, b->tokens[i], h, first));
		const double v = (double)narrow_load(
			b->plane.dtype, element_at(b, b->memory, b->tokens[i], h, second));
		const double c = (double)b->cos_[i * half + j];
		const double s = (double)b->sin_[i * half + j];
		const double square = (double)b->plane.rope_scale * (double)b->plane.rope_scale;
		x = d == first ? (u * c + v * s) / square : (v * c - u * s) / square;
		size = (fabs(u) + fabs(v)) * (double)b->plane.rope_scale / square;
	} else {
		x = (double)narrow_load(b->plane.dtype, element_at(b, b->memory, b->tokens[i], h, d));
		size = 0;
	}
	const double scale = b->layout->with_mean ? (double)b->scale[h * b->plane.dim + d] : 1.0;
	*bound = 0x1p-24 * (6 * size + 2 * fabs(x - mean)) * scale;
	return (x - mean) * scale;
}

static void gather_check(const struct bench *b, const float *x, size_t stride)
{
	for (size_t i = 0; i < b->n; i++)
		for (size_t h = 0; h < b->plane.n_heads; h++)
			for (size_t d = 0; d < b->plane.dim; d++) {
				double bound;
				const double expected = gather_expected(b, i, h, d, &bound);
				const double got = (double)x[i * stride + h * b->plane.dim + d];
				if (!(fabs(got - expected) <= bound))
					fail_msg("%s: token %zu head %zu feature %zu: %.9g, not %.9g",
						b->layout->name, i, h, d, got, expected);
			}
}

/* Half a step of the element type at x. */
static double half_step(uint32_t dtype, double x)
{
	const int digits = dtype == DTYPE_F16 ? 11 : dtype == DTYPE_BF16 ? 8 : 24;
	const int lowest = dtype == DTYPE_F16 ? -24 : -149;
	int exponent;
	frexp(x, &exponent);
	return ldexp(0.5, exponent - digits > lowest ? exponent - digits : lowest);
}

/* back holds what scatter wrote over SPARE bytes: the source's values again (rotated and turned back in f32,
 * then rounded), and nothing outside the chosen tokens. */
static void scatter_check(const struct bench *b, uint8_t *back)
{
	const int exact = b->plane.rope_kind == ROPE_NONE && !b->layout->with_mean;
	uint8_t *touched = calloc(1, b->bytes);
	assert_non_null(touched);
	for (size_t i = 0; i < b->n; i++)
		for (size_t h = 0; h < b->plane.n_heads; h++)
			for (size_t d = 0; d < b->plane.dim; d++) {
				const size_t t = b->tokens[i];
				const uint8_t *from = element_at(b, b->memory, t, h, d);
				const uint8_t *to = element_at(b, back, t, h, d);
				memset(touched + (to - back), 1, b->es);
				const double wanted = (double)narrow_load(b->plane.dtype, from);
				const double got = (double)narrow_load(b->plane.dtype, to);
				if (exact) {
					assert_memory_equal(from, to, b->es);
					continue;
				}
				/* Values and means are under 4 and the scales near 1: a dozen roundings of
				 * pairs, each under 2^-24 * 16. */
				const double bound = 12 * 16 * 0x1p-24 + half_step(b->plane.dtype, wanted);
				if (!(fabs(got - wanted) <= bound))
					fail_msg("%s: token %zu head %zu feature %zu: %.9g came back as %.9g",
						b->layout->name, t, h, d, wanted, got);
			}
	for (size_t k = 0; k < b->bytes; k++)
		assert_true(touched[k] || back[k] == SPARE);
	free(touched);
}

static void every_layout_is_gathered_and_scattered(void **state)
{
	(void)state;
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	for (size_t k = 0; k < sizeof layouts / sizeof *layouts; k++) {
		struct bench b;
		bench_init(&b, &layouts[k]);
		const size_t stride = b.width + 3;
		const struct rope_table *rope = b.plane.rope_kind == ROPE_NONE ? NULL : &b.rope;
		const float *mean = b.layout->with_mean ? b.mean : NULL;
		const float *scale = b.layout->with_mean ? b.scale : NULL;
		const float *inverse = b.layout->with_mean ? b.inverse : NULL;
		float *first = calloc(b.n * stride, sizeof *first);
		float *x = calloc(b.n * stride, sizeof *x);
		uint8_t *first_back = malloc(b.bytes);
		uint8_t *back = malloc(b.bytes);
		assert_true(first && x && first_back && back);
		for (size_t v = 0; v < n_variants; v++) {
			const struct kernels *kernels = variants[v];
			memset(back, SPARE, b.bytes);
			kernels->gather(
				&b.plane, &b.pages, &b.run, b.tokens, b.n, rope, mean, scale, x, stride);
			struct kv_pages target = b.pages;
			target.base = back + (b.pages.base - b.memory);
			kernels->scatter(
				&b.plane, &target, &b.run, b.tokens, b.n, rope, mean, inverse, x, stride);
			if (v == 0) {
				gather_check(&b, x, stride);
				scatter_check(&b, back);
				memcpy(first, x, b.n * stride * sizeof *x);
				memcpy(first_back, back, b.bytes);
			}
			/* Every variant gives the same bits; the padding of a row stays as it was. */
			assert_memory_equal(first, x, b.n * stride * sizeof *x);
			assert_memory_equal(first_back, back, b.bytes);
		}
		free(first);
		free(x);
		free(first_back);
		free(back);
		bench_fini(&b);
	}
}

static void raw_tokens_are_copied_as_they_lie(void **state)
{
	(void)state;
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	for (size_t k = 0; k < sizeof layouts / sizeof *layouts; k++) {
		struct bench b;
		bench_init(&b, &layouts[k]);
		uint8_t *raw = malloc(b.n * b.width * b.es);
		uint8_t *back = malloc(b.bytes);
		assert_true(raw && back);
		for (size_t v = 0; v < n_variants; v++) {
			memset(back, SPARE, b.bytes);
			variants[v]->gather_raw(&b.plane, &b.pages, &b.run, b.tokens, b.n, raw);
			struct kv_pages target = b.pages;
			target.base = back + (b.pages.base - b.memory);
			variants[v]->scatter_raw(&b.plane, &target, &b.run, b.tokens, b.n, raw);
			const uint8_t *p = raw;
			size_t spare = 0;
			for (size_t i = 0; i < b.n; i++)
				for (size_t h = 0; h < b.plane.n_heads; h++)
					for (size_t d = 0; d < b.plane.dim; d++, p += b.es) {
						const size_t t = b.tokens[i];
						assert_memory_equal(
							p, element_at(&b, b.memory, t, h, d), b.es);
						assert_memory_equal(p, element_at(&b, back, t, h, d), b.es);
					}
			for (size_t i = 0; i < b.bytes; i++)
				spare += back[i] == SPARE;
			assert_true(spare >= b.bytes - b.n * b.width * b.es);
		}
		free(raw);
		free(back);
		bench_fini(&b);
	}
}

/* All 65536 bit patterns of either narrow type, a block of one token a head: finite ones come back bit for
 * bit, infinities as the largest finite, NaNs as NaNs, alike in every variant. */
static void every_element_survives(void **state)
{
	(void)state;
	enum { DIM = 4096, HEADS = 16 };
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	uint16_t *memory = malloc(65536 * 2);
	uint16_t *back = malloc(65536 * 2);
	float *x = malloc(65536 * 4);
	assert_true(memory && back && x);
	for (uint32_t i = 0; i < 65536; i++)
		memory[i] = (uint16_t)i;
	const uint32_t block = 0;
	const uint16_t token = 0;
	const struct kv_run run = {&block, 1, 0};
	for (uint32_t dtype = DTYPE_F16; dtype <= DTYPE_BF16; dtype++) {
		const struct plane plane = {.n_heads = HEADS, .dim = DIM, .dtype = dtype};
		struct kv_pages pages = {(uint8_t *)memory, 65536 * 2, 65536 * 2, DIM * 2};
		struct kv_pages target = {(uint8_t *)back, 65536 * 2, 65536 * 2, DIM * 2};
		for (size_t v = 0; v < n_variants; v++) {
			variants[v]->gather(&plane, &pages, &run, &token, 1, NULL, NULL, NULL, x, 65536);
			variants[v]->scatter(&plane, &target, &run, &token, 1, NULL, NULL, NULL, x, 65536);
			for (uint32_t i = 0; i < 65536; i++) {
				const uint16_t h = (uint16_t)i;
				const float wide = dtype == DTYPE_F16 ? f16_to_f32(h) : bf16_to_f32(h);
				const uint16_t narrow =
					dtype == DTYPE_F16 ? f16_from_f32(wide) : bf16_from_f32(wide);
				assert_memory_equal(&x[i], &wide, 4);
				assert_int_equal(back[i], narrow);
			}
		}
	}
	free(memory);
	free(back);
	free(x);
}

/* Scatter of f32 values that lie on, just below and just above the middle between two narrow ones, at every
 * exponent and either sign, NaNs among them: formula.h, bit for bit. */
static void every_tie_is_rounded_as_by_formula(void **state)
{
	(void)state;
	enum { N = 65536 };
	static const uint32_t lows[] = {
		0x7fff, 0x8000, 0x8001, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001};
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	uint16_t *back = malloc(N * 2);
	float *x = malloc(N * 4);
	assert_true(back && x);
	const uint32_t block = 0;
	const uint16_t token = 0;
	const struct kv_run run = {&block, 1, 0};
	const struct kv_pages target = {(uint8_t *)back, N * 2, N * 2, 4096 * 2};
	for (size_t k = 0; k < sizeof lows / sizeof *lows; k++) {
		for (uint32_t i = 0; i < N; i++)
			x[i] = f32_from_bits(i << 16 | lows[k]);
		for (uint32_t dtype = DTYPE_F16; dtype <= DTYPE_BF16; dtype++) {
			const struct plane plane = {.n_heads = 16, .dim = 4096, .dtype = dtype};
			for (size_t v = 0; v < n_variants; v++) {
				variants[v]->scatter(
					&plane, &target, &run, &token, 1, NULL, NULL, NULL, x, N);
				for (uint32_t i = 0; i < N; i++)
					assert_int_equal(back[i], dtype == DTYPE_F16 ? f16_from_f32(x[i])
										     : bf16_from_f32(x[i]));
			}
		}
	}
	free(back);
	free(x);
}

int main(int argc, char **argv)
{
	random_state = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	print_message("seed %llu\n", (unsigned long long)random_state);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_layout_is_gathered_and_scattered),
		cmocka_unit_test(raw_tokens_are_copied_as_they_lie),
		cmocka_unit_test(every_element_survives),
		cmocka_unit_test(every_tie_is_rounded_as_by_formula),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
