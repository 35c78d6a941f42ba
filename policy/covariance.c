#include "policy/covariance.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>

enum {
	BATCH_TOKENS = 256,
	/* Batches that are summed in f32 before they go into the f64 sum, which costs a pass over memory. */
	FOLD_TOKENS = 2048,
};

static const float MAGNITUDE_MAX = 1e15f;

struct covariance {
	size_t p;
	uint64_t n, n_rejected;
	size_t n_recent; /* tokens in recent */
	float *shift;    /* [p]: the first batch's mean; 0 before */
	double *sum;     /* [p], of x - shift */
	double *total;   /* [p, p], upper triangle: products of x - shift, without recent */
	float *recent;   /* [p, p], upper triangle */
	float *batch;    /* [BATCH_TOKENS, p]: tokens as they came, until there are enough */
	size_t n_batch;
};

struct covariance *covariance_new(size_t n_features)
{
	struct covariance *c = calloc(1, sizeof *c);
	size_t p = n_features;

	if (!c)
		return NULL;
	c->p = p;
	c->shift = calloc(p, sizeof *c->shift);
	c->sum = calloc(p, sizeof *c->sum);
	c->total = calloc(p * p, sizeof *c->total);
	c->recent = calloc(p * p, sizeof *c->recent);
	c->batch = calloc(BATCH_TOKENS * p, sizeof *c->batch);
	if (!c->shift || !c->sum || !c->total || !c->recent || !c->batch)
		return covariance_free(c);
	return c;
}

struct covariance *covariance_free(struct covariance *c)
{
	if (c) {
		free(c->shift);
		free(c->sum);
		free(c->total);
		free(c->recent);
		free(c->batch);
		free(c);
	}
	return NULL;
}

static int acceptable(const float *x, size_t p)
{
	/* Written so that NaN fails. */
	for (size_t i = 0; i < p; i++)
		if (!(fabsf(x[i]) <= MAGNITUDE_MAX))
			return 0;
	return 1;
}

static void fold(struct covariance *c)
{
	for (size_t i = 0; i < c->p; i++)
		for (size_t j = i; j < c->p; j++)
			c->total[i * c->p + j] += (double)c->recent[i * c->p + j];
	memset(c->recent, 0, c->p * c->p * sizeof *c->recent);
	c->n_recent = 0;
}

static void set_shift(struct covariance *c)
{
	for (size_t i = 0; i < c->p; i++) {
		double sum = 0;

		for (size_t t = 0; t < c->n_batch; t++)
			sum += (double)c->batch[t * c->p + i];
		c->shift[i] = (float)(sum / (double)c->n_batch);
	}
}

static void add_batch(struct covariance *c)
{
	if (c->n_batch == 0)
		return;
	if (c->n == 0)
		set_shift(c);
	for (size_t t = 0; t < c->n_batch; t++) {
		float *row = c->batch + t * c->p;

		for (size_t i = 0; i < c->p; i++) {
			row[i] -= c->shift[i];
			c->sum[i] += (double)row[i];
		}
	}
	cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)c->p, (int)c->n_batch, 1, c->batch, (int)c->p,
		1, c->recent, (int)c->p);
	c->n += c->n_batch;
	c->n_recent += c->n_batch;
	c->n_batch = 0;
	if (c->n_recent >= FOLD_TOKENS)
		fold(c);
}

static void flush(struct covariance *c)
{
	add_batch(c);
	if (c->n_recent)
		fold(c);
}

void covariance_add(struct covariance *c, const float *x, size_t x_stride, size_t n_tokens)
{
	for (size_t t = 0; t < n_tokens; t++) {
		const float *row = x + t * x_stride;

		if (!acceptable(row, c->p)) {
			c->n_rejected++;
			continue;
		}
		memcpy(c->batch + c->n_batch * c->p, row, c->p * sizeof *row);
		if (++c->n_batch == BATCH_TOKENS)
			add_batch(c);
	}
}

/* With y = x - shift of other and d the difference of the shifts, the products about the shift of c are those
 * of y + d: sum y y^T + s d^T + d s^T + n d d^T, s the sum of y. */
void covariance_merge(struct covariance *c, struct covariance *other)
{
	size_t p = c->p;
	double n;

	flush(c);
	flush(other);
	c->n_rejected += other->n_rejected;
	if (other->n == 0)
		return;
	n = (double)other->n;
	if (c->n == 0)
		memcpy(c->shift, other->shift, p * sizeof *c->shift);
	for (size_t i = 0; i < p; i++) {
		double di = (double)other->shift[i] - (double)c->shift[i];

		for (size_t j = i; j < p; j++) {
			double dj = (double)other->shift[j] - (double)c->shift[j];

			c->total[i * p + j] += other->total[i * p + j] + other->sum[i] * dj +
					       di * other->sum[j] + n * di * dj;
		}
	}
	for (size_t i = 0; i < p; i++)
		c->sum[i] += other->sum[i] + n * ((double)other->shift[i] - (double)c->shift[i]);
	c->n += other->n;
}

void covariance_fade(struct covariance *c, uint64_t n_tokens)
{
	double scale;

	flush(c);
	if (c->n <= n_tokens)
		return;
	scale = (double)n_tokens / (double)c->n;
	for (size_t i = 0; i < c->p; i++)
		c->sum[i] *= scale;
	for (size_t i = 0; i < c->p * c->p; i++)
		c->total[i] *= scale;
	c->n = n_tokens;
}

uint64_t covariance_count(const struct covariance *c)
{
	return c->n + c->n_batch;
}

uint64_t covariance_rejected(const struct covariance *c)
{
	return c->n_rejected;
}

void covariance_mean(struct covariance *c, double *mean)
{
	double scale;

	add_batch(c);
	scale = c->n ? 1 / (double)c->n : 0;
	for (size_t i = 0; i < c->p; i++)
		mean[i] = (double)c->shift[i] + c->sum[i] * scale;
}

/* With y = x - shift and e = centre - shift: mean of (y - e)(y - e)^T = Y - m e^T - e m^T + e e^T, m the mean
 * of y. */
void covariance_matrix(struct covariance *c, const double *centre, double *matrix)
{
	size_t p = c->p;
	double scale;

	flush(c);
	scale = c->n ? 1 / (double)c->n : 0;
	for (size_t i = 0; i < p; i++) {
		double ei = centre[i] - (double)c->shift[i], mi = c->sum[i] * scale;

		for (size_t j = i; j < p; j++) {
			double ej = centre[j] - (double)c->shift[j], mj = c->sum[j] * scale;
			double value = c->total[i * p + j] * scale - mi * ej - ei * mj + ei * ej;

			value = c->n ? value : 0;
			matrix[i * p + j] = value;
			matrix[j * p + i] = value;
		}
	}
}
