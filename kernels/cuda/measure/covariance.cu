#include "kernels/cuda/measure/covariance.h"

#include "kernels/cuda/simt/simt.h"

enum {
	COVARIANCE_STEP = 16, /* tokens at a time */
	COVARIANCE_MICRO = 4, /* features of a side of a thread's products */
	COVARIANCE_SIDE = COVARIANCE_TILE / COVARIANCE_MICRO,
	COVARIANCE_TURNS = COVARIANCE_THREADS / COVARIANCE_FEATURES, /* tokens that a block sums at a time */
};

static_assert(COVARIANCE_SIDE * COVARIANCE_SIDE == COVARIANCE_THREADS, "a thread has a square of the tile");
static_assert(
	COVARIANCE_STEP * COVARIANCE_TILE == COVARIANCE_THREADS * 4, "and loads four features of a token");
static_assert(COVARIANCE_FOLD_TOKENS % COVARIANCE_STEP == 0, "whole steps");

/* A warp looks at a token. */
extern "C" __global__ void __launch_bounds__(COVARIANCE_THREADS)
	covariance_accept(const struct covariance_accept_args args)
{
	const struct covariance_job &j = args.job;
	const uint32_t t = blockIdx.x * (COVARIANCE_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
	int good = 1;

	if (t >= j.n_tokens)
		return;
	/* Written so that NaN fails. */
	for (uint32_t i = lane; i < j.p; i += 32)
		good &= fabsf(j.x[t * j.x_stride + i]) <= COVARIANCE_MAGNITUDE_MAX;
	good = __all_sync(~0u, good);
	if (lane == 0) {
		j.accepted[t] = (uint8_t)good;
		atomicAdd((unsigned long long *)&j.n[good ? 2 : 1], 1ull);
	}
}

/* ---- Sums, and the shift of the first batch. */

/* Of one feature over the block's share of the tokens: x - shift in f32, added in f64. */
static __device__ double covariance_column(
	const struct covariance_job &j, uint32_t feature, uint32_t turn, float shift)
{
	double sum = 0;

	for (uint32_t t = turn; t < j.n_tokens; t += COVARIANCE_TURNS)
		sum += j.accepted[t] ? (double)(j.x[t * j.x_stride + feature] - shift) : 0.0;
	return sum;
}

/* Over the turns, in their order; every thread has its feature's. */
static __device__ double covariance_over_turns(double (*parts)[COVARIANCE_FEATURES], double part)
{
	const uint32_t lane = threadIdx.x % COVARIANCE_FEATURES;
	double sum = 0;

	__syncthreads();
	parts[threadIdx.x / COVARIANCE_FEATURES][lane] = part;
	__syncthreads();
	for (uint32_t i = 0; i < COVARIANCE_TURNS; i++)
		sum += parts[i][lane];
	return sum;
}

extern "C" __global__ void __launch_bounds__(COVARIANCE_THREADS)
	covariance_sums(const struct covariance_sums_args args)
{
	__shared__ double parts[COVARIANCE_TURNS][COVARIANCE_FEATURES];
	const struct covariance_job &j = args.job;
	const uint32_t turn = threadIdx.x / COVARIANCE_FEATURES, lane = threadIdx.x % COVARIANCE_FEATURES;
	const uint32_t asked = blockIdx.x * COVARIANCE_FEATURES + lane,
		       feature = asked < j.p ? asked : j.p - 1;
	const uint64_t n = j.n[0], n_batch = j.n[2];
	float shift;
	double sum;

	if (n_batch == 0)
		return;
	if (n == 0) {
		sum = covariance_over_turns(parts, covariance_column(j, feature, turn, 0));
		shift = (float)(sum / (double)n_batch);
	} else {
		shift = j.shift[feature];
	}
	sum = covariance_over_turns(parts, covariance_column(j, feature, turn, shift));
	if (turn == 0 && asked < j.p) {
		j.shift[feature] = shift;
		j.sum[feature] += sum;
	}
}

/* ---- Products. */

/* Four features of a token less the shift; zeros for what is not there or was left out. */
static __device__ float4 covariance_load(const struct covariance_job &j, uint32_t token, uint32_t feature)
{
	const float *const x = j.x + token * j.x_stride + feature;
	float v[4] = {0, 0, 0, 0};

	if (token >= j.n_tokens || !j.accepted[token])
		return make_float4(0, 0, 0, 0);
	if (feature + 4 <= j.p && ((uintptr_t)x & 15) == 0) {
		const float4 four = *(const float4 *)x, s = *(const float4 *)(j.shift + feature);

		return make_float4(four.x - s.x, four.y - s.y, four.z - s.z, four.w - s.w);
	}
#pragma unroll
	for (uint32_t i = 0; i < 4; i++)
		v[i] = feature + i < j.p ? x[i] - j.shift[feature + i] : 0;
	return make_float4(v[0], v[1], v[2], v[3]);
}

/* The tile's row and column: tiles lie row by row, those from the diagonal on. */
static __device__ void covariance_place(uint32_t n, uint32_t tile, uint32_t *row, uint32_t *column)
{
	uint32_t r = 0;

	while (tile >= n - r) {
		tile -= n - r;
		r++;
	}
	*row = r;
	*column = r + tile;
}

/* Products of tokens [from, to), summed in f32. */
static __device__ void covariance_sum_products(const struct covariance_job &j, uint32_t row, uint32_t column,
	uint32_t from, uint32_t to, float (*a)[COVARIANCE_TILE], float (*b)[COVARIANCE_TILE],
	float sum[COVARIANCE_MICRO][COVARIANCE_MICRO])
{
	const uint32_t token = threadIdx.x / COVARIANCE_SIDE, feature = threadIdx.x % COVARIANCE_SIDE * 4;
	const uint32_t ty = threadIdx.x / COVARIANCE_SIDE * COVARIANCE_MICRO,
		       tx = threadIdx.x % COVARIANCE_SIDE * COVARIANCE_MICRO;
	float4 next_a = covariance_load(j, from + token, row + feature);
	float4 next_b = covariance_load(j, from + token, column + feature);

	for (uint32_t t = from; t < to; t += COVARIANCE_STEP) {
		__syncthreads();
		*(float4 *)&a[token][feature] = next_a;
		*(float4 *)&b[token][feature] = next_b;
		__syncthreads();
		/* On their way while what is here is multiplied. */
		if (t + COVARIANCE_STEP < to) {
			next_a = covariance_load(j, t + COVARIANCE_STEP + token, row + feature);
			next_b = covariance_load(j, t + COVARIANCE_STEP + token, column + feature);
		}
#pragma unroll 8
		for (uint32_t k = 0; k < COVARIANCE_STEP; k++) {
			const float4 u = *(const float4 *)&a[k][ty], v = *(const float4 *)&b[k][tx];
			const float x[COVARIANCE_MICRO] = {u.x, u.y, u.z, u.w},
				    y[COVARIANCE_MICRO] = {v.x, v.y, v.z, v.w};

#pragma unroll
			for (uint32_t m = 0; m < COVARIANCE_MICRO; m++)
#pragma unroll
				for (uint32_t n = 0; n < COVARIANCE_MICRO; n++)
					sum[m][n] = fmaf(x[m], y[n], sum[m][n]);
		}
	}
}

extern "C" __global__ void __launch_bounds__(COVARIANCE_THREADS)
	covariance_products(const struct covariance_products_args args)
{
	__shared__ __align__(16) float a[COVARIANCE_STEP][COVARIANCE_TILE];
	__shared__ __align__(16) float b[COVARIANCE_STEP][COVARIANCE_TILE];
	const struct covariance_job &j = args.job;
	const uint32_t ty = threadIdx.x / COVARIANCE_SIDE * COVARIANCE_MICRO,
		       tx = threadIdx.x % COVARIANCE_SIDE * COVARIANCE_MICRO;
	uint32_t row, column;

	covariance_place((j.p + COVARIANCE_TILE - 1) / COVARIANCE_TILE, blockIdx.x, &row, &column);
	row *= COVARIANCE_TILE;
	column *= COVARIANCE_TILE;
	for (uint32_t from = 0; from < j.n_tokens; from += COVARIANCE_FOLD_TOKENS) {
		const uint32_t left = j.n_tokens - from;
		float sum[COVARIANCE_MICRO][COVARIANCE_MICRO] = {};

		covariance_sum_products(j, row, column, from,
			from + (left < COVARIANCE_FOLD_TOKENS ? left : (uint32_t)COVARIANCE_FOLD_TOKENS), a,
			b, sum);
#pragma unroll
		for (uint32_t m = 0; m < COVARIANCE_MICRO; m++)
#pragma unroll
			for (uint32_t n = 0; n < COVARIANCE_MICRO; n++) {
				const uint32_t i = row + ty + m, k = column + tx + n;

				if (i < j.p && k < j.p && i <= k)
					j.total[(uint64_t)i * j.p + k] += (double)sum[m][n];
			}
	}
	/* No other block of this launch looks at it. */
	if (blockIdx.x == 0 && threadIdx.x == 0) {
		j.n[0] += j.n[2];
		j.n[2] = 0;
	}
}
