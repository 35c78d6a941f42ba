#include "kernels/cuda/bytes/xxh3.h"

#include "kernels/cuda/simt/simt.h"

/* The constants of the specification, sections "XXH3" and "XXH64". */
#define XXH3_PRIME32_1 0x9e3779b1u
#define XXH3_PRIME32_2 0x85ebca77u
#define XXH3_PRIME32_3 0xc2b2ae3du
#define XXH3_PRIME64_1 0x9e3779b185ebca87ull
#define XXH3_PRIME64_2 0xc2b2ae3d27d4eb4full
#define XXH3_PRIME64_3 0x165667b19e3779f9ull
#define XXH3_PRIME64_4 0x85ebca77c2b2ae63ull
#define XXH3_PRIME64_5 0x27d4eb2f165667c5ull
#define XXH3_PRIME_MX1 0x165667919e3779f9ull
#define XXH3_PRIME_MX2 0x9fb21c651e98df25ull

enum {
	XXH3_SECRET_WORDS = 24,
	XXH3_STRIPE = 64,
	XXH3_STRIPES = 16, /* of a block, after which the sums are scrambled */
	XXH3_SHORT_MAX = 240,
};

static_assert(XXH3_STRIPES % XXH3_AHEAD == 0, "blocks are read in whole batches");

/* The default secret. */
static __device__ const uint64_t xxh3_secret[XXH3_SECRET_WORDS] = {
	0xbe4ba423396cfeb8ull,
	0x1cad21f72c81017cull,
	0xdb979083e96dd4deull,
	0x1f67b3b7a4a44072ull,
	0x78e5c0cc4ee679cbull,
	0x2172ffcc7dd05a82ull,
	0x8e2443f7744608b8ull,
	0x4c263a81e69035e0ull,
	0xcb00c391bb52283cull,
	0xa32e531b8b65d088ull,
	0x4ef90da297486471ull,
	0xd8acdea946ef1938ull,
	0x3f349ce33f76faa8ull,
	0x1d4f0bc7c7bbdcf9ull,
	0x3159b4cd4be0518aull,
	0x647378d9c97e9fc8ull,
	0xc3ebd33483acc5eaull,
	0xeb6313faffa081c5ull,
	0x49daf0b751dd0d17ull,
	0x9e68d429265516d3ull,
	0xfca1477d58be162bull,
	0xce31d07ad1b8f88full,
	0x280416958f3acb45ull,
	0x7e404bbbcafbd7afull,
};

/* ---- Arithmetic. */

static __device__ uint64_t xxh3_fold(uint64_t a, uint64_t b)
{
	return (a * b) ^ __umul64hi(a, b);
}

static __device__ uint64_t xxh3_avalanche(uint64_t h)
{
	h = (h ^ h >> 37) * XXH3_PRIME_MX1;
	return h ^ h >> 32;
}

static __device__ uint64_t xxh3_avalanche64(uint64_t h)
{
	h = (h ^ h >> 33) * XXH3_PRIME64_2;
	h = (h ^ h >> 29) * XXH3_PRIME64_3;
	return h ^ h >> 32;
}

static __device__ uint64_t xxh3_rotate(uint64_t x, uint32_t n)
{
	return x << n | x >> (64 - n);
}

static __device__ uint32_t xxh3_swap32(uint32_t x)
{
	return __byte_perm(x, 0, 0x0123);
}

static __device__ uint64_t xxh3_swap64(uint64_t x)
{
	return (uint64_t)xxh3_swap32((uint32_t)x) << 32 | xxh3_swap32((uint32_t)(x >> 32));
}

/* Eight bytes of the secret from any byte on. */
static __device__ uint64_t xxh3_secret_at(uint32_t at)
{
	const uint32_t shift = at % 8 * 8;

	return shift ? xxh3_secret[at / 8] >> shift | xxh3_secret[at / 8 + 1] << (64 - shift)
		     : xxh3_secret[at / 8];
}

/* ---- Up to XXH3_SHORT_MAX bytes: one lane, a byte at a time; there is little to gain. */

static __device__ uint64_t xxh3_bytes(const uint8_t *p, uint32_t n)
{
	uint64_t value = 0;

	for (uint32_t i = 0; i < n; i++)
		value |= (uint64_t)p[i] << 8 * i;
	return value;
}

static __device__ uint64_t xxh3_mix16(const uint8_t *p, uint32_t secret, uint64_t seed)
{
	return xxh3_fold(xxh3_bytes(p, 8) ^ (xxh3_secret_at(secret) + seed),
		xxh3_bytes(p + 8, 8) ^ (xxh3_secret_at(secret + 8) - seed));
}

static __device__ uint64_t xxh3_upto16(const uint8_t *p, uint32_t len, uint64_t seed)
{
	if (len == 0)
		return xxh3_avalanche64(seed ^ xxh3_secret[7] ^ xxh3_secret[8]);
	if (len < 4) {
		const uint32_t both =
			(uint32_t)p[0] << 16 | (uint32_t)p[len / 2] << 24 | p[len - 1] | len << 8;

		return xxh3_avalanche64(
			both ^ (((uint32_t)xxh3_secret[0] ^ (uint32_t)(xxh3_secret[0] >> 32)) + seed));
	}
	if (len <= 8) {
		uint64_t h = xxh3_bytes(p + len - 4, 4) + (xxh3_bytes(p, 4) << 32);

		seed ^= (uint64_t)xxh3_swap32((uint32_t)seed) << 32;
		h ^= (xxh3_secret[1] ^ xxh3_secret[2]) - seed;
		h ^= xxh3_rotate(h, 49) ^ xxh3_rotate(h, 24);
		h *= XXH3_PRIME_MX2;
		h ^= (h >> 35) + len;
		h *= XXH3_PRIME_MX2;
		return h ^ h >> 28;
	}
	{
		const uint64_t lo = xxh3_bytes(p, 8) ^ ((xxh3_secret[3] ^ xxh3_secret[4]) + seed);
		const uint64_t hi = xxh3_bytes(p + len - 8, 8) ^ ((xxh3_secret[5] ^ xxh3_secret[6]) - seed);

		return xxh3_avalanche(len + xxh3_swap64(lo) + hi + xxh3_fold(lo, hi));
	}
}

static __device__ uint64_t xxh3_short(const uint8_t *p, uint32_t len, uint64_t seed)
{
	uint64_t sum = len * XXH3_PRIME64_1;

	if (len <= 16)
		return xxh3_upto16(p, len, seed);
	if (len <= 128) {
		for (uint32_t i = (len - 1) / 32 + 1; i-- > 0;)
			sum += xxh3_mix16(p + 16 * i, 32 * i, seed) +
			       xxh3_mix16(p + len - 16 * (i + 1), 32 * i + 16, seed);
		return xxh3_avalanche(sum);
	}
	for (uint32_t i = 0; i < 8; i++)
		sum += xxh3_mix16(p + 16 * i, 16 * i, seed);
	sum = xxh3_avalanche(sum);
	for (uint32_t i = 8; i < len / 16; i++)
		sum += xxh3_mix16(p + 16 * i, 16 * (i - 8) + 3, seed);
	return xxh3_avalanche(sum + xxh3_mix16(p + len - 16, 136 - 17, seed));
}

/* ---- Longer ones: the lanes of a warp together. */

#define XXH3_ALL 0xffffffffu

struct xxh3_lanes {
	uint32_t lane;  /* which sum */
	uint32_t block; /* which of the blocks that are summed side by side */
	uint64_t seed;
};

/* Word w of the secret, for this lane; w's parity is the lane's or not. */
static __device__ uint64_t xxh3_word(const uint64_t *secret, uint32_t w, uint64_t seed)
{
	return secret[w] + (w % 2 ? 0 - seed : seed);
}

/* Eight bytes of the secret from any byte on, the seed in it. */
static __device__ uint64_t xxh3_seeded_at(const uint64_t *secret, uint32_t at, uint64_t seed)
{
	const uint32_t shift = at % 8 * 8;
	const uint64_t lo = xxh3_word(secret, at / 8, seed);

	return shift ? lo >> shift | xxh3_word(secret, at / 8 + 1, seed) << (64 - shift) : lo;
}

/* Eight bytes at p: from aligned words, as long as what they have beside it lies before `end`. */
static __device__ uint64_t xxh3_load(const uint8_t *p, const uint8_t *end)
{
	const uint32_t shift = (uint32_t)((uintptr_t)p & 7) * 8;
	const uint64_t *const words = (const uint64_t *)(p - shift / 8);

	if (shift == 0)
		return words[0];
	if (end - p < 16)
		return xxh3_bytes(p, 8);
	return words[0] >> shift | words[1] << (64 - shift);
}

static __device__ uint64_t xxh3_accumulate(uint64_t sum, uint64_t value, uint64_t secret)
{
	const uint64_t key = value ^ secret;

	/* A word itself goes to the neighbour's sum. */
	return sum + __shfl_xor_sync(XXH3_ALL, value, 1) + (uint64_t)(uint32_t)key * (uint32_t)(key >> 32);
}

/* Stripes [0, n) of a block; wanted: not of one that there is not, whose lanes only take part. */
static __device__ uint64_t xxh3_stripes(struct xxh3_lanes l, uint64_t sum, const uint64_t *secret,
	const uint8_t *p, uint32_t n, const uint8_t *end, bool wanted)
{
	for (uint32_t first = 0; first < n; first += XXH3_AHEAD) {
		uint64_t value[XXH3_AHEAD];

#pragma unroll
		for (uint32_t i = 0; i < XXH3_AHEAD; i++)
			value[i] = wanted && first + i < n
					   ? xxh3_load(p + (first + i) * XXH3_STRIPE + 8 * l.lane, end)
					   : 0;
#pragma unroll
		for (uint32_t i = 0; i < XXH3_AHEAD; i++)
			if (first + i < n)
				sum = xxh3_accumulate(
					sum, value[i], xxh3_word(secret, first + i + l.lane, l.seed));
	}
	return sum;
}

static __device__ uint64_t xxh3_start(uint32_t lane)
{
	switch (lane) {
	case 0: return XXH3_PRIME32_3;
	case 1: return XXH3_PRIME64_1;
	case 2: return XXH3_PRIME64_2;
	case 3: return XXH3_PRIME64_3;
	case 4: return XXH3_PRIME64_4;
	case 5: return XXH3_PRIME32_2;
	case 6: return XXH3_PRIME64_5;
	default: return XXH3_PRIME32_1;
	}
}

/* After a block. */
static __device__ uint64_t xxh3_scramble(struct xxh3_lanes l, uint64_t sum, const uint64_t *secret)
{
	sum ^= sum >> 47;
	sum ^= xxh3_word(secret, XXH3_SECRET_WORDS - 8 + l.lane, l.seed);
	return sum * XXH3_PRIME32_1;
}

static __device__ uint64_t xxh3_long(
	struct xxh3_lanes l, const uint64_t *secret, const uint8_t *p, uint64_t len)
{
	const uint8_t *const end = p + len;
	const uint64_t block_bytes = XXH3_STRIPES * XXH3_STRIPE;
	/* The last byte is left to the last stripe, which may overlap the one before. */
	const uint64_t n_blocks = (len - 1) / block_bytes;
	uint64_t sum = xxh3_start(l.lane), folded, other;

	for (uint64_t first = 0; first < n_blocks; first += 32 / XXH3_LANES) {
		const uint64_t mine = xxh3_stripes(l, 0, secret, p + (first + l.block) * block_bytes,
			XXH3_STRIPES, end, first + l.block < n_blocks);

		for (uint32_t i = 0; i < 32 / XXH3_LANES; i++) {
			const uint64_t of = __shfl_sync(XXH3_ALL, mine, (int)(i * XXH3_LANES + l.lane));

			if (first + i < n_blocks)
				sum = xxh3_scramble(l, sum + of, secret);
		}
	}
	p += n_blocks * block_bytes;
	sum = xxh3_stripes(l, sum, secret, p, (uint32_t)((end - p - 1) / XXH3_STRIPE), end, true);
	sum = xxh3_accumulate(sum, xxh3_load(end - XXH3_STRIPE + 8 * l.lane, end),
		xxh3_seeded_at(secret, XXH3_SECRET_WORDS * 8 - XXH3_STRIPE - 7 + 8 * l.lane, l.seed));
	/* Even lanes fold their pair, then all are added. */
	sum ^= xxh3_seeded_at(secret, 11 + 8 * l.lane, l.seed);
	other = __shfl_xor_sync(XXH3_ALL, sum, 1);
	folded = l.lane % 2 ? 0 : xxh3_fold(sum, other);
	for (uint32_t d = 2; d < XXH3_LANES; d *= 2)
		folded += __shfl_xor_sync(XXH3_ALL, folded, (int)d);
	return xxh3_avalanche(len * XXH3_PRIME64_1 + folded);
}

extern "C" __global__ void __launch_bounds__(XXH3_THREADS) xxh3_ranges(const struct xxh3_ranges_args a)
{
	__shared__ uint64_t secret[XXH3_SECRET_WORDS];
	const uint32_t i = blockIdx.x * XXH3_RANGES + threadIdx.x / 32;
	const struct xxh3_range range = i < a.n_ranges ? a.ranges[i] : xxh3_range{nullptr, 0, 0};
	const struct xxh3_lanes l = {threadIdx.x % XXH3_LANES, threadIdx.x % 32 / XXH3_LANES, range.seed};
	uint64_t hash = 0;

	if (threadIdx.x < XXH3_SECRET_WORDS)
		secret[threadIdx.x] = xxh3_secret[threadIdx.x];
	__syncthreads();
	if (i >= a.n_ranges)
		return;
	if (range.len > XXH3_SHORT_MAX)
		hash = xxh3_long(l, secret, range.data, range.len);
	else if (threadIdx.x % 32 == 0)
		hash = xxh3_short(range.data, (uint32_t)range.len, range.seed);
	if (threadIdx.x % 32 == 0)
		a.hashes[i] = hash;
}
