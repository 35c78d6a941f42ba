/*
 * Eight elements of paged memory at a time, and where they lie. An octet is loaded and stored in one access
 * of 16 bytes (two in f32); host code sees to it that pages are aligned so, or does not come here.
 */
#ifndef KERNELS_CUDA_ELEMENT_CUH
#define KERNELS_CUDA_ELEMENT_CUH

#include "kernels/cuda/codec/codec.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/formula.h"

/* Where a token lies in any pages, and an octet in all tokens: looked up once, for many of the other. */
struct token_place {
	uint32_t block, slot;
};

struct octet_place {
	uint8_t *base;
	uint64_t block_stride, token_stride;
};

__device__ static inline struct token_place token_find(const struct codec_device_chunk *chunk, uint32_t token)
{
	const uint32_t at = chunk->run.offset + token;

	return {chunk->run.blocks[at / chunk->run.block_tokens], at % chunk->run.block_tokens};
}

__device__ static inline struct octet_place octet_find(const struct codec_device_chunk *chunk, uint32_t layer,
	uint32_t plane, uint32_t head, uint32_t dim, uint32_t element_bytes)
{
	const struct kv_pages *pages = &chunk->pages[layer * chunk->n_planes + plane];

	return {pages->base + head * pages->head_stride + dim * element_bytes, pages->block_stride,
		pages->token_stride};
}

/* Of a part's octet; one that is none is looked up as if it were of the first layer, and not to be used. */
__device__ static inline struct octet_place part_octet_find(const struct codec_device_chunk *chunk,
	const struct codec_device_part *part, const struct codec_octet &o, uint32_t element_bytes)
{
	return octet_find(chunk, part->first_layer + (o.layer == CODEC_NO_LAYER ? 0 : o.layer), part->plane,
		o.head, o.dim, element_bytes);
}

__device__ static inline uint8_t *octet_of(const struct octet_place &o, const struct token_place &t)
{
	return o.base + t.block * o.block_stride + t.slot * o.token_stride;
}

__device__ static inline float half_to_float(uint32_t dtype, uint32_t bits)
{
	return dtype == DTYPE_BF16 ? bf16_to_f32((uint16_t)bits) : simt_float((uint16_t)bits);
}

/* Eight of an array, from a multiple of eight on. */
__device__ static inline void floats_load(float x[8], const float *from)
{
	const float4 a = ((const float4 *)from)[0], b = ((const float4 *)from)[1];

	x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
	x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

/* Undoes the rotation of an octet and the one behind it, of which nothing is used unless they are
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

#endif
