/*
 * The host backend is one set of source files compiled once for each instruction set; KERNELS_VARIANT names
 * the set (generic, avx2, avx512) and ends every external name. All variants give the same bits, except where
 * a matrix product is summed.
 */
#ifndef KERNELS_CPU_VARIANT_H
#define KERNELS_CPU_VARIANT_H

#include "kernels/kernels.h"

extern const struct kernels kernels_generic;
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;

/* The variants that this CPU runs and CISTERN_CPU allows, the best last; how many (at least one). */
size_t kernels_variants(const struct kernels *variants[3]);

#ifdef KERNELS_VARIANT

#define VARIANT_PASTE_(name, variant) name##_##variant
#define VARIANT_PASTE(name, variant) VARIANT_PASTE_(name, variant)
#define VARIANT(name) VARIANT_PASTE(name, KERNELS_VARIANT)

/* As the members of struct kernels. */
void VARIANT(rope_fill)(
	const struct plane *plane, const uint64_t *positions, size_t n_tokens, float *cos_, float *sin_);
void VARIANT(gather)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	const uint16_t *tokens, size_t n_tokens, const struct rope_table *rope, const float *mean,
	const float *scale, float *x, size_t x_stride);
void VARIANT(scatter)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	const uint16_t *tokens, size_t n_tokens, const struct rope_table *rope, const float *mean,
	const float *scale, const float *x, size_t x_stride);
void VARIANT(gather_raw)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	const uint16_t *tokens, size_t n_tokens, uint8_t *raw);
void VARIANT(scatter_raw)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	const uint16_t *tokens, size_t n_tokens, const uint8_t *raw);
/* Only where there is AVX-512. */
void VARIANT(gemm_project)(const float *basis, size_t r, size_t p, const float *x, size_t x_stride,
	size_t n_tokens, float *c, size_t c_stride);
void VARIANT(gemm_reconstruct)(const float *basis, size_t r, size_t p, const float *c, size_t c_stride,
	size_t n_tokens, float *x, size_t x_stride);
void VARIANT(statistics)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
	size_t n_tokens, const struct rope_table *rope, const struct statistics_basis *basis,
	struct token_statistic *out);
void VARIANT(quantise)(const float *c, size_t c_stride, size_t n_rows, size_t n_tokens, uint16_t *steps,
	uint8_t *codes, float *coded, float *kept);
void VARIANT(dequantise)(const uint8_t *codes, const uint16_t *steps, size_t n_rows, size_t n_tokens,
	float *c, size_t c_stride);
void VARIANT(quantise_levels)(const float *c, size_t c_stride, size_t r, size_t n_tokens,
	const struct levels_coder *coder, const struct levels_row *rows, float step, int16_t *codes,
	size_t codes_stride, float *lost, float *kept, void *work);
void VARIANT(dequantise_levels)(const int16_t *codes, size_t codes_stride, size_t r, size_t n_tokens,
	const struct levels_coder *coder, const struct levels_row *rows, float step, float *c,
	size_t c_stride);
size_t VARIANT(encode_levels)(const int16_t *codes, size_t codes_stride, size_t r, size_t n_tokens,
	const struct levels_coder *coder, const struct levels_row *rows, uint8_t *out, size_t room);
int VARIANT(decode_levels)(const uint8_t *in, size_t len, size_t r, size_t n_tokens,
	const struct levels_coder *coder, const struct levels_row *rows, int16_t *codes, size_t codes_stride,
	uint8_t *states);

#endif
#endif
