/*
 * Raw tokens, bit for bit, between pages and the byte planes of a frame; and bytes to bytes. Traffic: what is
 * read is written. Raw tokens are few, and frames a sixteenth of what they stand for: nothing here is worth
 * more than coalescing.
 */
#include "kernels/cuda/codec/element.cuh"

/* A raw token of one layer and plane: its elements' bytes to the bodies, or back. */
template <bool IS_JOIN> __device__ static inline void raw_move(const struct codec_raw_args &a)
{
	const struct codec_raw_job *job = &a.jobs[blockIdx.z];
	const struct codec_device_chunk *chunk = &a.chunks[job->chunk];
	const uint32_t layer = blockIdx.y, width = job->n_heads * job->dim;

	if (blockIdx.x >= chunk->n_raw)
		return;
	const struct token_place token = token_find(chunk, chunk->tokens[chunk->n_coded + blockIdx.x]);

	for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
		const size_t at = ((size_t)layer * chunk->n_raw + blockIdx.x) * width + i;
		uint8_t *element = octet_of(
			octet_find(chunk, layer, job->plane, i / job->dim, i % job->dim, job->dtype_bytes),
			token);

		for (uint32_t b = 0; b < job->dtype_bytes; b++)
			if (IS_JOIN)
				element[b] = job->bodies[b][at];
			else
				job->bodies[b][at] = element[b];
	}
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_raw_split(const struct codec_raw_args a)
{
	raw_move<false>(a);
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_raw_join(const struct codec_raw_args a)
{
	raw_move<true>(a);
}

/* Sixteen bytes from any address on, of which those before `end` may be read. */
__device__ static inline uint4 bytes16(const uint8_t *from, const uint8_t *end)
{
	const uint32_t shift = (uint32_t)((uintptr_t)from & 3) * 8;
	const uint32_t *words = (const uint32_t *)(from - shift / 8);
	uint32_t w[5];

	SIMT_UNROLL
	for (int i = 0; i < 5; i++)
		w[i] = i < 4 || (shift && (const uint8_t *)&words[4] < end) ? words[i] : 0;
	return make_uint4(__funnelshift_r(w[0], w[1], shift), __funnelshift_r(w[1], w[2], shift),
		__funnelshift_r(w[2], w[3], shift), __funnelshift_r(w[3], w[4], shift));
}

/* Whole pieces of sixteen bytes of what is written to; what is left at either end byte by byte. */
extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_move(const struct codec_move_args a)
{
	const struct codec_move *move = &a.moves[blockIdx.x];
	const uint8_t *from = move->from, *end = from + move->len;
	uint8_t *to = move->to;
	const uint64_t before = (uint64_t)(-(uintptr_t)to & 15);
	const uint64_t head = before < move->len ? before : move->len;
	const uint64_t pieces = (move->len - head) / 16, tail = head + 16 * pieces;

	if (threadIdx.x < head)
		to[threadIdx.x] = from[threadIdx.x];
	if (tail + threadIdx.x < move->len)
		to[tail + threadIdx.x] = from[tail + threadIdx.x];
	SIMT_UNROLL_BY(4)
	for (uint64_t i = threadIdx.x; i < pieces; i += CODEC_THREADS)
		*(uint4 *)(to + head + 16 * i) = bytes16(from + head + 16 * i, end);
}
