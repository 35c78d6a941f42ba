/*
 * rANS streams to values (kernels/cuda/codec/rans.cuh), in steps, f16, as the inverse product wants them.
 * Traffic a level: an eighth of a byte or so read, 2 written. Floor: latency. A step's states depend on the
 * last step's by this chain: slot (shared memory), symbol (shared memory), product, difference, comparison,
 * ballot, rank, word (a shuffle), insertion: by what is known of sm_90's latencies some 150 cycles, of which
 * the loads and the shuffle are 80. Nothing else is on it: the stream's next words lie in a window in
 * registers, for which more are always under way; values come from the table with the symbol; what depends on
 * the component alone is found ahead; low bits and escapes are branches that all lanes take, or none. A step
 * is 52 instructions, so that another warp or two of the scheduler's are hidden, and one branch: what is rare
 * waits outside of the loop. A chunk of 256 tokens with 800 components is 6,400 steps, a million cycles.
 */
#include "kernels/cuda/codec/rans.cuh"

enum {
	SLOT_MASK = LEVELS_SLOTS - 1,
	SYMBOL_BYTES = 8,                              /* of a symbol in a table */
	TABLE_SLOTS = LEVELS_SETS * LEVELS_SLOTS / 16, /* of 16 bytes, as they are copied */
	TABLE_SYMBOLS = LEVELS_SETS * LEVELS_SYMBOLS / 4,
};

/* A stream's words on their way: from global memory by asynchronous copies, which lie READER_AHEAD pieces
 * ahead, to a ring in shared memory, and from there, 32 at a time, to a window of 64 in registers: the next
 * 32 in the lanes' low halves, those behind in the high ones. So no load from memory is waited for, and none
 * takes a register: one that did would be waited for where the compiler copies it. Streams begin at any byte:
 * copies begin at the 16 bytes' boundary before, and end with the stream. */
enum {
	READER_PIECE = 64, /* bytes of 32 words */
	READER_RING = 512, /* bytes */
	READER_AHEAD =
		5, /* pieces asked for when a group of 32 words is read, which may need the first two */
	READER_PENDING = 3, /* of these so many may still be under way */
};

static_assert(READER_RING >= (READER_AHEAD + 2) * READER_PIECE,
	"what is asked for goes where nothing is that is still to be read");

struct reader {
	const uint8_t *from; /* the boundary */
	uint8_t *ring;
	simt_shared ring_at;
	uint32_t len, skip; /* bytes from `from` to the stream's end, and to its words */
	uint32_t n_words;
	uint32_t window;
	uint32_t at;          /* the stream's next word, from the window's first on */
	uint32_t groups;      /* that have been read into the window */
	uint32_t lane, below; /* below: lanes below this one, as a mask */
};

__device__ static inline void reader_ask(const struct reader *r, uint32_t piece)
{
	const uint32_t at = piece * READER_PIECE + 16 * r->lane, whole = r->len / 16 * 16;
	const uint32_t rest = whole + r->lane;

	if (r->lane < READER_PIECE / 16 && at < whole)
		simt_copy16(r->ring + at % READER_RING, r->from + at);
	simt_copy_commit();
	if (piece == whole / READER_PIECE && rest < r->len)
		r->ring[rest % READER_RING] = r->from[rest];
}

/* Before a refill: afterwards 32 words can be taken. Past the end there are zeros: the states will not come
 * out right. */
__device__ static inline void reader_turn(struct reader *r)
{
	if (r->at >= 32) {
		const uint32_t word = 32 * r->groups + r->lane, byte = r->skip + 2 * word;

		simt_copy_wait<READER_PENDING>();
		__syncwarp(ALL);
		const uint32_t low = simt_load_byte(r->ring_at + byte % READER_RING);
		const uint32_t high = simt_load_byte(r->ring_at + (byte + 1) % READER_RING);

		reader_ask(r, r->groups + READER_AHEAD);
		r->groups++;
		r->at -= 32;
		r->window = r->window >> 16 | (word < r->n_words ? low << 16 | high << 24 : 0);
	}
}

__device__ static inline struct reader reader_begin(
	uint8_t *ring, const uint8_t *words, const uint8_t *end, uint32_t lane)
{
	const uint32_t skip = (uint32_t)(reinterpret_cast<uintptr_t>(words) % 16);
	struct reader r = {words - skip, ring, simt_shared_of(ring), (uint32_t)(end - words) + skip, skip,
		(uint32_t)((end - words) / 2), 0, 64, 0, lane, (1u << lane) - 1};

	for (uint32_t piece = 0; piece < READER_AHEAD; piece++)
		reader_ask(&r, piece);
	reader_turn(&r);
	reader_turn(&r);
	return r;
}

/* Words taken. */
__device__ static inline uint32_t reader_taken(const struct reader *r)
{
	return 32 * r->groups - 64 + r->at;
}

/* Fills the state of every lane that has fallen below its range. */
__device__ static inline uint32_t refill(struct reader *r, uint32_t x, bool active)
{
	const bool wants = active && x < LEVELS_STATE_MIN;
	const uint32_t mask = __ballot_sync(ALL, wants);
	const uint32_t place = r->at + (uint32_t)__popc(mask & r->below);
	const uint32_t pair = __shfl_sync(ALL, r->window, (int)place);

	r->at += (uint32_t)__popc(mask);
	/* x << 16 | word, or x. */
	return __byte_perm(pair, x, !wants ? 0x7654u : place & 32u ? 0x5432u : 0x5410u);
}

/* In shared memory. */
struct decode_table {
	uint4 slots[TABLE_SLOTS]; /* symbols, a byte each */
	/* x: frequency; y: what comes before it in the upper half, the value in f16 in the lower one. */
	uint2 symbols[LEVELS_SETS][LEVELS_SYMBOLS];
	/* Of the coder, from which the symbols are made once all is here. */
	uint4 of_symbols[TABLE_SYMBOLS], of_bias;
	uint4 ring[READER_RING / 16]; /* the reader's */
};

static_assert(offsetof(struct levels_coder, slot) % 16 == 0 &&
		      offsetof(struct levels_coder, symbol) % 16 == 0 &&
		      offsetof(struct levels_coder, bias) % 16 == 0 &&
		      sizeof(((struct levels_coder *)0)->bias[0]) == 16 && TABLE_SYMBOLS < 32,
	"tables are copied 16 bytes at a time");
static_assert(sizeof(uint2) == SYMBOL_BYTES, "symbols are found by their bytes");

__device__ static inline float level_value(int level, uint32_t set, const float (*bias)[2])
{
	const float v = levels_magnitude(level, set, bias[set]);

	return level < 0 ? -v : v;
}

/* The tables of a key, all on their way at once. What the reader waits for comes no later for it: copies
 * arrive in order. */
__device__ static inline void decode_table_load(
	struct decode_table *to, const struct levels_coder *coder, uint32_t key, uint32_t lane)
{
	const uint32_t table = key & 0xff;
	const uint4 *slots = reinterpret_cast<const uint4 *>(coder->slot[table]);
	const uint4 *symbols = reinterpret_cast<const uint4 *>(coder->symbol[table]);

	__syncwarp(ALL);
	SIMT_UNROLL
	for (uint32_t i = 0; i < TABLE_SLOTS; i += 32)
		simt_copy16(&to->slots[i + lane], &slots[i + lane]);
	if (lane < TABLE_SYMBOLS)
		simt_copy16(&to->of_symbols[lane], &symbols[lane]);
	else if (lane == TABLE_SYMBOLS)
		simt_copy16(&to->of_bias, coder->bias[key >> KEY_BIAS & 0xff]);
	simt_copy_commit();
	simt_copy_wait<0>();
	__syncwarp(ALL);
	for (uint32_t set = 0; set < LEVELS_SETS; set++) {
		const uint32_t symbol =
			reinterpret_cast<const uint32_t *>(to->of_symbols)[set * LEVELS_SYMBOLS + lane];
		const float v = level_value(
			(int)lane - LEVELS_VALUE_MAX, set, reinterpret_cast<const float(*)[2]>(&to->of_bias));

		to->symbols[set][lane] = make_uint2(symbol & 0xffff, (symbol & 0xffff0000u) | simt_half(v));
	}
	__syncwarp(ALL);
}

/* A stream on its way. */
struct decoder {
	struct reader reader;
	simt_shared slots, symbols; /* of the table */
	uint32_t x;
	/* The trellis states of the lane's tokens, two bits each, of the step that is next in the lowest. A
	 * state that is added is multiplied by `place`. */
	uint32_t states[2], place[2];
	uint32_t set; /* of that step: where it begins in the table's slots */
};

/* Where a component's levels go, f16, elements of a block's values: of its row, and of its second row, or 0,
 * from the last row on whose number is a multiple of eight. */
struct values {
	uint16_t *to;
	uint32_t high, low;
	uint32_t row, tile; /* the row's number from there on; elements from CODEC_ROW tokens to the next */
	const float (*bias)[2];
	uint32_t shift;
};

/* The element of a token's column there. */
__device__ static inline uint32_t value_at(const struct values *v, uint32_t column)
{
	return column / CODEC_ROW * v->tile + (uint32_t)codec_in_rows(v->row, column % CODEC_ROW);
}

/* The trellis after a level; states: before it. */
__device__ static inline void decoder_advance(struct decoder *d, const uint32_t states[2], int level)
{
	const uint32_t next = levels_next(states[0] & 3, (unsigned)level & 1u);

	d->states[0] = __funnelshift_r(states[0], states[1], 2) + next * d->place[0];
	d->states[1] = (states[1] >> 2) + next * d->place[1];
	d->set = (d->states[0] >> 1 & 1u) * LEVELS_SLOTS;
}

__device__ static inline int decode_escape(uint32_t *x)
{
	const int level = (int16_t)(*x & 0xffff);

	*x >>= LEVELS_ESCAPE_BITS;
	return level > LEVELS_MAX ? (int)LEVELS_MAX : level < -LEVELS_MAX ? -LEVELS_MAX : level;
}

/* One component's levels of 32 tokens. plain: no low bits, no second row. whole: every lane has a token (then
 * plain ones are decode_run's).
 * Instructions go out in order, so what is not in the chain stands where the chain waits: looking for new
 * words while the slot is loaded, value and trellis before the refill, and again where there was an escape.
 */
template <bool plain, bool whole>
__device__ static inline void decode_step(
	struct decoder *d, const struct values *values, uint32_t column, bool active)
{
	const uint32_t states[2] = {d->states[0], d->states[1]};
	const uint32_t set = states[0] >> 1 & 1u, slot = d->x & SLOT_MASK, at = value_at(values, column);
	const uint32_t place = simt_load_byte(d->slots + (d->set | slot));
	uint32_t next;
	bool escapes;

	active = whole || active;
	reader_turn(&d->reader);
	const uint2 symbol =
		simt_load_pair(d->symbols + set * (LEVELS_SYMBOLS * SYMBOL_BYTES) + place * SYMBOL_BYTES);
	int level = (int)place - LEVELS_VALUE_MAX;

	escapes = active && place == LEVELS_ESCAPE;
	const bool any_escapes = __any_sync(ALL, escapes);

	next = simt_mad(symbol.x, d->x >> LEVELS_FREQUENCY_BITS, slot) - (symbol.y >> 16);
	if (plain) {
		decoder_advance(d, states, level);
		if (active)
			values->to[values->high + at] = (uint16_t)symbol.y;
	}
	d->x = refill(&d->reader, active ? next : d->x, active);
	if (!plain && values->shift) {
		const bool takes = active && !escapes;

		if (takes) {
			level = level * (1 << values->shift) + (int)(d->x & ((1u << values->shift) - 1));
			d->x >>= values->shift;
		}
		reader_turn(&d->reader);
		d->x = refill(&d->reader, d->x, takes);
	}
	if (any_escapes) {
		if (escapes) {
			level = decode_escape(&d->x);
			if (plain) {
				decoder_advance(d, states, level);
				values->to[values->high + at] =
					simt_half(level_value(level, set, values->bias));
			}
		}
		reader_turn(&d->reader);
		d->x = refill(&d->reader, d->x, escapes);
	}
	if (!plain) {
		const float v = level_value(level, set, values->bias);
		const uint16_t high = simt_half(v);

		decoder_advance(d, states, level);
		if (active)
			values->to[values->high + at] = high;
		if (active && values->low)
			values->to[values->low + at] = simt_half(v - simt_float(high));
	}
}

/* Plain steps of which every lane has a token: at least one, and more until `end`, or until the reader is to
 * turn, or there was an escape, which is put right. What is rare is outside of the loop, in which no branch
 * is taken but the one back. Returns the first token that is left. */
__device__ static inline uint32_t decode_run(
	struct decoder *d, const struct values *values, uint32_t first, uint32_t end, uint32_t column)
{
	uint32_t states[2], set, at, place;
	bool any_escapes;

	do {
		const uint32_t slot = d->x & SLOT_MASK;

		states[0] = d->states[0];
		states[1] = d->states[1];
		set = states[0] >> 1 & 1u;
		place = simt_load_byte(d->slots + (d->set | slot));
		at = values->high + value_at(values, column + first);
		const uint2 symbol = simt_load_pair(
			d->symbols + set * (LEVELS_SYMBOLS * SYMBOL_BYTES) + place * SYMBOL_BYTES);

		any_escapes = __any_sync(ALL, place == LEVELS_ESCAPE);
		decoder_advance(d, states, (int)place - LEVELS_VALUE_MAX);
		values->to[at] = (uint16_t)symbol.y;
		d->x = refill(&d->reader,
			simt_mad(symbol.x, d->x >> LEVELS_FREQUENCY_BITS, slot) - (symbol.y >> 16), true);
		first += 32;
	} while (first < end && d->reader.at < 32 && !any_escapes);
	if (any_escapes) {
		const bool escapes = place == LEVELS_ESCAPE;

		if (escapes) {
			const int level = decode_escape(&d->x);

			decoder_advance(d, states, level);
			values->to[at] = simt_half(level_value(level, set, values->bias));
		}
		reader_turn(&d->reader);
		d->x = refill(&d->reader, d->x, escapes);
	}
	return first;
}

/* Tokens of the stream: n, from the lane's column on. */
template <bool plain>
__device__ static inline void decode_component(
	struct decoder *d, const struct values *values, uint32_t n, uint32_t lane, uint32_t column)
{
	const uint32_t end = n / 32 * 32;
	uint32_t first = 0;

	while (first < end)
		if (plain) {
			reader_turn(&d->reader);
			first = decode_run(d, values, first, end, column);
		} else {
			decode_step<plain, true>(d, values, column + first, true);
			first += 32;
		}
	if (first < n)
		decode_step<plain, false>(d, values, column + first, first + lane < n);
}

/* Rows [first, end) of zeros. */
__device__ static inline void put_zeros(const struct codec_device_block *block, uint32_t first, uint32_t end,
	uint32_t column, uint32_t n, uint32_t lane)
{
	for (uint32_t t = lane; t < n; t += 32)
		for (uint32_t i = first; i < end; i++)
			block->values[codec_value_at(block, i, column + t)] = 0;
}

__device__ static inline bool offsets_sound(const uint8_t *offsets, uint32_t bands, uint32_t lane)
{
	bool sound = true;

	for (uint32_t b = lane; b < bands; b += 32)
		sound = sound && (int8_t)offsets[b] >= -LEVELS_OFFSET_MAX &&
			(int8_t)offsets[b] <= LEVELS_OFFSET_MAX;
	return __all_sync(ALL, sound);
}

__device__ static inline int decode_stream(const struct codec_device_stream *stream,
	const struct codec_device_block *block, const struct codec_device_part *part, uint32_t rung,
	uint32_t lane, struct decode_table *table)
{
	const uint32_t r = part->active[rung], bands = levels_bands(r), n = stream->n;
	const uint32_t n_lanes = n < 32 ? n : 32, last = 2 * ((n + 31) / 32 - 1);
	const uint32_t k_wide = block->k_wide, column = stream->first + lane;
	const uint32_t low_rows = codec_value_rows(block->k), rows = low_rows + codec_value_rows(k_wide);
	const struct levels_coder *coder = part->coder;
	const uint8_t *first = stream->body + bands, *end = stream->body + stream->len;
	uint16_t *to = block->values;
	struct components components = components_of(part, rung, stream->body, lane);
	uint32_t keys = 0, tables = KEY_TABLES;
	struct decoder d;
	bool sound;

	if (stream->len < bands + 4 * n_lanes || !offsets_sound(stream->body, bands, lane))
		return -1;
	d.reader = reader_begin(reinterpret_cast<uint8_t *>(table->ring), first + 4 * n_lanes, end, lane);
	d.slots = simt_shared_of(table->slots);
	d.symbols = simt_shared_of(table->symbols);
	d.x = LEVELS_STATE_MIN;
	d.set = 0;
	for (uint32_t b = 0; b < 2; b++) {
		d.states[b] = 0;
		d.place[b] = last / 32 == b ? 1u << last % 32 : 0;
	}
	if (lane < n_lanes)
		d.x = (uint32_t)first[4 * lane] | (uint32_t)first[4 * lane + 1] << 8 |
		      (uint32_t)first[4 * lane + 2] << 16 | (uint32_t)first[4 * lane + 3] << 24;
	components_fetch(&components, 0);
	for (uint32_t i = 0; i < r; i++) {
		if (i % 32 == 0) {
			keys = components_key(&components);
			components_fetch(&components, i + 32);
		}
		const uint32_t key = __shfl_sync(ALL, keys, (int)(i % 32)), shift = key >> KEY_SHIFT;
		const uint32_t high = i / 8 * 8 * CODEC_ROW;
		const struct values values = {to, high, i < k_wide ? high + low_rows * CODEC_ROW : 0, i % 8,
			rows * CODEC_ROW, coder->bias[key >> KEY_BIAS & 0xff], shift};

		if ((key & KEY_TABLES) != tables) {
			decode_table_load(table, coder, key, lane);
			tables = key & KEY_TABLES;
		}
		if (shift == 0 && i >= k_wide)
			decode_component<true>(&d, &values, n, lane, column);
		else
			decode_component<false>(&d, &values, n, lane, column);
	}
	put_zeros(block, r, low_rows, stream->first, n, lane);
	put_zeros(block, low_rows + (r < k_wide ? r : k_wide), rows, stream->first, n, lane);
	sound = (end - first) % 2 == 0 && reader_taken(&d.reader) >= d.reader.n_words &&
		d.x == LEVELS_STATE_MIN;
	return __all_sync(ALL, sound) ? 0 : -1;
}

extern "C" __global__ void __launch_bounds__(32) codec_rans_decode(const struct codec_rans_args a)
{
	__shared__ struct decode_table table;
	const uint32_t lane = threadIdx.x, number = blockIdx.x;
	const struct codec_device_stream *stream = &a.streams[number];
	const struct codec_device_block *block = &a.blocks[stream->block];
	const int status = decode_stream(stream, block, &a.parts[block->part],
		a.chunks[block->chunk].rung[stream->coded_class], lane, &table);

	if (lane == 0)
		a.status[number] = status;
}
