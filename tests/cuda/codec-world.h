/* A model's cache in device memory with a copy on the host, of any geometry, and a transform that is made up
 * for it: what the tests of the codec on the device work on. Aborts when something fails that is not under
 * test. */
#ifndef TESTS_CUDA_CODEC_WORLD_H
#define TESTS_CUDA_CODEC_WORLD_H

#include "runtime/cuda/codec.h"

struct codec_shape {
	const char *what;
	uint32_t n_layers, n_planes, n_heads, dim, dtype;
	uint32_t rope_kind, rope_offset, rope_dim; /* of plane 0 */
	float rope_scale;
	uint32_t group; /* layers in a part */
	uint32_t n_components;
	uint32_t block_tokens;
	bool heads_outside; /* HND: a head's tokens lie together */
};

struct codec_world {
	struct geometry g;
	struct transform *t;
	uint8_t *memory, *device_copy; /* host */
	size_t size;
	CUdeviceptr device_memory;
	struct kv_pages *pages, *device_pages; /* [n_layers, n_planes] */
	uint32_t blocks[64];
	uint32_t block_tokens, n_blocks;
	const struct device *device;
	struct codec *host;
	uint64_t random;
};

struct codec_world *codec_world_new(const struct device *d, const struct codec_shape *shape, uint64_t seed);
void codec_world_free(struct codec_world *w);
float codec_world_gauss(struct codec_world *w);
/* New values of the transform's kind: mean + basis * (deviation * noise) over weight, rotated. The same on
 * the device. */
void codec_world_fill(struct codec_world *w);
/* The device's memory into device_copy, and host memory to the device. */
void codec_world_fetch(struct codec_world *w);
void codec_world_send(struct codec_world *w);
struct codec_chunk codec_world_chunk(
	struct codec_world *w, bool on_device, uint32_t offset, uint32_t n, uint64_t position);
/* The bytes of a token of one layer's plane's head, in either copy. */
uint8_t *codec_world_at(struct codec_world *w, uint8_t *memory, uint32_t layer, uint32_t plane, uint32_t head,
	uint32_t offset, uint32_t token);
/* Squared norm, in the transform's metric, of a token's features, and of the difference of two copies. */
double codec_world_norm(
	struct codec_world *w, uint8_t *a, uint8_t *b, uint32_t plane, uint32_t offset, uint32_t token);

#endif
