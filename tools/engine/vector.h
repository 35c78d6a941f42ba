/*
 * The engine's loops over floats, compiled for several instruction sets; vector_ops() picks the widest one
 * this CPU has. Pure functions, any thread. Floats need no alignment but their own.
 */
#ifndef ENGINE_VECTOR_H
#define ENGINE_VECTOR_H

#include <stddef.h>
#include <stdint.h>

struct vector_ops {
	const char *name;

	/* IEEE half precision, to and from; rounds to nearest even. The source of from_half may lie at any
	 * address, odd ones too. */
	void (*from_half)(const void *half, size_t n, float *x);
	void (*to_half)(const float *x, size_t n, uint16_t *half);

	/* y = x / rms(x) * weight; n is a multiple of 16. */
	void (*rms_norm)(const float *x, const float *weight, size_t n, float eps, float *y);

	/* y[i] = silu(gate[i]) * up[i]; n is a multiple of 16. */
	void (*swiglu)(const float *gate, const float *up, size_t n, float *y);

	/* Rotates one head in place: the pair (x[i], x[i + n / 2]) by the angle whose cosine and sine are
	 * cos[i] and sin[i]. */
	void (*rotate)(float *x, const float *cos, const float *sin, size_t n);

	/* x[i] = exp(scale * x[i]) / sum over i. */
	void (*softmax)(float *x, size_t n, float scale);
};

const struct vector_ops *vector_ops(void);

#endif
