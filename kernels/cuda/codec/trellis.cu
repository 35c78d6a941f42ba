/*
 * Coefficients to codes along the trellis of base/levels.h, as kernels/cpu/trellis.c does it, and to the bit,
 * given the same coefficients. A thread takes a token through all its components: forth with four path costs
 * in registers, leaving in memory which predecessor each state was reached from, four bits, and for each set
 * whether zero was its best even level, two more; and back, where that is enough to find the level again
 * without a cost being computed. Four components at a time: their coefficients and decisions are on their way
 * while the eight before are worked on, and their decisions share a word.
 *
 * Rounding in other directions than to nearest finds what the host finds with comparisons and selections:
 * the two levels around a magnitude are its half's floor and the next, and of these the even one is twice the
 * ceiling of half the floor. Where a multiply-add is fused, the product is exact, so it rounds as the host
 * does. What near levels stand for and cost is listed by class, in shared memory: a look-up takes three
 * instructions where the formulae take ten. Groups with a magnitude beyond the lists go by the formulae.
 *
 * Traffic a coefficient: 4 bytes read twice, a byte of decisions written and read, 2 of codes written; all of
 * it coalesced, for neighbours in a warp are neighbours in memory: 12 bytes. Instructions, in sm_90's code:
 * 81 forth (104 by the formulae), 48 back. Floor: 129 of them, one a cycle for each of an SM's four
 * schedulers: 4.0 ps with 132 SMs at 1.9 GHz, where 12 bytes take 2.9 ps at 4.2 TB/s.
 */
#include "kernels/cuda/codec/codec.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/formula.h"

/* 1.5 * 2^23: a sum with it is a whole number, rounded as the addition rounds. */
#define ROUNDER 12582912.0f
#define ROUNDER_BITS 0x4b400000u
/* In steps: what levels reach. */
#define REACH (2.0f * LEVELS_MAX - 4.0f)

enum {
	DECISION_BITS = 6, /* of a component: from bit 0 on of the states, then of the sets */
	/* Groups under way, each in registers of its own until the loop, unrolled for it, comes round to it:
	 * a copy from one to the next would wait for what it copies. */
	AHEAD = 2,
};

/* Sixteen bytes each: what is had with one access. */
enum {
	QUANTISER_PARTS = sizeof(struct codec_quantiser) / sizeof(float4),
	QUANTISERS_PARTS = CODEC_QUANTISERS * LEVELS_SETS * QUANTISER_PARTS,
	LEVELS_PARTS =
		CODEC_QUANTISERS * LEVELS_SETS * 2 * CODEC_NEAR * sizeof(struct codec_level) / sizeof(float4),
	/* Bytes of a class's levels for each of its quantisers'. */
	LEVELS_WIDER = LEVELS_PARTS / QUANTISERS_PARTS,
};

/* Magnitudes below this, in steps, lie between levels that are listed. */
#define NEAR_REACH (4.0f * CODEC_NEAR - 4.0f)

/* A token's way through its components. */
struct walk {
	const float *c;
	uint32_t *decisions;
	int16_t *codes;
	const uint32_t *places;   /* of the components' quantisers, in bytes */
	const float4 *quantisers; /* shared: of all classes, and behind them their levels */
	uint32_t stride;
	uint32_t r;
	float step, inverse;
};

__device__ static inline const float4 *quantiser_at(const struct walk *w, uint32_t place)
{
	return (const float4 *)((const uint8_t *)w->quantisers + place);
}

__device__ static inline float level_value(float k, uint32_t set, float bias)
{
	return set ? fmaf(k, 2.0f, -1.0f) + bias : fmaf(k, 2.0f, bias);
}

/* A level and what it stands for. price: bend, slope, base, zero. */
__device__ static inline float level_cost(float4 price, float a, float k, float value)
{
	const float d = a - value;

	return d * d + ((price.x * k + price.y) * k + price.z);
}

__device__ static inline uint32_t push_sign(uint32_t word, float x)
{
	return __funnelshift_l(f32_bits(x), word, 1);
}

/* In steps. */
__device__ static inline float magnitude_of(const struct walk *w, float y)
{
	return fminf(fabsf(y) * w->inverse, REACH);
}

__device__ static inline void group_load(float y[CODEC_GROUP], const float *c, uint32_t stride)
{
	SIMT_UNROLL
	for (uint32_t e = 0; e < CODEC_GROUP; e++)
		y[e] = c[(size_t)e * stride];
}

/* What the best even and the best odd level of one set cost for a magnitude. */
__device__ static inline uint32_t branches(
	const float4 *quantiser, float a, uint32_t set, uint32_t word, float cost[2])
{
	const float4 price = quantiser[0], value = quantiser[1];
	const float low = __fmaf_rd(set ? a + 1.0f : a, 0.5f, ROUNDER);
	const float half = __fmaf_ru(low, 0.5f, 0.5f * ROUNDER);
	const float even = fmaf(half, 2.0f, -2.0f * ROUNDER), odd = fmaf(low - half, 2.0f, 1.0f);
	const float even_cost = level_cost(price, a, even, level_value(even, set, value.y));
	const float zero_cost = a * a + price.w;

	cost[0] = even > 0.0f ? fminf(even_cost, zero_cost) : zero_cost;
	cost[1] = level_cost(price, a, odd, level_value(odd, set, odd > 1.0f ? value.y : value.x));
	return push_sign(word, zero_cost - even_cost);
}

/* A level of a class's list: of its even ones, or of its odd ones, which come after. at: the first one's
 * place less ROUNDER's bits; number: ROUNDER plus which. */
__device__ static inline float near_cost(const struct walk *w, float a, uint32_t at, uint32_t number)
{
	const float2 level = *(const float2 *)((const uint8_t *)w->quantisers +
					       (at + number * (uint32_t)sizeof(struct codec_level)));
	const float d = a - level.x;

	return d * d + level.y;
}

/* As branches, of a magnitude below NEAR_REACH. Zero's place among the even levels costs infinitely much: it
 * is looked at by itself. */
__device__ static inline uint32_t near_branches(
	const struct walk *w, uint32_t place, float a, uint32_t set, uint32_t word, float cost[2])
{
	enum { LIST_BYTES = CODEC_NEAR * sizeof(struct codec_level) };
	const uint32_t at = place * LEVELS_WIDER + QUANTISERS_PARTS * (uint32_t)sizeof(float4) +
			    set * 2 * LIST_BYTES - ROUNDER_BITS * (uint32_t)sizeof(struct codec_level);
	const float low = __fmaf_rd(set ? a + 1.0f : a, 0.5f, ROUNDER);
	const float half = __fmaf_ru(low, 0.5f, 0.5f * ROUNDER);
	const float even_cost = near_cost(w, a, at, f32_bits(half));
	const float zero_cost = a * a + quantiser_at(w, place)[set * QUANTISER_PARTS].w;

	cost[0] = fminf(even_cost, zero_cost);
	cost[1] = near_cost(w, a, at + LIST_BYTES, f32_bits(low) - f32_bits(half) + ROUNDER_BITS);
	return push_sign(word, zero_cost - even_cost);
}

/* One component further: the costs, and the decisions pushed onto word. near: the magnitude is below
 * NEAR_REACH.
 */
template <bool near>
__device__ static inline uint32_t advance(
	float cost[4], const struct walk *w, uint32_t place, float a, uint32_t word)
{
	const float4 *quantisers = quantiser_at(w, place);
	float zero[2], one[2];

	if (near) {
		word = near_branches(w, place, a, 1, word, one);
		word = near_branches(w, place, a, 0, word, zero);
	} else {
		word = branches(quantisers + QUANTISER_PARTS, a, 1, word, one);
		word = branches(quantisers, a, 0, word, zero);
	}

	const float first[4] = {cost[0] + zero[0], cost[2] + one[0], cost[0] + zero[1], cost[2] + one[1]};
	const float second[4] = {cost[1] + zero[1], cost[3] + one[1], cost[1] + zero[0], cost[3] + one[0]};

	SIMT_UNROLL
	for (int s = 3; s >= 0; s--) {
		word = push_sign(word, second[s] - first[s]);
		cost[s] = fminf(first[s], second[s]);
	}
	/* Costs only matter against each other; kept small they lose no digits. */
	const float least = fminf(fminf(cost[0], cost[1]), fminf(cost[2], cost[3]));

	SIMT_UNROLL
	for (int s = 0; s < 4; s++)
		cost[s] -= least;
	return word;
}

/* A whole group further. */
__device__ static inline uint32_t forth_group(
	float cost[4], const struct walk *w, uint4 at, const float a[CODEC_GROUP])
{
	const uint32_t place[CODEC_GROUP] = {at.x, at.y, at.z, at.w};
	uint32_t word = 0;

	if (fmaxf(fmaxf(a[0], a[1]), fmaxf(a[2], a[3])) < NEAR_REACH) {
		SIMT_UNROLL
		for (uint32_t e = 0; e < CODEC_GROUP; e++)
			word = advance<true>(cost, w, place[e], a[e], word);
	} else {
		SIMT_UNROLL
		for (uint32_t e = 0; e < CODEC_GROUP; e++)
			word = advance<false>(cost, w, place[e], a[e], word);
	}
	return word;
}

/* All whole groups. */
__device__ static inline void forth_groups(float cost[4], const struct walk *w)
{
	const size_t group = (size_t)CODEC_GROUP * w->stride;
	const uint4 *places = (const uint4 *)w->places;
	const float *c = w->c;
	uint32_t left = w->r / CODEC_GROUP, *decisions = w->decisions;
	float y[AHEAD][CODEC_GROUP], a[CODEC_GROUP];
	uint4 at[AHEAD];

	if (!left)
		return;
	/* Behind the last group that one again, for nothing. */
	SIMT_UNROLL
	for (uint32_t d = 0; d < AHEAD; d++) {
		group_load(y[d], c, w->stride);
		at[d] = *places;
		c += left > d + 1 ? group : 0;
		places += left > d + 1;
	}
	for (;;) {
		SIMT_UNROLL
		for (uint32_t d = 0; d < AHEAD; d++) {
			if (!left)
				return;
			left--;
			SIMT_UNROLL
			for (uint32_t e = 0; e < CODEC_GROUP; e++)
				a[e] = magnitude_of(w, y[d][e]);
			group_load(y[d], c, w->stride);
			c += left > AHEAD ? group : 0;
			*decisions = forth_group(cost, w, at[d], a);
			decisions += w->stride;
			at[d] = *places;
			places += left > AHEAD;
		}
	}
}

/* Returns the best last state. */
__device__ static inline uint32_t forth(const struct walk *w)
{
	const uint32_t n_whole = w->r / CODEC_GROUP, n_left = w->r % CODEC_GROUP;
	const float *c = w->c + (size_t)CODEC_GROUP * n_whole * w->stride;
	float cost[4] = {0.0f, 1e30f, 1e30f, 1e30f}, least;
	uint32_t best = 0, word = 0;

	forth_groups(cost, w);
	for (uint32_t e = 0; e < n_left; e++)
		word = advance<false>(cost, w, w->places[CODEC_GROUP * n_whole + e],
			magnitude_of(w, c[(size_t)e * w->stride]), word);
	if (n_left)
		w->decisions[(size_t)n_whole * w->stride] = word;
	least = cost[0];
	for (uint32_t s = 1; s < 4; s++)
		if (cost[s] < least) {
			best = s;
			least = cost[s];
		}
	return best;
}

/* Where a token is on its way back. The state is before << 1 | set. */
struct way_back {
	uint32_t before, set;
	float lost, kept, most;
};

/* One component back: its code. decisions: its own are the lowest. */
__device__ static inline int16_t retreat(
	struct way_back *p, const struct walk *w, const float4 *quantisers, float y, uint32_t decisions)
{
	const float4 value = quantisers[p->set * QUANTISER_PARTS + 1];
	const uint32_t second = decisions >> (p->before << 1 | p->set) & 1;
	const uint32_t parity = second ^ p->before;
	const bool zero = !parity && (decisions >> p->set & 16);
	const float magnitude = fabsf(y) * w->inverse;
	/* The floor of half of it, or the number above, as parity asks for. */
	const uint32_t low = f32_bits(__fmaf_rd(fminf(magnitude, REACH) + value.z, 0.5f, ROUNDER));
	const float level = zero ? 0.0f : f32_from_bits(low + ((low ^ parity) & 1)) - ROUNDER;
	const float reached = fmaf(level, 2.0f, -value.z) + (level > 1.0f ? value.y : value.x);
	const float e = fabsf(y) - (level > 0.0f ? reached : 0.0f) * w->step;
	const float signed_level = f32_from_bits(f32_bits(level) | (f32_bits(y) & 0x80000000u));

	p->before = p->set;
	p->set = second;
	p->lost += e * e;
	p->kept += y * y;
	p->most = fmaxf(p->most, magnitude);
	return (int16_t)f32_bits(fmaf(signed_level, 2.0f, value.z) + ROUNDER);
}

/* All whole groups, the last first. What is loaded goes where the group before was: only there no register is
 * still to be read, whatever order the compiler puts a group's instructions in. */
__device__ static inline void back_groups(struct way_back *p, const struct walk *w)
{
	const size_t group = (size_t)CODEC_GROUP * w->stride;
	uint32_t left = w->r / CODEC_GROUP;
	const uint4 *places = (const uint4 *)w->places + left;
	int16_t *codes = w->codes + left * group;
	const uint32_t *decisions = w->decisions + (size_t)left * w->stride;
	const float *c = w->c + left * group;
	float y[AHEAD + 1][CODEC_GROUP];
	uint32_t words[AHEAD + 1];
	uint4 at[AHEAD + 1];

	if (!left)
		return;
	/* Before the first group that one again, for nothing. */
	SIMT_UNROLL
	for (uint32_t d = 0; d < AHEAD; d++) {
		c -= left > d ? group : 0;
		decisions -= left > d ? w->stride : 0;
		places -= left > d;
		group_load(y[d], c, w->stride);
		words[d] = *decisions;
		at[d] = *places;
	}
	for (;;) {
		SIMT_UNROLL
		for (uint32_t d = 0; d < AHEAD + 1; d++) {
			const uint32_t free = (d + AHEAD) % (AHEAD + 1);
			const uint32_t place[CODEC_GROUP] = {at[d].x, at[d].y, at[d].z, at[d].w};

			if (!left)
				return;
			c -= left > AHEAD ? group : 0;
			decisions -= left > AHEAD ? w->stride : 0;
			places -= left > AHEAD;
			group_load(y[free], c, w->stride);
			words[free] = *decisions;
			at[free] = *places;
			codes -= group;
			SIMT_UNROLL
			for (int e = CODEC_GROUP - 1; e >= 0; e--)
				codes[(size_t)e * w->stride] = retreat(p, w, quantiser_at(w, place[e]),
					y[d][e], words[d] >> (CODEC_GROUP - 1 - e) * DECISION_BITS);
			left--;
		}
	}
}

__device__ static inline struct way_back back(const struct walk *w, uint32_t state)
{
	const uint32_t n_whole = w->r / CODEC_GROUP, n_left = w->r % CODEC_GROUP;
	const size_t first = (size_t)CODEC_GROUP * n_whole * w->stride;
	uint32_t word = n_left ? w->decisions[(size_t)n_whole * w->stride] : 0;
	struct way_back p = {state >> 1, state & 1, 0, 0, 0};

	for (uint32_t e = n_left; e-- > 0; word >>= DECISION_BITS)
		w->codes[first + (size_t)e * w->stride] =
			retreat(&p, w, quantiser_at(w, w->places[CODEC_GROUP * n_whole + e]),
				w->c[first + (size_t)e * w->stride], word);
	back_groups(&p, w);
	return p;
}

extern "C" __global__ void __launch_bounds__(CODEC_TILE, 6) codec_quantise(const struct codec_quantise_args a)
{
	__shared__ float4 quantisers[QUANTISERS_PARTS + LEVELS_PARTS];
	const struct codec_device_block *block = &a.blocks[blockIdx.z];
	const struct codec_device_part *part = &a.parts[block->part];
	const struct codec_device_chunk *chunk = &a.chunks[block->chunk];
	const uint32_t token = blockIdx.x * CODEC_TILE + threadIdx.x;
	uint32_t coded, rung;
	struct walk w;
	struct way_back p;

	for (uint32_t i = threadIdx.x; i < QUANTISERS_PARTS; i += CODEC_TILE)
		quantisers[i] = ((const float4 *)part->quantisers)[i];
	for (uint32_t i = threadIdx.x; i < LEVELS_PARTS; i += CODEC_TILE)
		quantisers[QUANTISERS_PARTS + i] = ((const float4 *)part->levels)[i];
	__syncthreads();
	if (token >= chunk->n_tokens)
		return;
	coded = a.classes[block->chunk * CODEC_TOKENS_MAX + token];
	if (coded >= CODEC_CLASSES)
		return;
	rung = chunk->rung[coded];
	w.c = block->c + token;
	w.decisions = block->decisions + token;
	w.codes = block->codes + token;
	w.places = part->places + (size_t)rung * codec_groups(part->n_components) * CODEC_GROUP;
	w.quantisers = quantisers;
	w.stride = block->stride;
	w.r = part->active[rung];
	w.step = part->step[rung];
	w.inverse = 1.0f / part->step[rung];
	p = back(&w, forth(&w));
	/* A coefficient that no level reaches makes its token's error infinite. */
	block->lost[token] = p.most > REACH ? INFINITY : p.lost;
	block->kept[token] = p.kept;
}

/* A lane has a token; warps share the parts out, so that what is read is on its way together. */
extern "C" __global__ void __launch_bounds__(CODEC_ERRORS_THREADS)
	codec_errors(const struct codec_errors_args a)
{
	enum { WARPS = CODEC_ERRORS_THREADS / 32 };
	__shared__ float sums[2][WARPS][32];
	const struct codec_device_chunk *chunk = &a.chunks[blockIdx.z];
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, plane = blockIdx.y;
	const uint32_t token = blockIdx.x * 32 + lane, end = a.first_block[blockIdx.z + 1];
	float error = 0, norm = 0;

	if (token < chunk->n_tokens)
		for (uint32_t i = a.first_block[blockIdx.z] + warp; i < end; i += WARPS) {
			const struct codec_device_block *block = &a.blocks[i];
			const struct codec_device_part *part = &a.parts[block->part];
			const float energy = block->energy[token], lost = block->lost[token],
				    kept = block->kept[token], of_part = block->norm[token];

			if (part->plane != plane)
				continue;
			error += lost + fmaxf(0, energy - kept) +
				 energy * CODEC_PRODUCT_NOISE / sqrtf((float)part->n_columns);
			norm += of_part;
		}
	sums[0][warp][lane] = error;
	sums[1][warp][lane] = norm;
	__syncthreads();
	if (warp || token >= chunk->n_tokens)
		return;
	for (uint32_t i = 1; i < WARPS; i++) {
		error += sums[0][i][lane];
		norm += sums[1][i][lane];
	}
	a.errors[(blockIdx.z * CODEC_PLANES_MAX + plane) * CODEC_TOKENS_MAX + token] =
		error == 0 ? 0.0f : (float)sqrt((double)error / (double)norm);
}
