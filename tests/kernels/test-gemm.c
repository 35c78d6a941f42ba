/* Products, energies, transposition and the rotation's table of every variant, against sums in double. */
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

/* Around every block size of the products, and the shapes of real layer groups. */
static const struct {
	size_t r, p, n_tokens;
} shapes[] = {{1, 1, 1}, {1, 5, 3}, {3, 1, 2}, {7, 33, 5}, {14, 32, 32}, {15, 64, 31}, {13, 65, 33},
	{48, 300, 17}, {40, 30, 600}, {29, 513, 100}, {300, 640, 100}, {130, 257, 253}, {5, 1100, 40},
	{600, 640, 9}};

enum { PAD = 3 };

static uint64_t random_state;

static float random_value(void)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (float)(random_state >> 40) * 0x1p-23f - 1.0f;
}

/* n values, and PAD spare ones after every row of len that no kernel may touch. */
static float *rows_new(size_t rows, size_t len, float spare)
{
	float *x = malloc(rows * (len + PAD) * sizeof *x);
	assert_non_null(x);
	for (size_t i = 0; i < rows; i++)
		for (size_t d = 0; d < len + PAD; d++)
			x[i * (len + PAD) + d] = d < len ? random_value() : spare;
	return x;
}

/* A sum of n products in f32 in any order errs by at most n * 2^-24 of the sum of magnitudes (Higham,
 * Accuracy and Stability of Numerical Algorithms, 3.1), to first order. */
static void check(double got, double expected, double magnitude, size_t n)
{
	if (!(fabs(got - expected) <= (double)(n + 1) * 0x1p-24 * magnitude))
		fail_msg("%.9g, not %.9g (%zu terms)", got, expected, n);
}

static void products_are_those_of_the_book(void **state)
{
	(void)state;
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	for (size_t v = 0; v < n_variants; v++)
		for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
			const size_t r = shapes[k].r, p = shapes[k].p, n = shapes[k].n_tokens;
			float *basis = malloc(r * p * sizeof *basis);
			float *x = rows_new(n, p, NAN);
			float *c = rows_new(r, n, 7.0f);
			float *back = rows_new(n, p, 7.0f);
			assert_non_null(basis);
			for (size_t i = 0; i < r * p; i++)
				basis[i] = random_value();
			/* What the output held before must not matter. */
			c[0] = NAN;
			back[0] = NAN;
			variants[v]->project(basis, r, p, x, p + PAD, n, c, n + PAD);
			variants[v]->reconstruct(basis, r, p, c, n + PAD, n, back, p + PAD);
			/* Every element of small products, a sample of large ones. */
			const size_t step = r * p * n > 1000000 ? 7 : 1;
			for (size_t i = 0; i < r; i += step)
				for (size_t t = 0; t < n; t += step) {
					double sum = 0, size = 0;
					for (size_t d = 0; d < p; d++) {
						const double term = (double)basis[i * p + d] *
								    (double)x[t * (p + PAD) + d];
						sum += term;
						size += fabs(term);
					}
					check((double)c[i * (n + PAD) + t], sum, size, p);
				}
			for (size_t t = 0; t < n; t += step)
				for (size_t d = 0; d < p; d += step) {
					double sum = 0, size = 0;
					for (size_t i = 0; i < r; i++) {
						const double term = (double)basis[i * p + d] *
								    (double)c[i * (n + PAD) + t];
						sum += term;
						size += fabs(term);
					}
					check((double)back[t * (p + PAD) + d], sum, size, r);
				}
			for (size_t s = 0; s < PAD; s++) {
				for (size_t i = 0; i < r; i++)
					assert_true(c[i * (n + PAD) + n + s] == 7.0f);
				for (size_t t = 0; t < n; t++)
					assert_true(back[t * (p + PAD) + p + s] == 7.0f);
			}
			free(basis);
			free(x);
			free(c);
			free(back);
		}
}

/* One token that is not finite leaves the others alone: the codec takes it out afterwards. */
static void tokens_do_not_mix(void **state)
{
	(void)state;
	enum { R = 20, P = 70, N = 37, BAD = 18 };
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	for (size_t v = 0; v < n_variants; v++) {
		float *basis = rows_new(1, R * P, 0);
		float *x = rows_new(N, P, 0);
		float *c = rows_new(R, N, 0);
		x[BAD * (P + PAD) + 5] = INFINITY;
		x[BAD * (P + PAD) + 6] = NAN;
		variants[v]->project(basis, R, P, x, P + PAD, N, c, N + PAD);
		for (size_t i = 0; i < R; i++)
			for (size_t t = 0; t < N; t++)
				assert_int_equal(!!isfinite(c[i * (N + PAD) + t]), t != BAD);
		free(basis);
		free(x);
		free(c);
	}
}

static void energies_and_transposes(void **state)
{
	(void)state;
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	for (size_t v = 0; v < n_variants; v++)
		for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
			const size_t p = shapes[k].p, n = shapes[k].n_tokens;
			float *x = rows_new(n, p, NAN);
			float *turned = rows_new(p, n, 7.0f);
			float *energy = malloc(n * sizeof *energy);
			assert_non_null(energy);
			variants[v]->token_energy(x, p + PAD, p, n, energy);
			variants[v]->transpose(x, p + PAD, n, p, turned, n + PAD);
			for (size_t t = 0; t < n; t++) {
				double sum = 0;
				for (size_t d = 0; d < p; d++) {
					sum += (double)x[t * (p + PAD) + d] * (double)x[t * (p + PAD) + d];
					assert_true(turned[d * (n + PAD) + t] == x[t * (p + PAD) + d]);
				}
				check((double)energy[t], sum, sum, p);
			}
			for (size_t d = 0; d < p; d++)
				assert_true(turned[d * (n + PAD) + n] == 7.0f);
			free(x);
			free(turned);
			free(energy);
		}
}

/* To a unit in f32's last place at any position a model has, and at some no model has yet. */
static void angles_are_exact_to_f32(void **state)
{
	(void)state;
	enum { N = 60, HALF = 35 };
	const struct kernels *variants[3];
	const size_t n_variants = kernels_variants(variants);
	struct plane plane = {.rope_dim = 2 * HALF, .rope_scale = 1.1386f};
	for (int j = 0; j < HALF; j++)
		plane.inv_freq[j] = (float)pow(500000.0, -(double)j / HALF);
	plane.inv_freq[HALF - 1] = 0.0f;
	uint64_t positions[N];
	for (size_t i = 0; i < N; i++)
		positions[i] = i < 20 ? i : i < 40 ? 1000000 - i : (uint64_t)1 << (i - 22);
	float first_cos[N * HALF], first_sin[N * HALF], cos_[N * HALF], sin_[N * HALF];
	for (size_t v = 0; v < n_variants; v++) {
		variants[v]->rope_fill(&plane, positions, N, cos_, sin_);
		for (size_t i = 0; i < N; i++)
			for (size_t j = 0; j < HALF; j++) {
				const double angle = (double)positions[i] * (double)plane.inv_freq[j];
				const double scale = (double)plane.rope_scale;
				const double c = (double)cos_[i * HALF + j];
				const double s = (double)sin_[i * HALF + j];
				/* Half a last place of what is below 2, and 2^-30 for the angle's own. */
				assert_true(fabs(c - cos(angle) * scale) <= 0x1p-24 + 0x1p-30);
				assert_true(fabs(s - sin(angle) * scale) <= 0x1p-24 + 0x1p-30);
			}
		if (v == 0) {
			memcpy(first_cos, cos_, sizeof cos_);
			memcpy(first_sin, sin_, sizeof sin_);
		}
		assert_memory_equal(first_cos, cos_, sizeof cos_);
		assert_memory_equal(first_sin, sin_, sizeof sin_);
	}
}

int main(int argc, char **argv)
{
	random_state = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	print_message("seed %llu\n", (unsigned long long)random_state);
	kernels_cpu();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(products_are_those_of_the_book),
		cmocka_unit_test(tokens_do_not_mix),
		cmocka_unit_test(energies_and_transposes),
		cmocka_unit_test(angles_are_exact_to_f32),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
