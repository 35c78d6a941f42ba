#include "kernels/cuda/measure/attention.h"

#include "base/geometry.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/formula.h"

enum {
	ATTENTION_STEP = 32, /* features at a time */
	/* Rows in shared memory: a row's 16 bytes and those of the rows beside it lie in different banks. */
	ATTENTION_STRIDE = ATTENTION_STEP + 4,
	ATTENTION_SCORES = ATTENTION_TOKENS + 4,
	ATTENTION_PART = 16, /* features of a token that a thread loads */
	ATTENTION_MICRO = 4, /* rows, and tokens, of a thread */
};

static_assert(ATTENTION_THREADS == 2 * ATTENTION_TOKENS, "two threads load a token");
static_assert(ATTENTION_THREADS == 8 * ATTENTION_ROWS, "eight load a row of queries");
static_assert(ATTENTION_THREADS / 32 * ATTENTION_MICRO == ATTENTION_ROWS, "a warp has four rows");
static_assert(32 * ATTENTION_MICRO == ATTENTION_TOKENS, "of all tokens");

union attention_shared {
	struct {
		float keys[ATTENTION_TOKENS][ATTENTION_STRIDE];
		float queries[ATTENTION_ROWS][ATTENTION_STRIDE];
	} in;
	float scores[ATTENTION_ROWS][ATTENTION_SCORES];
};

/* A rectangle of scores: tokens by rows; row i is query first_query + i % n_queries of the i / n_queries-th
 * head that shares the key head. */
struct attention_area {
	uint32_t layer, kv_head;
	uint32_t first_token, n_tokens;
	uint32_t first_query, n_queries;
	uint32_t n_rows;
};

static __device__ float attention_element(uint32_t dtype, const uint8_t *p, uint32_t i)
{
	if (dtype == DTYPE_F32)
		return ((const float *)p)[i];
	return dtype == DTYPE_F16 ? simt_float(((const uint16_t *)p)[i])
				  : bf16_to_f32(((const uint16_t *)p)[i]);
}

/* N features of a vector, zeros past its n, to shared memory. 16 bytes at a time where they lie so. */
template <uint32_t N>
static __device__ void attention_load(uint32_t dtype, const uint8_t *p, uint32_t n, float *out)
{
	if constexpr (N % 8 == 0) {
		if (n >= N && dtype != DTYPE_F32 && ((uintptr_t)p & 15) == 0) {
#pragma unroll
			for (uint32_t k = 0; k < N; k += 8) {
				const uint4 v = *(const uint4 *)(p + 2 * k);
				const uint32_t w[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
				for (uint32_t i = 0; i < 8; i++) {
					const uint16_t h = (uint16_t)(w[i / 2] >> 16 * (i % 2));

					out[k + i] = dtype == DTYPE_F16 ? simt_float(h) : bf16_to_f32(h);
				}
			}
			return;
		}
	}
#pragma unroll 1
	for (uint32_t i = 0; i < N; i++)
		out[i] = i < n ? attention_element(dtype, p, i) : 0;
}

static __device__ const uint8_t *attention_key(
	const struct attention_job &j, const struct attention_area &a, uint32_t token)
{
	const struct attention_layer &l = j.layers[a.layer];
	const uint32_t at = j.offset + token;

	return l.keys + j.blocks[at / j.block_tokens] * l.block_stride +
	       at % j.block_tokens * l.token_stride + a.kv_head * l.head_stride;
}

/* The head, among all, and the query of a row. */
static __device__ uint32_t attention_head(
	const struct attention_job &j, const struct attention_area &a, uint32_t row)
{
	return a.kv_head * (j.n_heads / j.n_kv_heads) + row / a.n_queries;
}

static __device__ uint32_t attention_query(const struct attention_area &a, uint32_t row)
{
	return a.first_query + row % a.n_queries;
}

/* Of a row, in arrays [n_layers, n_heads, n_queries]. */
static __device__ uint64_t attention_index(
	const struct attention_job &j, const struct attention_area &a, uint32_t row)
{
	return ((uint64_t)a.layer * j.n_heads + attention_head(j, a, row)) * j.n_queries +
	       attention_query(a, row);
}

/* scores[i][t] of rows first_row + i and tokens first_token + t. The whole block; rows and tokens past the
 * last are the last again. */
static __device__ void attention_score(union attention_shared *s, const struct attention_job &j,
	const struct attention_area &a, uint32_t first_row)
{
	const uint32_t es = j.dtype == DTYPE_F32 ? 4 : 2, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const uint32_t token = threadIdx.x / 2 < a.n_tokens ? threadIdx.x / 2 : a.n_tokens - 1;
	const uint32_t asked = first_row + threadIdx.x / 8, row = asked < a.n_rows ? asked : a.n_rows - 1;
	const uint32_t from_key = threadIdx.x % 2 * ATTENTION_PART, from_query = threadIdx.x % 8 * 4;
	const uint8_t *const key = attention_key(j, a, a.first_token + token);
	const uint8_t *const query =
		j.layers[a.layer].queries +
		((uint64_t)attention_query(a, row) * j.n_heads + attention_head(j, a, row)) * j.dim * es;
	float sum[ATTENTION_MICRO][ATTENTION_MICRO] = {};

	for (uint32_t k = 0; k < j.dim; k += ATTENTION_STEP) {
		const uint32_t at_key = k + from_key, at_query = k + from_query;

		__syncthreads();
		attention_load<ATTENTION_PART>(j.dtype, key + at_key * es,
			at_key < j.dim ? j.dim - at_key : 0, &s->in.keys[threadIdx.x / 2][from_key]);
		attention_load<4>(j.dtype, query + at_query * es, at_query < j.dim ? j.dim - at_query : 0,
			&s->in.queries[threadIdx.x / 8][from_query]);
		__syncthreads();
#pragma unroll 2
		for (uint32_t i = 0; i < ATTENTION_STEP; i += 4) {
			float4 x[ATTENTION_MICRO];

#pragma unroll
			for (uint32_t n = 0; n < ATTENTION_MICRO; n++)
				x[n] = *(const float4 *)&s->in.keys[lane + 32 * n][i];
#pragma unroll
			for (uint32_t m = 0; m < ATTENTION_MICRO; m++) {
				const float4 q =
					*(const float4 *)&s->in.queries[warp * ATTENTION_MICRO + m][i];

#pragma unroll
				for (uint32_t n = 0; n < ATTENTION_MICRO; n++)
					sum[m][n] = fmaf(q.w, x[n].w,
						fmaf(q.z, x[n].z,
							fmaf(q.y, x[n].y, fmaf(q.x, x[n].x, sum[m][n]))));
			}
		}
	}
	__syncthreads();
#pragma unroll
	for (uint32_t m = 0; m < ATTENTION_MICRO; m++)
#pragma unroll
		for (uint32_t n = 0; n < ATTENTION_MICRO; n++)
			s->scores[warp * ATTENTION_MICRO + m][lane + 32 * n] = j.scale * sum[m][n];
	__syncthreads();
}

/* ---- The softmax's denominators: the largest score of a tile's tokens that a query sees, and the sum of
 * exponentials relative to it. */

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2)
	attention_sums(const struct attention_sums_args args)
{
	__shared__ union attention_shared s;
	const struct attention_job &j = args.job;
	const uint32_t first = blockIdx.x * ATTENTION_TOKENS, left = j.n_tokens - first;
	const struct attention_area a = {blockIdx.z, blockIdx.y, first,
		left < ATTENTION_TOKENS ? left : (uint32_t)ATTENTION_TOKENS, 0, j.n_queries,
		j.n_heads / j.n_kv_heads * j.n_queries};
	const uint32_t part = threadIdx.x % 8;

	for (uint32_t first_row = 0; first_row < a.n_rows; first_row += ATTENTION_ROWS) {
		const uint32_t row = first_row + threadIdx.x / 8;
		const uint32_t position = row < a.n_rows ? j.positions[attention_query(a, row)] : 0;
		const uint32_t seen = position + 1 > first ? position + 1 - first : 0;
		const uint32_t n = row >= a.n_rows ? 0 : seen < a.n_tokens ? seen : a.n_tokens;
		const float *const scores = s.scores[threadIdx.x / 8];
		float largest = -INFINITY, sum = 0;

		attention_score(&s, j, a, first_row);
		for (uint32_t t = part; t < n; t += 8)
			largest = scores[t] > largest ? scores[t] : largest;
		for (int d = 1; d < 8; d *= 2)
			largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
		for (uint32_t t = part; t < n; t += 8)
			sum += largest > -INFINITY ? expf(scores[t] - largest) : 0;
		for (int d = 1; d < 8; d *= 2)
			sum += __shfl_xor_sync(~0u, sum, d);
		if (part == 0 && row < a.n_rows) {
			float *const out =
				j.partial +
				(attention_index(j, a, row) * attention_n_tiles(j.n_tokens) + blockIdx.x) * 2;

			out[0] = largest;
			out[1] = sum;
		}
	}
}

/* Of every row, what its scores are over the log of their multiple of the uniform share. */
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
	attention_less(const struct attention_less_args args)
{
	const struct attention_job &j = args.job;
	const uint32_t row = blockIdx.x * ATTENTION_THREADS + threadIdx.x,
		       n_tiles = attention_n_tiles(j.n_tokens);
	const float *const partial = j.partial + (uint64_t)row * n_tiles * 2;
	float largest = -INFINITY;
	double sum = 0;

	if (row < 2 * j.n_tokens)
		j.raised[row] = 0;
	if (row >= j.n_layers * j.n_heads * j.n_queries)
		return;
	for (uint32_t i = 0; i < n_tiles; i++)
		largest = fmaxf(largest, partial[2 * i]);
	for (uint32_t i = 0; i < n_tiles; i++)
		if (partial[2 * i] > -INFINITY)
			sum += (double)partial[2 * i + 1] * (double)expf(partial[2 * i] - largest);
	j.less[row] = largest + (float)log(sum) - logf((float)(j.positions[row % j.n_queries] + 1));
}

/* ---- The tokens. */

/* Floats in their order, above zero. */
static __device__ uint32_t attention_ordered(float x)
{
	const uint32_t bits = f32_bits(x);

	return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ float attention_from_ordered(uint32_t order)
{
	if (order == 0)
		return NAN;
	return f32_from_bits(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

/* The means over the queries of one head after the other, and the largest so far. */
struct attention_means {
	uint32_t n; /* queries added */
	float logs, sum;
	float resting, asked;
};

static __device__ void attention_add(struct attention_means *m, float log_multiple, uint32_t n_queries)
{
	m->logs += log_multiple;
	m->sum += expf(log_multiple);
	if (++m->n < n_queries)
		return;
	m->resting = fmaxf(m->resting, m->logs / (float)n_queries);
	m->asked = fmaxf(m->asked, logf(m->sum / (float)n_queries));
	m->n = 0;
	m->logs = m->sum = 0;
}

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2)
	attention_raise(const struct attention_raise_args args)
{
	__shared__ union attention_shared s;
	__shared__ float less[ATTENTION_ROWS];
	const struct attention_job &j = args.job;
	const struct attention_tile tile = j.tiles[blockIdx.x];
	const struct attention_area a = {blockIdx.z, blockIdx.y, tile.first_token, tile.n_tokens,
		tile.first_query, tile.n_queries, j.n_heads / j.n_kv_heads * tile.n_queries};
	const uint32_t t = threadIdx.x;
	struct attention_means means = {0, 0, 0, -INFINITY, -INFINITY};

	for (uint32_t first_row = 0; first_row < a.n_rows; first_row += ATTENTION_ROWS) {
		const uint32_t left = a.n_rows - first_row,
			       n = left < ATTENTION_ROWS ? left : (uint32_t)ATTENTION_ROWS;

		if (t < n)
			less[t] = j.less[attention_index(j, a, first_row + t)];
		attention_score(&s, j, a, first_row);
		for (uint32_t i = 0; i < n && t < tile.n_tokens; i++)
			attention_add(&means, fmaxf(s.scores[i][t] - less[i], j.floor_log), tile.n_queries);
		/* Before the next rows' are there. */
		__syncthreads();
	}
	if (t < tile.n_tokens) {
		atomicMax(&j.raised[tile.first_token + t], attention_ordered(means.resting));
		atomicMax(&j.raised[j.n_tokens + tile.first_token + t], attention_ordered(means.asked));
	}
}

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
	attention_finish(const struct attention_finish_args args)
{
	const struct attention_job &j = args.job;
	const uint32_t t = blockIdx.x * ATTENTION_THREADS + threadIdx.x;

	if (t < j.n_tokens) {
		j.resting[t] = attention_from_ordered(j.raised[t]);
		j.asked[t] = attention_from_ordered(j.raised[j.n_tokens + t]);
	}
}
