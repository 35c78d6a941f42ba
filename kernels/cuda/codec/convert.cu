/*
 * From an engine's pages, or a copy of them, to the features that are projected: rotation undone, mean
 * subtracted, weighed, as f16, tiles of rows, and the energies that errors are measured by. Traffic a
 * token and feature: 2 bytes read (4 in f32), 2 written; the rest is cached. Floor: copy bandwidth. With a
 * token a warp the first-level cache bounds it, where weights, means and descriptions are looked up for every
 * element: so a lane keeps those of its columns in registers for several tokens. 13 instructions an element,
 * or 19 with a rotation, in sm_90's code: half of what the copy takes.
 */
#include <float.h>

#include "kernels/cuda/codec/element.cuh"

/* As the host's to a rounding: the angle in double, and double's functions. */
extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_rope(const struct codec_rope_args a)
{
	const struct codec_device_chunk *chunk = &a.chunks[blockIdx.z];
	const uint32_t plane = blockIdx.y, half = a.half[plane];
	const uint32_t i = blockIdx.x * CODEC_THREADS + threadIdx.x;
	double angle;

	if (i >= chunk->n_tokens * half)
		return;
	angle = (double)(chunk->position + i / half) * (double)a.frequency[plane][i % half];
	chunk->cos[plane][i] = (float)(cos(angle) * a.scale[plane]);
	chunk->sin[plane][i] = (float)(sin(angle) * a.scale[plane]);
}

/* Which token of the chunk, where it lies, and its sums: of w (x - m) squared, of w x squared, the largest of
 * the former. */
struct convert_token {
	uint32_t row;
	struct token_place place;
	float energy, norm, most;
};

__device__ static inline struct codec_octet octet_at(const struct codec_device_part *part, uint32_t i)
{
	const uint4 words = ((const uint4 *)part->octets)[i];
	struct codec_octet o;

	memcpy(&o, &words, sizeof o);
	return o;
}

template <uint32_t dtype> __device__ static inline void octet_floats(float x[8], const uint4 *v)
{
	SIMT_UNROLL
	for (int i = 0; i < (dtype == DTYPE_F32 ? 2 : 1); i++) {
		const uint32_t words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};

		SIMT_UNROLL
		for (int k = 0; k < 4; k++)
			if (dtype == DTYPE_F32) {
				x[4 * i + k] = f32_from_bits(words[k]);
			} else {
				x[2 * k] = half_to_float(dtype, words[k] & 0xffff);
				x[2 * k + 1] = half_to_float(dtype, words[k] >> 16);
			}
	}
}

/* One octet's sums and what is stored of it. shift: mean times weight. */
__device__ static inline uint4 octet_finish(
	const float x[8], const float weight[8], const float shift[8], struct convert_token *token)
{
	float z[8];

	SIMT_UNROLL
	for (int i = 0; i < 8; i++) {
		const float weighed = x[i] * weight[i];

		z[i] = fmaf(x[i], weight[i], -shift[i]);
		token->energy = fmaf(z[i], z[i], token->energy);
		token->norm = fmaf(weighed, weighed, token->norm);
		token->most = fmaxf(token->most, fabsf(z[i]));
	}
	return make_uint4(simt_half2(z[0], z[1]), simt_half2(z[2], z[3]), simt_half2(z[4], z[5]),
		simt_half2(z[6], z[7]));
}

/* A lane has 32 bytes side by side, a sector, and stores 16 at a time; stored so, every store would touch
 * half of each sector. Neighbours exchange, so that each store fills whole ones: the even lane's sector, then
 * the odd one's. rows: eight of an operand; piece: the lane's in the first of the two sectors. */
__device__ static inline void pair_store(
	uint16_t *rows, uint32_t row, uint32_t piece, uint4 low, uint4 high, bool active)
{
	const bool odd = threadIdx.x & 1;
	const uint4 give = odd ? low : high;
	uint4 got;

	got.x = __shfl_xor_sync(0xffffffffu, give.x, 1);
	got.y = __shfl_xor_sync(0xffffffffu, give.y, 1);
	got.z = __shfl_xor_sync(0xffffffffu, give.z, 1);
	got.w = __shfl_xor_sync(0xffffffffu, give.w, 1);
	if (active) {
		*(uint4 *)(rows + codec_in_rows(row, 8 * piece)) = odd ? got : low;
		*(uint4 *)(rows + codec_in_rows(row, 8 * (piece + 2))) = odd ? high : got;
	}
}

/* A warp's CODEC_CONVERT_TOKENS tokens, a pair of octets a lane: weights and means are loaded once for all,
 * and the tokens' elements are all on their way before the first is used. */
template <uint32_t dtype>
__device__ static inline void convert(const struct codec_device_part *part,
	const struct codec_device_chunk *chunk, const struct codec_device_block *block, uint32_t first,
	struct convert_token *tokens)
{
	enum { ELEMENT_BYTES = dtype == DTYPE_F32 ? 4 : 2, WORDS = ELEMENT_BYTES / 2 };
	enum { AHEAD = 4 / WORDS };
	const uint32_t n_pairs = part->n_columns / 16, lane = threadIdx.x % 32;

	/* All lanes come as far as those that have a pair: they exchange what they store. */
	for (uint32_t pair = lane; pair - lane < n_pairs; pair += 32) {
		const bool active = pair < n_pairs;
		const uint32_t at = active ? pair : 0;
		const struct codec_octet o[2] = {octet_at(part, 2 * at), octet_at(part, 2 * at + 1)};
		const struct octet_place from[2] = {part_octet_find(chunk, part, o[0], ELEMENT_BYTES),
			part_octet_find(chunk, part, o[1], ELEMENT_BYTES)};
		const uint32_t piece = at % 4 / 2 * 4 + lane % 2;
		uint16_t *rows =
			block->x + codec_feature_at(first / 8 * 8, at / 4 * CODEC_ROW, part->n_columns);
		float weight[2][8], shift[2][8];

		SIMT_UNROLL
		for (int i = 0; i < 2; i++) {
			floats_load(weight[i], part->weight + 16 * at + 8 * i);
			floats_load(shift[i], part->mean + 16 * at + 8 * i);
			SIMT_UNROLL
			for (int k = 0; k < 8; k++)
				shift[i][k] *= weight[i][k] = active ? weight[i][k] : 0.0f;
		}
		SIMT_UNROLL
		for (uint32_t group = 0; group < CODEC_CONVERT_TOKENS; group += AHEAD) {
			uint4 words[AHEAD][2][WORDS];

			SIMT_UNROLL
			for (uint32_t t = 0; t < AHEAD; t++)
				SIMT_UNROLL
			for (int i = 0; i < 2; i++) {
				const uint4 *v = (const uint4 *)octet_of(from[i], tokens[group + t].place);

				SIMT_UNROLL
				for (int k = 0; k < WORDS; k++) {
					words[t][i][k] = make_uint4(0, 0, 0, 0);
					if (active && o[i].layer != CODEC_NO_LAYER)
						words[t][i][k] = __ldcs(v + k);
				}
			}
			SIMT_UNROLL
			for (uint32_t t = 0; t < AHEAD; t++) {
				const uint32_t i = group + t;
				const bool valid = first + i < chunk->n_tokens;
				uint4 low, high;
				float x[2][8];

				octet_floats<dtype>(x[0], words[t][0]);
				octet_floats<dtype>(x[1], words[t][1]);
				if (o[0].rotation | o[1].rotation)
					octets_unrotate(o,
						chunk->cos[part->plane] + (size_t)tokens[i].row * part->half,
						chunk->sin[part->plane] + (size_t)tokens[i].row * part->half,
						part->inverse_square, x[0], x[1]);
				low = octet_finish(x[0], weight[0], shift[0], &tokens[i]);
				high = octet_finish(x[1], weight[1], shift[1], &tokens[i]);
				pair_store(rows, first % 8 + i, piece, valid ? low : make_uint4(0, 0, 0, 0),
					valid ? high : make_uint4(0, 0, 0, 0), active);
			}
		}
	}
}

extern "C" __global__ void __launch_bounds__(CODEC_CONVERT_THREADS, 3)
	codec_convert(const struct codec_convert_args a)
{
	const struct codec_device_block *block = &a.blocks[blockIdx.z];
	const struct codec_device_part *part = &a.parts[block->part];
	const struct codec_device_chunk *chunk = &a.chunks[block->chunk];
	const uint32_t first = blockIdx.x * CODEC_CONVERT_TILE + threadIdx.x / 32 * CODEC_CONVERT_TOKENS;
	struct convert_token tokens[CODEC_CONVERT_TOKENS];

	if (first >= block->stride)
		return;
	/* After the last token come columns of zeros, for which the last one is read. */
	SIMT_UNROLL
	for (uint32_t t = 0; t < CODEC_CONVERT_TOKENS; t++) {
		const uint32_t row = first + t < chunk->n_tokens ? first + t : chunk->n_tokens - 1;

		tokens[t].row = row;
		tokens[t].place = token_find(chunk, row);
		tokens[t].energy = tokens[t].norm = tokens[t].most = 0;
	}
	if (part->dtype == DTYPE_F32)
		convert<DTYPE_F32>(part, chunk, block, first, tokens);
	else if (part->dtype == DTYPE_BF16)
		convert<DTYPE_BF16>(part, chunk, block, first, tokens);
	else
		convert<DTYPE_F16>(part, chunk, block, first, tokens);
	SIMT_UNROLL
	for (uint32_t t = 0; t < CODEC_CONVERT_TOKENS; t++) {
		float energy = tokens[t].energy, norm = tokens[t].norm, most = tokens[t].most;

		for (int step = 16; step > 0; step /= 2) {
			energy += __shfl_xor_sync(0xffffffffu, energy, step);
			norm += __shfl_xor_sync(0xffffffffu, norm, step);
			most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
		}
		/* Beyond what f16 holds a token is not coded, which an infinite energy says; fmaxf passes
		 * NaNs over, sums do not. */
		if (threadIdx.x % 32 == 0 && first + t < chunk->n_tokens) {
			block->energy[first + t] = most <= F16_MAX && energy <= FLT_MAX ? energy : INFINITY;
			block->norm[first + t] = norm;
		}
	}
}
