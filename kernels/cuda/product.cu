/*
 * The codec's two products, on tensor cores: f16 in, f32 sums, tiles of CODEC_TILE x CODEC_TILE x CODEC_DEPTH
 * with three in flight; 8 warps, each 64 x 32 of the tile.
 *
 * project: c [k, tokens] = basis [k, n_columns] * x [tokens, n_columns]^T. Both lie along what is summed.
 * reconstruct: x [tokens, columns] = values [k, tokens]^T * basis [k, columns]. Neither does: fragments are
 * transposed on their way to the registers. What comes out is scaled, the mean added, rotated, converted and
 * stored in the engine's pages at once, so that the features themselves are never in memory.
 *
 * Operations a token and part: 2 k n_columns each. Traffic: the basis once for every CODEC_TILE tokens from
 * the second-level cache, x once for every CODEC_TILE components, c once; pages 2 bytes a feature. Floor: the
 * tensor cores at k of a few hundred, copy bandwidth below.
 */
#include "kernels/cuda/element.cuh"

enum {
	TILE_HALVES = CODEC_TILE * CODEC_DEPTH, /* f16 of one operand's tile */
	STAGE_HALVES = 2 * TILE_HALVES,
};

static_assert(CODEC_RECONSTRUCT_SHARED >= CODEC_PROJECT_SHARED,
	"the tile that comes out lies over those that went in");

/* An operand's tile in shared memory is pieces of 16 bytes, in an order in which neither copies nor fragment
 * loads meet in a bank. Along: rows of CODEC_DEPTH along the sum, four pieces each. Across: rows of
 * CODEC_TILE across it, sixteen. */
__device__ static inline uint32_t piece_along(uint32_t row, uint32_t piece)
{
	return (row * 4 + (piece ^ (row >> 1 & 3))) * 8;
}

__device__ static inline uint32_t piece_across(uint32_t row, uint32_t piece)
{
	return (row * 16 + (piece ^ (row & 7))) * 8;
}

/* A warp's accumulators: 4 x 4 fragments of 16 x 8. */
struct sums {
	float d[4][4][4];
};

__device__ static inline void sums_clear(struct sums *s)
{
	for (int i = 0; i < 4; i++)
		for (int j = 0; j < 4; j++)
			for (int k = 0; k < 4; k++)
				s->d[i][j][k] = 0;
}

/* One tile's worth: rows from row0 of a, columns from column0 of b. */
template <bool ACROSS>
__device__ static inline void sums_add(
	struct sums *s, const uint16_t *a, const uint16_t *b, uint32_t row0, uint32_t column0, uint32_t lane)
{
	for (uint32_t k = 0; k < CODEC_DEPTH; k += 16) {
		uint32_t fa[4][4], fb[2][4];

		for (uint32_t i = 0; i < 4; i++) {
			const uint32_t m = row0 + 16 * i;

			if (ACROSS)
				simt_ldmatrix_x4_trans(
					fa[i], a + piece_across(k + (lane & 7) + (lane >> 4 << 3),
							   m / 8 + (lane >> 3 & 1)));
			else
				simt_ldmatrix_x4(
					fa[i], a + piece_along(m + (lane & 15), k / 8 + (lane >> 4)));
		}
		for (uint32_t j = 0; j < 2; j++) {
			const uint32_t n = column0 + 16 * j;

			if (ACROSS)
				simt_ldmatrix_x4_trans(
					fb[j], b + piece_across(k + (lane & 15), n / 8 + (lane >> 4)));
			else
				simt_ldmatrix_x4(fb[j], b + piece_along(n + (lane & 7) + (lane >> 4 << 3),
								    k / 8 + (lane >> 3 & 1)));
		}
		for (int i = 0; i < 4; i++)
			for (int j = 0; j < 4; j++)
				simt_mma_f16(s->d[i][j], fa[i], &fb[j / 2][j % 2 * 2]);
	}
}

/* All tiles along the sum: load(stage, k) starts the copies of both operands' tiles at k into a stage. Each
 * step waits for its own stage alone, and starts the one that the step before has done with: CODEC_STAGES - 1
 * are in flight, and one barrier is enough. */
template <bool ACROSS, class LOAD>
__device__ static inline void multiply(struct sums *s, uint16_t *shared, uint32_t n_steps, LOAD load)
{
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;

	sums_clear(s);
	for (uint32_t i = 0; i < CODEC_STAGES - 1; i++) {
		if (i < n_steps)
			load(shared + i * STAGE_HALVES, i * CODEC_DEPTH);
		simt_copy_commit();
	}
	for (uint32_t i = 0; i < n_steps; i++) {
		const uint16_t *stage = shared + i % CODEC_STAGES * STAGE_HALVES;
		const uint32_t next = i + CODEC_STAGES - 1;

		simt_copy_wait<CODEC_STAGES - 2>();
		__syncthreads();
		if (next < n_steps)
			load(shared + next % CODEC_STAGES * STAGE_HALVES, next * CODEC_DEPTH);
		simt_copy_commit();
		sums_add<ACROSS>(s, stage, stage + TILE_HALVES, warp / 4 * 64, warp % 4 * 32, lane);
	}
	__syncthreads();
}

__device__ static inline void zero16(uint16_t *at)
{
	*(uint4 *)at = make_uint4(0, 0, 0, 0);
}

/* ---- project */

/* Rows [first, first + CODEC_TILE) of a matrix with n rows, columns [k, k + CODEC_DEPTH). */
__device__ static inline void load_along(
	uint16_t *tile, const uint16_t *from, uint32_t stride, uint32_t first, uint32_t n, uint32_t k)
{
	for (uint32_t i = threadIdx.x; i < CODEC_TILE * 4; i += CODEC_THREADS) {
		const uint32_t row = i / 4, piece = i % 4;
		uint16_t *to = tile + piece_along(row, piece);

		if (first + row < n)
			simt_copy16(to, from + (size_t)(first + row) * stride + k + 8 * piece);
		else
			zero16(to);
	}
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_project(const struct codec_project_args a)
{
	SIMT_SHARED(uint16_t, shared);
	const struct codec_device_block *block = &a.blocks[blockIdx.z];
	const struct codec_device_part *part = &a.parts[block->part];
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	const uint32_t row0 = blockIdx.y * CODEC_TILE, column0 = blockIdx.x * CODEC_TILE;
	struct sums s;

	if (row0 >= block->k || column0 >= block->stride)
		return;
	multiply<false>(&s, shared, part->n_columns / CODEC_DEPTH, [&](uint16_t *stage, uint32_t k) {
		load_along(stage, part->basis, part->n_columns, row0, block->k, k);
		load_along(stage + TILE_HALVES, block->x, part->n_columns, column0, block->stride, k);
	});
	for (uint32_t i = 0; i < 4; i++)
		for (uint32_t j = 0; j < 4; j++)
			for (uint32_t h = 0; h < 2; h++) {
				const uint32_t row = row0 + warp / 4 * 64 + 16 * i + 8 * h + lane / 4;
				const uint32_t column = column0 + warp % 4 * 32 + 8 * j + lane % 4 * 2;
				const float scale = 1.0f / (1 << CODEC_BASIS_SHIFT);
				float *c = block->c + (size_t)row * block->stride + column;

				if (row < block->k) {
					c[0] = s.d[i][j][2 * h] * scale;
					c[1] = s.d[i][j][2 * h + 1] * scale;
				}
			}
}

/* ---- reconstruct */

/* Rows [k, k + CODEC_DEPTH) of a matrix, columns [first, first + CODEC_TILE); rows from n on are zero, and
 * those from wrap on are the first ones again. */
__device__ static inline void load_across(uint16_t *tile, const uint16_t *from, uint32_t stride,
	uint32_t first, uint32_t n, uint32_t wrap, uint32_t k)
{
	for (uint32_t i = threadIdx.x; i < CODEC_DEPTH * 16; i += CODEC_THREADS) {
		const uint32_t row = i / 16, piece = i % 16;
		const uint32_t at = k + row < wrap ? k + row : k + row - wrap;
		uint16_t *to = tile + piece_across(row, piece);

		if (k + row < n)
			simt_copy16(to, from + (size_t)at * stride + first + 8 * piece);
		else
			zero16(to);
	}
}

/* Two octets of one token from the tile of sums to the pages. */
__device__ static inline void store_pair(const struct codec_device_part *part,
	const struct codec_device_chunk *chunk, const float *sums, uint32_t column, uint32_t token,
	float scale)
{
	const struct codec_octet *o = &part->octets[column / 8];
	const uint32_t size = part->dtype == DTYPE_F32 ? 4 : 2;
	float x[2][8];

	SIMT_UNROLL
	for (int i = 0; i < 2; i++) {
		float inverse[8], mean[8];

		floats_load(x[i], sums + 8 * i);
		floats_load(inverse, part->inverse + column + 8 * i);
		floats_load(mean, part->mean + column + 8 * i);
		for (int k = 0; k < 8; k++)
			x[i][k] = x[i][k] * scale * inverse[k] + mean[k];
	}
	octets_rotate(o, chunk->cos[part->plane] + (size_t)token * part->half,
		chunk->sin[part->plane] + (size_t)token * part->half, x[0], x[1]);
	SIMT_UNROLL
	for (int i = 0; i < 2; i++)
		if (o[i].layer != CODEC_NO_LAYER)
			octet_store(part->dtype,
				octet_address(chunk, part->first_layer + o[i].layer, part->plane, o[i].head,
					o[i].dim, token, size),
				x[i]);
}

/* Of which class a column's token is. */
__device__ static inline uint32_t column_rung(const struct codec_device_chunk *chunk, uint32_t column)
{
	const uint32_t salient = chunk->n_of[0], redundant = salient + chunk->n_of[1];

	return chunk->rung[column < salient ? 0 : column < redundant ? 1 : 2];
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS)
	codec_reconstruct(const struct codec_reconstruct_args a)
{
	SIMT_SHARED(uint16_t, shared);
	float *out = (float *)shared;
	const struct codec_device_block *block = &a.blocks[blockIdx.z];
	const struct codec_device_part *part = &a.parts[block->part];
	const struct codec_device_chunk *chunk = &a.chunks[block->chunk];
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	const uint32_t row0 = blockIdx.y * CODEC_TILE, column0 = blockIdx.x * CODEC_TILE;
	const uint32_t k = block->k + block->k_wide;
	struct sums s;

	if (row0 >= chunk->n_coded || column0 >= part->n_columns)
		return;
	multiply<true>(&s, shared, (k + CODEC_DEPTH - 1) / CODEC_DEPTH, [&](uint16_t *stage, uint32_t at) {
		load_across(stage, block->values, block->stride, row0, k, k, at);
		load_across(stage + TILE_HALVES, part->basis, part->n_columns, column0, k, block->k, at);
	});
	for (uint32_t i = 0; i < 4; i++)
		for (uint32_t j = 0; j < 4; j++)
			for (uint32_t h = 0; h < 2; h++) {
				const uint32_t row = warp / 4 * 64 + 16 * i + 8 * h + lane / 4;
				const uint32_t column = warp % 4 * 32 + 8 * j + lane % 4 * 2;

				out[row * CODEC_OUT_STRIDE + column] = s.d[i][j][2 * h];
				out[row * CODEC_OUT_STRIDE + column + 1] = s.d[i][j][2 * h + 1];
			}
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < CODEC_TILE * (CODEC_TILE / 16); i += CODEC_THREADS) {
		const uint32_t row = i / (CODEC_TILE / 16), column = i % (CODEC_TILE / 16) * 16;

		if (row0 + row < chunk->n_coded)
			store_pair(part, chunk, out + row * CODEC_OUT_STRIDE + column, column0 + column,
				chunk->tokens[row0 + row],
				part->step[column_rung(chunk, row0 + row)] / (1 << CODEC_BASIS_SHIFT));
	}
}
