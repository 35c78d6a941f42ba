/*
 * Dense work on rows of f32: matrix products, energy, transposition; and the variant's
 * table of functions.
 */
#include <cblas.h>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/variant.h"

#define VARIANT_STRING_(name) #name
#define VARIANT_STRING(name) VARIANT_STRING_(name)

#ifndef __AVX512F__
/* Floor of both products: 2 r p T flops at the machine's rate for f32; with T = 256 every byte of basis and x
 * takes part in over a hundred of them, so memory is no bound. */
static void project(const float *basis, size_t r, size_t p, const float *x, size_t x_stride, size_t n_tokens,
	float *c, size_t c_stride)
{
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)r, (blasint)n_tokens, (blasint)p, 1.0f,
		basis, (blasint)p, x, (blasint)x_stride, 0.0f, c, (blasint)c_stride);
}

static void reconstruct(const float *basis, size_t r, size_t p, const float *c, size_t c_stride,
	size_t n_tokens, float *x, size_t x_stride)
{
	cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)n_tokens, (blasint)p, (blasint)r, 1.0f,
		c, (blasint)c_stride, basis, (blasint)p, 0.0f, x, (blasint)x_stride);
}

#endif

/* x: [n_tokens, p], 4 bytes read a feature. Floor: memory, or a vector's load a cycle. */
static void token_energy(const float *x, size_t x_stride, size_t p, size_t n_tokens, float *energy)
{
	enum { PARTS = BLOCK_VECTORS };
	for (size_t t = 0; t < n_tokens; t++) {
		const float *row = x + t * x_stride;
		vf sum[PARTS] = {0};
		size_t d = 0;
		for (; d + QUANT_LANES <= p; d += QUANT_LANES) {
			for (int k = 0; k < PARTS; k++) {
				const vf v = vf_load(row + d + k * VF_LANES);
				sum[k] += v * v;
			}
		}
		float total = block_sum(sum);
		for (; d < p; d++)
			total += row[d] * row[d];
		energy[t] = total;
	}
}

/* 8 bytes moved an element. Floor: memory; square tiles keep both sides' lines in the first-level cache. */
static void transpose(
	const float *src, size_t src_stride, size_t rows, size_t cols, float *dst, size_t dst_stride)
{
	enum { TILE = 16 };
	for (size_t i = 0; i < rows; i += TILE) {
		const size_t i_end = rows - i < TILE ? rows : i + TILE;
		for (size_t j = 0; j < cols; j += TILE) {
			const size_t j_end = cols - j < TILE ? cols : j + TILE;
			for (size_t b = j; b < j_end; b++)
				for (size_t a = i; a < i_end; a++)
					dst[b * dst_stride + a] = src[a * src_stride + b];
		}
	}
}

const struct kernels VARIANT(kernels) = {
	.name = "cpu/" VARIANT_STRING(KERNELS_VARIANT),
	.rope_fill = VARIANT(rope_fill),
	.gather = VARIANT(gather),
	.scatter = VARIANT(scatter),
	.gather_raw = VARIANT(gather_raw),
	.scatter_raw = VARIANT(scatter_raw),
#ifdef __AVX512F__
	.project = VARIANT(gemm_project),
	.reconstruct = VARIANT(gemm_reconstruct),
#else
	.project = project,
	.reconstruct = reconstruct,
#endif
	.token_energy = token_energy,
	.transpose = transpose,
	.quantise = VARIANT(quantise),
	.dequantise = VARIANT(dequantise),
};
