/*
 * Streaming mean and covariance of token features: what policy/covariance.h does on the host, with its rules.
 * Products are formed in f32 about a shift close to the mean, for at most COVARIANCE_FOLD_TOKENS tokens at a
 * time, and summed in f64; tokens with a value that is not finite or over COVARIANCE_MAGNITUDE_MAX are left
 * out and counted. The sums have the host's meaning and layout, so that one side can go on from the other's;
 * they differ in which tokens the shift was taken from, and in rounding.
 *
 * Three launches a batch, one after the other on a stream: covariance_accept, covariance_sums,
 * covariance_products. Blocks write sums of their own: the results do not depend on their order.
 *
 * Work: p^2 / 2 multiply-adds a token; p = 4,096 and 2,048 tokens are 17 G of them, 0.5 ms at the 33 T a
 * second of f32 on an H100. Traffic: the features are read p / 128 times over, from L2 mostly: 2 GB there,
 * 0.4 ms at 5 TB/s; the sums, 4 p^2 bytes, read and written once a batch: 0.13 GB, 0.05 ms. So f32 arithmetic
 * is the floor, and batches should be as large as COVARIANCE_FOLD_TOKENS. A tile has 256 threads, 16
 * multiply-adds for 2 loads of 16 bytes from shared memory. These are counts, not measurements.
 *
 * Why not the tensor cores: in f16 halves, x = hi + lo, three products (hi hi, hi lo, lo hi) carry 22 bits,
 * some 4 times the rate of f32; but features may be anything up to 1e15, and f16 ends at 65504 and loses lo's
 * bits below 2^-14: each feature would want a scale of its own, from another pass, and an outlier that the
 * scale did not know of would spoil a feature. Learning is done in the background, from samples; an exact sum
 * of what is there is worth more than the time.
 */
#ifndef KERNELS_CUDA_COVARIANCE_H
#define KERNELS_CUDA_COVARIANCE_H

#include <stdint.h>

enum {
	COVARIANCE_THREADS = 256,
	COVARIANCE_TILE = 64, /* features of a side of a tile of products */
	COVARIANCE_FOLD_TOKENS = 2048,
	COVARIANCE_FEATURES = 32, /* of a block of covariance_sums */
};

#define COVARIANCE_MAGNITUDE_MAX 1e15f

/* Device addresses. Zeroed but for x: nothing was added. */
struct covariance_job {
	const float *x; /* [n_tokens, p], rows x_stride floats apart */
	uint64_t x_stride;
	uint32_t n_tokens; /* of this batch */
	uint32_t p;
	uint64_t *n;   /* [3]: tokens taken, tokens left out, and of this batch taken (0 between batches) */
	float *shift;  /* [p], aligned to 16 bytes: the mean of the first batch that had any */
	double *sum;   /* [p], of x - shift */
	double *total; /* [p, p], upper triangle: products of x - shift */
	uint8_t *accepted; /* [n_tokens], working memory: not zeroed */
};

struct covariance_accept_args {
	struct covariance_job job;
};
struct covariance_sums_args {
	struct covariance_job job;
};
struct covariance_products_args {
	struct covariance_job job;
};

/* The launches: COVARIANCE_THREADS threads, no dynamic shared memory. */
static inline void covariance_accept_grid(const struct covariance_job *j, uint32_t grid[3])
{
	grid[0] = (j->n_tokens + COVARIANCE_THREADS / 32 - 1) / (COVARIANCE_THREADS / 32);
	grid[1] = grid[2] = 1;
}

static inline void covariance_sums_grid(const struct covariance_job *j, uint32_t grid[3])
{
	grid[0] = (j->p + COVARIANCE_FEATURES - 1) / COVARIANCE_FEATURES;
	grid[1] = grid[2] = 1;
}

static inline void covariance_products_grid(const struct covariance_job *j, uint32_t grid[3])
{
	const uint32_t n = (j->p + COVARIANCE_TILE - 1) / COVARIANCE_TILE;

	grid[0] = n * (n + 1) / 2;
	grid[1] = grid[2] = 1;
}

#endif
