/*
 * The two matrix products with AVX-512, after Goto and van de Geijn (Anatomy of High-Performance Matrix
 * Multiplication, ACM TOMS 34, 2008): out [m, n] = a [m, k] * b [k, n]. A block of b is packed once, panel by
 * panel, and stays in the second-level cache; a sliver of a is packed for each band of rows and stays in the
 * first; a tile of ROWS x 32 results stays in registers. Why not OpenBLAS alone: docs/decisions.md.
 *
 * Traffic: a and b are read and packed once for each N_BLOCK columns, out read and written once for each
 * K_BLOCK. Floor: 2 m n k flops at two vectors of sixteen a cycle, one where the machine splits them in two.
 * The tile's two loads of b and fourteen of a feed 28 multiply-adds, under what any such machine can load.
 *
 * The packed block lies on the stack: a call takes about 450 KB of it.
 */
#include "kernels/cpu/simd.h"
#include "kernels/cpu/variant.h"

#ifdef __AVX512F__

enum {
	ROWS = 14, /* 28 sums, 2 vectors of b, 1 of a: 31 of 32 registers */
	COLS = 32,
	K_BLOCK = 384,
	N_BLOCK = 256,
};

/* Element (row, col) at p[row * row_stride + col * col_stride]; one of the strides is 1. */
struct matrix {
	const float *p;
	size_t row_stride;
	size_t col_stride;
};

/* to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < cols, both at most 16; lines j of 16
 * elements are written whole, with zeros from `rows` on. */
static inline void turn_16x16(
	const float *from, size_t from_stride, size_t rows, size_t cols, float *to, size_t to_stride)
{
	const __mmask16 mask = (__mmask16)((1u << cols) - 1);
	vf lines[16];
#pragma GCC unroll 16
	for (size_t i = 0; i < 16; i++)
		lines[i] = i < rows ? (vf)_mm512_maskz_loadu_ps(mask, from + i * from_stride) : (vf){0};
	vf_turn(lines);
	/* Two loops: one of known length keeps the vectors in registers. */
	if (cols == 16) {
#pragma GCC unroll 16
		for (size_t j = 0; j < 16; j++)
			vf_store(to + j * to_stride, lines[j]);
	} else {
		for (size_t j = 0; j < cols; j++)
			vf_store(to + j * to_stride, lines[j]);
	}
}

/* to[k][0 .. width) = m(k0 + k, c0 + c) for c < n_cols, zero above; width is 16 or 32. m seen from the side
 * on which its lines run along k has row_stride 1 and is turned; otherwise it is copied. */
static void pack(
	const struct matrix *m, size_t k0, size_t n_k, size_t c0, size_t n_cols, size_t width, float *to)
{
	const float *from = m->p + k0 * m->row_stride + c0 * m->col_stride;
	for (size_t c = 0; c < width; c += 16) {
		const size_t cols = n_cols <= c ? 0 : n_cols - c < 16 ? n_cols - c : 16;
		const __mmask16 mask = (__mmask16)((1u << cols) - 1);
		if (m->col_stride == 1) {
			for (size_t k = 0; k < n_k; k++)
				_mm512_storeu_ps(to + k * width + c,
					_mm512_maskz_loadu_ps(mask, from + k * m->row_stride + c));
			continue;
		}
		for (size_t k = 0; k < n_k; k += 16)
			turn_16x16(from + c * m->col_stride + k, m->col_stride, cols,
				n_k - k < 16 ? n_k - k : 16, to + k * width + c, width);
	}
}

/* One tile: out[i][0 .. n) = or += the sum over k of a[k][i] * b[k][..]. rows and wide (n is over 16) are
 * constants where this is inlined. */
static inline __attribute__((always_inline)) void tile_rows(const int rows, const int wide, const float *a,
	const float *b, size_t n_k, float *out, size_t out_stride, size_t n, int add)
{
	__m512 low[ROWS];
	__m512 high[ROWS];
#pragma GCC unroll 14
	for (int i = 0; i < rows; i++)
		low[i] = high[i] = _mm512_setzero_ps();
	for (size_t k = 0; k < n_k; k++, a += 16, b += COLS) {
		const __m512 b_low = _mm512_load_ps(b);
		const __m512 b_high = _mm512_load_ps(b + 16);
#pragma GCC unroll 14
		for (int i = 0; i < rows; i++) {
			const __m512 a_i = _mm512_set1_ps(a[i]);
			low[i] = _mm512_fmadd_ps(a_i, b_low, low[i]);
			if (wide)
				high[i] = _mm512_fmadd_ps(a_i, b_high, high[i]);
		}
	}
	const uint32_t mask = n >= COLS ? 0xffffffffu : (1u << n) - 1;
	const __mmask16 mask_low = (__mmask16)mask;
	const __mmask16 mask_high = (__mmask16)(mask >> 16);
#pragma GCC unroll 14
	for (int i = 0; i < rows; i++, out += out_stride) {
		if (add)
			low[i] = _mm512_add_ps(low[i], _mm512_maskz_loadu_ps(mask_low, out));
		_mm512_mask_storeu_ps(out, mask_low, low[i]);
		if (!wide)
			continue;
		if (add)
			high[i] = _mm512_add_ps(high[i], _mm512_maskz_loadu_ps(mask_high, out + 16));
		_mm512_mask_storeu_ps(out + 16, mask_high, high[i]);
	}
}

static inline __attribute__((always_inline)) void tile_wide(const int wide, size_t rows, const float *a,
	const float *b, size_t n_k, float *out, size_t out_stride, size_t n, int add)
{
	switch (rows) {
#define TILE(r)                                                                                              \
	case r: tile_rows(r, wide, a, b, n_k, out, out_stride, n, add); break
		TILE(1);
		TILE(2);
		TILE(3);
		TILE(4);
		TILE(5);
		TILE(6);
		TILE(7);
		TILE(8);
		TILE(9);
		TILE(10);
		TILE(11);
		TILE(12);
		TILE(13);
	default: tile_rows(ROWS, wide, a, b, n_k, out, out_stride, n, add); break;
#undef TILE
	}
}

static void tile(size_t rows, const float *a, const float *b, size_t n_k, float *out, size_t out_stride,
	size_t n, int add)
{
	if (n > 16)
		tile_wide(1, rows, a, b, n_k, out, out_stride, n, add);
	else
		tile_wide(0, rows, a, b, n_k, out, out_stride, n, add);
}

/* How much of `left` to take so that the blocks, each at most `most`, come out even. */
static size_t even_share(size_t left, size_t most)
{
	const size_t blocks = (left + most - 1) / most;
	return (left + blocks - 1) / blocks;
}

/* a_turned is a [m, k] seen as [k, m]. */
static void product(const struct matrix *a_turned, const struct matrix *b, size_t m, size_t n, size_t k,
	float *out, size_t out_stride)
{
	float b_block[K_BLOCK * N_BLOCK] __attribute__((aligned(64)));
	float a_sliver[K_BLOCK * 16] __attribute__((aligned(64)));
	if (k == 0)
		for (size_t i = 0; i < m; i++)
			memset(out + i * out_stride, 0, n * sizeof *out);
	size_t n_n, n_k, n_m;
	for (size_t n0 = 0; n0 < n; n0 += n_n) {
		n_n = n - n0 < N_BLOCK ? n - n0 : N_BLOCK;
		for (size_t k0 = 0; k0 < k; k0 += n_k) {
			n_k = even_share(k - k0, K_BLOCK);
			for (size_t j = 0; j < n_n; j += COLS)
				pack(b, k0, n_k, n0 + j, n_n - j, COLS, b_block + j * n_k);
			for (size_t m0 = 0; m0 < m; m0 += n_m) {
				n_m = even_share(m - m0, ROWS);
				pack(a_turned, k0, n_k, m0, n_m, 16, a_sliver);
				for (size_t j = 0; j < n_n; j += COLS)
					tile(n_m, a_sliver, b_block + j * n_k, n_k,
						out + m0 * out_stride + n0 + j, out_stride, n_n - j, k0 > 0);
			}
		}
	}
}

void VARIANT(gemm_project)(const float *basis, size_t r, size_t p, const float *x, size_t x_stride,
	size_t n_tokens, float *c, size_t c_stride)
{
	product(&(struct matrix){basis, 1, p}, &(struct matrix){x, 1, x_stride}, r, n_tokens, p, c, c_stride);
}

void VARIANT(gemm_reconstruct)(const float *basis, size_t r, size_t p, const float *c, size_t c_stride,
	size_t n_tokens, float *x, size_t x_stride)
{
	product(&(struct matrix){c, c_stride, 1}, &(struct matrix){basis, p, 1}, n_tokens, p, r, x, x_stride);
}

#endif
