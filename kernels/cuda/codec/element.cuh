/*
 * Eight elements of paged memory at a time, and where they lie. An octet is loaded and stored in one access
 * of 16 bytes (two in f32); host code sees to it that pages are aligned so, or does not come here.
 */
#ifndef KERNELS_CUDA_ELEMENT_CUH
#define KERNELS_CUDA_ELEMENT_CUH

#include "kernels/cuda/codec/codec.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/formula.h"

__device__ static inline uint8_t *octet_address(const struct codec_device_chunk *chunk, uint32_t layer,
	uint32_t plane, uint32_t head, uint32_t dim, uint32_t token, uint32_t element_bytes)
{
	const struct kv_pages *pages = &chunk->pages[layer * chunk->n_planes + plane];
	const uint32_t at = chunk->run.offset + token;
	const uint32_t block = chunk->run.blocks[at / chunk->run.block_tokens];

	return pages->base + block * pages->block_stride +
	       at % chunk->run.block_tokens * pages->token_stride + head * pages->head_stride +
	       dim * element_bytes;
}

__device__ static inline float half_to_float(uint32_t dtype, uint32_t bits)
{
	return dtype == DTYPE_BF16 ? bf16_to_f32((uint16_t)bits) : simt_float((uint16_t)bits);
}

__device__ static inline uint32_t half_from_float(uint32_t dtype, float x)
{
	return dtype == DTYPE_BF16 ? bf16_from_f32(x) : f16_from_f32(x);
}

/* Eight of an array, from a multiple of eight on. */
__device__ static inline void floats_load(float x[8], const float *from)
{
	const float4 a = ((const float4 *)from)[0], b = ((const float4 *)from)[1];

	x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
	x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ static inline void octet_store(uint32_t dtype, uint8_t *at, const float x[8])
{
	if (dtype == DTYPE_F32) {
		((float4 *)at)[0] = make_float4(x[0], x[1], x[2], x[3]);
		((float4 *)at)[1] = make_float4(x[4], x[5], x[6], x[7]);
		return;
	}
	uint32_t words[4];

	for (int i = 0; i < 4; i++)
		words[i] = half_from_float(dtype, x[2 * i]) | half_from_float(dtype, x[2 * i + 1]) << 16;
	*(uint4 *)at = make_uint4(words[0], words[1], words[2], words[3]);
}

/* Undoes, or does, the rotation of an octet and the one behind it, of which nothing is used unless they are
 * a pair. */
__device__ static inline void octets_unrotate(const struct codec_octet *o, const float *cos_,
	const float *sin_, float inverse_square, float a[8], float b[8])
{
	if (o->rotation == CODEC_PAIR_LOW) {
		float c[8], s[8];

		floats_load(c, cos_ + o->angle);
		floats_load(s, sin_ + o->angle);
		for (int i = 0; i < 8; i++)
			rope_undo(&a[i], &b[i], c[i], s[i], inverse_square);
	}
	if (o[0].rotation == CODEC_INTERLEAVED)
		for (int i = 0; i < 4; i++)
			rope_undo(&a[2 * i], &a[2 * i + 1], cos_[o[0].angle + i], sin_[o[0].angle + i],
				inverse_square);
	if (o[1].rotation == CODEC_INTERLEAVED)
		for (int i = 0; i < 4; i++)
			rope_undo(&b[2 * i], &b[2 * i + 1], cos_[o[1].angle + i], sin_[o[1].angle + i],
				inverse_square);
}

__device__ static inline void octets_rotate(
	const struct codec_octet *o, const float *cos_, const float *sin_, float a[8], float b[8])
{
	if (o->rotation == CODEC_PAIR_LOW) {
		float c[8], s[8];

		floats_load(c, cos_ + o->angle);
		floats_load(s, sin_ + o->angle);
		for (int i = 0; i < 8; i++)
			rope_rotate(&a[i], &b[i], c[i], s[i]);
	}
	if (o[0].rotation == CODEC_INTERLEAVED)
		for (int i = 0; i < 4; i++)
			rope_rotate(&a[2 * i], &a[2 * i + 1], cos_[o[0].angle + i], sin_[o[0].angle + i]);
	if (o[1].rotation == CODEC_INTERLEAVED)
		for (int i = 0; i < 4; i++)
			rope_rotate(&b[2 * i], &b[2 * i + 1], cos_[o[1].angle + i], sin_[o[1].angle + i]);
}

#endif
