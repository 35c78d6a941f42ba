/* The trellis quantiser and the rANS coder: every variant against the definitions, and against each other. */
#include <math.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/cpu/variant.h"
#include "kernels/levels.h"
#include "policy/levels-model.h"

enum { R_MAX = 90, T_MAX = 300, STRIDE = T_MAX + 3, GUARD = 16 };

static const size_t lengths[] = {1, 2, 15, 16, 17, 31, 32, 33, 100, 255, 256, 300};
static struct levels_coder coder;
static uint64_t random_state;

static double random_uniform(void)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return ((double)(random_state >> 12) + 0.5) * 0x1p-52;
}

static float random_gaussian(void)
{
	return (float)(sqrt(-2 * log(random_uniform())) * cos(6.283185307179586 * random_uniform()));
}

/* Components from the class at the top to the one at the bottom. */
static float deviation_of(size_t i, size_t r)
{
	return (float)exp2(9.0 - 9.6 * (double)i / (double)(r > 1 ? r - 1 : 1));
}

static void make_rows(struct levels_row *rows, float *c, size_t r, float step)
{
	for (size_t i = 0; i < r; i++) {
		rows[i] = levels_row(levels_class(deviation_of(i, r) * step, step));
		for (size_t t = 0; t < STRIDE; t++)
			c[i * STRIDE + t] = random_gaussian() * deviation_of(i, r) * step;
	}
}

struct result {
	int16_t codes[R_MAX * STRIDE + GUARD];
	float lost[STRIDE], kept[STRIDE];
	float back[R_MAX * STRIDE];
	uint8_t stream[R_MAX * STRIDE * 6 + 256];
	size_t len;
	int16_t decoded[R_MAX * STRIDE + GUARD];
};

static void result_make(struct result *x, const struct kernels *k, const float *c, size_t r, size_t n,
	const struct levels_row *rows, float step)
{
	static _Alignas(64) uint8_t work[R_MAX * 16 * 10 + 64];
	uint8_t states[T_MAX];

	memset(x, 0x5a, sizeof *x);
	for (size_t t = 0; t < n; t++)
		x->lost[t] = x->kept[t] = 0;
	assert_true(levels_work_bytes(r) <= sizeof work);
	k->quantise_levels(c, STRIDE, r, n, &coder, rows, step, x->codes, STRIDE, x->lost, x->kept, work);
	k->dequantise_levels(x->codes, STRIDE, r, n, &coder, rows, step, x->back, STRIDE);
	x->len = k->encode_levels(x->codes, STRIDE, r, n, &coder, rows, x->stream, levels_encoded_max(r, n));
	assert_true(x->len <= levels_encoded_max(r, n));
	assert_int_equal(
		k->decode_levels(x->stream, x->len, r, n, &coder, rows, x->decoded, STRIDE, states), 0);
}

/* Sets follow from the levels before; values are those of the definition; errors are those that were made;
 * what was coded comes back. */
static void result_check(
	const struct result *x, const float *c, size_t r, size_t n, const struct levels_row *rows, float step)
{
	for (size_t t = 0; t < n; t++) {
		double lost = 0, kept = 0;
		unsigned state = 0;

		for (size_t i = 0; i < r; i++) {
			const int16_t code = x->codes[i * STRIDE + t];
			const int level = levels_level(code);
			const unsigned set = levels_set(code);
			const float y = c[i * STRIDE + t], back = x->back[i * STRIDE + t];
			const float value =
				levels_magnitude(level, set, coder.bias[rows[i].table][set]) * step;

			assert_int_equal(set, state >> 1);
			state = levels_next(state, (unsigned)level & 1u);
			assert_true(back == (level < 0 ? -value : value));
			lost += ((double)y - (double)back) * ((double)y - (double)back);
			kept += (double)y * (double)y;
			assert_int_equal(x->decoded[i * STRIDE + t], code);
		}
		assert_true(fabs((double)x->lost[t] - lost) <= 1e-5 * lost + 1e-12 * kept);
		assert_true(fabs((double)x->kept[t] - kept) <= 1e-5 * kept);
	}
}

static void every_length_and_variant(void **state)
{
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	const size_t components[] = {1, 2, 7, R_MAX};
	struct result *first = malloc(sizeof *first), *x = malloc(sizeof *x);
	float *c = malloc(R_MAX * STRIDE * sizeof *c);
	(void)state;

	assert_true(first && x && c);
	for (size_t a = 0; a < sizeof components / sizeof *components; a++)
		for (size_t b = 0; b < sizeof lengths / sizeof *lengths; b++) {
			const size_t r = components[a], n = lengths[b];
			struct levels_row rows[R_MAX];
			const float step = 0.037f;

			make_rows(rows, c, r, step);
			result_make(first, variants[0], c, r, n, rows, step);
			result_check(first, c, r, n, rows, step);
			for (size_t v = 1; v < n_variants; v++) {
				result_make(x, variants[v], c, r, n, rows, step);
				assert_memory_equal(first, x, sizeof *x);
			}
		}
	free(c);
	free(x);
	free(first);
}

/* What the quantiser minimises, for one token. */
static double path_cost(
	const float *y, const int *levels, size_t r, const struct levels_row *rows, float step)
{
	unsigned state = 0;
	double cost = 0;

	for (size_t i = 0; i < r; i++) {
		const unsigned set = state >> 1;
		const struct levels_cost *price = &coder.cost[rows[i].table][set];
		const double v = abs(levels[i]) / exp2(rows[i].shift);
		const double value =
			(double)levels_magnitude(levels[i], set, coder.bias[rows[i].table][set]) *
			(levels[i] < 0 ? -1 : 1);
		const double d = (double)y[i] / (double)step - value;

		cost += d * d + (double)LEVELS_LAMBDA * rows[i].shift;
		cost += levels[i] ? ((double)price->bend * v + (double)price->slope) * v + (double)price->base
				  : (double)price->zero;
		state = levels_next(state, (unsigned)levels[i] & 1u);
	}
	return cost;
}

/* Over all paths with levels up to 5: none is cheaper than the one found, but by rounding. */
static void no_path_is_better(void **state)
{
	enum { R = 5, SPAN = 5 };
	static _Alignas(64) uint8_t work[R * 160 + 64];
	const struct kernels *k = kernels_cpu();
	struct levels_row rows[R];
	(void)state;

	for (int round = 0; round < 12; round++) {
		float y[R], lost = 0, kept = 0;
		int16_t codes[R];
		int levels[R], found[R];
		double best = INFINITY;

		for (size_t i = 0; i < R; i++) {
			const float deviation = 2.2f - 0.35f * (float)i;

			rows[i] = levels_row(levels_class(deviation, 1));
			do
				y[i] = random_gaussian() * deviation;
			while (fabsf(y[i]) > 2 * SPAN - 2);
		}
		k->quantise_levels(y, 1, R, 1, &coder, rows, 1, codes, 1, &lost, &kept, work);
		for (size_t i = 0; i < R; i++)
			found[i] = levels_level(codes[i]);
		for (long n = 0; n < 161051; n++) { /* 11^5 */
			long digits = n;

			for (size_t i = 0; i < R; i++, digits /= 2 * SPAN + 1)
				levels[i] = (int)(digits % (2 * SPAN + 1)) - SPAN;
			best = fmin(best, path_cost(y, levels, R, rows, 1));
		}
		assert_true(path_cost(y, found, R, rows, 1) <= best + 1e-4);
	}
}

/* At equal error a scalar quantiser with an ideal entropy coder takes more bits: the point of the trellis. */
static void trellis_beats_scalar(void **state)
{
	enum { R = 64, N = 256 };
	static _Alignas(64) uint8_t work[R * 160 + 64];
	static float c[R * N], lost[N], kept[N];
	static int16_t codes[R * N];
	static uint8_t stream[R * N * 6 + 256];
	const struct kernels *k = kernels_cpu();
	struct levels_row rows[R];
	static struct levels_coder fitted;
	static struct levels_counts counts;
	struct levels_model model;
	double noise = 0, bits, gain;
	(void)state;

	for (size_t i = 0; i < R; i++) {
		rows[i] = levels_row(levels_class(3, 1));
		for (size_t t = 0; t < N; t++)
			c[i * N + t] = 3 * random_gaussian();
	}
	/* Tables for just this source. */
	k->quantise_levels(c, N, R, N, &coder, rows, 1, codes, N, lost, kept, work);
	levels_count(c, N, codes, N, R, N, &coder, rows, 1, &counts);
	levels_model_default(&model);
	levels_model_update(&model, &counts);
	levels_coder_init(&fitted, &model.tables);
	memset(lost, 0, sizeof lost);
	k->quantise_levels(c, N, R, N, &fitted, rows, 1, codes, N, lost, kept, work);
	for (size_t t = 0; t < N; t++)
		noise += (double)lost[t];
	bits = 8.0 * (double)(k->encode_levels(codes, N, R, N, &fitted, rows, stream, sizeof stream) - 128) /
	       (R * N);
	/* Entropy-coded scalar quantisation at high rate lies 1.53 dB off the bound (Gish and Pierce, 1968).
	 */
	gain = 1.53 - 10 * log10(noise / (R * N) / (9 * exp2(-2 * bits)));
	printf("%.3f bits, %.2f dB nearer to the bound than scalar quantisation at high rate\n", bits, gain);
	assert_true(gain > 0.6);
}

/* Out of a table's range, and out of the quantiser's. */
static void large_values(void **state)
{
	static _Alignas(64) uint8_t work[4 * 160 + 64];
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	const float values[] = {40, -77, 1000, -20000, 32000, -32000, 40000, 3e38f};
	enum { N = 8 };
	(void)state;

	for (size_t v = 0; v < n_variants; v++)
		for (int class = 0; class < 50; class += 7) {
			const struct kernels *k = variants[v];
			struct levels_row rows[2] = {levels_row(class), levels_row(class)};
			float c[2 * N], lost[N] = {0}, kept[N] = {0}, back[2 * N];
			int16_t codes[2 * N], decoded[2 * N];
			uint8_t stream[256], states[N];
			size_t len;

			for (int t = 0; t < N; t++) {
				c[t] = values[t];
				c[N + t] = -values[t] / 3;
			}
			k->quantise_levels(c, N, 2, N, &coder, rows, 1, codes, N, lost, kept, work);
			k->dequantise_levels(codes, N, 2, N, &coder, rows, 1, back, N);
			len = k->encode_levels(codes, N, 2, N, &coder, rows, stream, sizeof stream);
			assert_int_equal(
				k->decode_levels(stream, len, 2, N, &coder, rows, decoded, N, states), 0);
			assert_memory_equal(codes, decoded, sizeof codes);
			for (int t = 0; t < N; t++) {
				const bool reached = fabsf(values[t]) <= 2 * LEVELS_MAX - 4;

				assert_int_equal(isfinite(lost[t]) != 0, reached);
				if (reached)
					assert_true(fabsf(back[t] - values[t]) < 6);
			}
		}
}

/* A stream that is not one is refused, and never read past its end; whatever comes out are levels. */
static void damage(void **state)
{
	enum { R = 20, N = 40 };
	static _Alignas(64) uint8_t work[R * 160 + 64];
	const struct kernels *k = kernels_cpu();
	static float c[R * STRIDE], lost[STRIDE], kept[STRIDE];
	static int16_t codes[R * STRIDE];
	struct levels_row rows[R_MAX];
	uint8_t stream[R * N * 6 + 128], states[N], *exact;
	size_t len, n_refused = 0, n_tried = 0;
	(void)state;

	/* No component is so wide that low bits go around the tables: any such bits are a message. */
	make_rows(rows, c, R, 1);
	for (size_t i = 0; i < R; i++) {
		rows[i] = levels_row(LEVELS_WIDE_CLASS / 2);
		for (size_t t = 0; t < N; t++)
			c[i * STRIDE + t] = random_gaussian() * 2.8f;
	}
	k->quantise_levels(c, STRIDE, R, N, &coder, rows, 1, codes, STRIDE, lost, kept, work);
	len = k->encode_levels(codes, STRIDE, R, N, &coder, rows, stream, sizeof stream);
	for (size_t cut = 0; cut < len; cut += cut < 140 ? 1 : 7) {
		exact = malloc(cut ? cut : 1); /* so that reading past it shows */
		memcpy(exact, stream, cut);
		assert_int_not_equal(
			k->decode_levels(exact, cut, R, N, &coder, rows, codes, STRIDE, states), 0);
		free(exact);
	}
	for (size_t at = 0; at < len; at += 3, n_tried++) {
		exact = malloc(len);
		memcpy(exact, stream, len);
		exact[at] ^= 0x10;
		n_refused += k->decode_levels(exact, len, R, N, &coder, rows, codes, STRIDE, states) != 0;
		for (size_t i = 0; i < R; i++)
			for (size_t t = 0; t < N; t++)
				assert_true(abs(levels_level(codes[i * STRIDE + t])) <= LEVELS_MAX);
		free(exact);
	}
	/* Frames have checksums; that lanes must end where they began catches nearly all even so. */
	assert_true(n_refused >= n_tried * 9 / 10);
}

int main(int argc, char **argv)
{
	struct levels_model model;

	random_state = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	print_message("seed %llu\n", (unsigned long long)random_state);
	levels_model_default(&model);
	levels_coder_init(&coder, &model.tables);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_length_and_variant),
		cmocka_unit_test(no_path_is_better),
		cmocka_unit_test(trellis_beats_scalar),
		cmocka_unit_test(large_values),
		cmocka_unit_test(damage),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
