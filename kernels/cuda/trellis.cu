/*
 * Coefficients to codes along the trellis of base/levels.h, as kernels/cpu/trellis.c does it, and to the bit,
 * given the same coefficients. A thread takes a token through all its components: forth with four path costs
 * in registers, leaving in memory which predecessor each state was reached from, four bits, and back, where
 * the levels are found once more, for one set: that takes less than to have kept them.
 *
 * Traffic a coefficient: 4 bytes read twice, half a byte of decisions written and read, 2 of codes written;
 * all of it coalesced, for neighbours in a warp are neighbours in memory. Floor: about 180 operations, 11
 * bytes.
 */
#include "kernels/cuda/codec.h"
#include "kernels/cuda/simt.h"
#include "kernels/formula.h"

/* 1.5 * 2^23: adding it rounds to nearest even. */
#define ROUNDER 12582912.0f

enum { EACH_WORD = 8 }; /* components whose decisions share a word */

/* One set of one component: what its levels cost and stand for. */
struct quantiser {
	struct levels_cost cost;
	float shrink; /* 2^-shift */
	float set;
	float bias[2];
};

__device__ static inline void quantiser_init(
	struct quantiser *q, const struct levels_coder *coder, struct levels_row row, unsigned set)
{
	q->cost = coder->cost[row.table][set];
	q->shrink = 1.0f / (float)(1u << row.shift);
	q->set = (float)set;
	q->bias[0] = coder->bias[row.table][set][0];
	q->bias[1] = coder->bias[row.table][set][1];
	/* Low bits have no table and cost what they take. */
	q->cost.base += LEVELS_LAMBDA * (float)row.shift;
	q->cost.zero += LEVELS_LAMBDA * (float)row.shift;
}

__device__ static inline float level_value(float set, const float bias[2], float k)
{
	return k > 0.0f ? (k + k) - set + (k > 1.0f ? bias[1] : bias[0]) : 0.0f;
}

__device__ static inline float level_cost(const struct quantiser *q, float a, float k)
{
	const float d = a - level_value(q->set, q->bias, k);
	const float v = k * q->shrink;
	const float bits = (q->cost.bend * v + q->cost.slope) * v + q->cost.base;

	return d * d + (k > 0.0f ? bits : q->cost.zero);
}

/* The best even and the best odd level of one set for a magnitude, and what they cost. */
__device__ static inline void branches(const struct quantiser *q, float a, float k[2], float cost[2])
{
	const float at = (a + q->set) * 0.5f;
	const float near = (at + ROUNDER) - ROUNDER;
	const float other = near + (at >= near ? 1.0f : -1.0f);
	const float near_cost = level_cost(q, a, near);
	const float other_cost = level_cost(q, a, other);
	const float zero_cost = a * a + q->cost.zero;
	const bool odd = (f32_bits(near + ROUNDER) & 1) != 0;

	k[0] = odd ? other : near;
	cost[0] = odd ? other_cost : near_cost;
	k[1] = odd ? near : other;
	cost[1] = odd ? near_cost : other_cost;
	if (zero_cost < cost[0]) {
		k[0] = 0.0f;
		cost[0] = zero_cost;
	}
}

__device__ static inline uint32_t forth(const struct codec_device_block *block,
	const struct codec_device_part *part, const struct levels_row *rows, uint32_t r, float inverse,
	uint32_t token)
{
	float cost[4] = {0.0f, 1e30f, 1e30f, 1e30f};
	uint32_t best = 0, word = 0;
	float least;

	for (uint32_t i = 0; i < r; i++) {
		const size_t at = (size_t)i * block->stride + token;
		const float a = fminf(fabsf(block->c[at]) * inverse, 2.0f * LEVELS_MAX - 4.0f);
		struct quantiser q[2];
		float k[4], step[4];

		quantiser_init(&q[0], part->coder, rows[i], 0);
		quantiser_init(&q[1], part->coder, rows[i], 1);
		branches(&q[0], a, k, step);
		branches(&q[1], a, k + 2, step + 2);
		const float one[4] = {
			cost[0] + step[0], cost[2] + step[2], cost[0] + step[1], cost[2] + step[3]};
		const float two[4] = {
			cost[1] + step[1], cost[3] + step[3], cost[1] + step[0], cost[3] + step[2]};

		for (uint32_t s = 0; s < 4; s++) {
			const bool better = two[s] < one[s];

			cost[s] = better ? two[s] : one[s];
			word |= (uint32_t)better << (i % EACH_WORD * 4 + s);
		}
		/* Costs only matter against each other; kept small they lose no digits. */
		least = fminf(fminf(cost[0], cost[1]), fminf(cost[2], cost[3]));
		for (int s = 0; s < 4; s++)
			cost[s] -= least;
		if (i % EACH_WORD == EACH_WORD - 1 || i == r - 1) {
			block->decisions[(size_t)(i / EACH_WORD) * block->stride + token] = word;
			word = 0;
		}
	}
	least = cost[0];
	for (uint32_t s = 1; s < 4; s++)
		if (cost[s] < least) {
			best = s;
			least = cost[s];
		}
	return best;
}

__device__ static inline void back(const struct codec_device_block *block,
	const struct codec_device_part *part, const struct levels_row *rows, uint32_t r, float step,
	uint32_t token, uint32_t state)
{
	const float inverse = 1.0f / step;
	float lost = 0, kept = 0;
	uint32_t word = 0;

	for (uint32_t i = r; i-- > 0;) {
		const size_t at = (size_t)i * block->stride + token;
		const uint32_t set = state & 1;
		const float y = block->c[at];
		const float a = fminf(fabsf(y) * inverse, 2.0f * LEVELS_MAX - 4.0f);
		struct quantiser q;
		float k[2], cost[2];

		if (i % EACH_WORD == EACH_WORD - 1 || i == r - 1)
			word = block->decisions[(size_t)(i / EACH_WORD) * block->stride + token];
		const uint32_t second = word >> (i % EACH_WORD * 4 + state) & 1;

		quantiser_init(&q, part->coder, rows[i], set);
		branches(&q, a, k, cost);
		const float level = k[second ^ state >> 1];
		const float value = level_value(q.set, q.bias, level) * step;
		const float e = fabsf(y) - value;
		const int code = (f32_bits(y) >> 31 ? -(int)level : (int)level) * 2 + (int)set;

		state = set << 1 | second;
		/* A coefficient that no level reaches makes its token's error infinite. */
		lost += e * e + (fabsf(y) * inverse > 2.0f * LEVELS_MAX - 4.0f ? INFINITY : 0.0f);
		kept += y * y;
		block->codes[at] = (int16_t)code;
	}
	block->lost[token] = lost;
	block->kept[token] = kept;
}

extern "C" __global__ void __launch_bounds__(CODEC_TILE) codec_quantise(const struct codec_quantise_args a)
{
	const struct codec_device_block *block = &a.blocks[blockIdx.z];
	const struct codec_device_part *part = &a.parts[block->part];
	const struct codec_device_chunk *chunk = &a.chunks[block->chunk];
	const uint32_t token = blockIdx.x * CODEC_TILE + threadIdx.x;
	uint32_t coded, rung, r;

	if (token >= chunk->n_tokens)
		return;
	coded = a.classes[block->chunk * CODEC_TOKENS_MAX + token];
	if (coded >= CODEC_CLASSES)
		return;
	rung = chunk->rung[coded];
	r = part->active[rung];
	const struct levels_row *rows = part->rows + (size_t)rung * part->n_components;

	back(block, part, rows, r, part->step[rung], token,
		forth(block, part, rows, r, 1.0f / part->step[rung], token));
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_errors(const struct codec_errors_args a)
{
	const struct codec_device_chunk *chunk = &a.chunks[blockIdx.x];
	float *errors = a.errors + (size_t)blockIdx.x * CODEC_PLANES_MAX * CODEC_TOKENS_MAX;

	for (uint32_t token = threadIdx.x; token < chunk->n_tokens; token += blockDim.x)
		for (uint32_t plane = 0; plane < chunk->n_planes; plane++) {
			float error = 0, norm = 0;

			for (uint32_t i = a.first_block[blockIdx.x]; i < a.first_block[blockIdx.x + 1]; i++) {
				const struct codec_device_block *block = &a.blocks[i];
				const struct codec_device_part *part = &a.parts[block->part];

				if (part->plane != plane)
					continue;
				error += block->lost[token] +
					 fmaxf(0, block->energy[token] - block->kept[token]) +
					 block->energy[token] * CODEC_PRODUCT_NOISE /
						 sqrtf((float)part->n_columns);
				norm += block->norm[token];
			}
			errors[plane * CODEC_TOKENS_MAX + token] =
				error == 0 ? 0.0f : (float)sqrt((double)error / (double)norm);
		}
}
