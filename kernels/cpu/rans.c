/*
 * Levels to a rANS stream and back (kernels/levels.h). Shapes: codes [r, codes_stride] i16, n tokens used.
 * Decoding order: component by component, LEVELS_LANES tokens at a time; for these first every lane's symbol,
 * then, where the component has them, every lane's low bits, then the escapes. Encoding is the same
 * backwards.
 *
 * Traffic a level: 2 bytes and what it takes coded, an eighth or so. Floor: latency. A lane's next state
 * needs a slot, a symbol and a product; 32 lanes side by side hide that, and what is left is about 12
 * operations a level, 3 cycles.
 */
#include "kernels/cpu/simd.h"
#include "kernels/cpu/variant.h"
#include "kernels/levels.h"

enum { SLOT_MASK = LEVELS_SLOTS - 1 };

/* ---- Encoding: states and words run backwards. */

struct encoder {
	uint32_t state[LEVELS_LANES];
	uint8_t *at; /* the stream grows towards lower addresses */
};

SIMD_FN void encoder_word(struct encoder *e, uint32_t word)
{
	const uint16_t w = (uint16_t)word;
	e->at -= sizeof w;
	memcpy(e->at, &w, sizeof w);
}

SIMD_FN void encode_symbol(struct encoder *e, size_t lane, uint32_t symbol)
{
	const uint32_t frequency = symbol & 0xffff;
	const uint32_t before = symbol >> 16;
	uint32_t x = e->state[lane];
	/* What the symbol is about to multiply must stay under 2^32. */
	if (x >= frequency << (32 - LEVELS_FREQUENCY_BITS)) {
		encoder_word(e, x);
		x >>= 16;
	}
	e->state[lane] = (x / frequency << LEVELS_FREQUENCY_BITS) + x % frequency + before;
}

SIMD_FN void encode_bits(struct encoder *e, size_t lane, uint32_t value, unsigned n_bits)
{
	uint32_t x = e->state[lane];
	if (x >= 1u << (32 - n_bits)) {
		encoder_word(e, x);
		x >>= 16;
	}
	e->state[lane] = x << n_bits | value;
}

/* Up to LEVELS_LANES tokens of one component. */
SIMD_FN void encode_block(struct encoder *e, const struct levels_coder *coder, struct levels_row row,
	const int16_t *codes, size_t n)
{
	int symbols[LEVELS_LANES];
	for (size_t l = 0; l < n; l++)
		symbols[l] = levels_symbol(levels_level(codes[l]), row.shift);
	for (size_t l = n; l-- > 0;)
		if (symbols[l] == LEVELS_ESCAPE)
			encode_bits(e, l, (uint16_t)levels_level(codes[l]), LEVELS_ESCAPE_BITS);
	for (size_t l = n; row.shift && l-- > 0;)
		if (symbols[l] != LEVELS_ESCAPE)
			encode_bits(
				e, l, (uint32_t)levels_level(codes[l]) & ((1u << row.shift) - 1), row.shift);
	for (size_t l = n; l-- > 0;)
		encode_symbol(e, l, coder->symbol[row.table][levels_set(codes[l])][symbols[l]]);
}

size_t VARIANT(encode_levels)(const int16_t *codes, size_t codes_stride, size_t r, size_t n_tokens,
	const struct levels_coder *coder, const struct levels_row *rows, uint8_t *out, size_t room)
{
	const size_t n_lanes = n_tokens < LEVELS_LANES ? n_tokens : LEVELS_LANES;
	const size_t blocks = (n_tokens + LEVELS_LANES - 1) / LEVELS_LANES;
	struct encoder e = {.at = out + room};
	for (size_t l = 0; l < LEVELS_LANES; l++)
		e.state[l] = LEVELS_STATE_MIN;
	for (size_t i = r; i-- > 0;)
		for (size_t b = blocks; b-- > 0;) {
			const size_t first = b * LEVELS_LANES;
			const size_t n = n_tokens - first < LEVELS_LANES ? n_tokens - first : LEVELS_LANES;
			encode_block(&e, coder, rows[i], codes + i * codes_stride + first, n);
		}
	const size_t words = (size_t)(out + room - e.at);
	memcpy(out, e.state, n_lanes * sizeof *e.state);
	memmove(out + n_lanes * sizeof *e.state, e.at, words);
	return n_lanes * sizeof *e.state + words;
}

/* ---- Decoding. */

struct decoder {
	uint32_t state[LEVELS_LANES];
	const uint8_t *at, *end;
};

/* Fills a state that has fallen below its range. Past the end zeros are read: the states will not come out
 * right. */
SIMD_FN uint32_t decoder_refill(struct decoder *d, uint32_t x)
{
	uint16_t w = 0;
	if (x >= LEVELS_STATE_MIN)
		return x;
	if (d->end - d->at >= (ptrdiff_t)sizeof w) {
		memcpy(&w, d->at, sizeof w);
		d->at += sizeof w;
	}
	return x << 16 | w;
}

SIMD_FN uint32_t decode_bits(struct decoder *d, size_t lane, unsigned n_bits)
{
	const uint32_t x = d->state[lane];
	d->state[lane] = decoder_refill(d, x >> n_bits);
	return x & ((1u << n_bits) - 1);
}

SIMD_FN int decode_symbol(
	struct decoder *d, size_t lane, const struct levels_coder *coder, unsigned table, unsigned set)
{
	const uint32_t x = d->state[lane];
	const uint32_t slot = x & SLOT_MASK;
	const unsigned k = coder->slot[table][set][slot];
	const uint32_t symbol = coder->symbol[table][set][k];
	const uint32_t next = (symbol & 0xffff) * (x >> LEVELS_FREQUENCY_BITS) + slot - (symbol >> 16);
	d->state[lane] = decoder_refill(d, next);
	return (int)k;
}

/* states: of the tokens' trellises. */
SIMD_FN void decode_block(struct decoder *d, const struct levels_coder *coder, struct levels_row row,
	uint8_t *states, int16_t *codes, size_t n)
{
	int symbols[LEVELS_LANES];
	int levels[LEVELS_LANES];
	int escapes = 0;
	for (size_t l = 0; l < n; l++) {
		symbols[l] = decode_symbol(d, l, coder, row.table, states[l] >> 1);
		levels[l] = symbols[l] - LEVELS_VALUE_MAX;
		escapes |= symbols[l] == LEVELS_ESCAPE;
	}
	for (size_t l = 0; row.shift && l < n; l++)
		if (symbols[l] != LEVELS_ESCAPE)
			levels[l] = levels[l] * (1 << row.shift) + (int)decode_bits(d, l, row.shift);
	for (size_t l = 0; escapes && l < n; l++)
		if (symbols[l] == LEVELS_ESCAPE) {
			levels[l] = (int16_t)decode_bits(d, l, LEVELS_ESCAPE_BITS);
			levels[l] = levels[l] > LEVELS_MAX ? LEVELS_MAX : levels[l];
			levels[l] = levels[l] < -LEVELS_MAX ? -LEVELS_MAX : levels[l];
		}
	for (size_t l = 0; l < n; l++) {
		codes[l] = (int16_t)(levels[l] * 2 + (states[l] >> 1));
		states[l] = (uint8_t)levels_next(states[l], (unsigned)levels[l] & 1u);
	}
}

int VARIANT(decode_levels)(const uint8_t *in, size_t len, size_t r, size_t n_tokens,
	const struct levels_coder *coder, const struct levels_row *rows, int16_t *codes, size_t codes_stride,
	uint8_t *states)
{
	const size_t n_lanes = n_tokens < LEVELS_LANES ? n_tokens : LEVELS_LANES;
	struct decoder d = {.end = in + len};
	int sound = 1;
	if (len < n_lanes * sizeof *d.state)
		return -1;
	memcpy(d.state, in, n_lanes * sizeof *d.state);
	d.at = in + n_lanes * sizeof *d.state;
	memset(states, 0, n_tokens);
	for (size_t i = 0; i < r; i++)
		for (size_t first = 0; first < n_tokens; first += LEVELS_LANES) {
			const size_t n = n_tokens - first < LEVELS_LANES ? n_tokens - first : LEVELS_LANES;
			int16_t *out = codes + i * codes_stride + first;
			if (n == LEVELS_LANES) /* a constant: the loops unroll */
				decode_block(&d, coder, rows[i], states + first, out, LEVELS_LANES);
			else
				decode_block(&d, coder, rows[i], states + first, out, n);
		}
	for (size_t l = 0; l < n_lanes; l++)
		sound &= d.state[l] == LEVELS_STATE_MIN;
	return sound && d.at == d.end ? 0 : -1;
}
