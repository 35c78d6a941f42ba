/*
 * The features of a layer group in a chunk: read from the pages with the rotation undone, and written back.
 * What the codecs of the bench and its bound stand on. Pure; memory is taken and returned inside.
 */
#ifndef BENCH_RATE_LAYER_GROUP_H
#define BENCH_RATE_LAYER_GROUP_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/codec.h"

struct layer_group {
	uint32_t plane, first_layer, n_layers;
	size_t p; /* features of a token */
};

/* x: [n, p], the mean [p] subtracted (NULL: none). -ENOMEM. */
int layer_group_read(const struct kernels *k, const struct codec_chunk *chunk,
	const struct layer_group *group, const uint16_t *tokens, size_t n, const float *mean, float *x);
int layer_group_write(const struct kernels *k, const struct codec_chunk *chunk,
	const struct layer_group *group, const uint16_t *tokens, size_t n, const float *mean, const float *x);

#endif
