/*
 * The codec's two products, on tensor cores: f16 in, f32 sums. A block has a tile of CODEC_TILE x CODEC_TILE,
 * and goes along the sum in steps of CODEC_DEPTH, whose operands are copied to shared memory two steps ahead.
 *
 * project: c [k, tokens] = basis [k, n_columns] * x [tokens, n_columns]^T. Both lie along what is summed.
 * reconstruct: x [tokens, columns] = values [k, tokens]^T * basis [k, columns]. Neither does; what multiplies
 * takes operands either way. What comes out is scaled, the mean added, rotated, converted and stored in the
 * engine's pages from the registers that it was summed in, so that the features themselves are never in
 * memory.
 *
 * Two ways to multiply, of one layout in shared memory. Where there are products of warpgroups (sm_90), each
 * of two has 64 x 128 of the tile and its operands go from shared memory to the tensor cores without a
 * register in between. Elsewhere eight warps have 64 x 32 each, by ldmatrix and mma.sync.
 *
 * Operations a token and part: 2 k n_columns each. Traffic: the basis once for every CODEC_TILE tokens from
 * the second-level cache, x once for every CODEC_TILE components, c once; pages 2 bytes a feature. Floor: the
 * tensor cores at k of a few hundred, copy bandwidth below. Shared memory: a step of the tile takes 32 KiB in
 * and, by warpgroups, 48 KiB out in the 512 cycles that the tensor cores of sm_90 need for it, of 64 KiB that
 * there could be.
 */
#include "kernels/cuda/codec/element.cuh"

enum {
	TILE_HALVES = CODEC_TILE * CODEC_DEPTH, /* f16 of one operand's tile */
	STAGE_HALVES = 2 * TILE_HALVES,
	GROUP_BYTES = 8 * 128,           /* eight rows */
	BLOCK_BYTES = CODEC_DEPTH * 128, /* across: CODEC_ROW columns of all rows */
};

/* An operand's tile in shared memory is as codec.h has it in memory, which is as simt_matrix_at wants it, and
 * neither copies nor fragment loads meet in a bank. Along: CODEC_TILE rows along the sum. Across: CODEC_DEPTH
 * rows across it, their first CODEC_ROW elements, then those of the others. In pieces of sixteen bytes: */
__device__ static inline uint32_t piece_along(uint32_t row, uint32_t piece)
{
	return (uint32_t)codec_in_rows(row, 8 * piece);
}

__device__ static inline uint32_t piece_across(uint32_t row, uint32_t piece)
{
	return (uint32_t)codec_in_rows(piece / 8 * CODEC_DEPTH + row, 8 * (piece % 8));
}

/* A warp's sums: I x J fragments of 16 x 8, from row0 and column0 of the tile on. Of a fragment a lane has
 * rows lane / 4 (d[..][0], d[..][1]) and lane / 4 + 8, columns lane % 4 * 2 and the next. */
template <int I, int J> struct sums {
	enum { ROWS = I, COLUMNS = J };
	float d[I][J][4];
};

template <class S> __device__ static inline void sums_clear(S *s)
{
	SIMT_UNROLL
	for (int i = 0; i < S::ROWS; i++)
		SIMT_UNROLL
	for (int j = 0; j < S::COLUMNS; j++)
		SIMT_UNROLL
	for (int k = 0; k < 4; k++)
		s->d[i][j][k] = 0;
}

/* ---- by warps */

struct by_warp {
	typedef struct sums<4, 4> sums;

	__device__ static uint32_t row0()
	{
		return threadIdx.x / 128 * 64;
	}

	__device__ static uint32_t column0()
	{
		return threadIdx.x / 32 % 4 * 32;
	}

	__device__ static void begin_step(sums *)
	{
	}

	__device__ static void finish(sums *)
	{
	}

	/* What all steps share. */
	struct tiles {
		const uint16_t *shared;
	};

	template <bool ACROSS> __device__ static struct tiles begin(const uint16_t *shared)
	{
		return {shared};
	}

	/* One step: the tiles so many bytes into shared memory, rows of one, columns of the other. */
	template <bool ACROSS> __device__ static void add(sums *s, const struct tiles &t, uint32_t stage)
	{
		const uint16_t *a = t.shared + stage / 2, *b = a + TILE_HALVES;
		const uint32_t lane = threadIdx.x % 32;

		SIMT_UNROLL
		for (uint32_t k = 0; k < CODEC_DEPTH; k += 16) {
			uint32_t fa[4][4], fb[2][4];

			SIMT_UNROLL
			for (uint32_t i = 0; i < 4; i++) {
				const uint32_t m = row0() + 16 * i;

				if (ACROSS)
					simt_ldmatrix_x4_trans(
						fa[i], a + piece_across(k + (lane & 7) + (lane >> 4 << 3),
								   m / 8 + (lane >> 3 & 1)));
				else
					simt_ldmatrix_x4(
						fa[i], a + piece_along(m + (lane & 15), k / 8 + (lane >> 4)));
			}
			SIMT_UNROLL
			for (uint32_t j = 0; j < 2; j++) {
				const uint32_t n = column0() + 16 * j;

				if (ACROSS)
					simt_ldmatrix_x4_trans(fb[j],
						b + piece_across(k + (lane & 15), n / 8 + (lane >> 4)));
				else
					simt_ldmatrix_x4(
						fb[j], b + piece_along(n + (lane & 7) + (lane >> 4 << 3),
								   k / 8 + (lane >> 3 & 1)));
			}
			SIMT_UNROLL
			for (int i = 0; i < 4; i++)
				SIMT_UNROLL
			for (int j = 0; j < 4; j++)
				simt_mma_f16(s->d[i][j], fa[i], &fb[j / 2][j % 2 * 2]);
		}
	}
};

/* ---- by warpgroups */

struct by_warpgroup {
	typedef struct sums<1, 16> sums;

	__device__ static uint32_t row0()
	{
		return threadIdx.x / 32 * 16;
	}

	__device__ static uint32_t column0()
	{
		return 0;
	}

	/* The step before is done with its stage. */
	__device__ static void begin_step(sums *s)
	{
		simt_products_see();
		simt_products_wait(s->d[0]);
	}

	__device__ static void finish(sums *s)
	{
		simt_products_wait(s->d[0]);
	}

	struct tiles {
		simt_matrix left, right;
	};

	template <bool ACROSS> __device__ static struct tiles begin(const uint16_t *shared)
	{
		/* Either way: 64 of rows, or of columns. */
		const uint32_t group = threadIdx.x / 128 * 64 * 128, block = ACROSS ? BLOCK_BYTES : 16;

		return {simt_matrix_on(simt_matrix_at(shared, GROUP_BYTES, block), group),
			simt_matrix_at(shared + TILE_HALVES, GROUP_BYTES, block)};
	}

	template <bool ACROSS> __device__ static void add(sums *s, const struct tiles &t, uint32_t stage)
	{
		const simt_matrix left = simt_matrix_on(t.left, stage),
				  right = simt_matrix_on(t.right, stage);

		simt_products_begin();
		SIMT_UNROLL
		for (uint32_t k = 0; k < CODEC_DEPTH; k += 16) {
			/* Along, a place within a row: pieces are exchanged by address. */
			const uint32_t on = ACROSS ? k * 128 : k * 2;

			simt_products_add<ACROSS>(
				s->d[0], simt_matrix_on(left, on), simt_matrix_on(right, on));
		}
		simt_products_commit();
	}
};

static_assert((int)BLOCK_BYTES == 64 * 128, "across, a warpgroup's columns are one block");

/* ---- either way */

/* An operand's tiles in memory, step after step, as one thread copies them: its first piece of either half of
 * the present tile. */
struct tile_source {
	const uint16_t *near;
	uint32_t far, on; /* from there: the other half; the next tile */
};

/* halves: from the start of a tile's first half to that of its second. */
__device__ static inline struct tile_source tile_source_at(const uint16_t *at, uint32_t halves, uint32_t on)
{
	return {at + 8 * threadIdx.x, halves, on};
}

/* Starts to copy the present tile, and goes on to the next. */
__device__ static inline void tile_copy(simt_shared to, struct tile_source *from)
{
	enum { ROUND = 8 * CODEC_THREADS }; /* f16 that all threads copy at a time */

	SIMT_UNROLL
	for (uint32_t i = 0; i < TILE_HALVES / 2; i += ROUND)
		simt_copy16_to(to + 2 * i, from->near + i);
	SIMT_UNROLL
	for (uint32_t i = 0; i < TILE_HALVES / 2; i += ROUND)
		simt_copy16_to(to + TILE_HALVES + 2 * i, from->near + from->far + i);
	from->near += from->on;
}

/* All steps along the sum. Each waits for its own stage alone, and starts the one that the step before has
 * done with: one barrier a step. From step `again` on b's tiles are its first ones once more. active: whether
 * this warp's rows are wanted; the same for a warpgroup. */
template <class WAY, bool ACROSS>
__device__ static inline void multiply(typename WAY::sums *s, uint16_t *shared, uint32_t n_steps, bool active,
	struct tile_source a, struct tile_source b, uint32_t again)
{
	enum { STAGE_BYTES = 2 * STAGE_HALVES, ALL_BYTES = CODEC_STAGES * STAGE_BYTES };
	const struct WAY::tiles tiles = WAY::template begin<ACROSS>(shared);
	const simt_shared to = simt_shared_of(shared) + 16 * threadIdx.x;
	uint32_t n_begun = 0, next = 0;

	sums_clear(s);
	for (uint32_t i = 0; i < n_steps + CODEC_STAGES - 1; i++) {
		const uint32_t stage = next + STAGE_BYTES == ALL_BYTES ? 0 : next + STAGE_BYTES;

		if (i >= CODEC_STAGES - 1) {
			simt_copy_wait<CODEC_STAGES - 2>();
			WAY::begin_step(s);
			__syncthreads();
			if (active)
				WAY::template add<ACROSS>(s, tiles, stage);
		}
		if (n_begun < n_steps) {
			if (n_begun++ == again)
				b.near -= (size_t)again * b.on;
			tile_copy(to + next, &a);
			tile_copy(to + next + 2 * TILE_HALVES, &b);
		}
		simt_copy_commit();
		next = stage;
	}
	WAY::finish(s);
}

/* ---- project */

template <class WAY>
__device__ static inline void project(const struct codec_project_args &a, uint16_t *shared)
{
	const struct codec_device_block *block = &a.blocks[blockIdx.z];
	const struct codec_device_part *part = &a.parts[block->part];
	const uint32_t lane = threadIdx.x % 32;
	const uint32_t row0 = blockIdx.y * CODEC_TILE, column0 = blockIdx.x * CODEC_TILE;
	const uint32_t k = block->k, stride = block->stride, n_columns = part->n_columns;
	typename WAY::sums s;

	if (row0 >= k || column0 >= stride)
		return;
	multiply<WAY, false>(&s, shared, n_columns / CODEC_DEPTH, row0 + threadIdx.x / 128 * 64 < k,
		tile_source_at(part->basis + row0 * CODEC_ROW, TILE_HALVES / 2,
			codec_basis_rows(part->n_components) * CODEC_ROW),
		tile_source_at(block->x + (size_t)column0 * n_columns, TILE_HALVES / 2, TILE_HALVES),
		UINT32_MAX);
	SIMT_UNROLL
	for (uint32_t i = 0; i < WAY::sums::ROWS; i++)
		SIMT_UNROLL
	for (uint32_t h = 0; h < 2; h++) {
		const uint32_t row = row0 + WAY::row0() + 16 * i + 8 * h + lane / 4;
		const float scale = 1.0f / (1 << CODEC_BASIS_SHIFT);
		float *c = block->c + (size_t)row * stride + column0 + WAY::column0() + lane % 4 * 2;

		if (row >= k)
			continue;
		SIMT_UNROLL
		for (uint32_t j = 0; j < WAY::sums::COLUMNS; j++)
			*(float2 *)(c + 8 * j) =
				make_float2(s.d[i][j][2 * h] * scale, s.d[i][j][2 * h + 1] * scale);
	}
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS, 2)
	codec_project(const struct codec_project_args a)
{
	SIMT_SHARED(uint16_t, shared);

	if (SIMT_WARPGROUPS)
		project<by_warpgroup>(a, shared);
	else
		project<by_warp>(a, shared);
}

/* ---- reconstruct */

/* Of which class a column's token is. */
__device__ static inline uint32_t column_rung(const struct codec_device_chunk *chunk, uint32_t column)
{
	const uint32_t salient = chunk->n_of[0], redundant = salient + chunk->n_of[1];

	return chunk->rung[column < salient ? 0 : column < redundant ? 1 : 2];
}

/* What finishing a tile takes of memory, in shared memory before the sums are made: looked up while the first
 * operands are on their way, so that nothing is waited for behind them but angles. */
struct tile_token {
	uint32_t token; /* NO_TOKEN: there is none */
	struct token_place place;
	float scale;
};

struct tile_finish {
	float columns[2 * CODEC_TILE]; /* of each: one over the weight, the mean */
	struct tile_token tokens[CODEC_TILE];
	struct codec_octet octets[CODEC_TILE / 8];
	struct octet_place places[CODEC_TILE / 8];
};

static_assert(sizeof(struct tile_finish) <= CODEC_FINISH_SHARED, "behind the stages");

#define NO_TOKEN 0xffffffffu

__device__ static inline void tile_token_find(struct tile_token *t, const struct codec_device_chunk *chunk,
	const struct codec_device_part *part, uint32_t row)
{
	t->token = NO_TOKEN;
	if (row >= chunk->n_coded)
		return;
	t->token = chunk->tokens[row];
	t->place = token_find(chunk, t->token);
	t->scale = part->step[column_rung(chunk, row)] / (1 << CODEC_BASIS_SHIFT);
}

/* The whole block; seen by all after the next barrier. */
__device__ static inline void tile_find(struct tile_finish *f, const struct codec_device_chunk *chunk,
	const struct codec_device_part *part, uint32_t row0, uint32_t column0)
{
	const uint32_t i = threadIdx.x;

	if (i < CODEC_TILE) {
		f->columns[2 * i] = part->inverse[column0 + i];
		f->columns[2 * i + 1] = part->mean[column0 + i];
	} else {
		tile_token_find(&f->tokens[i - CODEC_TILE], chunk, part, row0 + i - CODEC_TILE);
	}
	if (i < CODEC_TILE / 8) {
		f->octets[i] = part->octets[column0 / 8 + i];
		f->places[i] = part_octet_find(chunk, part, f->octets[i], part->dtype == DTYPE_F32 ? 4u : 2u);
	}
}

static_assert((int)CODEC_THREADS == 2 * (int)CODEC_TILE, "a thread for each column and each token");

/* As rope_rotate, but for rounding. */
__device__ static inline void rotate(float *a, float *b, float cos_, float sin_)
{
	const float x = *a, y = *b;

	*a = fmaf(x, cos_, -(y * sin_));
	*b = fmaf(y, cos_, x * sin_);
}

/* A lane's two features of two octets side by side, rotated. */
__device__ static inline void rotate_pair(const struct codec_octet *o, const float *cos_, const float *sin_,
	uint32_t pair, float a[2], float b[2])
{
	if (o[0].rotation == CODEC_PAIR_LOW) {
		const float2 c = *(const float2 *)(cos_ + o[0].angle + 2 * pair),
			     s = *(const float2 *)(sin_ + o[0].angle + 2 * pair);

		rotate(&a[0], &b[0], c.x, s.x);
		rotate(&a[1], &b[1], c.y, s.y);
		return;
	}
	if (o[0].rotation == CODEC_INTERLEAVED)
		rotate(&a[0], &a[1], cos_[o[0].angle + pair], sin_[o[0].angle + pair]);
	if (o[1].rotation == CODEC_INTERLEAVED)
		rotate(&b[0], &b[1], cos_[o[1].angle + pair], sin_[o[1].angle + pair]);
}

/* Four lanes have two elements each of four octets, in w[octet]: afterwards each has one octet, its own
 * number's. */
__device__ static inline void exchange(uint32_t w[4])
{
	const uint32_t all = 0xffffffffu, lane = threadIdx.x;
	uint32_t a = lane & 2 ? w[0] : w[2], b = lane & 2 ? w[1] : w[3];

	a = __shfl_xor_sync(all, a, 2);
	b = __shfl_xor_sync(all, b, 2);
	if (lane & 2)
		w[0] = a, w[1] = b;
	else
		w[2] = a, w[3] = b;
	/* Now lanes 0 and 1 have octets 0 and 1, words of lanes 0 and 1 and of 2 and 3. */
	a = lane & 1 ? w[0] : w[1];
	b = lane & 1 ? w[2] : w[3];
	a = __shfl_xor_sync(all, a, 1);
	b = __shfl_xor_sync(all, b, 1);
	if (lane & 1)
		w[0] = a, w[2] = b;
	else
		w[1] = a, w[3] = b;
}

/* Two elements in sixteen bits each; what is too large becomes the largest. */
template <uint32_t DTYPE> __device__ static inline uint32_t pack(const float x[2])
{
	const float most = DTYPE == DTYPE_BF16 ? BF16_MAX : F16_MAX;
	const float lo = fminf(fmaxf(x[0], -most), most), hi = fminf(fmaxf(x[1], -most), most);

	return DTYPE == DTYPE_BF16 ? simt_bfloat2(lo, hi) : simt_half2(lo, hi);
}

/* Four octets' sums, from the tile's column on, to what is stored: two tokens of the lane's. */
template <uint32_t DTYPE>
__device__ static inline void finish_four(float (*sums)[4], const struct tile_finish *f,
	const float *const cos_[2], const float *const sin_[2], const struct tile_token t[2], uint32_t column,
	bool rotated, uint32_t words[2][4])
{
	const uint32_t pair = threadIdx.x % 4;

	SIMT_UNROLL
	for (uint32_t n = 0; n < 4; n += 2) {
		/* Of two neighbours in either octet: one over the weight, mean, and the same again. */
		const float *at = f->columns + 2 * (column + 8 * n + 2 * pair);
		const float4 first = *(const float4 *)at, second = *(const float4 *)(at + 16);

		SIMT_UNROLL
		for (uint32_t h = 0; h < 2; h++) {
			float *a = &sums[n][2 * h], *b = &sums[n + 1][2 * h];

			a[0] = fmaf(a[0], t[h].scale * first.x, first.y);
			a[1] = fmaf(a[1], t[h].scale * first.z, first.w);
			b[0] = fmaf(b[0], t[h].scale * second.x, second.y);
			b[1] = fmaf(b[1], t[h].scale * second.z, second.w);
			if (rotated && t[h].token != NO_TOKEN)
				rotate_pair(&f->octets[column / 8 + n], cos_[h], sin_[h], pair, a, b);
			if (DTYPE != DTYPE_F32) {
				words[h][n] = pack<DTYPE>(a);
				words[h][n + 1] = pack<DTYPE>(b);
			}
		}
	}
}

/* Sums of one warp to the pages: four octets at a time, of which each lane stores one, or in f32 a quarter of
 * each. */
template <class WAY, uint32_t DTYPE>
__device__ static inline void store_sums(typename WAY::sums *s, const struct tile_finish *f,
	const struct codec_device_part *part, const struct codec_device_chunk *chunk)
{
	const uint32_t pair = threadIdx.x % 4, row0 = WAY::row0() + threadIdx.x % 32 / 4;
	const float *const cos0 = chunk->cos[part->plane], *const sin0 = chunk->sin[part->plane];
	const uint32_t half = part->half;

	SIMT_UNROLL
	for (uint32_t i = 0; i < WAY::sums::ROWS; i++) {
		const struct tile_token t[2] = {f->tokens[row0 + 16 * i], f->tokens[row0 + 16 * i + 8]};
		const float *const cos_[2] = {cos0 + (size_t)t[0].token * half,
			cos0 + (size_t)t[1].token * half},
				   *const sin_[2] = {sin0 + (size_t)t[0].token * half,
					   sin0 + (size_t)t[1].token * half};

		SIMT_UNROLL
		for (uint32_t j = 0; j < WAY::sums::COLUMNS; j += 4) {
			const uint32_t column = WAY::column0() + 8 * j;
			const struct codec_octet *o = &f->octets[column / 8];
			const struct octet_place *places = &f->places[column / 8];
			uint32_t words[2][4];

			finish_four<DTYPE>(&s->d[i][j], f, cos_, sin_, t, column, half != 0, words);
			SIMT_UNROLL
			for (uint32_t h = 0; h < 2; h++) {
				const bool wanted = t[h].token != NO_TOKEN;

				if (DTYPE == DTYPE_F32) {
					SIMT_UNROLL
					for (uint32_t n = 0; n < 4; n++)
						if (wanted && o[n].layer != CODEC_NO_LAYER)
							((float2 *)octet_of(places[n], t[h].place))[pair] =
								make_float2(s->d[i][j + n][2 * h],
									s->d[i][j + n][2 * h + 1]);
					continue;
				}
				exchange(words[h]);
				if (wanted && o[pair].layer != CODEC_NO_LAYER)
					*(uint4 *)octet_of(places[pair], t[h].place) = make_uint4(
						words[h][0], words[h][1], words[h][2], words[h][3]);
			}
		}
	}
}

template <class WAY>
__device__ static inline void reconstruct(const struct codec_reconstruct_args &a, uint16_t *shared)
{
	const struct codec_device_block *block = &a.blocks[blockIdx.z];
	const struct codec_device_part *part = &a.parts[block->part];
	const struct codec_device_chunk *chunk = &a.chunks[block->chunk];
	const uint32_t row0 = blockIdx.y * CODEC_TILE, column0 = blockIdx.x * CODEC_TILE;
	/* Second rows of wide components meet the basis from its start once more. */
	const uint32_t n_first = codec_value_rows(block->k) / CODEC_DEPTH,
		       n_steps = n_first + codec_value_rows(block->k_wide) / CODEC_DEPTH;
	const uint32_t value_rows = n_steps * CODEC_DEPTH, basis_rows = codec_basis_rows(part->n_components);
	struct tile_finish *finish = (struct tile_finish *)(shared + CODEC_STAGES * STAGE_HALVES);
	typename WAY::sums s;

	if (row0 >= chunk->n_coded || column0 >= part->n_columns)
		return;
	tile_find(finish, chunk, part, row0, column0);
	multiply<WAY, true>(&s, shared, n_steps, true,
		tile_source_at(
			block->values + (size_t)row0 * value_rows, value_rows * CODEC_ROW, TILE_HALVES / 2),
		tile_source_at(
			part->basis + (size_t)column0 * basis_rows, basis_rows * CODEC_ROW, TILE_HALVES / 2),
		n_first);
	/* Without a step there was no barrier. */
	if (!n_steps)
		__syncthreads();
	if (part->dtype == DTYPE_BF16)
		store_sums<WAY, DTYPE_BF16>(&s, finish, part, chunk);
	else if (part->dtype == DTYPE_F16)
		store_sums<WAY, DTYPE_F16>(&s, finish, part, chunk);
	else
		store_sums<WAY, DTYPE_F32>(&s, finish, part, chunk);
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS, 2)
	codec_reconstruct(const struct codec_reconstruct_args a)
{
	SIMT_SHARED(uint16_t, shared);

	if (SIMT_WARPGROUPS)
		reconstruct<by_warpgroup>(a, shared);
	else
		reconstruct<by_warp>(a, shared);
}
