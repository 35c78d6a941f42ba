/*
 * What the kernels need to quantise, code and decode levels (base/levels.h): the plane's tables, prepared,
 * and the formulae that every backend shares. levels_coder_init is the only thing that writes a coder;
 * afterwards any thread may read it. No memory is taken.
 *
 * Entropy coding is rANS (J. Duda, arXiv 1311.2540) in LEVELS_LANES interleaved states (F. Giesen, arXiv
 * 1402.3392): lane t % LEVELS_LANES codes token t, so that a vector, or a warp, decodes a component's tokens
 * side by side. States are 32 bits, in [2^16, 2^32) between symbols, and take 16-bit words from one stream,
 * in the order of the lanes. docs/frame-format.md specifies the stream.
 */
#ifndef KERNELS_LEVELS_H
#define KERNELS_LEVELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/levels.h"

enum {
	LEVELS_LANES = 32,
	LEVELS_SLOTS = 1 << LEVELS_FREQUENCY_BITS,
	LEVELS_STATE_MIN = 1 << 16,
	LEVELS_BAND = 16, /* components that share an offset */
	LEVELS_OFFSET_MAX = 4,
};

/* The encoder minimises squared error in squared steps plus this times the bits. Free to be changed: decoders
 * do not know it. At the optimum of a rate-distortion curve it is -dD/dR = 2 ln 2 D; D is about 0.3. */
#define LEVELS_LAMBDA 0.45f

/* Bits of a level k of one table and set, as the quantiser sees them, times LEVELS_LAMBDA: zero for k = 0,
 * else base + v * slope + v^2 * bend, v = |k| / 2^shift. */
struct levels_cost {
	float zero, base, slope, bend;
};

struct levels_coder {
	struct levels_cost cost[LEVELS_TABLES][LEVELS_SETS];
	float bias[LEVELS_TABLES][LEVELS_SETS][2];
	/* Frequency in the low half, the sum of those before it in the high half. */
	uint32_t symbol[LEVELS_TABLES][LEVELS_SETS][LEVELS_SYMBOLS];
	/* What a symbol takes. */
	float bits[LEVELS_TABLES][LEVELS_SETS][LEVELS_SYMBOLS];
	/* The symbol of every slot: the first `frequency` slots are symbol 0's, and so on. */
	uint8_t slot[LEVELS_TABLES][LEVELS_SETS][LEVELS_SLOTS];
};

/* Tables as transform.h has checked them: frequencies from 1 that add up to LEVELS_SLOTS. */
void levels_coder_init(struct levels_coder *coder, const struct levels_tables *tables);

/* Adds what r components of n_tokens codes are, quantised from c with this step, to counts. */
void levels_count(const float *c, size_t c_stride, const int16_t *codes, size_t codes_stride, size_t r,
	size_t n_tokens, const struct levels_coder *coder, const struct levels_row *rows, float step,
	struct levels_counts *counts);

/* Levels lie in memory as k * 2 + set, so that a row can be coded without walking the trellis again. */
LEVELS_FN int levels_level(int16_t code)
{
	return (code - (code & 1)) / 2;
}

LEVELS_FN unsigned levels_set(int16_t code)
{
	return (unsigned)code & 1u;
}

/* The value of a code in steps, by magnitude: the table's biases are for |k| = 1 and above. */
LEVELS_FN float levels_magnitude(int level, unsigned set, const float bias[2])
{
	const int magnitude = level < 0 ? -level : level;

	return magnitude ? (float)(2 * magnitude - (int)set) + bias[magnitude > 1] : 0.0f;
}

LEVELS_FN int levels_symbol(int level, unsigned shift)
{
	const int v = level >> shift;

	return v >= -LEVELS_VALUE_MAX && v <= LEVELS_VALUE_MAX ? v + LEVELS_VALUE_MAX : LEVELS_ESCAPE;
}

/* Offsets that r components have. */
LEVELS_FN uint32_t levels_bands(size_t r)
{
	return (uint32_t)((r + LEVELS_BAND - 1) / LEVELS_BAND);
}

/* Bytes that r components of n tokens can take at most: the lanes' states, and a word for every symbol, its
 * low bits and its escape. */
LEVELS_FN size_t levels_encoded_max(size_t r, size_t n_tokens)
{
	return 4 * (size_t)LEVELS_LANES + 6 * r * n_tokens;
}

/* Bytes of working memory for quantising r components: the decisions of 16 tokens. */
LEVELS_FN size_t levels_work_bytes(size_t r)
{
	return r * 16 * (4 * sizeof(int16_t) + sizeof(int16_t)) + 64;
}

#endif
