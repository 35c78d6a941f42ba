/*
 * Levels to rANS streams and back (kernels/levels.h; the bytes are those of kernels/cpu/rans.c and
 * runtime/codec/levels.c), a warp for each stream: its lanes are the stream's. What a step takes from the
 * stream, or adds to it, is where a lane stands among those that want a word, which a ballot says.
 *
 * Decoding writes values in steps, f16, as the inverse product wants them. Traffic a level: an eighth of a
 * byte or so read, 2 written. Floor: latency. A component of 32 tokens is a chain of two look-ups, a product,
 * a ballot and a word, some 130 cycles; a chunk of 256 tokens with 600 components takes 4,800 of these one
 * after the other, and what hides them is other warps: a GET of 32 chunks has a thousand.
 *
 * Encoding reads codes twice (offsets, then symbols), 2 bytes each, and is bound by the division.
 */
#include "kernels/cuda/codec.h"
#include "kernels/cuda/simt.h"
#include "kernels/formula.h"

enum {
	OFFSETS = 2 * LEVELS_OFFSET_MAX + 1,
	WARPS = CODEC_THREADS / 32,
	SLOT_MASK = LEVELS_SLOTS - 1,
};

#define ALL 0xffffffffu

__device__ static inline int row_class(const struct codec_device_part *part, uint32_t i, float step)
{
	return levels_class(part->deviation[i], step);
}

/* ---- decoding */

struct reader {
	const uint8_t *at, *end;
	uint32_t below; /* lanes below this one, as a mask */
};

/* Fills the state of every lane that has fallen below its range. Past the end zeros are read: the states will
 * not come out right. */
__device__ static inline uint32_t refill(struct reader *r, uint32_t x, bool active)
{
	const bool wants = active && x < LEVELS_STATE_MIN;
	const uint32_t mask = __ballot_sync(ALL, wants);
	const uint32_t left = (uint32_t)((r->end - r->at) / 2);
	const uint32_t wanted = (uint32_t)__popc(mask);

	if (wants) {
		const uint32_t place = (uint32_t)__popc(mask & r->below);
		const uint8_t *word = r->at + 2 * place;

		x = x << 16 | (place < left ? (uint32_t)word[0] | (uint32_t)word[1] << 8 : 0);
	}
	r->at += 2 * (wanted < left ? wanted : left);
	return x;
}

/* A component's levels of 32 tokens. state: the lane's trellis. */
__device__ static inline int decode_level(struct reader *r, const struct levels_coder *coder,
	struct levels_row row, uint32_t *x, uint32_t state, bool active)
{
	const uint32_t set = state >> 1;
	uint32_t k = 0;
	int level = 0;
	bool escapes;

	if (active) {
		const uint32_t slot = *x & SLOT_MASK;
		uint32_t symbol;

		k = coder->slot[row.table][set][slot];
		symbol = coder->symbol[row.table][set][k];
		*x = (symbol & 0xffff) * (*x >> LEVELS_FREQUENCY_BITS) + slot - (symbol >> 16);
		level = (int)k - LEVELS_VALUE_MAX;
	}
	*x = refill(r, *x, active);
	escapes = active && k == LEVELS_ESCAPE;
	if (row.shift) {
		const bool takes = active && !escapes;

		if (takes) {
			level = level * (1 << row.shift) + (int)(*x & ((1u << row.shift) - 1));
			*x >>= row.shift;
		}
		*x = refill(r, *x, takes);
	}
	if (__any_sync(ALL, escapes)) {
		if (escapes) {
			level = (int16_t)(*x & 0xffff);
			level = level > LEVELS_MAX    ? (int)LEVELS_MAX
				: level < -LEVELS_MAX ? -LEVELS_MAX
						      : level;
			*x >>= LEVELS_ESCAPE_BITS;
		}
		*x = refill(r, *x, escapes);
	}
	return level;
}

/* Row i of a block's values, and its second row where there is one. */
__device__ static inline void put_value(
	const struct codec_device_block *block, uint32_t i, uint32_t column, float v)
{
	const uint16_t high = simt_half(v);

	block->values[codec_value_at(block, i, column)] = high;
	if (i < block->k_wide)
		block->values[codec_value_at(block, codec_value_rows(block->k) + i, column)] =
			simt_half(v - simt_float(high));
}

/* The trellis states of a lane's tokens, two bits each: CODEC_TOKENS_MAX / 32 of them. */
__device__ static inline int decode_stream(const struct codec_device_stream *stream,
	const struct codec_device_block *block, const struct codec_device_part *part, uint32_t rung,
	uint32_t lane)
{
	const uint32_t r = part->active[rung], bands = levels_bands(r);
	const uint32_t n_lanes = stream->n < 32 ? stream->n : 32;
	const uint8_t *offsets = stream->body, *first = stream->body + bands + 4 * lane;
	struct reader reader = {
		stream->body + bands + 4 * n_lanes, stream->body + stream->len, (1u << lane) - 1};
	uint64_t states = 0;
	uint32_t x = 0;
	bool sound;

	if (stream->len < bands + 4 * n_lanes)
		return -1;
	if (lane < n_lanes)
		x = (uint32_t)first[0] | (uint32_t)first[1] << 8 | (uint32_t)first[2] << 16 |
		    (uint32_t)first[3] << 24;
	for (uint32_t i = 0; i < r; i++) {
		const int offset = (int8_t)offsets[i / LEVELS_BAND];
		const struct levels_row row = levels_row(row_class(part, i, part->step[rung]) + offset);
		const float(*bias)[2] =
			part->coder->bias[part->rows[(size_t)rung * part->n_components + i].table];

		if (offset < -LEVELS_OFFSET_MAX || offset > LEVELS_OFFSET_MAX)
			return -1;
		for (uint32_t t = lane, b = 0; b * 32 < stream->n; t += 32, b++) {
			const bool active = t < stream->n;
			const uint32_t state = (uint32_t)(states >> 2 * b) & 3;
			const int level = decode_level(&reader, part->coder, row, &x, state, active);
			const uint32_t next = levels_next(state, (unsigned)level & 1u);
			float v = levels_magnitude(level, state >> 1, bias[state >> 1]);

			states = (states & ~((uint64_t)3 << 2 * b)) | (uint64_t)next << 2 * b;
			v = level < 0 ? -v : v;
			if (active)
				put_value(block, i, stream->first + t, v);
		}
	}
	for (uint32_t t = lane; t < stream->n; t += 32) {
		for (uint32_t i = r; i < codec_value_rows(block->k); i++)
			put_value(block, i, stream->first + t, 0);
		for (uint32_t i = block->k_wide; i < codec_value_rows(block->k_wide); i++)
			block->values[codec_value_at(
				block, codec_value_rows(block->k) + i, stream->first + t)] = 0;
	}
	sound = reader.at == reader.end && (lane >= n_lanes || x == LEVELS_STATE_MIN);
	return __all_sync(ALL, sound) ? 0 : -1;
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_rans_decode(const struct codec_rans_args a)
{
	const uint32_t lane = threadIdx.x % 32, number = blockIdx.x * WARPS + threadIdx.x / 32;
	int status;

	if (number >= a.n_streams)
		return;
	const struct codec_device_stream *stream = &a.streams[number];
	const struct codec_device_block *block = &a.blocks[stream->block];

	status = decode_stream(
		stream, block, &a.parts[block->part], a.chunks[block->chunk].rung[stream->coded_class], lane);
	if (lane == 0)
		a.status[number] = status;
}

/* ---- encoding */

/* One stream on its way: words go towards lower addresses. */
struct writer {
	uint8_t *at, *start;
	uint32_t below;
	bool full;
};

__device__ static inline void put_words(struct writer *w, uint32_t x, bool wants)
{
	const uint32_t mask = __ballot_sync(ALL, wants), n = (uint32_t)__popc(mask);

	if (w->at - w->start < (ptrdiff_t)(2 * n)) {
		w->full = true;
		return;
	}
	w->at -= 2 * n;
	if (wants) {
		uint8_t *word = w->at + 2 * (uint32_t)__popc(mask & w->below);

		word[0] = (uint8_t)x;
		word[1] = (uint8_t)(x >> 8);
	}
}

__device__ static inline void encode_bits(
	struct writer *w, uint32_t *x, uint32_t value, uint32_t n_bits, bool active)
{
	const bool full = active && *x >= 1u << (32 - n_bits);

	put_words(w, *x, full);
	if (full)
		*x >>= 16;
	if (active)
		*x = *x << n_bits | value;
}

__device__ static inline void encode_symbol(struct writer *w, uint32_t *x, uint32_t symbol, bool active)
{
	const uint32_t frequency = symbol & 0xffff;
	/* What the symbol is about to multiply must stay under 2^32. */
	const bool full = active && *x >= frequency << (32 - LEVELS_FREQUENCY_BITS);

	put_words(w, *x, full);
	if (full)
		*x >>= 16;
	if (active)
		*x = (*x / frequency << LEVELS_FREQUENCY_BITS) + *x % frequency + (symbol >> 16);
}

__device__ static inline void encode_level(struct writer *w, const struct levels_coder *coder,
	struct levels_row row, int16_t code, uint32_t *x, bool active)
{
	const int level = levels_level(code);
	const uint32_t k = active ? (uint32_t)levels_symbol(level, row.shift) : 0;
	const bool escapes = active && k == LEVELS_ESCAPE;

	if (__any_sync(ALL, escapes))
		encode_bits(w, x, (uint16_t)level, LEVELS_ESCAPE_BITS, escapes);
	if (row.shift)
		encode_bits(w, x, (uint32_t)level & ((1u << row.shift) - 1), row.shift, active && !escapes);
	encode_symbol(w, x, coder->symbol[row.table][levels_set(code)][k], active);
}

/* What each offset would make a band's levels take, in the order of the host's sums: lane i has offset
 * i - LEVELS_OFFSET_MAX. histogram: [LEVELS_SETS][LEVELS_SYMBOLS] of this warp's. */
__device__ static inline int band_offset(const struct codec_device_part *part,
	const struct codec_device_block *block, const uint16_t *tokens, uint32_t n, float step,
	uint32_t first, uint32_t end, uint32_t lane, uint32_t (*histogram)[LEVELS_SYMBOLS])
{
	float bits = 0, least;
	int best = 0;

	for (uint32_t i = first, next; i < end; i = next) {
		const int level_class = row_class(part, i, step);
		const struct levels_row row = levels_row(level_class);
		const struct levels_row moved = levels_row(level_class + (int)lane - LEVELS_OFFSET_MAX);
		float sum = 0;

		for (uint32_t set = 0; set < LEVELS_SETS; set++)
			histogram[set][lane] = 0;
		__syncwarp(ALL);
		for (next = i; next < end && row_class(part, next, step) == level_class; next++)
			for (uint32_t t = lane; t < n; t += 32) {
				const int16_t code = block->codes[(size_t)next * block->stride + tokens[t]];

				atomicAdd(&histogram[levels_set(code)]
						    [levels_symbol(levels_level(code), row.shift)],
					1u);
			}
		__syncwarp(ALL);
		if (lane < OFFSETS && moved.shift == row.shift)
			for (uint32_t set = 0; set < LEVELS_SETS; set++)
				for (uint32_t k = 0; k < LEVELS_SYMBOLS; k++)
					if (histogram[set][k])
						sum += (float)histogram[set][k] *
						       part->coder->bits[moved.table][set][k];
		bits += lane < OFFSETS && moved.shift == row.shift ? sum : INFINITY;
		__syncwarp(ALL);
	}
	least = __shfl_sync(ALL, bits, LEVELS_OFFSET_MAX);
	for (int offset = -LEVELS_OFFSET_MAX; offset <= LEVELS_OFFSET_MAX; offset++) {
		const float other = __shfl_sync(ALL, bits, offset + LEVELS_OFFSET_MAX);

		if (other < least) {
			least = other;
			best = offset;
		}
	}
	return best;
}

/* The body of a section, at the end of its room: bytes, or -1. */
__device__ static inline int encode_stream(const struct codec_device_stream *stream,
	const struct codec_device_block *block, const struct codec_device_part *part, uint32_t rung,
	const uint16_t *tokens, uint32_t lane, int8_t *offsets, uint32_t (*histogram)[LEVELS_SYMBOLS])
{
	const uint32_t r = part->active[rung], bands = levels_bands(r), n = stream->n;
	const uint32_t n_lanes = n < 32 ? n : 32;
	const float step = part->step[rung];
	struct writer w = {
		stream->body + stream->len, stream->body + bands + 4 * n_lanes, (1u << lane) - 1, false};
	uint32_t x = LEVELS_STATE_MIN;

	if (stream->len < bands + 4 * n_lanes)
		return -1;
	for (uint32_t b = bands; b-- > 0;) {
		const uint32_t first = b * LEVELS_BAND,
			       end = r < first + LEVELS_BAND ? r : first + LEVELS_BAND;
		const int offset = band_offset(part, block, tokens, n, step, first, end, lane, histogram);

		for (uint32_t i = end; i-- > first && !w.full;) {
			const struct levels_row row = levels_row(row_class(part, i, step) + offset);
			const int16_t *codes = block->codes + (size_t)i * block->stride;

			for (uint32_t t = (n + 31) / 32 * 32; t > 0 && !w.full; t -= 32) {
				const uint32_t at = t - 32 + lane;
				const bool active = at < n;

				encode_level(&w, part->coder, row, active ? codes[tokens[at]] : (int16_t)0,
					&x, active);
			}
		}
		if (lane == 0)
			offsets[b] = (int8_t)offset;
		if (w.full)
			return -1;
	}
	__syncwarp(ALL);
	w.at -= 4 * n_lanes;
	if (lane < n_lanes)
		for (int i = 0; i < 4; i++)
			w.at[4 * lane + i] = (uint8_t)(x >> 8 * i);
	w.at -= bands;
	for (uint32_t b = lane; b < bands; b += 32)
		w.at[b] = (uint8_t)offsets[b];
	return (int)(stream->body + stream->len - w.at);
}

/* Dynamic shared memory: for each warp its offsets, [n_bands_max] bytes; n_bands_max is of the part with most
 * components. */
extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_rans_encode(const struct codec_rans_args a)
{
	__shared__ uint32_t histogram[WARPS][LEVELS_SETS][LEVELS_SYMBOLS];
	SIMT_SHARED(int8_t, offsets);
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, number = blockIdx.x * WARPS + warp;
	int status;

	if (number >= a.n_streams)
		return;
	const struct codec_device_stream *stream = &a.streams[number];
	const struct codec_device_block *block = &a.blocks[stream->block];
	const struct codec_device_chunk *chunk = &a.chunks[block->chunk];

	status = encode_stream(stream, block, &a.parts[block->part], chunk->rung[stream->coded_class],
		chunk->tokens + stream->first, lane, offsets + warp * a.n_bands_max, histogram[warp]);
	if (lane == 0)
		a.status[number] = status;
}
