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
#include "kernels/levels.h"

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

struct kernels {
	const char *name; /* "cpu/avx512", "cpu/avx2", "cpu/generic", ... */

	/* Fills cos and sin, [n_tokens, rope_dim / 2] f32, for positions[0 .. n_tokens). Angles are formed in
	 * double so that positions of a million tokens stay exact to f32. */
	void (*rope_fill)(const struct plane *plane, const uint64_t *positions, size_t n_tokens, float *cos,
		float *sin);

	/* Reads tokens[0 .. n_tokens) (indices into the run) of one layer and writes
	 * x[i * x_stride + h * dim + d] (f32): converted, rotation undone (rope row i belongs to tokens[i];
	 * NULL for a plane without), mean[h * dim + d] subtracted (NULL: zero), times scale[h * dim + d]
	 * (NULL: one). Traffic: w * (2 + 4) bytes a token in bf16. */
	void (*gather)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
		const uint16_t *tokens, size_t n_tokens, const struct rope_table *rope, const float *mean,
		const float *scale, float *x, size_t x_stride);

	/* The inverse: multiplies by scale, which is one over gather's, adds mean, rotates, converts (round
	 * to nearest even, saturating to the largest finite f16), writes. */
	void (*scatter)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
		const uint16_t *tokens, size_t n_tokens, const struct rope_table *rope, const float *mean,
		const float *scale, const float *x, size_t x_stride);

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

	/* The plain codec's quantiser: rows of c to 8-bit codes, codes [n_rows, n_tokens]. The step of each
	 * row is chosen from the row's own statistics and stored as f16 in steps[i]; formula.h has the
	 * formulae. coded[t] += what the row adds to the squared error of token t; kept[t] += c[i][t]^2. */
	void (*quantise)(const float *c, size_t c_stride, size_t n_rows, size_t n_tokens, uint16_t *steps,
		uint8_t *codes, float *coded, float *kept);

	/* The inverse: c[i][t] from codes and steps. */
	void (*dequantise)(const uint8_t *codes, const uint16_t *steps, size_t n_rows, size_t n_tokens,
		float *c, size_t c_stride);

	/* Statistics of tokens [0, n_tokens) of the run in one layer: out is [n_tokens, n_heads]; rope row i
	 * belongs to token i (NULL for a plane without). Traffic: 2 w bytes a token in bf16. */
	void (*statistics)(const struct plane *plane, const struct kv_pages *pages, const struct kv_run *run,
		size_t n_tokens, const struct rope_table *rope, const struct statistics_basis *basis,
		struct token_statistic *out);

	/* The transform codec's quantiser, along the trellis of base/levels.h: r components of c to codes
	 * [r, codes_stride] (kernels/levels.h: level and set). rows[i]: of component i's class. lost[t] +=
	 * the squared error of token t, infinite when a coefficient is over what levels reach; kept[t] +=
	 * c[i][t]^2. work: levels_work_bytes(r), aligned to 64 bytes. A token's codes do not depend on other
	 * tokens. */
	void (*quantise_levels)(const float *c, size_t c_stride, size_t r, size_t n_tokens,
		const struct levels_coder *coder, const struct levels_row *rows, float step, int16_t *codes,
		size_t codes_stride, float *lost, float *kept, void *work);

	/* The inverse. */
	void (*dequantise_levels)(const int16_t *codes, size_t codes_stride, size_t r, size_t n_tokens,
		const struct levels_coder *coder, const struct levels_row *rows, float step, float *c,
		size_t c_stride);

	/* Codes to a rANS stream at out; room: at least levels_encoded_max(r, n_tokens). Returns its bytes.
	 * rows[i] need not be those that the quantiser had. */
	size_t (*encode_levels)(const int16_t *codes, size_t codes_stride, size_t r, size_t n_tokens,
		const struct levels_coder *coder, const struct levels_row *rows, uint8_t *out, size_t room);

	/* The inverse: 0, or -1 when the stream is not one of that many codes; codes is written all the same.
	 * states: [n_tokens], working memory. */
	int (*decode_levels)(const uint8_t *in, size_t len, size_t r, size_t n_tokens,
		const struct levels_coder *coder, const struct levels_row *rows, int16_t *codes,
		size_t codes_stride, uint8_t *states);
};

/* The host backend, the best variant for this CPU. CISTERN_CPU=generic|avx2|avx512 in the environment caps it
 * (valgrind knows no AVX-512). Never NULL. First call is not thread-safe; later ones are. */
const struct kernels *kernels_cpu(void);

#endif
