/*
 * The numeric work, behind one table of functions. A backend (cpu today) fills the table once at start-up;
 * after that it is read-only. Every function is pure: it reads and writes only what its arguments name, keeps
 * no state, takes no lock, allocates nothing, and may be called from any thread. Arguments were checked by
 * the caller.
 *
 * Words: T tokens; a plane's width w = n_heads * dim features per layer; a layer group's features
 * p = layers * w; r components of its transform, r <= p. Feature order inside a group: layer, head, dim.
 * Coefficients are component-major: c[i * stride + t].
 */
#ifndef KERNELS_H
#define KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"

/* One layer of one plane in paged memory: element (b, t, h, d) at base + b*block_stride + t*token_stride +
 * h*head_stride + d*sizeof(dtype). Strides in bytes. Same form as struct cistern_layout. */
struct kv_pages {
	uint8_t *base;
	size_t block_stride;
	size_t token_stride;
	size_t head_stride;
};

/* Which tokens: token i of the run lies in block blocks[(offset + i) / block_tokens]. */
struct kv_run {
	const uint32_t *blocks;
	uint32_t block_tokens;
	uint32_t offset;
};

/* cos and sin of position * inv_freq, times rope_scale: [n_tokens, rope_dim / 2] each. */
struct rope_table {
	const float *cos;
	const float *sin;
};

/* Against what tokens of one layer are measured: [n_heads * dim] each. */
struct statistics_basis {
	const float *centre;
	const float *weight;
	const float *direction;
};

/* Sums over the features x of one head of one token, rotation undone. */
struct token_statistic {
	float norm;     /* x^2 */
	float distance; /* weight (x - centre)^2 */
	float dot;      /* direction (x - centre) */
};

enum { QUANT_BITS_MAX = 8 };

struct kernels {
	const char *name; /* "cpu/avx512", "cpu/avx2", "cpu/generic", ... */

	/* Fills cos and sin, [n_tokens, rope_dim / 2] f32, for positions[0 .. n_tokens). Angles are formed in
	 * double so that positions of a million tokens stay exact to f32. */
	void (*rope_fill)(const struct plane *plane, const uint64_t *positions, size_t n_tokens, float *cos,
		float *sin);

	/* Reads tokens[0 .. n_tokens) (indices into the run) of one layer and writes
	 * x[i * x_stride + h * dim + d] (f32): converted, rotation undone (rope row i belongs to tokens[i];
	 * NULL for a plane without), mean[h * dim + d] subtracted (NULL: zero). Traffic: w * (2 + 4) bytes a
	 * token in bf16. */
	void (*gather)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
		const uint16_t *tokens, size_t n_tokens, const struct rope_table *rope, const float *mean,
		float *x, size_t x_stride);

	/* The inverse: adds mean, rotates, converts (round to nearest even, saturating to the largest finite
	 * f16), writes. */
	void (*scatter)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
		const uint16_t *tokens, size_t n_tokens, const struct rope_table *rope, const float *mean,
		const float *x, size_t x_stride);

	/* The same tokens as they lie in memory, bit for bit: raw is [n_tokens, w] elements of the plane's
	 * dtype. */
	void (*gather_raw)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
		const uint16_t *tokens, size_t n_tokens, uint8_t *raw);
	void (*scatter_raw)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
		const uint16_t *tokens, size_t n_tokens, const uint8_t *raw);

	/* c [r, T] = basis [r, p] * x [T, p]^T, row-major f32; c_stride >= T. 2 r p T flops. This and the
	 * next take up to 450 KB of stack. */
	void (*project)(const float *basis, size_t r, size_t p, const float *x, size_t x_stride,
		size_t n_tokens, float *c, size_t c_stride);

	/* x [T, p] = c [r, T]^T * basis [r, p]. Overwrites x. */
	void (*reconstruct)(const float *basis, size_t r, size_t p, const float *c, size_t c_stride,
		size_t n_tokens, float *x, size_t x_stride);

	/* energy[t] = sum over features of x[t]^2. */
	void (*token_energy)(const float *x, size_t x_stride, size_t p, size_t n_tokens, float *energy);

	/* dst [cols, rows] = src [rows, cols]^T; the plain codec's way between token-major and
	 * component-major. */
	void (*transpose)(
		const float *src, size_t src_stride, size_t rows, size_t cols, float *dst, size_t dst_stride);

	/* Quantises rows of c, all with the same number of bits (1 to 8), and packs them: row i's codes
	 * follow each other, quant_packed_bits(bits) bits each, LSB first, and end on a byte boundary:
	 * quant_row_bytes(T, bits) bytes a row. The
	 * step of each row is chosen by quant_step() from the row's own statistics and stored as f16 in
	 * steps[i]; formula.h has the formulae. coded[t] += what the row adds to the squared error of token
	 * t; kept[t] += c[i][t]^2. */
	void (*quantise)(const float *c, size_t c_stride, size_t n_rows, size_t n_tokens, unsigned bits,
		uint16_t *steps, uint8_t *packed, float *coded, float *kept);

	/* The inverse: c[i][t] from codes and steps. */
	void (*dequantise)(const uint8_t *packed, const uint16_t *steps, size_t n_rows, size_t n_tokens,
		unsigned bits, float *c, size_t c_stride);

	/* Statistics of tokens [0, n_tokens) of the run in one layer: out is [n_tokens, n_heads]; rope row i
	 * belongs to token i (NULL for a plane without). Traffic: 2 w bytes a token in bf16. */
	void (*statistics)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
		size_t n_tokens, const struct rope_table *rope, const struct statistics_basis *basis,
		struct token_statistic *out);
};

/* What a code of this width takes in a row. Widths that divide a byte are packed side by side; the others
 * have a byte of their own, since codes that straddle bytes would hide their distribution from an entropy
 * coder of bytes (DEFLATE), which then saves more than packing did. */
static inline unsigned quant_packed_bits(unsigned bits)
{
	return bits == 1 || bits == 2 || bits == 4 ? bits : 8;
}

static inline size_t quant_row_bytes(size_t n_tokens, unsigned bits)
{
	return (n_tokens * quant_packed_bits(bits) + 7) / 8;
}

/* The host backend, the best variant for this CPU. CISTERN_CPU=generic|avx2|avx512 in the environment caps it
 * (valgrind knows no AVX-512). Never NULL. First call is not thread-safe; later ones are. */
const struct kernels *kernels_cpu(void);

#endif
