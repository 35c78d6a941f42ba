/*
 * pages_gather, pages_scatter: n_tokens tokens of grid.y planes, each n_heads x head_bytes.
 * Traffic: every byte of a token is read once and written once, 2 x layers x planes x heads x dim x element
 * bytes a token (Llama-3.1-8B: 256 KiB), beside 4 bytes of block table for a tile's tokens, which stay in the
 * cache. Floor: that over the device's copy bandwidth; 1 GiB of KV at 4 TB/s takes 0.54 ms.
 */
#include "kernels/cuda/pages.h"
#include "kernels/cuda/simt/simt.h"

/* Neighbouring threads take neighbouring units of a token, so that a warp reads and writes whole lines
 * wherever a head is 512 bytes or heads lie together; four loads are under way before the first store. */
template <typename unit, bool IS_GATHER>
static __device__ __forceinline__ void pages_copy(
	const struct pages_args &a, const struct pages_plane &p, uint32_t first, uint32_t end)
{
	enum { IN_FLIGHT = 4 };
	const uint32_t head_units = p.head_bytes / (uint32_t)sizeof(unit),
		       token_units = head_units * p.n_heads;
	const uint32_t n = (end - first) * token_units;
	const uint32_t *blocks = reinterpret_cast<const uint32_t *>(a.blocks);
	unit *packed = reinterpret_cast<unit *>(a.packed + a.n_tokens * p.packed_bytes - a.skipped) +
		       (uint64_t)first * token_units;

	for (uint32_t start = threadIdx.x; start < n; start += IN_FLIGHT * PAGES_THREADS) {
		unit *paged[IN_FLIGHT];
		unit value[IN_FLIGHT];

		for (int k = 0; k < IN_FLIGHT; k++) {
			const uint32_t i = start + k * PAGES_THREADS;
			const uint32_t token = first + i / token_units, in_token = i % token_units;
			const uint32_t at = a.offset + token;

			if (i >= n)
				continue;
			paged[k] = reinterpret_cast<unit *>(
					   p.base + __ldg(&blocks[at / a.block_tokens]) * p.block_stride +
					   at % a.block_tokens * p.token_stride +
					   in_token / head_units * p.head_stride) +
				   in_token % head_units;
			value[k] = IS_GATHER ? *paged[k] : packed[i];
		}
		for (int k = 0; k < IN_FLIGHT; k++) {
			const uint32_t i = start + k * PAGES_THREADS;

			if (i < n)
				*(IS_GATHER ? &packed[i] : paged[k]) = value[k];
		}
	}
}

template <bool IS_GATHER> static __device__ __forceinline__ void pages_run(const struct pages_args &a)
{
	const struct pages_plane p = reinterpret_cast<const struct pages_plane *>(a.planes)[blockIdx.y];
	const uint32_t first = blockIdx.x * PAGES_TILE;
	const uint32_t end = first + PAGES_TILE < a.n_tokens ? first + PAGES_TILE : a.n_tokens;

	switch (p.unit_bytes) {
	case 16: pages_copy<uint4, IS_GATHER>(a, p, first, end); break;
	case 8: pages_copy<uint2, IS_GATHER>(a, p, first, end); break;
	case 4: pages_copy<uint32_t, IS_GATHER>(a, p, first, end); break;
	default: pages_copy<uint16_t, IS_GATHER>(a, p, first, end);
	}
}

extern "C" __global__ void __launch_bounds__(PAGES_THREADS) pages_gather(const struct pages_args a)
{
	pages_run<true>(a);
}

extern "C" __global__ void __launch_bounds__(PAGES_THREADS) pages_scatter(const struct pages_args a)
{
	pages_run<false>(a);
}
