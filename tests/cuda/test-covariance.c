/* Mean and covariance on the device: the host's, from the same tokens in batches of any size, whatever is
 * among them that must be left out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "kernels/cuda/measure/covariance.h"
#include "policy/covariance.h"
#include "tests/cuda/trial.h"

enum { BATCHES_MAX = 4 };

static uint64_t seed;

struct stream {
	const char *name;
	uint32_t p, stride;
	uint32_t batches[BATCHES_MAX]; /* tokens */
	float mean;                    /* of every feature, about: deviations are about 1 */
	uint32_t spoiled;              /* one in so many tokens is spoiled; 0: none */
	uint32_t all_spoiled;          /* batches, from the first, of which every token is */
};

static const struct stream streams[] = {
	{"whole tiles", 128, 128, {256, 300, 1}, 0, 0, 0},
	{"a mean far off", 96, 100, {300, 500}, 1000, 0, 0},
	{"tokens left out", 70, 73, {40, 90, 200}, 3, 5, 0},
	{"a first batch with nothing to take", 65, 65, {10, 100}, 3, 7, 1},
	{"more than is summed in f32", 64, 64, {2 * COVARIANCE_FOLD_TOKENS + 77}, 1, 100, 0},
	{"one feature", 1, 1, {50, 1}, 1, 10, 0},
	{"nothing at all", 10, 10, {9}, 0, 0, 1},
};

static void *grab(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	assert_non_null(p);
	return p;
}

static void spoil(uint64_t *random, float *token, uint32_t p)
{
	static const float faults[] = {NAN, INFINITY, -INFINITY, 2e15f, -2e15f};

	token[trial_below(random, p)] = faults[trial_below(random, 5)];
}

static void fill(const struct stream *s, uint32_t batch, uint64_t *random, float *x)
{
	for (uint32_t t = 0; t < s->batches[batch]; t++) {
		const float common = trial_normal(random);
		float *token = x + (size_t)t * s->stride;

		for (uint32_t i = 0; i < s->stride; i++)
			token[i] = i < s->p ? s->mean + (float)(1 + i % 3) *
								(trial_normal(random) + 0.5f * common)
					    : NAN;
		if (batch < s->all_spoiled || (s->spoiled && trial_below(random, s->spoiled) == 0))
			spoil(random, token, s->p);
	}
}

/* What the device has summed. */
struct sums {
	uint64_t n[3];
	float *shift;
	double *sum, *total;
};

static void run_batch(const struct covariance_job *job)
{
	struct covariance_accept_args accept = {*job};
	struct covariance_sums_args sums = {*job};
	struct covariance_products_args products = {*job};
	uint32_t grid[3];

	covariance_accept_grid(job, grid);
	trial_run(DEVICE_KERNEL_covariance_accept, grid, COVARIANCE_THREADS, 0, &accept);
	covariance_sums_grid(job, grid);
	trial_run(DEVICE_KERNEL_covariance_sums, grid, COVARIANCE_THREADS, 0, &sums);
	covariance_products_grid(job, grid);
	trial_run(DEVICE_KERNEL_covariance_products, grid, COVARIANCE_THREADS, 0, &products);
}

static void sum_up(const struct stream *s, uint64_t *random, struct covariance *host, struct sums *out)
{
	const size_t p = s->p;
	struct covariance_job job = {.p = s->p, .x_stride = s->stride};

	*out = (struct sums){.shift = grab(p, sizeof(float)),
		.sum = grab(p, sizeof(double)),
		.total = grab(p * p, sizeof(double))};
	job.n = trial_put(out->n, sizeof out->n, 0);
	job.shift = trial_put(out->shift, p * sizeof(float), 0);
	job.sum = trial_put(out->sum, p * sizeof(double), 0);
	job.total = trial_put(out->total, p * p * sizeof(double), 0);
	for (uint32_t b = 0; b < BATCHES_MAX && s->batches[b]; b++) {
		float *x = grab((size_t)s->batches[b] * s->stride, sizeof *x);

		fill(s, b, random, x);
		covariance_add(host, x, s->stride, s->batches[b]);
		job.n_tokens = s->batches[b];
		job.x = trial_put(
			x, (size_t)s->batches[b] * s->stride * sizeof *x, 4 * trial_below(random, 4));
		job.accepted = trial_room(s->batches[b]);
		run_batch(&job);
		free(x);
	}
	trial_get(out->n, job.n, sizeof out->n);
	trial_get(out->shift, job.shift, p * sizeof(float));
	trial_get(out->sum, job.sum, p * sizeof(double));
	trial_get(out->total, job.total, p * p * sizeof(double));
}

/* Rounding of f32 sums of at most COVARIANCE_FOLD_TOKENS products, on both sides, relative to the second
 * moments about the shift: of random sign, so the root of their number counts, four times for good measure;
 * and, for the mean, of the differences themselves. */
static void compare(const struct stream *s, const struct sums *got, struct covariance *host)
{
	const size_t p = s->p;
	const double n = (double)got->n[0], bound = 4 * sqrt(COVARIANCE_FOLD_TOKENS) * 0x1p-24;
	double *mean = grab(p, sizeof *mean), *matrix = grab(p * p, sizeof *matrix), worst = 0;

	covariance_mean(host, mean);
	covariance_matrix(host, mean, matrix);
	for (size_t i = 0; i < p && n > 0; i++) {
		const double mi = got->sum[i] / n, second = got->total[i * p + i] / n;
		const double off = fabs((double)got->shift[i] + mi - mean[i]);

		if (!(off <= 0x1p-22 * (fabs(mean[i]) + sqrt(second))))
			fail_msg("%s: mean %zu off by %g", s->name, i, off);
		for (size_t k = i; k < p; k++) {
			const double mk = got->sum[k] / n, size = sqrt(second * got->total[k * p + k] / n);
			const double at =
				fabs(got->total[i * p + k] / n - mi * mk - matrix[i * p + k]) / size;

			if (!(at <= bound))
				fail_msg("%s: %zu, %zu off by %g of %g", s->name, i, k, at, size);
			worst = at > worst ? at : worst;
		}
	}
	/* The lower triangle is not used. */
	for (size_t i = 0; i < p; i++)
		for (size_t k = 0; k < i; k++)
			assert_true(got->total[i * p + k] == 0);
	printf("%s: %.0f tokens, off by %.1e, bound %.1e\n", s->name, n, worst, bound);
	free(mean);
	free(matrix);
}

static void check_stream(const struct stream *s, uint64_t *random)
{
	struct covariance *host = covariance_new(s->p);
	struct sums sums;

	assert_non_null(host);
	sum_up(s, random, host, &sums);
	assert_int_equal(sums.n[0], covariance_count(host));
	assert_int_equal(sums.n[1], covariance_rejected(host));
	assert_int_equal(sums.n[2], 0);
	compare(s, &sums, host);
	covariance_free(host);
	free(sums.shift);
	free(sums.sum);
	free(sums.total);
}

static void sums_are_as_the_host_has_them(void **state)
{
	uint64_t random = seed;

	for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
		check_stream(&streams[i], &random);
		trial_release(state);
	}
}

static void so_they_are_for_any_shape(void **state)
{
	uint64_t random = seed + 1;

	for (int i = 0; i < 8; i++) {
		struct stream s = {.name = "any", .p = 1 + trial_below(&random, 200), .mean = 2};

		s.stride = s.p + trial_below(&random, 9);
		s.spoiled = trial_below(&random, 2) ? 2 + trial_below(&random, 8) : 0;
		for (uint32_t b = 0; b <= trial_below(&random, BATCHES_MAX); b++)
			s.batches[b] = 1 + trial_below(&random, 400);
		check_stream(&s, &random);
		trial_release(state);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(sums_are_as_the_host_has_them, trial_release),
		cmocka_unit_test_teardown(so_they_are_for_any_shape, trial_release),
	};

	int r = trial_begin(&seed);

	if (r)
		return r;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	trial_end();
	return r;
}
