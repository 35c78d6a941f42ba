/*
 * Attention mass from observed queries, of all layers and heads of a sequence: what runtime/detection.h's
 * detection_observe and policy/sinks/observe.h compute on the host, layer by layer. Of each query and head
 * the weights over the tokens it sees, as logs of multiples of the uniform share; of each token the geometric
 * mean (resting) and the arithmetic mean (asked) over the nearest group of queries behind its chunk; of both
 * the largest over heads and layers.
 *
 * Four launches, one after the other on a stream: attention_sums, attention_less, attention_raise,
 * attention_finish. Scores are computed twice, for the softmax's denominators and for the tokens, and never
 * stored: they would take four times the bytes of the keys for every query and head.
 *
 * Traffic: the keys read twice, 2 w bytes a token and layer in bf16 each time (and from L2 once more for
 * every ATTENTION_ROWS rows of queries and heads); 4 bytes a token and layer, and 8 bytes for each query,
 * head and tile, written. Work: 2 n_heads dim n_queries multiply-adds a token and layer, in f32 as on the
 * host: 32 layers of 32 heads, dim 128, 16 queries and 8,192 tokens take 34 G of them, 1.1 ms at 30 T a
 * second, against 0.25 ms for reading 512 MiB of keys twice at 4.8 TB/s. So arithmetic is the floor from four
 * queries on. The inner loop has 64 multiply-adds for 8 loads of 16 bytes from shared memory, which take 20
 * cycles of the SM where the multiply-adds take 16: 80% of that floor at best. Tensor cores would do it
 * faster and in f16 only: a bf16 key may be over what f16 holds. These are counts, not measurements.
 *
 * Results are within 2 (dim + 16) 2^-24 s of the host's, s the largest sum of magnitudes of the products of a
 * score (scaled): the same f32 products, summed in another order; what is added to that by exponentials and
 * logs is less than 1e-5.
 */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include <stdint.h>

#include "kernels/formula.h"

enum {
	ATTENTION_THREADS = 256,
	ATTENTION_ROWS = 32,    /* queries of heads, at a time */
	ATTENTION_TOKENS = 128, /* of a tile */
};

/* A layer of the sequence: keys in pages (strides in bytes), as cached, and queries as the model multiplies
 * them with these: [n_queries, n_heads, dim]. Every element is aligned to its size. */
struct attention_layer {
	const uint8_t *keys;
	uint64_t block_stride, token_stride, head_stride;
	const uint8_t *queries;
};

/* Tokens of one chunk, and the queries that judge them. */
struct attention_tile {
	uint32_t first_token, n_tokens; /* at most ATTENTION_TOKENS */
	uint32_t first_query, n_queries;
};

/* Device addresses. */
struct attention_job {
	const struct attention_layer *layers; /* [n_layers] */
	const uint32_t *blocks;               /* token t lies in block blocks[(offset + t) / block_tokens] */
	const uint32_t *positions;            /* [n_queries], rising, each below n_tokens */
	const struct attention_tile *tiles;   /* [n_tiles], attention_plan's */
	uint32_t block_tokens, offset;
	uint32_t n_layers, n_queries, n_tiles, n_tokens;
	uint32_t n_heads, n_kv_heads; /* of queries, a multiple of those of keys */
	uint32_t dim, dtype;          /* enum dtype */
	float scale;                  /* of scores */
	float floor_log;              /* logs of multiples are at least this: log OBSERVE_FLOOR */
	/* Working memory: [n_layers, n_heads, n_queries, attention_n_tiles(n_tokens), 2], [n_layers, n_heads,
	 * n_queries], and [2, n_tokens]. */
	float *partial, *less;
	uint32_t *raised;
	/* [n_tokens] each; NaN for tokens behind whose chunk there is no query. */
	float *resting, *asked;
};

struct attention_sums_args {
	struct attention_job job;
};
struct attention_less_args {
	struct attention_job job;
};
struct attention_raise_args {
	struct attention_job job;
};
struct attention_finish_args {
	struct attention_job job;
};

KERNELS_FN uint32_t attention_n_tiles(uint32_t n_tokens)
{
	return (n_tokens + ATTENTION_TOKENS - 1) / ATTENTION_TOKENS;
}

/* Which queries judge which tokens, on the host: no more than n_tokens / ATTENTION_TOKENS + n_tokens /
 * chunk_tokens
 * + 1 tiles; returns how many. */
static inline uint32_t attention_plan(const uint32_t *positions, uint32_t n_queries, uint32_t n_tokens,
	uint32_t chunk_tokens, struct attention_tile *tiles)
{
	uint32_t n_tiles = 0, first = 0, end = 0;

	for (uint32_t t = 0; t < n_tokens;) {
		const uint32_t chunk = t / chunk_tokens, left = (chunk + 1) * chunk_tokens - t;

		for (; first < n_queries && positions[first] / chunk_tokens <= chunk; first++)
			;
		if (first == n_queries)
			break;
		for (end = first;
			end < n_queries && positions[end] / chunk_tokens == positions[first] / chunk_tokens;)
			end++;
		/* The queries' own chunk is behind, so this one is whole. */
		tiles[n_tiles].first_token = t;
		tiles[n_tiles].n_tokens = left < ATTENTION_TOKENS ? left : (uint32_t)ATTENTION_TOKENS;
		tiles[n_tiles].first_query = first;
		tiles[n_tiles].n_queries = end - first;
		t += tiles[n_tiles++].n_tokens;
	}
	return n_tiles;
}

/* The launches: ATTENTION_THREADS threads, no dynamic shared memory. Without a tile there is no
 * attention_raise. */
static inline void attention_sums_grid(const struct attention_job *j, uint32_t grid[3])
{
	grid[0] = attention_n_tiles(j->n_tokens);
	grid[1] = j->n_kv_heads;
	grid[2] = j->n_layers;
}

static inline void attention_less_grid(const struct attention_job *j, uint32_t grid[3])
{
	const uint32_t rows = j->n_layers * j->n_heads * j->n_queries;
	const uint32_t n = rows > 2 * j->n_tokens ? rows : 2 * j->n_tokens;

	grid[0] = (n + ATTENTION_THREADS - 1) / ATTENTION_THREADS;
	grid[1] = grid[2] = 1;
}

static inline void attention_raise_grid(const struct attention_job *j, uint32_t grid[3])
{
	grid[0] = j->n_tiles;
	grid[1] = j->n_kv_heads;
	grid[2] = j->n_layers;
}

static inline void attention_finish_grid(const struct attention_job *j, uint32_t grid[3])
{
	grid[0] = (j->n_tokens + ATTENTION_THREADS - 1) / ATTENTION_THREADS;
	grid[1] = grid[2] = 1;
}

#endif
