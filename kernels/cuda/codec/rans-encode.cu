/*
 * Levels to rANS streams (kernels/cuda/codec/rans.cuh). Codes are read twice, 2 bytes a level each time, and
 * no cache holds those of many chunks from the one to the other.
 *
 * The offsets of bands come first, in a kernel of their own, for which all bands of all streams are
 * independent: a row of 256 codes is one load of a warp, those of other streams count for nothing; some 8
 * instructions a code, and 650 for each run of one class.
 *
 * Then the streams. A state depends on the last one by a comparison, a shift, a quotient (a product with the
 * reciprocal, put right where it is one too low) and a sum, some 40 cycles; what bounds the kernel is its
 * instructions, 41 a step, words and the fetching of codes included.
 */
#include "kernels/cuda/codec/rans.cuh"

enum {
	OFFSETS = 2 * LEVELS_OFFSET_MAX + 1,
	RANS_ROWS = 8,   /* of codes, loaded together */
	RANS_STEPS = 8,  /* whose codes are loaded together */
	RANS_AHEAD = 12, /* components between what is coded and what is fetched into L2 */
};

/* ---- offsets of bands */

/* A code's symbol, as levels_level and levels_symbol have it, in fewer instructions. */
__device__ static inline uint32_t code_symbol(int code, uint32_t shift)
{
	return min((uint32_t)((code >> (1 + shift)) + LEVELS_VALUE_MAX), (uint32_t)LEVELS_ESCAPE);
}

/* Which tokens a stream has, of each 256 the eight that a lane loads at once: a bit for each, a byte for each
 * 256. words: [32], the block's, which all have. */
__device__ static inline uint32_t members_of(
	const uint16_t *tokens, uint32_t n, uint32_t lane, uint32_t *words)
{
	uint32_t members = 0;

	if (threadIdx.x < 32)
		words[threadIdx.x] = 0;
	__syncthreads();
	for (uint32_t t = threadIdx.x; t < n; t += 32 * CODEC_OFFSET_WARPS)
		atomicOr(&words[tokens[t] / 32], 1u << tokens[t] % 32);
	__syncthreads();
	for (uint32_t b = 0; b < CODEC_TOKENS_MAX / 256; b++)
		members |= (words[8 * b + lane / 4] >> lane % 4 * 8 & 0xff) << 8 * b;
	return members;
}

static_assert(CODEC_TOKENS_MAX <= 1024, "as many bits as 32 words have");

/* Rows of codes, eight tokens' for each lane; rows that are none are the last one again. */
__device__ static inline void rows_load(
	const int16_t *column, uint32_t stride, uint32_t first, uint32_t n_rows, uint4 rows[RANS_ROWS])
{
	SIMT_UNROLL
	for (uint32_t i = 0; i < RANS_ROWS; i++)
		rows[i] = *(const uint4 *)(column + (size_t)min(first + i, n_rows - 1) * stride);
}

/* Adds the codes of a row, those of members alone. A count of its own for each lane, in a bank of its own:
 * adding atomically, though nobody else adds there, the lane need not wait for what was there. */
template <bool ALL_MEMBERS>
__device__ static inline void row_count(uint4 row, uint32_t shift, uint32_t members, uint32_t *mine)
{
	const uint32_t words[4] = {row.x, row.y, row.z, row.w};

	SIMT_UNROLL
	for (uint32_t i = 0; i < 8; i++) {
		const int code = i % 2 ? (int)words[i / 2] >> 16 : (int16_t)words[i / 2];
		const uint32_t counted = ALL_MEMBERS ? 1 : members >> i & 1;

		/* In the lower half for set 0, in the upper one for set 1. */
		atomicAdd(&mine[32 * code_symbol(code, shift)],
			__funnelshift_l(0, counted, (uint32_t)code * 16));
	}
}

/* How often each symbol of some rows of codes occurs: in lane k symbol k, set 0 in the lower half, set 1 in
 * the upper one. counts: [LEVELS_SYMBOLS], a word for each lane. */
__device__ static inline uint32_t count_symbols(const int16_t *codes, uint32_t stride, uint32_t n_rows,
	uint32_t shift, uint32_t members, uint32_t lane, uint32_t (*counts)[32])
{
	const uint32_t n_steps = (n_rows + RANS_ROWS - 1) / RANS_ROWS, n_all = (stride + 255) / 256 * n_steps;
	uint32_t sum = 0, *const mine = &counts[0][lane];
	uint4 rows[RANS_ROWS], next[RANS_ROWS];

	rows_load(codes + min(8 * lane, stride - 8), stride, 0, n_rows, rows);
	for (uint32_t k = 0; k < LEVELS_SYMBOLS; k++)
		mine[32 * k] = 0;
	for (uint32_t at = 0; at < n_all; at++) {
		const uint32_t then = at + 1 < n_all ? at + 1 : at, first = at % n_steps * RANS_ROWS;
		const uint32_t here = members >> at / n_steps * 8 & 0xff;

		rows_load(codes + min(then / n_steps * 256 + 8 * lane, stride - 8), stride,
			then % n_steps * RANS_ROWS, n_rows, next);
		if (__all_sync(ALL, here == 0xff))
			SIMT_UNROLL
		for (uint32_t i = 0; i < RANS_ROWS; i++) {
			if (first + i < n_rows)
				row_count<true>(rows[i], shift, here, mine);
		}
		else SIMT_UNROLL for (uint32_t i = 0; i < RANS_ROWS; i++)
		{
			if (first + i < n_rows)
				row_count<false>(rows[i], shift, here, mine);
		}
		SIMT_UNROLL
		for (uint32_t i = 0; i < RANS_ROWS; i++)
			rows[i] = next[i];
	}
	__syncwarp(ALL);
	for (uint32_t i = 0; i < 32; i++)
		sum += counts[lane][(lane + i) % 32];
	__syncwarp(ALL);
	return sum;
}

static_assert(LEVELS_SETS == 2 && LEVELS_SYMBOLS == 32 && LEVELS_BAND * CODEC_TOKENS_MAX <= 0xffff,
	"a band's counts fit in the halves of a word of each lane");

/* What each offset would make a band's levels take, in the order of the host's sums: lane i has offset
 * i - LEVELS_OFFSET_MAX. */
__device__ static inline int band_offset(const struct codec_device_part *part,
	const struct codec_device_block *block, const int8_t *classes, uint32_t members, uint32_t first,
	uint32_t end, uint32_t lane, uint32_t (*counts)[32])
{
	const int mine = first + lane < end ? classes[first + lane] : INT8_MAX;
	float bits = 0, least;
	int best = 0;

	for (uint32_t i = first, next; i < end; i = next) {
		const int level_class = __shfl_sync(ALL, mine, (int)(i - first));
		const struct levels_row row = levels_row(level_class);
		const struct levels_row moved = levels_row(level_class + (int)lane - LEVELS_OFFSET_MAX);
		const float(*of)[LEVELS_SYMBOLS] = part->coder->bits[moved.table];
		const uint32_t others = __ballot_sync(ALL, first + lane > i && mine != level_class);
		float sum = 0;

		next = first + (uint32_t)__ffs((int)others) - 1;
		const uint32_t count = count_symbols(block->codes + (size_t)i * block->stride, block->stride,
			next - i, row.shift, members, lane, counts);

		/* What does not occur adds zero. */
		for (uint32_t k = 0; k < LEVELS_SYMBOLS; k++)
			sum += (float)(__shfl_sync(ALL, count, (int)k) & 0xffff) * of[0][k];
		for (uint32_t k = 0; k < LEVELS_SYMBOLS; k++)
			sum += (float)(__shfl_sync(ALL, count, (int)k) >> 16) * of[1][k];
		bits += lane < OFFSETS && moved.shift == row.shift ? sum : INFINITY;
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

extern "C" __global__ void __launch_bounds__(32 * CODEC_OFFSET_WARPS, 4)
	codec_rans_offsets(const struct codec_rans_args a)
{
	__shared__ uint32_t counts[CODEC_OFFSET_WARPS][LEVELS_SYMBOLS][32], words[32];
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, number = blockIdx.x;
	const struct codec_device_stream *stream = &a.streams[number];
	const struct codec_device_block *block = &a.blocks[stream->block];
	const struct codec_device_part *part = &a.parts[block->part];
	const struct codec_device_chunk *chunk = &a.chunks[block->chunk];
	const uint32_t rung = chunk->rung[stream->coded_class], r = part->active[rung];
	const int8_t *classes = part->classes + (size_t)rung * part->n_components;
	const uint32_t first_band = blockIdx.y * CODEC_OFFSET_BANDS, n_bands = levels_bands(r);

	if (first_band >= n_bands || stream->len < n_bands)
		return;
	const uint32_t members = members_of(chunk->tokens + stream->first, stream->n, lane, words);

	for (uint32_t i = warp; i < CODEC_OFFSET_BANDS && first_band + i < n_bands; i += CODEC_OFFSET_WARPS) {
		const uint32_t first = (first_band + i) * LEVELS_BAND,
			       end = r < first + LEVELS_BAND ? r : first + LEVELS_BAND;
		const int offset = band_offset(part, block, classes, members, first, end, lane, counts[warp]);

		if (lane == 0)
			stream->body[first_band + i] = (uint8_t)offset;
	}
}

/* ---- encoding */

/* One stream on its way. */
struct writer {
	uint8_t *start; /* of the words' room */
	int at;         /* words lie from here on; below 0 there was no room, and none is written */
	uint32_t lane, below;
	uint32_t x;
};

/* Every lane that is full gives its low half away. */
__device__ static inline void put_words(struct writer *w, bool full)
{
	const uint32_t mask = __ballot_sync(ALL, full);

	w->at -= 2 * __popc(mask);
	simt_store_word(w->start + (uint32_t)(w->at + 2 * __popc(mask & w->below)), w->x, full && w->at >= 0);
	w->x = full ? w->x >> 16 : w->x;
}

__device__ static inline void encode_bits(struct writer *w, uint32_t value, uint32_t n_bits, bool active)
{
	put_words(w, active && w->x >= 1u << (32 - n_bits));
	if (active)
		w->x = w->x << n_bits | value;
}

/* A symbol for the encoder. x: its frequency, and in the upper half what comes before it; y: 2^32 over the
 * frequency, at most, and less than one less. */
__device__ static inline uint2 encode_symbol_of(uint32_t symbol)
{
	return make_uint2(symbol, 0xffffffffu / (symbol & 0xffff));
}

/* All slots to one symbol: nothing changes. */
__device__ static inline uint2 encode_symbol_none(void)
{
	return make_uint2(LEVELS_SLOTS, 0);
}

/* What the symbol is about to multiply must stay under 2^32; the limit wraps around for none. */
__device__ static inline bool encode_full(uint32_t x, uint2 symbol)
{
	return x > (symbol.x << (32 - LEVELS_FREQUENCY_BITS)) - 1;
}

/* x / frequency * 2^12 + x % frequency + what comes before; the quotient may be too low by one at first,
 * since x / 2^32 < 1. */
__device__ static inline uint32_t encode_next(uint32_t x, uint2 symbol)
{
	const uint32_t frequency = symbol.x & 0xffff, others = LEVELS_SLOTS - frequency;
	const uint32_t quotient = __umulhi(x, symbol.y), rest = x - quotient * frequency;

	return x + quotient * others + (symbol.x >> 16) + (rest >= frequency ? others : 0);
}

__device__ static inline void encode_symbol(struct writer *w, uint2 symbol)
{
	put_words(w, encode_full(w->x, symbol));
	w->x = encode_next(w->x, symbol);
}

/* Steps without escapes and low bits, where there is room for all of their words: first the states, which
 * depend on each other, then the words. */
__device__ static inline void encode_symbols(struct writer *w, const uint2 symbol[RANS_STEPS])
{
	uint32_t before[RANS_STEPS], full[RANS_STEPS];

	SIMT_UNROLL
	for (uint32_t u = RANS_STEPS; u-- > 0;) {
		const bool is = encode_full(w->x, symbol[u]);

		before[u] = w->x;
		full[u] = __ballot_sync(ALL, is);
		w->x = encode_next(is ? w->x >> 16 : w->x, symbol[u]);
	}
	SIMT_UNROLL
	for (uint32_t u = RANS_STEPS; u-- > 0;) {
		w->at -= 2 * __popc(full[u]);
		simt_store_word(w->start + (uint32_t)(w->at + 2 * __popc(full[u] & w->below)), before[u],
			full[u] >> w->lane & 1u);
	}
}

/* Codes of a component, of RANS_STEPS steps from token `first` of the stream on; behind the last token that
 * token's again: loads without conditions go out together. */
struct codes {
	uint32_t token[RANS_STEPS];
	int code[RANS_STEPS];
	uint32_t first;
};

__device__ static inline void codes_fetch(struct codes *c, const int16_t *row, const uint16_t *tokens,
	uint32_t first, uint32_t n, uint32_t lane)
{
	if (c->first != first)
		SIMT_UNROLL
	for (uint32_t u = 0; u < RANS_STEPS; u++)
		c->token[u] = tokens[min(first + 32 * u + lane, n - 1)];
	c->first = first;
	SIMT_UNROLL
	for (uint32_t u = 0; u < RANS_STEPS; u++)
		c->code[u] = row[c->token[u]];
}

/* Steps of one component, the last first. whole: there are tokens for all of them; otherwise a step that has
 * none is left out. */
template <bool whole>
__device__ static inline void encode_codes(struct writer *w, const int codes[RANS_STEPS],
	const uint2 *symbols, uint32_t shift, uint32_t first, uint32_t n, uint32_t lane)
{
	uint2 symbol[RANS_STEPS];
	uint32_t most = 0;

	SIMT_UNROLL
	for (uint32_t u = 0; u < RANS_STEPS; u++) {
		const bool active = whole || first + 32 * u + lane < n;
		const uint32_t k = active ? code_symbol(codes[u], shift) : 0;

		symbol[u] = symbols[(codes[u] & 1) * LEVELS_SYMBOLS + k];
		most = max(most, k);
		if (!active)
			symbol[u] = encode_symbol_none();
	}
	if (shift == 0 && w->at >= 2 * 32 * RANS_STEPS && !__any_sync(ALL, most == LEVELS_ESCAPE)) {
		encode_symbols(w, symbol);
		return;
	}
	SIMT_UNROLL
	for (uint32_t u = RANS_STEPS; u-- > 0;) {
		const int level = codes[u] >> 1;
		const bool active = first + 32 * u + lane < n;
		const bool escapes = active && code_symbol(codes[u], shift) == LEVELS_ESCAPE;

		if (!whole && first + 32 * u >= n)
			continue;
		if (__any_sync(ALL, escapes))
			encode_bits(w, (uint16_t)level, LEVELS_ESCAPE_BITS, escapes);
		if (shift)
			encode_bits(w, (uint32_t)level & ((1u << shift) - 1), shift, active && !escapes);
		encode_symbol(w, symbol[u]);
	}
}

/* n bytes towards higher addresses, where they may overlap with what they were. */
__device__ static inline void move_up(uint8_t *to, const uint8_t *from, uint32_t n, uint32_t lane)
{
	for (uint32_t first = (n + 31) / 32 * 32; first > 0; first -= 32) {
		const uint32_t i = first - 32 + lane;
		const uint8_t byte = i < n ? from[i] : 0;

		__syncwarp(ALL);
		if (i < n)
			to[i] = byte;
		__syncwarp(ALL);
	}
}

/* The body of a section, at the end of its room, which begins with the offsets: bytes, or -1. */
__device__ static inline int encode_stream(const struct codec_device_stream *stream,
	const struct codec_device_block *block, const struct codec_device_part *part, uint32_t rung,
	const uint16_t *tokens, uint32_t lane, uint2 *symbols)
{
	const uint32_t r = part->active[rung], bands = levels_bands(r), n = stream->n;
	const uint32_t n_lanes = n < 32 ? n : 32, head = bands + 4 * n_lanes, stride = block->stride;
	const uint32_t last = (n - 1) / (32 * RANS_STEPS) * (32 * RANS_STEPS);
	const struct levels_coder *coder = part->coder;
	struct components components = components_of(part, rung, stream->body, lane);
	struct writer w = {
		stream->body + head, (int)(stream->len - head), lane, (1u << lane) - 1, LEVELS_STATE_MIN};
	struct codes coming = {{0}, {0}, UINT32_MAX};
	const int16_t *row = block->codes + (size_t)r * stride; /* of the codes that come */
	uint32_t keys = 0, table = UINT32_MAX;

	if (stream->len < head)
		return -1;
	if (r) {
		row -= stride;
		components_fetch(&components, (r - 1) / 32 * 32);
		codes_fetch(&coming, row, tokens, last, n, lane);
	}
	for (uint32_t i = r; i-- > 0;) {
		if (i % 32 == 31 || i == r - 1) {
			keys = components_key(&components);
			if (i >= 32)
				components_fetch(&components, i / 32 * 32 - 32);
		}
		const uint32_t key = __shfl_sync(ALL, keys, (int)(i % 32));

		if ((key & 0xff) != table) {
			table = key & 0xff;
			__syncwarp(ALL);
			for (uint32_t set = 0; set < LEVELS_SETS; set++)
				symbols[set * LEVELS_SYMBOLS + lane] =
					encode_symbol_of(coder->symbol[table][set][lane]);
			__syncwarp(ALL);
		}
		if (i >= RANS_AHEAD && lane < stride / 64)
			simt_prefetch(row - (size_t)RANS_AHEAD * stride + 64 * lane);
		for (uint32_t more = 1, first = last; more; first -= 32 * RANS_STEPS) {
			int codes[RANS_STEPS];

			SIMT_UNROLL
			for (uint32_t u = 0; u < RANS_STEPS; u++)
				codes[u] = coming.code[u];
			more = first;
			if (!more && i)
				row -= stride;
			/* After the very last ones these again, for nothing. */
			codes_fetch(&coming, row, tokens, more ? first - 32 * RANS_STEPS : last, n, lane);
			if (first + 32 * RANS_STEPS <= n)
				encode_codes<true>(&w, codes, symbols, key >> KEY_SHIFT, first, n, lane);
			else
				encode_codes<false>(&w, codes, symbols, key >> KEY_SHIFT, first, n, lane);
		}
	}
	if (w.at < 0)
		return -1;
	uint8_t *states = w.start + w.at - 4 * n_lanes, *body = states - bands;

	if (lane < n_lanes)
		for (int i = 0; i < 4; i++)
			states[4 * lane + i] = (uint8_t)(w.x >> 8 * i);
	move_up(body, stream->body, bands, lane);
	return (int)(stream->body + stream->len - body);
}

extern "C" __global__ void __launch_bounds__(32) codec_rans_encode(const struct codec_rans_args a)
{
	__shared__ uint2 symbols[LEVELS_SETS * LEVELS_SYMBOLS];
	const uint32_t lane = threadIdx.x, number = blockIdx.x;
	const struct codec_device_stream *stream = &a.streams[number];
	const struct codec_device_block *block = &a.blocks[stream->block];
	const struct codec_device_chunk *chunk = &a.chunks[block->chunk];
	const int status = encode_stream(stream, block, &a.parts[block->part],
		chunk->rung[stream->coded_class], chunk->tokens + stream->first, lane, symbols);

	if (lane == 0)
		a.status[number] = status;
}
