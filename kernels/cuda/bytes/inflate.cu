#include "kernels/cuda/bytes/inflate.h"

#include "kernels/cuda/simt/simt.h"

enum {
	INFLATE_LITERALS = 288,
	INFLATE_DISTANCES = 32,
	INFLATE_LITERALS_MAX = 286, /* that a header may give lengths, and that may occur */
	INFLATE_DISTANCES_MAX = 30,
	INFLATE_END = 256,
	INFLATE_LENGTH_MAX = 15,
	/* Codes up to so many bits are looked up; longer ones are compared with where each length ends. */
	INFLATE_LITERAL_BITS = 9,
	INFLATE_DISTANCE_BITS = 6,
	INFLATE_RUN_SYMBOLS = 19,
	INFLATE_RUN_BITS = 7,
};

static_assert(INFLATE_THREADS == 32, "a block is a warp");
static_assert(INFLATE_LANES == 8, "each lane has two of the 15 lengths");
static_assert(
	1 << INFLATE_RUN_BITS <= 2 << INFLATE_DISTANCE_BITS, "bytes, in the place of the distances' table");

/* A canonical code. Codes of 15 bits, their first bit the highest: those of length l or shorter are below
 * limit[l]; the symbol of one of length l is sorted[base[l] + (code >> (15 - l))]. */
struct inflate_code {
	uint16_t limit[INFLATE_LENGTH_MAX + 1];
	int16_t base[INFLATE_LENGTH_MAX + 1];
};

/* Of one stream. Entries of the tables: symbol << 4 | length; 0: a longer code, or none. */
struct inflate_tables {
	uint16_t literal[1 << INFLATE_LITERAL_BITS];
	uint16_t distance[1 << INFLATE_DISTANCE_BITS];
	uint16_t literal_sorted[INFLATE_LITERALS];
	uint16_t distance_sorted[INFLATE_DISTANCES];
	struct inflate_code literal_code, distance_code;
	uint8_t length[INFLATE_LITERALS + INFLATE_DISTANCES];
};

/* The lanes of a stream. */
struct inflate_group {
	uint32_t mask;
	uint32_t lane;
};

/* ---- The bits of the input: up to 64 held, the next word read ahead. */

struct inflate_input {
	const uint8_t *in;
	uint32_t n_bytes;
	uint32_t skew;           /* bytes of the first aligned word that come before the input */
	const uint32_t *words;   /* aligned, of the input but for skew bytes */
	uint32_t first, n_whole; /* from the first on, words that are all input */
	uint32_t next;           /* word to be read */
	uint32_t limit;          /* once next is over it, bits were used that there are none of */
	uint32_t ahead;
	uint32_t n_held;
	uint64_t held;
};

/* Word w; what lies outside the input is zero. */
static __device__ uint32_t inflate_word(const struct inflate_input *r, uint32_t w)
{
	uint32_t word = 0;

	if (w - r->first < r->n_whole)
		return r->words[w];
#pragma unroll 1
	for (int i = 0; i < 4; i++) {
		const int64_t at = (int64_t)w * 4 + i - r->skew;

		if (at >= 0 && at < (int64_t)r->n_bytes)
			word |= (uint32_t)r->in[at] << 8 * i;
	}
	return word;
}

/* At least 33 bits are held after it. False: bits past the end have been used. */
static __device__ bool inflate_refill(struct inflate_input *r)
{
	if (r->n_held <= 32) {
		r->held |= (uint64_t)r->ahead << r->n_held;
		r->n_held += 32;
		r->ahead = inflate_word(r, r->next++);
		return r->next <= r->limit;
	}
	return true;
}

static __device__ uint32_t inflate_bits(struct inflate_input *r, uint32_t n)
{
	const uint32_t value = (uint32_t)r->held & ((1u << n) - 1);

	r->held >>= n;
	r->n_held -= n;
	return value;
}

/* Goes to a byte of the input, or to its end. */
static __device__ void inflate_seek(struct inflate_input *r, uint32_t byte)
{
	const uint32_t at = r->skew + byte;

	r->next = at / 4;
	r->held = inflate_word(r, r->next++);
	r->n_held = 32;
	r->ahead = inflate_word(r, r->next++);
	inflate_bits(r, at % 4 * 8);
	inflate_refill(r);
}

static __device__ void inflate_open(struct inflate_input *r, const uint8_t *in, uint32_t n_bytes)
{
	r->in = in;
	r->n_bytes = n_bytes;
	r->skew = (uint32_t)((uintptr_t)in & 3);
	r->words = (const uint32_t *)(in - r->skew);
	r->first = r->skew ? 1 : 0;
	r->n_whole = (uint32_t)(((uint64_t)r->skew + n_bytes) / 4);
	r->n_whole -= r->n_whole ? r->first : 0;
	/* One word is ahead, two are held. */
	r->limit = (uint32_t)(((uint64_t)r->skew + n_bytes + 3) / 4) + 3;
	inflate_seek(r, 0);
}

/* Bits used so far, of those of the input or past its end. */
static __device__ uint64_t inflate_used(const struct inflate_input *r)
{
	return (uint64_t)(r->next - 1) * 32 - r->n_held - r->skew * 8;
}

/* ---- Tables. All lanes of a group. */

/* The code of these lengths, and its table. False: more codes than there is room for, or fewer, but for a
 * single one of one bit, or none at all, as zlib has it. */
static __device__ bool inflate_build(struct inflate_group g, const uint8_t *length, uint32_t n,
	struct inflate_code *code, uint16_t *sorted, uint16_t *table, uint32_t bits)
{
	/* This lane's lengths: lane + 1 and lane + 9. */
	uint32_t count[2] = {0, 0}, at[2] = {0, 0};
	uint32_t next = 0, index = 0, longest = 0;
	int32_t left = 1;

	for (uint32_t i = 0; i < n; i++) {
		count[0] += length[i] == g.lane + 1;
		count[1] += length[i] == g.lane + 9;
	}
	for (uint32_t l = 1; l <= INFLATE_LENGTH_MAX; l++) {
		const uint32_t alike =
			__shfl_sync(g.mask, l <= 8 ? count[0] : count[1], (l - 1) & 7, INFLATE_LANES);

		next <<= 1;
		left = left < 0 ? left : 2 * left - (int32_t)alike;
		if (l == g.lane + 1)
			at[0] = index;
		if (l == g.lane + 9)
			at[1] = index;
		if (g.lane == 0) {
			code->base[l] = (int16_t)(index - next);
			code->limit[l] = (uint16_t)((next + alike) << (INFLATE_LENGTH_MAX - l));
		}
		next += alike;
		index += alike;
		longest = alike ? l : longest;
	}
	if (left < 0 || (left > 0 && longest > 1))
		return false;
	for (uint32_t i = 0; i < n; i++) {
		if (length[i] == g.lane + 1)
			sorted[at[0]++] = (uint16_t)i;
		if (length[i] == g.lane + 9)
			sorted[at[1]++] = (uint16_t)i;
	}
	__syncwarp(g.mask);
	/* Lengths do not fall as codes rise. */
	for (uint32_t share = (1u << bits) / INFLATE_LANES, v = g.lane * share, end = v + share, l = 1;
		v < end; v++) {
		const uint32_t first = v << (INFLATE_LENGTH_MAX - bits);

		while (l <= bits && first >= code->limit[l])
			l++;
		table[__brev(v) >> (32 - bits)] =
			l <= bits ? (uint16_t)(sorted[code->base[l] +
						       (int32_t)(first >> (INFLATE_LENGTH_MAX - l))]
						       << 4 |
					       l)
				  : (uint16_t)0;
	}
	__syncwarp(g.mask);
	return true;
}

/* The entry of a code that is not in the table; 0: there is none such. */
static __device__ uint32_t inflate_long(
	const struct inflate_code *code, const uint16_t *sorted, uint32_t bits, uint32_t held)
{
	const uint32_t first = __brev(held) >> (32 - INFLATE_LENGTH_MAX);

	for (uint32_t l = bits + 1; l <= INFLATE_LENGTH_MAX; l++)
		if (first < code->limit[l])
			return (uint32_t)sorted[code->base[l] + (int32_t)(first >> (INFLATE_LENGTH_MAX - l))]
				       << 4 |
			       l;
	return 0;
}

/* ---- A block's header. One lane. */

/* In which order the header has the lengths of the code of code lengths. */
static __device__ const uint8_t inflate_run_order[INFLATE_RUN_SYMBOLS] = {
	16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

/* The table of the code of code lengths, 1 << INFLATE_RUN_BITS bytes: symbol << 3 | length; 0: none. False:
 * not a complete code. */
static __device__ bool inflate_build_runs(const uint8_t *length, uint8_t *table)
{
	uint32_t code = 0;

	for (uint32_t i = 0; i < 1u << INFLATE_RUN_BITS; i++)
		table[i] = 0;
	for (uint32_t l = 1; l <= INFLATE_RUN_BITS; l++) {
		for (uint32_t y = 0; y < INFLATE_RUN_SYMBOLS; y++) {
			if (length[y] != l)
				continue;
			if (code >> l)
				return false;
			for (uint32_t i = __brev(code) >> (32 - l); i < 1u << INFLATE_RUN_BITS; i += 1u << l)
				table[i] = (uint8_t)(y << 3 | l);
			code++;
		}
		code <<= 1;
	}
	/* Doubled once more than there are lengths. None at all is no code, and found out by the first one
	 * used. */
	return code == 0 || code == 2u << INFLATE_RUN_BITS;
}

/* Reads the lengths of literals and distances. length: INFLATE_LITERALS, then INFLATE_DISTANCES; what has no
 * code is zero. */
static __device__ uint32_t inflate_read_lengths(struct inflate_input *r, struct inflate_tables *t)
{
	uint8_t *const table = (uint8_t *)t->distance, *const length = t->length;
	uint32_t n_literals, n_distances, n_runs, i = 0, last = 0;

	inflate_refill(r);
	n_literals = 257 + inflate_bits(r, 5);
	n_distances = 1 + inflate_bits(r, 5);
	n_runs = 4 + inflate_bits(r, 4);
	if (n_literals > INFLATE_LITERALS_MAX || n_distances > INFLATE_DISTANCES_MAX)
		return DEFLATE_DAMAGED;
	for (uint32_t k = 0; k < INFLATE_RUN_SYMBOLS; k++) {
		inflate_refill(r);
		length[inflate_run_order[k]] = k < n_runs ? (uint8_t)inflate_bits(r, 3) : (uint8_t)0;
	}
	if (!inflate_build_runs(length, table))
		return DEFLATE_DAMAGED;
	for (uint32_t k = 0; k < INFLATE_LITERALS + INFLATE_DISTANCES; k++)
		length[k] = 0;
	while (i < n_literals + n_distances) {
		uint32_t entry, n = 1;

		if (!inflate_refill(r))
			return DEFLATE_CUT_SHORT;
		entry = table[(uint32_t)r->held & ((1u << INFLATE_RUN_BITS) - 1)];
		if (!entry || (entry >> 3 == 16 && i == 0))
			return DEFLATE_DAMAGED;
		inflate_bits(r, entry & 7);
		if (entry >> 3 >= 16)
			n = entry >> 3 == 16   ? 3 + inflate_bits(r, 2)
			    : entry >> 3 == 17 ? 3 + inflate_bits(r, 3)
					       : 11 + inflate_bits(r, 7);
		last = entry >> 3 == 16 ? last : entry >> 3 > 16 ? 0 : entry >> 3;
		if (n > n_literals + n_distances - i)
			return DEFLATE_DAMAGED;
		for (; n > 0; n--, i++)
			length[i < n_literals ? i : INFLATE_LITERALS + i - n_literals] = (uint8_t)last;
	}
	return length[INFLATE_END] ? DEFLATE_DONE : DEFLATE_DAMAGED;
}

/* ---- Symbols. */

/* What was inflated: n bytes; of these the last n % 4 are in word only, the last of them in its highest byte.
 */
struct inflate_output {
	uint8_t *out;
	uint32_t room, n, word;
};

static __device__ void inflate_append(struct inflate_output *o, uint32_t byte)
{
	o->word = __byte_perm(o->word, byte, 0x4321);
}

/* Writes what is in word only. One lane. */
static __device__ void inflate_settle(const struct inflate_output *o)
{
	const uint32_t n = o->n % 4;

	for (uint32_t i = 0; i < n; i++)
		o->out[o->n - n + i] = (uint8_t)(o->word >> 8 * (4 - n + i));
}

/* The inverse, after others have written. */
static __device__ void inflate_resume(struct inflate_output *o)
{
	const uint32_t n = o->n % 4;

	for (uint32_t i = 0; i < n; i++)
		inflate_append(o, o->out[o->n - n + i]);
}

/* Room is looked at when a word is full, and when literals come to an end: until then no byte past it is
 * written. */
static __device__ bool inflate_fits(struct inflate_output *o)
{
	if (o->n <= o->room)
		return true;
	/* The bytes that fit are in word still. */
	for (; o->n > o->room; o->n--)
		o->word <<= 8;
	return false;
}

struct inflate_match {
	uint32_t length, distance;
};

/* The rest of a match from its length's symbol on. */
static __device__ uint32_t inflate_read_match(struct inflate_input *r, const struct inflate_tables *t,
	uint32_t symbol, const struct inflate_output *o, struct inflate_match *match)
{
	const uint32_t s = symbol - 257;
	uint32_t entry, d;

	if (symbol >= INFLATE_LITERALS_MAX)
		return DEFLATE_DAMAGED;
	if (!inflate_refill(r))
		return DEFLATE_CUT_SHORT;
	match->length = s < 8 ? 3 + s : s == 28 ? 258 : 3 + ((4 + s % 4) << (s / 4 - 1));
	if (s >= 8 && s < 28)
		match->length += inflate_bits(r, s / 4 - 1);
	if (!inflate_refill(r))
		return DEFLATE_CUT_SHORT;
	entry = t->distance[(uint32_t)r->held & ((1u << INFLATE_DISTANCE_BITS) - 1)];
	if (!entry)
		entry = inflate_long(
			&t->distance_code, t->distance_sorted, INFLATE_DISTANCE_BITS, (uint32_t)r->held);
	d = entry >> 4;
	if (!entry || d >= INFLATE_DISTANCES_MAX)
		return DEFLATE_DAMAGED;
	inflate_bits(r, entry & 15);
	match->distance = d < 4 ? 1 + d : 1 + ((2 + d % 2) << (d / 2 - 1));
	if (d >= 4)
		match->distance += inflate_bits(r, d / 2 - 1);
	if (match->distance > o->n)
		return DEFLATE_DAMAGED;
	return match->length > o->room - o->n ? DEFLATE_OVERFLOW : DEFLATE_DONE;
}

/* The entry of the symbol that comes next; 0: there is none such. */
static __device__ uint32_t inflate_symbol(const struct inflate_input *r, const struct inflate_tables *t)
{
	return t->literal[(uint32_t)r->held & ((1u << INFLATE_LITERAL_BITS) - 1)];
}

/* One lane decodes up to the next match (length over 0) or the end of the block (0). Two literals, 30 bits at
 * most, for every look at how many bits are held. */
static __device__ uint32_t inflate_literals(struct inflate_input *r, const struct inflate_tables *t,
	struct inflate_output *o, struct inflate_match *match)
{
	match->length = 0;
	for (;;) {
		if (!inflate_refill(r))
			return inflate_fits(o) ? DEFLATE_CUT_SHORT : DEFLATE_OVERFLOW;
#pragma unroll
		for (int k = 0; k < 2; k++) {
			uint32_t entry = inflate_symbol(r, t);

			/* Neither 0 nor a symbol past the literals. */
			if (entry - 1 >= (INFLATE_END << 4) - 1) {
				if (!entry)
					entry = inflate_long(&t->literal_code, t->literal_sorted,
						INFLATE_LITERAL_BITS, (uint32_t)r->held);
				if (entry == 0 || entry >> 4 >= INFLATE_END) {
					inflate_bits(r, entry & 15);
					if (!inflate_fits(o))
						return DEFLATE_OVERFLOW;
					if (entry >> 4 == INFLATE_END)
						return DEFLATE_DONE;
					if (entry == 0)
						return DEFLATE_DAMAGED;
					return inflate_read_match(r, t, entry >> 4, o, match);
				}
			}
			inflate_bits(r, entry & 15);
			inflate_append(o, entry >> 4);
			if (++o->n % 4 == 0) {
				if (!inflate_fits(o))
					return DEFLATE_OVERFLOW;
				((uint32_t *)o->out)[o->n / 4 - 1] = o->word;
			}
		}
	}
}

/* All lanes: bytes [n, n + length) of the output from what came before. */
static __device__ void inflate_copy(
	struct inflate_group g, uint8_t *out, uint32_t n, struct inflate_match match)
{
	for (uint32_t i = g.lane; i < match.length; i += INFLATE_LANES)
		out[n + i] = out[n - match.distance + (i < match.distance ? i : i % match.distance)];
}

static __device__ uint32_t inflate_leader(struct inflate_group g, uint32_t value)
{
	return __shfl_sync(g.mask, value, 0, INFLATE_LANES);
}

static __device__ uint32_t inflate_compressed(
	struct inflate_group g, struct inflate_input *r, struct inflate_tables *t, struct inflate_output *o)
{
	for (;;) {
		struct inflate_match match = {0, 0};
		uint32_t status = DEFLATE_DONE, n;

		if (g.lane == 0) {
			status = inflate_literals(r, t, o, &match);
			if (match.length && status == DEFLATE_DONE)
				inflate_settle(o);
		}
		status = inflate_leader(g, status);
		match.length = inflate_leader(g, match.length);
		if (status != DEFLATE_DONE || match.length == 0)
			return status;
		match.distance = inflate_leader(g, match.distance);
		n = inflate_leader(g, o->n);
		/* What the leader wrote is seen by all, and the other way about. */
		__syncwarp(g.mask);
		inflate_copy(g, o->out, n, match);
		__syncwarp(g.mask);
		if (g.lane == 0) {
			o->n += match.length;
			inflate_resume(o);
		}
	}
}

static __device__ uint32_t inflate_stored(
	struct inflate_group g, struct inflate_input *r, struct inflate_output *o)
{
	uint32_t status = DEFLATE_DONE, from = 0, n = 0, at;

	if (g.lane == 0) {
		uint32_t n_inverse;

		inflate_bits(r, r->n_held % 8);
		inflate_refill(r);
		n = inflate_bits(r, 16);
		inflate_refill(r);
		n_inverse = inflate_bits(r, 16);
		if (inflate_used(r) > (uint64_t)r->n_bytes * 8)
			status = DEFLATE_CUT_SHORT;
		else if (n != (n_inverse ^ 0xffff))
			status = DEFLATE_DAMAGED;
		else if (n > o->room - o->n)
			status = DEFLATE_OVERFLOW;
		from = (uint32_t)(inflate_used(r) / 8);
		if (status == DEFLATE_DONE && n > r->n_bytes - from)
			status = DEFLATE_CUT_SHORT;
		if (status == DEFLATE_DONE)
			inflate_settle(o);
	}
	status = inflate_leader(g, status);
	if (status != DEFLATE_DONE)
		return status;
	from = inflate_leader(g, from);
	n = inflate_leader(g, n);
	at = inflate_leader(g, o->n);
	for (uint32_t i = g.lane; i < n; i += INFLATE_LANES)
		o->out[at + i] = r->in[from + i];
	__syncwarp(g.mask);
	if (g.lane == 0) {
		o->n += n;
		inflate_resume(o);
		inflate_seek(r, from + n);
	}
	return DEFLATE_DONE;
}

/* Reads a block's first three bits, and its codes where it has any. *kind: 0 stored, else compressed. */
static __device__ uint32_t inflate_begin(struct inflate_group g, struct inflate_input *r,
	struct inflate_tables *t, uint32_t *kind, uint32_t *last)
{
	uint32_t status = DEFLATE_DONE;

	if (g.lane == 0) {
		const bool more = inflate_refill(r);

		*last = inflate_bits(r, 1);
		*kind = inflate_bits(r, 2);
		if (!more)
			status = DEFLATE_CUT_SHORT;
		else if (*kind == 3)
			status = DEFLATE_DAMAGED;
		else if (*kind == 2)
			status = inflate_read_lengths(r, t);
	}
	status = inflate_leader(g, status);
	*last = inflate_leader(g, *last);
	*kind = inflate_leader(g, *kind);
	if (status != DEFLATE_DONE || *kind == 0)
		return status;
	if (*kind == 1)
		for (uint32_t y = g.lane; y < INFLATE_LITERALS + INFLATE_DISTANCES; y += INFLATE_LANES)
			t->length[y] = y < 144 ? 8 : y < 256 ? 9 : y < 280 ? 7 : y < INFLATE_LITERALS ? 8 : 5;
	__syncwarp(g.mask);
	if (!inflate_build(g, t->length, INFLATE_LITERALS, &t->literal_code, t->literal_sorted, t->literal,
		    INFLATE_LITERAL_BITS))
		return DEFLATE_DAMAGED;
	return inflate_build(g, t->length + INFLATE_LITERALS, INFLATE_DISTANCES, &t->distance_code,
		       t->distance_sorted, t->distance, INFLATE_DISTANCE_BITS)
		       ? DEFLATE_DONE
		       : DEFLATE_DAMAGED;
}

extern "C" __global__ void __launch_bounds__(INFLATE_THREADS)
	inflate_streams(const struct inflate_streams_args a)
{
	__shared__ struct inflate_tables tables[INFLATE_STREAMS];
	const uint32_t which = threadIdx.x / INFLATE_LANES, i = blockIdx.x * INFLATE_STREAMS + which;
	const struct inflate_group g = {
		((1u << INFLATE_LANES) - 1) << which * INFLATE_LANES, threadIdx.x % INFLATE_LANES};
	struct inflate_tables *const t = &tables[which];
	struct deflate_stream stream;
	struct inflate_output o;
	struct inflate_input r;
	uint32_t status = DEFLATE_DONE, kind = 0, last = 0;

	if (i >= a.n_streams)
		return;
	stream = a.streams[i];
	o = {stream.out, stream.room, 0, 0};
	inflate_open(&r, stream.in, stream.in_bytes);
	if ((uintptr_t)stream.out & (DEFLATE_ALIGN - 1))
		status = DEFLATE_MISALIGNED;
	while (status == DEFLATE_DONE && !last) {
		status = inflate_begin(g, &r, t, &kind, &last);
		if (status == DEFLATE_DONE)
			status = kind == 0 ? inflate_stored(g, &r, &o) : inflate_compressed(g, &r, t, &o);
		/* The next block's tables go where this one's are. */
		__syncwarp(g.mask);
	}
	if (g.lane == 0) {
		if (status == DEFLATE_DONE && inflate_used(&r) > (uint64_t)r.n_bytes * 8)
			status = DEFLATE_CUT_SHORT;
		if (status != DEFLATE_MISALIGNED)
			inflate_settle(&o);
		a.results[i] = {
			status, o.n, status == DEFLATE_DONE ? (uint32_t)((inflate_used(&r) + 7) / 8) : 0, 0};
	}
}
