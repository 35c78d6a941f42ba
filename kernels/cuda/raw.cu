/*
 * Raw tokens, bit for bit, between pages and the byte planes of a frame; and bytes to bytes. Traffic: what is
 * read is written. Raw tokens are few, and frames a sixteenth of what they stand for: nothing here is worth
 * more than coalescing.
 */
#include "kernels/cuda/element.cuh"

__device__ static inline uint8_t *raw_element(const struct codec_device_chunk *chunk,
	const struct codec_raw_job *job, uint32_t layer, uint32_t token, uint32_t element)
{
	return octet_address(
		chunk, layer, job->plane, element / job->dim, element % job->dim, token, job->dtype_bytes);
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_raw_split(const struct codec_raw_args a)
{
	const struct codec_raw_job *job = &a.jobs[blockIdx.z];
	const struct codec_device_chunk *chunk = &a.chunks[job->chunk];
	const uint32_t layer = blockIdx.y, width = job->n_heads * job->dim;

	if (blockIdx.x >= chunk->n_raw)
		return;
	for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
		const size_t at = ((size_t)layer * chunk->n_raw + blockIdx.x) * width + i;
		const uint8_t *element =
			raw_element(chunk, job, layer, chunk->tokens[chunk->n_coded + blockIdx.x], i);

		for (uint32_t b = 0; b < job->dtype_bytes; b++)
			job->bodies[b][at] = element[b];
	}
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_raw_join(const struct codec_raw_args a)
{
	const struct codec_raw_job *job = &a.jobs[blockIdx.z];
	const struct codec_device_chunk *chunk = &a.chunks[job->chunk];
	const uint32_t layer = blockIdx.y, width = job->n_heads * job->dim;

	if (blockIdx.x >= chunk->n_raw)
		return;
	for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
		const size_t at = ((size_t)layer * chunk->n_raw + blockIdx.x) * width + i;
		uint8_t *element =
			raw_element(chunk, job, layer, chunk->tokens[chunk->n_coded + blockIdx.x], i);

		for (uint32_t b = 0; b < job->dtype_bytes; b++)
			element[b] = job->bodies[b][at];
	}
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_move(const struct codec_move_args a)
{
	const struct codec_move *move = &a.moves[blockIdx.x];

	for (uint64_t i = threadIdx.x; i < move->len; i += blockDim.x)
		move->to[i] = move->from[i];
}
