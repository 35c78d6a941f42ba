#include "kernels/cuda/bytes/deflate.h"

#include "kernels/cuda/simt/simt.h"

enum {
	DEFLATE_WARPS = DEFLATE_THREADS / 32,
	DEFLATE_SYMBOLS = 257, /* literals and the end of the block */
	/* Of arrays of them: each begins at 16 bytes, or compilers, which load four words at a time, load its
	 * neighbour's last one with its first, while another thread writes that. */
	DEFLATE_SYMBOLS_ROOM = 260,
	DEFLATE_END = 256,
	DEFLATE_PIECE = 16, /* bytes of a thread at a time */
	DEFLATE_TILE_BYTES = DEFLATE_THREADS * DEFLATE_PIECE,
	DEFLATE_LENGTH_MAX = 15,
	/* The code of the code lengths: its symbols, and how long its codes may be. */
	DEFLATE_RUN_SYMBOLS = 19,
	DEFLATE_RUN_LENGTH_MAX = 7,
	DEFLATE_STAGED_WORDS = 1152,
};

static_assert(DEFLATE_BLOCK_BYTES % DEFLATE_TILE_BYTES == 0, "all tiles but a stream's last are whole");
static_assert(DEFLATE_BLOCK_BYTES < 65536, "what a stored block holds");
static_assert(DEFLATE_STAGED_WORDS >= DEFLATE_WARPS * 256, "a histogram for each warp");
static_assert(DEFLATE_STAGED_WORDS >=
		      1 + (17 + 3 * 19 + 258 * 14) / 32 + DEFLATE_TILE_BYTES * DEFLATE_LENGTH_MAX / 32 + 3,
	"a word begun before, the largest header (258 lengths of 14 bits), a tile, and what a put may touch");

enum deflate_kind { DEFLATE_STORED = 0, DEFLATE_FIXED = 1, DEFLATE_DYNAMIC = 2 };

struct deflate_shared {
	/* A histogram for each warp while counting; then the bits that are not written yet, from a whole word
	 * of the output on. */
	uint32_t staged[DEFLATE_STAGED_WORDS];
	uint32_t code[DEFLATE_SYMBOLS_ROOM];   /* length << 16 | code, its first bit the lowest */
	uint32_t key[DEFLATE_SYMBOLS_ROOM];    /* frequency << 9 | symbol; all ones: does not occur */
	uint32_t sorted[DEFLATE_SYMBOLS_ROOM]; /* the same, rising */
	uint32_t inner[DEFLATE_SYMBOLS_ROOM];
	uint16_t parent[DEFLATE_SYMBOLS];
	uint16_t runs[DEFLATE_SYMBOLS + 1]; /* the code lengths in runs: symbol | extra bits << 5 */
	uint8_t length[DEFLATE_SYMBOLS + 3];
	uint32_t n_of_length[DEFLATE_LENGTH_MAX + 1];
	uint32_t run_code[DEFLATE_RUN_SYMBOLS];
	uint32_t n_runs, n_run_lengths; /* of the latter: those in the header */
	uint32_t n_used;
	uint32_t header_bits, dynamic_bits, fixed_bits;
	uint32_t warp_bits[DEFLATE_WARPS];
	uint32_t fill;  /* bits staged */
	uint32_t carry; /* the word begun, between blocks */
};

/* In which order the header has the lengths of the code of code lengths. */
static __device__ const uint8_t deflate_run_order[DEFLATE_RUN_SYMBOLS] = {
	16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

/* ---- Counting. */

/* Up to 16 bytes, the rest zero. */
static __device__ uint4 deflate_load(const uint8_t *in, uint32_t n)
{
	uint32_t w[4] = {0, 0, 0, 0};

	if (n >= DEFLATE_PIECE && ((uintptr_t)in & (DEFLATE_ALIGN - 1)) == 0)
		return *(const uint4 *)in;
#pragma unroll
	for (uint32_t i = 0; i < DEFLATE_PIECE; i++)
		w[i / 4] |= i < n ? (uint32_t)in[i] << 8 * (i % 4) : 0;
	return make_uint4(w[0], w[1], w[2], w[3]);
}

static __device__ uint32_t deflate_byte(const uint4 &piece, uint32_t i)
{
	const uint32_t word = i < 4 ? piece.x : i < 8 ? piece.y : i < 12 ? piece.z : piece.w;

	return word >> 8 * (i % 4) & 255;
}

/* Bytes of a tile that are this thread's. */
static __device__ uint32_t deflate_share(uint32_t n_tile)
{
	const uint32_t from = threadIdx.x * DEFLATE_PIECE;

	return n_tile <= from ? 0 : n_tile - from < DEFLATE_PIECE ? n_tile - from : (uint32_t)DEFLATE_PIECE;
}

static __device__ void deflate_count(struct deflate_shared *s, const uint8_t *in, uint32_t n)
{
	uint32_t *const counts = s->staged + threadIdx.x / 32 * 256;

	for (uint32_t i = threadIdx.x; i < DEFLATE_WARPS * 256; i += DEFLATE_THREADS)
		s->staged[i] = 0;
	__syncthreads();
	for (uint32_t tile = 0; tile < n; tile += DEFLATE_TILE_BYTES) {
		const uint32_t mine = deflate_share(n - tile);
		const uint4 piece = deflate_load(in + tile + threadIdx.x * DEFLATE_PIECE, mine);

#pragma unroll
		for (uint32_t i = 0; i < DEFLATE_PIECE; i++)
			if (i < mine)
				atomicAdd(&counts[deflate_byte(piece, i)], 1u);
	}
	__syncthreads();
	for (uint32_t y = threadIdx.x; y < DEFLATE_SYMBOLS; y += DEFLATE_THREADS) {
		uint32_t frequency = y == DEFLATE_END;

		for (uint32_t w = 0; w < DEFLATE_WARPS && y < DEFLATE_END; w++)
			frequency += s->staged[w * 256 + y];
		s->key[y] = frequency ? frequency << 9 | y : ~0u;
	}
	if (threadIdx.x == 0)
		s->n_used = s->dynamic_bits = s->fixed_bits = 0;
	__syncthreads();
}

/* ---- Codes. */

/* How many codes of each length a Huffman code of m >= 2 symbols has, keys (weight << 9) rising, when none
 * may be longer than limit. One thread. The tree is made in linear time from two queues, leaves and inner
 * nodes (J. van Leeuwen, ICALP 1976); then it is walked from the root down: an inner node takes the place of
 * a leaf of its depth, and of the deepest that is not too deep when its own is. */
static __device__ void deflate_tree(const uint32_t *sorted, uint32_t m, uint32_t limit, uint32_t *inner,
	uint16_t *parent, uint32_t *n_of_length)
{
	uint32_t leaf = 0, node = 0;

	for (uint32_t k = 0; k + 1 < m; k++) {
		uint32_t sum = 0;

		for (int child = 0; child < 2; child++)
			if (leaf < m && (node >= k || sorted[leaf] >> 9 <= inner[node])) {
				sum += sorted[leaf++] >> 9;
			} else {
				parent[node] = (uint16_t)k;
				sum += inner[node++];
			}
		inner[k] = sum;
	}
	for (uint32_t d = 0; d <= limit; d++)
		n_of_length[d] = d == 1 ? 2 : 0;
	inner[m - 2] = 0;
	for (uint32_t k = m - 2; k-- > 0;) {
		uint32_t depth = inner[parent[k]] + 1;

		inner[k] = depth;
		if (depth >= limit)
			for (depth = limit - 1; n_of_length[depth] == 0;)
				depth--;
		n_of_length[depth]--;
		n_of_length[depth + 1] += 2;
	}
}

/* The length of the code of the symbol that has so many more frequent ones. */
static __device__ uint32_t deflate_length(const uint32_t *n_of_length, uint32_t n_before)
{
	uint32_t length = 1;

	for (uint32_t seen = n_of_length[1]; seen <= n_before; seen += n_of_length[length])
		length++;
	return length;
}

/* The canonical code of a symbol of this length, of which so many before it in the alphabet have its length.
 */
static __device__ uint32_t deflate_code(const uint32_t *n_of_length, uint32_t length, uint32_t n_alike)
{
	uint32_t code = 0;

	for (uint32_t l = 1; l < length; l++)
		code = (code + n_of_length[l]) << 1;
	return length << 16 | __brev(code + n_alike) >> (32 - length);
}

static __device__ uint32_t deflate_fixed_length(uint32_t y)
{
	return y < 144 ? 8 : y < 256 ? 9 : 7;
}

static __device__ uint32_t deflate_fixed_code(uint32_t y)
{
	const uint32_t length = deflate_fixed_length(y);
	const uint32_t code = y < 144 ? 0x30 + y : y < 256 ? 0x190 + y - 144 : 0;

	return length << 16 | __brev(code) >> (32 - length);
}

/* ---- The header of a block with its own codes. */

/* The lengths of the literals' codes and of the one distance that there must be and is not used (0), as runs.
 */
static __device__ uint32_t deflate_runs(const uint8_t *length, uint16_t *runs)
{
	uint32_t n_runs = 0;

	for (uint32_t i = 0; i < DEFLATE_SYMBOLS + 1;) {
		const uint32_t value = i < DEFLATE_SYMBOLS ? length[i] : 0;
		const uint32_t most = value ? 7 : 138;
		uint32_t n = 1;

		while (n < most && i + n < DEFLATE_SYMBOLS + 1 &&
			value == (i + n < DEFLATE_SYMBOLS ? length[i + n] : 0u))
			n++;
		i += n;
		if (value) {
			runs[n_runs++] = (uint16_t)value;
			n--;
		}
		if (n >= 11)
			runs[n_runs++] = (uint16_t)(18 | (n - 11) << 5);
		else if (n >= 3)
			runs[n_runs++] =
				value ? (uint16_t)(16 | (n - 3) << 5) : (uint16_t)(17 | (n - 3) << 5);
		else
			for (; n > 0; n--)
				runs[n_runs++] = (uint16_t)value;
	}
	return n_runs;
}

static __device__ uint32_t deflate_extra_bits(uint32_t run_symbol)
{
	return run_symbol < 16 ? 0 : run_symbol == 16 ? 2 : run_symbol == 17 ? 3 : 7;
}

/* From how often each symbol occurs, in run_code: its code, and the header's bits. Uses sorted, inner, parent
 * and n_of_length. One thread. */
static __device__ void deflate_code_runs(struct deflate_shared *s)
{
	uint32_t m = 0, bits = 17;

	for (uint32_t y = 0; y < DEFLATE_RUN_SYMBOLS; y++) {
		const uint32_t key = s->run_code[y] << 9 | y;
		uint32_t at = m;

		if (!s->run_code[y])
			continue;
		for (m++; at > 0 && s->sorted[at - 1] > key; at--)
			s->sorted[at] = s->sorted[at - 1];
		s->sorted[at] = key;
	}
	deflate_tree(s->sorted, m, DEFLATE_RUN_LENGTH_MAX, s->inner, s->parent, s->n_of_length);
	for (uint32_t i = 0; i < m; i++) {
		const uint32_t y = s->sorted[i] & 511, length = deflate_length(s->n_of_length, m - 1 - i);

		bits += (s->sorted[i] >> 9) * (length + deflate_extra_bits(y));
		s->run_code[y] = length;
	}
	for (uint32_t l = 1; l <= DEFLATE_RUN_LENGTH_MAX; l++)
		for (uint32_t y = 0, n = 0; y < DEFLATE_RUN_SYMBOLS; y++)
			if (s->run_code[y] == l)
				s->run_code[y] = deflate_code(s->n_of_length, l, n++);
	s->n_run_lengths = DEFLATE_RUN_SYMBOLS;
	while (s->n_run_lengths > 4 && !s->run_code[deflate_run_order[s->n_run_lengths - 1]])
		s->n_run_lengths--;
	s->header_bits = bits + 3 * s->n_run_lengths;
}

/* From the codes' lengths. The whole block. */
static __device__ void deflate_plan_header(struct deflate_shared *s)
{
	if (threadIdx.x < DEFLATE_RUN_SYMBOLS)
		s->run_code[threadIdx.x] = 0;
	if (threadIdx.x == 0)
		s->n_runs = deflate_runs(s->length, s->runs);
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < s->n_runs; i += DEFLATE_THREADS)
		atomicAdd(&s->run_code[s->runs[i] & 31], 1u);
	__syncthreads();
	if (threadIdx.x == 0)
		deflate_code_runs(s);
	__syncthreads();
}

/* One thread alone puts bits into what is staged. */
static __device__ void deflate_put(struct deflate_shared *s, uint32_t value, uint32_t n)
{
	const uint64_t shifted = (uint64_t)value << (s->fill & 31);

	s->staged[s->fill / 32] |= (uint32_t)shifted;
	s->staged[s->fill / 32 + 1] |= (uint32_t)(shifted >> 32);
	s->fill += n;
}

/* What comes before a block's codes, or its bytes. */
static __device__ void deflate_put_start(
	struct deflate_shared *s, enum deflate_kind kind, uint32_t last, uint32_t n)
{
	deflate_put(s, last | (uint32_t)kind << 1, 3);
	if (kind == DEFLATE_STORED) {
		s->fill = (s->fill + 7) & ~7u;
		deflate_put(s, n, 16);
		deflate_put(s, n ^ 0xffff, 16);
	}
	if (kind != DEFLATE_DYNAMIC)
		return;
	/* 257 literals, 1 distance. */
	deflate_put(s, (s->n_run_lengths - 4) << 10, 14);
	for (uint32_t i = 0; i < s->n_run_lengths; i++)
		deflate_put(s, s->run_code[deflate_run_order[i]] >> 16, 3);
}

/* ---- One block. */

/* From the keys: codes, and what is to be written with which kind. */
static __device__ enum deflate_kind deflate_choose(
	struct deflate_shared *s, uint64_t at, uint32_t n, uint32_t *bits)
{
	const uint32_t stored_bits = 35 + 8 * n + (uint32_t)(-(int64_t)(at + 3) & 7);
	enum deflate_kind kind;

	for (uint32_t y = threadIdx.x; y < DEFLATE_SYMBOLS; y += DEFLATE_THREADS) {
		const uint32_t key = s->key[y];
		uint32_t rank = 0;

		for (uint32_t i = 0; i < DEFLATE_SYMBOLS; i++)
			rank += s->key[i] < key;
		if (key != ~0u) {
			s->sorted[rank] = key;
			atomicAdd(&s->n_used, 1u);
		}
		/* Until the lengths are known. */
		s->code[y] = rank;
	}
	__syncthreads();
	if (threadIdx.x == 0 && n)
		deflate_tree(s->sorted, s->n_used, DEFLATE_LENGTH_MAX, s->inner, s->parent, s->n_of_length);
	__syncthreads();
	for (uint32_t y = threadIdx.x; y < DEFLATE_SYMBOLS; y += DEFLATE_THREADS) {
		const uint32_t frequency = s->key[y] == ~0u ? 0 : s->key[y] >> 9;
		const uint32_t length =
			frequency && n ? deflate_length(s->n_of_length, s->n_used - 1 - s->code[y]) : 0;

		s->length[y] = (uint8_t)length;
		atomicAdd(&s->dynamic_bits, frequency * length);
		atomicAdd(&s->fixed_bits, frequency * deflate_fixed_length(y));
	}
	__syncthreads();
	for (uint32_t y = threadIdx.x; y < DEFLATE_SYMBOLS; y += DEFLATE_THREADS) {
		const uint32_t length = s->length[y];
		uint32_t n_alike = 0;

		for (uint32_t i = 0; i < y; i++)
			n_alike += s->length[i] == length;
		s->code[y] = length ? deflate_code(s->n_of_length, length, n_alike) : 0;
	}
	__syncthreads();
	if (n)
		deflate_plan_header(s);
	kind = n ? DEFLATE_DYNAMIC : DEFLATE_FIXED;
	*bits = n ? s->header_bits + s->dynamic_bits : 10;
	if (n && s->fixed_bits + 3 <= *bits) {
		kind = DEFLATE_FIXED;
		*bits = s->fixed_bits + 3;
	}
	if (n && stored_bits < *bits) {
		kind = DEFLATE_STORED;
		*bits = stored_bits;
	}
	__syncthreads();
	for (uint32_t y = threadIdx.x; y < DEFLATE_SYMBOLS && kind != DEFLATE_DYNAMIC; y += DEFLATE_THREADS)
		s->code[y] = kind == DEFLATE_FIXED ? deflate_fixed_code(y)
			     : y < DEFLATE_END     ? 8u << 16 | y
						   : 0;
	__syncthreads();
	return kind;
}

/* The bits of the threads before this one, and of all. */
static __device__ uint32_t deflate_scan(struct deflate_shared *s, uint32_t bits, uint32_t *all)
{
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	uint32_t sum = bits, before = 0, total = 0;

	for (uint32_t d = 1; d < 32; d *= 2) {
		const uint32_t other = __shfl_up_sync(~0u, sum, d);

		sum += lane >= d ? other : 0;
	}
	if (lane == 31)
		s->warp_bits[warp] = sum;
	__syncthreads();
	for (uint32_t w = 0; w < DEFLATE_WARPS; w++) {
		before += w < warp ? s->warp_bits[w] : 0;
		total += s->warp_bits[w];
	}
	*all = total;
	return before + sum - bits;
}

/* Bits that a thread adds to those staged, from any bit on. Words at the ends are shared with its neighbours.
 */
struct deflate_writer {
	uint32_t *word;
	uint32_t n_held; /* under 32 */
	uint64_t held;
};

static __device__ struct deflate_writer deflate_writer_at(struct deflate_shared *s, uint32_t bit)
{
	return {&s->staged[bit / 32], bit % 32, 0};
}

/* At most 32 bits. */
static __device__ void deflate_writer_add(struct deflate_writer *w, uint32_t value, uint32_t n)
{
	w->held |= (uint64_t)value << w->n_held;
	w->n_held += n;
	if (w->n_held >= 32) {
		atomicOr(w->word++, (uint32_t)w->held);
		w->held >>= 32;
		w->n_held -= 32;
	}
}

static __device__ void deflate_writer_end(struct deflate_writer *w)
{
	if (w->n_held)
		atomicOr(w->word, (uint32_t)w->held);
}

/* Stages the runs of code lengths at bit fill, some for each thread; returns how many bits they are. */
static __device__ uint32_t deflate_stage_runs(struct deflate_shared *s, uint32_t fill)
{
	const uint32_t share = (s->n_runs + DEFLATE_THREADS - 1) / DEFLATE_THREADS;
	const uint32_t first = threadIdx.x * share,
		       end = first + share < s->n_runs ? first + share : s->n_runs;
	struct deflate_writer w;
	uint32_t bits = 0, all;

	for (uint32_t i = first; i < end; i++)
		bits += (s->run_code[s->runs[i] & 31] >> 16) + deflate_extra_bits(s->runs[i] & 31);
	w = deflate_writer_at(s, fill + deflate_scan(s, bits, &all));
	for (uint32_t i = first; i < end; i++) {
		const uint32_t run = s->runs[i], code = s->run_code[run & 31];

		deflate_writer_add(&w, code & 0xffff, code >> 16);
		deflate_writer_add(&w, run >> 5, deflate_extra_bits(run & 31));
	}
	deflate_writer_end(&w);
	__syncthreads();
	return all;
}

/* Stages a tile of the block's bytes at bit fill; returns how many bits they are. */
static __device__ uint32_t deflate_stage(
	struct deflate_shared *s, const uint8_t *in, uint32_t n, uint32_t fill)
{
	const uint32_t mine = deflate_share(n);
	const uint4 piece = deflate_load(in + threadIdx.x * DEFLATE_PIECE, mine);
	struct deflate_writer w;
	uint32_t bits = 0, all;

#pragma unroll
	for (uint32_t i = 0; i < DEFLATE_PIECE; i++)
		bits += i < mine ? s->code[deflate_byte(piece, i)] >> 16 : 0;
	w = deflate_writer_at(s, fill + deflate_scan(s, bits, &all));
#pragma unroll
	for (uint32_t i = 0; i < DEFLATE_PIECE; i++) {
		const uint32_t code = i < mine ? s->code[deflate_byte(piece, i)] : 0;

		deflate_writer_add(&w, code & 0xffff, code >> 16);
	}
	deflate_writer_end(&w);
	__syncthreads();
	return all;
}

/* Writes the whole words staged, and keeps the one begun. */
static __device__ void deflate_flush(struct deflate_shared *s, uint32_t fill, uint32_t *out)
{
	const uint32_t n_words = fill / 32;
	const uint32_t begun = s->staged[n_words];

	for (uint32_t i = threadIdx.x; i < n_words; i += DEFLATE_THREADS)
		out[i] = s->staged[i];
	__syncthreads();
	for (uint32_t i = threadIdx.x; i <= n_words; i += DEFLATE_THREADS)
		s->staged[i] = i == 0 ? begun : 0;
	__syncthreads();
}

/* Writes a block from bit `at` of the output on; the word begun is in carry before and after. */
static __device__ void deflate_write(struct deflate_shared *s, const uint8_t *in, uint32_t n,
	enum deflate_kind kind, uint32_t last, uint32_t *out, uint64_t at)
{
	uint32_t fill;

	for (uint32_t i = threadIdx.x; i < DEFLATE_STAGED_WORDS; i += DEFLATE_THREADS)
		s->staged[i] = 0;
	__syncthreads();
	out += at / 32;
	if (threadIdx.x == 0) {
		s->staged[0] = s->carry;
		s->fill = (uint32_t)(at % 32);
		deflate_put_start(s, kind, last, n);
	}
	__syncthreads();
	fill = s->fill;
	/* Read by all before it is written again: without a byte there is no barrier on the way. */
	__syncthreads();
	if (kind == DEFLATE_DYNAMIC)
		fill += deflate_stage_runs(s, fill);
	for (uint32_t tile = 0; tile < n; tile += DEFLATE_TILE_BYTES) {
		const uint32_t n_tile =
			n - tile < DEFLATE_TILE_BYTES ? n - tile : (uint32_t)DEFLATE_TILE_BYTES;

		fill += deflate_stage(s, in + tile, n_tile, fill);
		deflate_flush(s, fill, out);
		out += fill / 32;
		fill %= 32;
	}
	if (threadIdx.x == 0) {
		s->fill = fill;
		if (kind != DEFLATE_STORED)
			deflate_put(s, s->code[DEFLATE_END] & 0xffff, s->code[DEFLATE_END] >> 16);
		/* Without a byte the block's three bits are staged still: 3 + 7 and the word begun. */
		if (s->fill >= 32)
			*out = s->staged[0];
		s->carry = s->staged[s->fill / 32];
	}
	__syncthreads();
}

extern "C" __global__ void __launch_bounds__(DEFLATE_THREADS, 10)
	deflate_streams(const struct deflate_streams_args a)
{
	__shared__ struct deflate_shared s;
	const struct deflate_stream stream = a.streams[blockIdx.x];
	const uint32_t len = stream.in_bytes;
	uint32_t status = (uintptr_t)stream.out & (DEFLATE_ALIGN - 1) ? DEFLATE_MISALIGNED : DEFLATE_DONE;
	uint64_t at = 0;

	if (threadIdx.x == 0)
		s.carry = 0;
	for (uint32_t first = 0, n; status != DEFLATE_MISALIGNED; first += n) {
		enum deflate_kind kind;
		uint32_t bits;

		n = len - first < DEFLATE_BLOCK_BYTES ? len - first : (uint32_t)DEFLATE_BLOCK_BYTES;
		deflate_count(&s, stream.in + first, n);
		kind = deflate_choose(&s, at, n, &bits);
		/* What does not fit is counted all the same. */
		if ((at + bits + 7) / 8 > stream.room)
			status = DEFLATE_OVERFLOW;
		if (status == DEFLATE_DONE)
			deflate_write(
				&s, stream.in + first, n, kind, first + n == len, (uint32_t *)stream.out, at);
		at += bits;
		if (first + n == len)
			break;
	}
	if (threadIdx.x == 0) {
		for (uint64_t i = at / 32 * 4; status == DEFLATE_DONE && i < (at + 7) / 8; i++)
			stream.out[i] = (uint8_t)(s.carry >> 8 * (i % 4));
		a.results[blockIdx.x] = {status, (uint32_t)((at + 7) / 8), len, 0};
	}
}
