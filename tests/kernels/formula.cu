/* Uses every shared formula on the device and on the host, so that neither side's compiler loses them. */
#include "kernels/formula.h"

__host__ __device__ static float use_all(float x, uint64_t w, unsigned bits)
{
	float a = f16_to_f32(f16_from_f32(x));
	float b = bf16_to_f32(bf16_from_f32(x));
	rope_rotate(&a, &b, 0.6f, 0.8f);
	rope_undo(&a, &b, 0.6f, 0.8f, 1.0f);
	const float lanes[QUANT_LANES] = {a, b};
	uint16_t steps[QUANT_CANDIDATES];
	const int n = quant_candidates(bits, quant_fold(lanes), a, b, 256, steps);
	const float step = n > 0 ? f16_to_f32(steps[0]) : 1.0f;
	const uint32_t code = quant_code(x, 1.0f / step, quant_centre(bits), quant_top(bits));
	return quant_value(code, step, quant_centre(bits)) + (float)quant_unpack8(quant_pack8(w, bits), bits);
}

__global__ void use_on_device(float *x, uint64_t w, unsigned bits)
{
	*x = use_all(*x, w, bits);
}

float use_on_host(float x, uint64_t w, unsigned bits);
float use_on_host(float x, uint64_t w, unsigned bits)
{
	return use_all(x, w, bits);
}
