/*
 * What `cistern bench gpu` works on: a model's paged cache in device memory and a transform for it, both made
 * up. Features are a mix of cosines whose deviations fall exponentially, so the basis (the discrete cosine
 * transform) is what calibration on them would find; the step is such that the rung comes to about the ratio
 * that is asked for. One thread.
 */
#ifndef TOOLS_BENCH_GPU_SETTING_H
#define TOOLS_BENCH_GPU_SETTING_H

#include "runtime/cuda/codec.h"

enum { SETTING_CHUNK = 256, SETTING_BLOCK = 16 };

struct setting_shape {
	uint32_t n_layers, n_heads, dim, n_tokens;
	double ratio;
};

struct setting {
	struct geometry g;
	struct transform *t;
	uint32_t n_tokens, n_chunks, n_blocks;
	size_t bytes;       /* of raw KV */
	CUdeviceptr memory; /* [n_layers][2][n_blocks][SETTING_BLOCK][n_heads][dim] bf16 */
	struct kv_pages *pages;
	uint32_t *blocks;
	const struct device *device;
};

/* -ENOMEM, -EINVAL: more than the GPU has, or shapes that do not work; what the driver said. */
int setting_init(struct setting *s, const struct device *d, const struct setting_shape *shape);
void setting_fini(struct setting *s);
/* Chunk number i of the sequence. */
struct codec_chunk setting_chunk(const struct setting *s, uint32_t i);

#endif
