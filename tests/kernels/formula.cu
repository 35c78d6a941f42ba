/* Uses every shared formula on the device and on the host, so that neither side's compiler loses them. */
#include "kernels/formula.h"

__host__ __device__ static float use_all(float x)
{
	float a = f16_to_f32(f16_from_f32(x));
	float b = bf16_to_f32(bf16_from_f32(x));
	rope_rotate(&a, &b, 0.6f, 0.8f);
	rope_undo(&a, &b, 0.6f, 0.8f, 1.0f);
	const float lanes[QUANT_LANES] = {a, b};
	uint16_t steps[QUANT_CANDIDATES];
	const int n = quant_candidates(quant_fold(lanes), a, 256, steps);
	const float step = n > 0 ? f16_to_f32(steps[0]) : 1.0f;
	const uint32_t code = quant_code(x, 1.0f / step);
	return quant_value(code, step) + quant_residual(x, 1.0f / step);
}

__global__ void use_on_device(float *x)
{
	*x = use_all(*x);
}

float use_on_host(float x);
float use_on_host(float x)
{
	return use_all(x);
}
