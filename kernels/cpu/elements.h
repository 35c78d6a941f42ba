/* Elements of paged memory, one or a vector at a time, as f32. */
#ifndef KERNELS_CPU_ELEMENTS_H
#define KERNELS_CPU_ELEMENTS_H

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

/* One token of one layer. */
SIMD_FN uint8_t *token_at(const struct kv_pages *pages, const struct kv_run *run, uint32_t token)
{
	const uint32_t i = run->offset + token;
	return pages->base + run->blocks[i / run->block_tokens] * pages->block_stride +
	       i % run->block_tokens * pages->token_stride;
}

SIMD_FN float element_load(uint32_t dtype, const uint8_t *p)
{
	uint16_t h;
	float x;
	if (dtype == DTYPE_F32) {
		memcpy(&x, p, sizeof x);
		return x;
	}
	memcpy(&h, p, sizeof h);
	return dtype == DTYPE_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

SIMD_FN vf vector_load(uint32_t dtype, const uint8_t *p)
{
	if (dtype == DTYPE_F16)
		return vf_from_f16(p);
	if (dtype == DTYPE_BF16)
		return vf_from_bf16(p);
	vf v;
	memcpy(&v, p, sizeof v);
	return v;
}

#endif
