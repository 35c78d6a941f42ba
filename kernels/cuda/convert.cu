/*
 * From an engine's pages, or a copy of them, to the features that are projected: rotation undone, mean
 * subtracted, weighed, as f16, [stride, n_columns], and the energies that errors are measured by. Traffic a
 * token and feature: 2 bytes read (4 in f32), 2 written; the rest is cached. Floor: copy bandwidth.
 */
#include "kernels/cuda/element.cuh"

/* As the host's to a rounding: the angle in double, and double's functions. */
extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_rope(const struct codec_rope_args a)
{
	const struct codec_device_chunk *chunk = &a.chunks[blockIdx.z];
	const uint32_t plane = blockIdx.y, half = a.half[plane];
	const uint32_t i = blockIdx.x * CODEC_THREADS + threadIdx.x;
	double angle;

	if (i >= chunk->n_tokens * half)
		return;
	angle = (double)(chunk->position + i / half) * (double)a.frequency[plane][i % half];
	chunk->cos[plane][i] = (float)(cos(angle) * a.scale[plane]);
	chunk->sin[plane][i] = (float)(sin(angle) * a.scale[plane]);
}

/* What f16 holds; beyond it a token is not coded, which an infinite energy says. */
__device__ static inline uint32_t feature_pack(float x, float y, int *fits)
{
	*fits &= fabsf(x) <= F16_MAX && fabsf(y) <= F16_MAX;
	return simt_half2(x, y);
}

/* One octet's sums and what is stored of it. */
__device__ static inline uint4 octet_finish(const struct codec_device_part *part, uint32_t column,
	const float x[8], float *energy, float *norm, int *fits)
{
	float z[8], weight[8], mean[8];

	floats_load(weight, part->weight + column);
	floats_load(mean, part->mean + column);
	for (int i = 0; i < 8; i++) {
		const float weighed = x[i] * weight[i];

		z[i] = (x[i] - mean[i]) * weight[i];
		*energy += z[i] * z[i];
		*norm += weighed * weighed;
	}
	return make_uint4(feature_pack(z[0], z[1], fits), feature_pack(z[2], z[3], fits),
		feature_pack(z[4], z[5], fits), feature_pack(z[6], z[7], fits));
}

extern "C" __global__ void __launch_bounds__(CODEC_THREADS) codec_convert(const struct codec_convert_args a)
{
	const struct codec_device_block *block = &a.blocks[blockIdx.z];
	const struct codec_device_part *part = &a.parts[block->part];
	const struct codec_device_chunk *chunk = &a.chunks[block->chunk];
	const uint32_t lane = threadIdx.x % 32;
	const uint32_t token = blockIdx.x * (CODEC_THREADS / 32) + threadIdx.x / 32;
	const uint32_t size = part->dtype == DTYPE_F32 ? 4 : 2;
	float energy = 0, norm = 0;
	int fits = 1;

	if (token >= block->stride)
		return;
	for (uint32_t pair = lane; pair < part->n_columns / 16; pair += 32) {
		const struct codec_octet *o = &part->octets[2 * pair];
		uint4 *out[2] = {(uint4 *)(block->x + codec_feature_at(token, 16 * pair, part->n_columns)),
			(uint4 *)(block->x + codec_feature_at(token, 16 * pair + 8, part->n_columns))};
		float x[2][8] = {{0}, {0}};

		if (token >= chunk->n_tokens) {
			*out[0] = *out[1] = make_uint4(0, 0, 0, 0);
			continue;
		}
		for (int i = 0; i < 2; i++)
			if (o[i].layer != CODEC_NO_LAYER)
				octet_load(part->dtype,
					octet_address(chunk, part->first_layer + o[i].layer, part->plane,
						o[i].head, o[i].dim, token, size),
					x[i]);
		octets_unrotate(o, chunk->cos[part->plane] + (size_t)token * part->half,
			chunk->sin[part->plane] + (size_t)token * part->half, part->inverse_square, x[0],
			x[1]);
		for (int i = 0; i < 2; i++)
			*out[i] = octet_finish(part, 16 * pair + 8 * i, x[i], &energy, &norm, &fits);
	}
	for (int step = 16; step > 0; step /= 2) {
		energy += __shfl_xor_sync(0xffffffffu, energy, step);
		norm += __shfl_xor_sync(0xffffffffu, norm, step);
		fits &= __shfl_xor_sync(0xffffffffu, fits, step);
	}
	if (lane == 0 && token < chunk->n_tokens) {
		block->energy[token] = fits ? energy : INFINITY;
		block->norm[token] = norm;
	}
}
