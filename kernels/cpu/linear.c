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

/* 8 bytes moved an element. Floor: memory, or a shuffle for each bit of a vector's width and element. */
static void transpose(
	const float *src, size_t src_stride, size_t rows, size_t cols, float *dst, size_t dst_stride)
{
	const size_t whole_rows = rows - rows % VF_LANES;
	const size_t whole_cols = cols - cols % VF_LANES;
	for (size_t i = 0; i < whole_rows; i += VF_LANES) {
		for (size_t j = 0; j < whole_cols; j += VF_LANES) {
			vf square[VF_LANES];
#pragma GCC unroll 16
			for (size_t k = 0; k < VF_LANES; k++)
				square[k] = vf_load(src + (i + k) * src_stride + j);
			vf_turn(square);
#pragma GCC unroll 16
			for (size_t k = 0; k < VF_LANES; k++)
				vf_store(dst + (j + k) * dst_stride + i, square[k]);
		}
	}
	for (size_t i = 0; i < rows; i++)
		for (size_t j = i < whole_rows ? whole_cols : 0; j < cols; j++)
			dst[j * dst_stride + i] = src[i * src_stride + j];
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
	.statistics = VARIANT(statistics),
	.quantise_levels = VARIANT(quantise_levels),
	.dequantise_levels = VARIANT(dequantise_levels),
	.encode_levels = VARIANT(encode_levels),
	.decode_levels = VARIANT(decode_levels),
};
