/*
 * The codec's kernels: what they share. A launch works on a batch of chunks and on the parts (layer groups of
 * one plane, policy/transform.h) of one transform; a chunk's share in a part is a block. Everything here lies
 * in device memory; pointers are device addresses. Compiles as C17 and as CUDA C++.
 *
 * Columns: on the device a part's features stand in another order than on the host, in octets, runs of eight
 * features of one head, which is what a thread loads and stores at a time. Octets that a rotation pairs stand
 * side by side, the lower one at an even place, so that a tile of CODEC_TILE columns always has both; octets
 * that are none fill up the last tile. Basis, mean and weights are stored in that order, so nothing else
 * knows of it.
 *
 * Operands: what is multiplied lies in rows of CODEC_ROW f16, 128 bytes, the eight pieces of sixteen bytes of
 * row r at places p ^ r % 8: as tensor cores want a tile's rows in shared memory, so a tile is copied there
 * as it lies. Features: tiles of CODEC_TILE tokens, of each all tiles of columns. Basis: CODEC_ROW columns of
 * all components, then the next; so it serves both products. Values: CODEC_ROW tokens of all rows, then the
 * next.
 *
 * Numbers: what tensor cores multiply is f16, sums are f32. A basis row's entries are multiplied by
 * 2^CODEC_BASIS_SHIFT, so that none that matters is subnormal. Coefficients go into the inverse product in
 * steps, as the sum of two f16 where a component is so wide that one would round by more than a hundredth of
 * a step.
 *
 * What f16 does to errors: operands are off by 2^-12 or so each, at random, so a coefficient is off by d =
 * 2^-12 |z| / sqrt(columns), and the error that an encoder knows, |z|^2 - 2 c.q + |q|^2 (q what the levels
 * stand for), by 2 q.d, of the order of 2^-11 |z|^2 / sqrt(columns). Four times that is added to what is
 * stated, so that a frame's promise stays one: 4e-5 |z|^2 for 2,048 features, while coding at 16x loses 1e-2
 * |z|^2.
 */
#ifndef KERNELS_CUDA_CODEC_H
#define KERNELS_CUDA_CODEC_H

#include <stdint.h>

#include "kernels/kernels.h"
#include "kernels/levels.h"

#ifdef __CUDACC__
#define CODEC_FN static __host__ __device__ inline
#else
#define CODEC_FN static inline
#endif

enum {
	CODEC_TILE = 128,
	CODEC_ROW = 64,
	CODEC_DEPTH = CODEC_ROW, /* of a tile: what is multiplied at a time */
	CODEC_TOKENS_MAX = 1024, /* of a chunk */
	CODEC_CLASSES = 3,       /* that are coded, as in runtime/codec */
	CODEC_RUNGS_MAX = 16,
	CODEC_PLANES_MAX = 2,
	CODEC_BASIS_SHIFT = 4,
	CODEC_WIDE_CLASS = 24, /* from s = 64 D on a component is wide */
	CODEC_NO_LAYER = 0xffff,
	CODEC_THREADS = 256,
	CODEC_OFFSET_WARPS = 4,
	CODEC_OFFSET_BANDS = 16, /* of a block */
	CODEC_STAGES = 3,        /* pairs of tiles: one in work, the others on their way */
	/* Dynamic shared memory of the products; the inverse one has more behind the stages. */
	CODEC_PRODUCT_SHARED = CODEC_STAGES * 2 * CODEC_TILE * CODEC_DEPTH * 2,
	CODEC_FINISH_SHARED = 4096,
	CODEC_RECONSTRUCT_SHARED = CODEC_PRODUCT_SHARED + CODEC_FINISH_SHARED,
	CODEC_CONVERT_THREADS = 128,
	CODEC_CONVERT_TOKENS = 4, /* that a warp takes side by side */
	CODEC_CONVERT_TILE = CODEC_CONVERT_THREADS / 32 * CODEC_CONVERT_TOKENS,
	CODEC_ERRORS_THREADS = 512,
	CODEC_GROUP = 4, /* components that are quantised together */
	CODEC_NEAR = 8,  /* levels of each parity that are listed for a class and set */
	CODEC_QUANTISERS = LEVELS_CLASS_MAX - LEVELS_TABLE_CLASS_MIN + 1,
};

#define CODEC_PRODUCT_NOISE 0x1p-9f

enum codec_rotation {
	CODEC_UNROTATED = 0,
	CODEC_PAIR_LOW = 1,    /* its partner is the next octet */
	CODEC_PAIR_HIGH = 2,   /* its partner is the octet before */
	CODEC_INTERLEAVED = 3, /* pairs within the octet */
};

/* Eight features from feature `dim` of a head on; layer counts from the part's first, CODEC_NO_LAYER: none.
 * Sixteen bytes, to be loaded at once. */
struct codec_octet {
	uint16_t layer, head, dim;
	uint16_t angle; /* of the rotation's table: of the first feature */
	uint16_t rotation;
	uint16_t unused[3];
};

/* What a class of components is quantised with: for each set what its levels cost and stand for. A level
 * that is not 0 costs (bend * |k| + slope) * |k| + base: what struct levels_cost has of |k| / 2^shift, and
 * the low bits. */
struct codec_quantiser {
	float bend, slope, base, zero;
	float bias[2], set, unused;
};

/* A level: its value in steps, and its cost; for level 0 infinite. */
struct codec_level {
	float value, cost;
};

/* Where element `at` of an operand's row r stands, counted from the start of a row 0. */
CODEC_FN size_t codec_in_rows(size_t row, uint32_t at)
{
	return row * CODEC_ROW + ((at / 8 ^ (row & 7)) * 8 | (at & 7));
}

/* Rows of a basis: zero from n_components on. */
CODEC_FN uint32_t codec_basis_rows(uint32_t n_components)
{
	return (n_components + CODEC_TILE - 1) / CODEC_TILE * CODEC_TILE;
}

CODEC_FN size_t codec_basis_at(uint32_t component, uint32_t column, uint32_t n_components)
{
	return codec_in_rows((size_t)(column / CODEC_ROW) * codec_basis_rows(n_components) + component,
		column % CODEC_ROW);
}

CODEC_FN size_t codec_feature_at(uint32_t token, uint32_t column, uint32_t n_columns)
{
	const size_t tile = (size_t)(token / CODEC_TILE) * (n_columns / CODEC_ROW) + column / CODEC_ROW;

	return codec_in_rows(tile * CODEC_TILE + token % CODEC_TILE, column % CODEC_ROW);
}

/* Rows of values: whole steps of the product's, zero behind the last component, and the same of the second
 * rows of wide components. */
CODEC_FN uint32_t codec_value_rows(uint32_t n)
{
	return (n + CODEC_ROW - 1) / CODEC_ROW * CODEC_ROW;
}

struct codec_device_part {
	const uint16_t *basis;            /* [n_columns / CODEC_ROW, codec_basis_rows, CODEC_ROW] f16 */
	const float *mean, *weight;       /* [n_columns] */
	const float *inverse;             /* [n_columns] one over weight */
	const struct codec_octet *octets; /* [n_columns / 8] */
	const struct levels_row *rows;    /* [n_rungs, n_components] */
	const struct levels_coder *coder; /* of its plane */
	const int8_t *classes;            /* [n_rungs, n_components] */
	/* [CODEC_QUANTISERS, LEVELS_SETS] of its plane, from class LEVELS_TABLE_CLASS_MIN on, and for each
	 * component where in them its own are, in bytes: [n_rungs, n_components in whole groups]. */
	const struct codec_quantiser *quantisers;
	const struct codec_level *levels; /* [CODEC_QUANTISERS, LEVELS_SETS, parity, CODEC_NEAR] */
	const uint32_t *places;
	uint32_t n_columns; /* a multiple of CODEC_TILE */
	uint32_t n_components;
	uint32_t plane, dtype, first_layer;
	uint32_t half;        /* angles of a token */
	float inverse_square; /* of the rotation's scale */
	float step[CODEC_RUNGS_MAX];
	uint32_t active[CODEC_RUNGS_MAX]; /* components that a rung codes */
	uint32_t wide[CODEC_RUNGS_MAX];   /* of these the first so many are wide */
};

/* Tokens: indices in the chunk. Coded ones in the order of their columns: plain, salient, redundant. */
struct codec_device_chunk {
	struct kv_run run;
	const struct kv_pages *pages; /* [n_layers, n_planes] */
	const uint16_t *tokens;       /* coded ones, then raw ones */
	float *cos[CODEC_PLANES_MAX]; /* [n_tokens, half], NULL for a plane without rotation */
	float *sin[CODEC_PLANES_MAX];
	uint64_t position;
	uint32_t n_tokens, n_planes, n_coded, n_raw;
	uint32_t n_of[CODEC_CLASSES];
	uint32_t rung[CODEC_CLASSES];
};

struct codec_device_block {
	uint32_t part, chunk;
	uint32_t k;      /* components in work: of the finest rung there is */
	uint32_t k_wide; /* decoding: of these so many have a second row, behind codec_value_rows(k) others */
	uint32_t stride; /* tokens, or columns of tokens: a multiple of CODEC_TILE */
	/* Encoding. */
	uint16_t *x;          /* [stride / CODEC_TILE, n_columns / CODEC_ROW, CODEC_TILE, CODEC_ROW] f16 */
	float *energy, *norm; /* [stride] of w (x - m), of w x */
	float *c;             /* [k in whole groups, stride] f32 */
	uint32_t *decisions;  /* [groups of k, stride] */
	int16_t *codes;       /* [k, stride] */
	float *lost, *kept;   /* [stride] */
	/* Decoding. */
	uint16_t *values; /* [stride / CODEC_ROW, value rows of k and of k_wide, CODEC_ROW] f16, in steps */
};

CODEC_FN size_t codec_value_at(const struct codec_device_block *block, uint32_t row, uint32_t token)
{
	const size_t rows = codec_value_rows(block->k) + codec_value_rows(block->k_wide);

	return codec_in_rows(token / CODEC_ROW * rows + row, token % CODEC_ROW);
}

/* Groups of n components, the last one perhaps not full. */
CODEC_FN uint32_t codec_groups(uint32_t n)
{
	return (n + CODEC_GROUP - 1) / CODEC_GROUP;
}

/* A section of levels in a frame. */
struct codec_device_stream {
	uint8_t *body;
	uint32_t len; /* encoding: room; the body ends up at the end of it */
	uint32_t block;
	uint32_t coded_class; /* 0 .. CODEC_CLASSES */
	uint32_t first;       /* column of its first token */
	uint32_t n;
};

/* ---- convert.cu: from pages to features.
 * rope: the chunks' tables, grid (tiles of CODEC_THREADS angles, planes, chunks). convert: grid (tiles of
 * CODEC_CONVERT_TILE tokens, 1, blocks), a warp for CODEC_CONVERT_TOKENS of them. */
struct codec_rope_args {
	const struct codec_device_chunk *chunks;
	const float *frequency[CODEC_PLANES_MAX]; /* [half] */
	uint32_t half[CODEC_PLANES_MAX];          /* 0: a plane without rotation */
	double scale[CODEC_PLANES_MAX];
};

struct codec_convert_args {
	const struct codec_device_part *parts;
	const struct codec_device_chunk *chunks;
	const struct codec_device_block *blocks;
};

/* ---- product.cu. project: c of tokens, grid (tiles of tokens, tiles of components, blocks). reconstruct:
 * grid (tiles of columns, tiles of coded tokens, blocks), into the pages. */
struct codec_project_args {
	const struct codec_device_part *parts;
	const struct codec_device_block *blocks;
};

struct codec_reconstruct_args {
	const struct codec_device_part *parts;
	const struct codec_device_chunk *chunks;
	const struct codec_device_block *blocks;
};

/* ---- trellis.cu. quantise: grid (tiles of CODEC_TILE tokens, 1, blocks), a token a thread. */
struct codec_quantise_args {
	const struct codec_device_part *parts;
	const struct codec_device_chunk *chunks;
	const struct codec_device_block *blocks;
	const uint8_t
		*classes; /* [n_chunks, CODEC_TOKENS_MAX] coded class, or CODEC_CLASSES: leave it alone */
};

/* Relative errors of each plane's tokens, CODEC_PRODUCT_NOISE added: grid (tiles of 32 tokens, planes,
 * chunks), errors [n_chunks, CODEC_PLANES_MAX, CODEC_TOKENS_MAX]. */
struct codec_errors_args {
	const struct codec_device_part *parts;
	const struct codec_device_chunk *chunks;
	const struct codec_device_block *blocks;
	const uint32_t *first_block; /* [n_chunks + 1] */
	float *errors;
};

/* ---- rans.cu, rans-encode.cu: grid (streams), blocks of one warp; before encoding, offsets: grid (streams,
 * bands by CODEC_OFFSET_BANDS), a band at a time for a warp, which leaves them at the start of the streams'
 * rooms.
 */
struct codec_rans_args {
	const struct codec_device_part *parts;
	const struct codec_device_chunk *chunks;
	const struct codec_device_block *blocks;
	struct codec_device_stream *streams;
	uint32_t n_streams;
	int32_t *status; /* decoding: [n_streams] 0, or -1: not a sound stream. Encoding: bytes, or -1: no
			    room */
};

/* ---- raw.cu: raw tokens of one plane between pages and the sections of a frame, a byte of every element in
 * each. bodies[b]: [n_layers, n_raw, n_heads * dim]. grid (tokens, layers, jobs). */
struct codec_raw_job {
	uint8_t *bodies[4];
	uint32_t chunk, plane, dtype_bytes, n_heads, dim;
};

struct codec_raw_args {
	const struct codec_device_chunk *chunks;
	const struct codec_raw_job *jobs;
};

/* Bytes to bytes at any alignment: grid (copies). */
struct codec_move {
	const uint8_t *from;
	uint8_t *to;
	uint64_t len;
};

struct codec_move_args {
	const struct codec_move *moves;
};

#endif
